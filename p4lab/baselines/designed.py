"""Maps of a smaller family: Woodbury transformations, butterflies, and the nonlinear couplings of NICE and RealNVP."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.baselines.layer import Baseline, check_identity, device_of, outside, start_matrix
from p4lab.errors import OptionError
from p4lab.linalg import capacitance, small_inverse, small_slogdet
from p4lab.p4 import RECOMMENDED
from p4lab.p4.orthogonal import LARGEST_ERROR
from p4lab.p4.validate import check_input, check_options, seed_from


class Woodbury(Baseline):
    r"""Linear layer that stays within rank k of the identity.

    .. math:: W = I + u^T v, \qquad W^{-1} = I - u^T C^{-1} v, \qquad \det W = \det C, \qquad C = I_k + v u^T

    The algebra of P4Inv without frozen part and merges: u and v both train, and the family never grows. It starts with
    u = 0 and random v. Further arguments as for `p4lab.baselines.Dense`.

    Args:
        rank: k, at least 1 and no more than d (None: that of P4Inv's preset `p4lab.p4.RECOMMENDED`).

    Raises:
        OptionError: k < 1, or a start further than rank k from the identity.

    Cost for a batch of B: O(B d k + d k^2), the inverse as well; `logabsdet` O(d k^2).
    Source: Lu and Huang, arXiv:2002.12229.
    """

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        rank = RECOMMENDED.rank_for(dim) if rank is None else rank
        check_options(dim, rank, self._kind["dtype"])
        rank = min(rank, dim)
        seed = seed_from(seed)
        start = start_matrix(init, dim, self._kind["dtype"], seed)
        left, s, right = torch.linalg.svd(start - torch.eye(dim, dtype=start.dtype, device=start.device))
        if len(s) > rank and float(s[rank]) > LARGEST_ERROR:
            why = f"init - I has a singular value of {float(s[rank]):.3g} beyond it"
            outside(f"rank-{rank} Woodbury", why, "raise rank")
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(rank, dim, generator=generator, dtype=torch.float64, device="cpu") / dim**0.5
        count = min(rank, int((s > LARGEST_ERROR).sum()))
        u = torch.zeros_like(noise)
        u[:count] = (left * s)[:, :count].t()
        noise[:count] = right[:count]
        self.u, self.v = nn.Parameter(u.to(**self._kind)), nn.Parameter(noise.to(**self._kind))

    @property
    def weight(self) -> Tensor:
        """The effective weights. Cost O(d^2 k)."""
        return torch.addmm(torch.eye(self.dim, dtype=self.u.dtype, device=self.u.device), self.u.t(), self.v)

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar. Cost O(d k^2)."""
        return small_slogdet(capacitance(self.v, self.u))[1]

    def _map(self, x: Tensor) -> Tensor:
        return torch.addmm(x, F.linear(x, self.v), self.u)

    def _unmap(self, y: Tensor) -> Tensor:
        c_inverse = small_inverse(capacitance(self.v, self.u))
        return torch.addmm(y, F.linear(F.linear(y, self.v), c_inverse), self.u, alpha=-1)


class Butterfly(Baseline):
    r"""Linear layer that is a product of sparse stages, each of which mixes pairs of coordinates.

    .. math:: W = B_{2m-1} \cdots B_1, \qquad (B x)_i = a_i x_i + b_i x_{p(i)}, \qquad m = \lceil \log_2 d \rceil

    Stages have strides 1, 2, 4, ..., 2^(m-1), ..., 4, 2, 1: two butterflies that share their widest stage. With stride
    s coordinate i is paired with i + s if bit log2(s) of i is 0, and with i - s if it is 1. For widths that are no
    power of 2 nothing is padded: whoever has no partner is scaled by a_i alone. A stage is a direct sum of 2 x 2 blocks
    with determinants :math:`a_i a_{p(i)} - b_i b_{p(i)}`, so that inverse and log|det| are exact; nothing keeps a block
    from becoming singular. It starts at the identity.

    Args:
        dim: width d.
        init: "identity" or a (d, d) tensor that is the identity.
        bias: whether there is an additive bias.
        seed: not used: the start is not random.
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError: a start that is not the identity.

    Cost for a batch of B: O(B d log d), the inverse as well; `logabsdet` O(d log d); ``weight`` O(d^2 log d).
    Source: Meng et al., arXiv:2209.13774 (ButterflyFlow), whose widths are powers of 2, and Dao et al.,
    arXiv:1903.05895, for products of butterflies.
    """

    partner: Tensor

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        start = start_matrix(init, dim, self._kind["dtype"], seed)
        check_identity(start, "butterfly", "its stages start at the identity", "take the method 'plu', 'qr' or 'svd'")
        partner = butterfly_partners(dim)
        self.register_buffer("partner", partner.to(self._kind["device"]))
        self.own = nn.Parameter(torch.ones(partner.shape, **self._kind))
        self.other = nn.Parameter(torch.zeros(partner.shape, **self._kind))

    @property
    def weight(self) -> Tensor:
        """The product of the stages. Cost O(d^2 log d)."""
        return self._map(torch.eye(self.dim, dtype=self.own.dtype, device=self.own.device)).t()

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar. Cost O(d log d)."""
        own, other = self._stages()
        # A block counts at both of its coordinates; without a partner the determinant here is a square.
        return self._determinants(own, other).abs().log().sum() / 2

    def _map(self, x: Tensor) -> Tensor:
        return self._apply_stages(x, *self._stages(), self.partner)

    def _unmap(self, y: Tensor) -> Tensor:
        own, other = self._stages()
        determinants = self._determinants(own, other)
        inverse = own.gather(1, self.partner) / determinants, -other / determinants
        return self._apply_stages(y, *(part.flip(0) for part in (*inverse, self.partner)))

    def _stages(self) -> tuple[Tensor, Tensor]:
        alone = self.partner == torch.arange(self.dim, device=self.partner.device)
        return self.own, self.other.masked_fill(alone, 0)

    def _determinants(self, own: Tensor, other: Tensor) -> Tensor:
        return own * own.gather(1, self.partner) - other * other.gather(1, self.partner)

    def _apply_stages(self, x: Tensor, own: Tensor, other: Tensor, partner: Tensor) -> Tensor:
        z = x.t()  # rows are taken faster than columns
        for a, b, p in zip(own.unsqueeze(-1), other.unsqueeze(-1), partner, strict=True):
            z = a * z + b * z[p]
        return z.t()


def butterfly_partners(dim: int) -> Tensor:
    """Return with whom each coordinate is paired in each stage of a `Butterfly`, itself if with nobody.

    Returns:
        Shape (stages, d), indices, on the CPU; at least one stage.

    Example:
        >>> butterfly_partners(3).tolist()
        [[1, 0, 2], [2, 1, 0], [1, 0, 2]]
    """
    bits = max(1, (dim - 1).bit_length())
    i = torch.arange(dim, device="cpu")
    rising = [torch.where(i ^ (1 << bit) < dim, i ^ (1 << bit), i) for bit in range(bits)]
    return torch.stack([*rising, *rising[-2::-1]])


class Coupling(nn.Module):
    r"""Two coupling layers, each moving one half of the coordinates by what a network reads from the other half.

    .. math:: y_b = x_b \odot e^{s(x_a)} + t(x_a), \qquad y_a = x_a, \qquad s = 0 \text{ for NICE}

    A nonlinear map: it has no ``weight`` and does not `fold`, and log|det| belongs to each sample. It starts at the
    identity (the last layers of its networks start at 0). Log-scales stay within +-2.

    Args:
        dim: width d, at least 2.
        affine: whether there are scales (RealNVP) or shifts only (NICE: additive, volume preserving).
        hidden: width of the networks' one hidden layer (None: d).
        seed: seed of the networks (None: torch's default generator).
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: dim, hidden or dtype out of range.

    Cost for a batch of B: O(B d hidden), forward, inverse and log|det| alike.
    Source: Dinh et al., arXiv:1410.8516 (NICE) and arXiv:1605.08803 (RealNVP).
    """

    def __init__(
        self,
        dim: int,
        affine: bool = True,
        hidden: int | None = None,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_options(dim, 1, dtype)
        if dim < 2 or (hidden is not None and hidden < 1):
            raise OptionError(f"dim={dim}, hidden={hidden}: expected dim >= 2 (two halves) and hidden >= 1")
        self.dim, self.affine, self.cut = dim, affine, dim // 2
        sizes = (self.cut, dim - self.cut)
        generator = torch.Generator().manual_seed(seed_from(seed))
        self.networks = nn.ModuleList(
            coupling_network(size, hidden or dim, other * (1 + affine), generator)
            for size, other in (sizes, sizes[::-1])
        )
        self.to(dtype=dtype, device=device_of(device))

    def forward(self, x: Tensor) -> Tensor:
        """Return y for x of shape (..., d)."""
        return self.with_logabsdet(x)[0]

    def logabsdet(self, x: Tensor) -> Tensor:
        """Return log|det dy/dx| at x (nats), shape (...) for x of shape (..., d)."""
        return self.with_logabsdet(x)[1]

    def with_logabsdet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...) in one pass.

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit.
        """
        check_input("Coupling", self.dim, next(self.parameters()), x)
        a, b = x.split((self.cut, self.dim - self.cut), -1)
        s, t = self._scale_and_shift(0, a)
        b = b * s.exp() + t
        r, t = self._scale_and_shift(1, b)
        return torch.cat([a * r.exp() + t, b], -1), s.sum(-1) + r.sum(-1)

    def inverse(self, y: Tensor) -> Tensor:
        """Return x for y of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit.
        """
        check_input("Coupling", self.dim, next(self.parameters()), y)
        a, b = y.split((self.cut, self.dim - self.cut), -1)
        r, t = self._scale_and_shift(1, b)
        a = (a - t) * (-r).exp()
        s, t = self._scale_and_shift(0, a)
        return torch.cat([a, (b - t) * (-s).exp()], -1)

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"dim={self.dim}, affine={self.affine}"

    def _scale_and_shift(self, which: int, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.networks[which](x)
        if not self.affine:
            return torch.zeros_like(out), out
        return scale_and_shift(out)


def scale_and_shift(out: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-scales within +-2, and shifts, of what a coupling's network puts out: (..., 2 m) to (..., m) each."""
    scale, shift = out.chunk(2, -1)
    return 2 * torch.tanh(scale / 2), shift


def coupling_network(
    read: int,
    hidden: int,
    write: int,
    generator: torch.Generator,
    depth: int = 1,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """Return the network of a coupling, whose last layer starts at 0 and all others as `nn.Linear` draws them.

    Args:
        read: number of inputs.
        hidden: width of the hidden layers.
        write: number of outputs.
        generator: source of randomness, on the CPU.
        depth: number of hidden layers.
        dtype: in which the numbers are drawn.

    Returns:
        The network, on the CPU.
    """
    # On the CPU, whatever torch's default device is.
    kind: dict[str, Any] = {"dtype": dtype, "device": "cpu"}
    layers: list[nn.Module] = []
    for inputs in (read, *[hidden] * (depth - 1)):
        linear = nn.utils.skip_init(nn.Linear, inputs, hidden, **kind)
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
        layers += [linear, nn.SiLU()]
    last = nn.utils.skip_init(nn.Linear, hidden, write, **kind)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*layers, last)
