"""Affine coupling layers that move one half of the coordinates."""

import torch
from torch import Tensor, nn

from p4lab.baselines.designed import coupling_network, scale_and_shift
from p4lab.baselines.layer import device_of
from p4lab.errors import OptionError
from p4lab.p4._validate import check_input, check_options, seed_from


class Halves(nn.Module):
    """What couplings share: the first half of the coordinates, and a network that says how the second half moves."""

    def __init__(
        self,
        dim: int,
        hidden: int = 64,
        depth: int = 2,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_options(dim, 1, dtype)
        if dim < 2 or hidden < 1 or depth < 1:
            raise OptionError(
                f"dim={dim}, hidden={hidden}, depth={depth}: expected dim >= 2 (two halves), hidden >= 1, depth >= 1"
            )
        self.dim, self.hidden, self.depth, self.cut = dim, hidden, depth, dim // 2
        generator = torch.Generator().manual_seed(seed_from(seed))
        self.network = coupling_network(self.cut, hidden, 2 * (dim - self.cut), generator, depth)
        self.to(dtype=dtype, device=device_of(device))


class AffineCoupling(Halves):
    r"""One coupling layer of RealNVP: the first half stays and says how the second half is scaled and shifted.

    .. math:: y_a = x_a, \qquad y_b = x_b \odot e^{s(x_a)} + t(x_a), \qquad |s| < 2

    It starts at the identity (the last layer of its network starts at 0). `p4lab.baselines.Coupling` moves both halves,
    one after the other.

    Args:
        dim: width d, at least 2; the first ``d // 2`` coordinates stay.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.
        seed: seed of the network, or a CPU generator to draw it from (None: torch's default generator).
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: dim, hidden, depth or dtype out of range.

    Cost for a batch of B: O(B hidden (d + depth hidden)), forward and inverse alike.
    Source: Dinh et al., arXiv:1605.08803.

    Example:
        >>> y, logabsdet = AffineCoupling(3, hidden=8)(torch.ones(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit.
        """
        check_input("AffineCoupling", self.dim, next(self.parameters()), x)
        a, b = x.split((self.cut, self.dim - self.cut), -1)
        s, t = scale_and_shift(self.network(a))
        return torch.cat([a, torch.addcmul(t, b, s.exp())], -1), s.sum(-1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/dy|)`` of shapes (..., d) and (...).

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit.
        """
        check_input("AffineCoupling", self.dim, next(self.parameters()), y)
        a, b = y.split((self.cut, self.dim - self.cut), -1)
        s, t = scale_and_shift(self.network(a))
        return torch.cat([a, (b - t) * (-s).exp()], -1), -s.sum(-1)

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"dim={self.dim}, hidden={self.hidden}, depth={self.depth}"
