"""Volume-preserving layers for data of which the first coordinates are angles: their place is a torus, not a line."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from p4lab.baselines.designed import coupling_network
from p4lab.baselines.layer import device_of
from p4lab.errors import OptionError
from p4lab.flows.bijection import Bijective
from p4lab.flows.context import check_length
from p4lab.flows.coupling import Affine
from p4lab.flows.linear_layers import Linear, through
from p4lab.p4.validate import check_options, check_tensor, seed_from

HARMONICS = 3
"""Networks see an angle by sine and cosine of it, of its double and of its triple."""
SHEAR = Affine(balanced=True)
"""How numbers move: scales multiply to 1."""


class TorusCoupling(Bijective):
    r"""Shears of angles and numbers in turn: they turn and move each other, and no volume changes.

    .. math:: x_b' = x_b \odot e^{s(\varphi, x_a)} + t(\varphi, x_a), \qquad \varphi' = \varphi + g(x'), \qquad
        \varphi_q'' = \varphi_q' + h(\varphi_p'), \qquad \varphi_p'' = \varphi_p' + k(\varphi_q''), \qquad \sum s = 0

    With a context c, all of s, t, g, h and k read it, too.

    Angles enter networks by sines and cosines only, so that the map goes once around the circle with each of them, and
    a density on the torus has no seam. It starts at the identity.

    Args:
        angles: number of angles (radians), the first coordinates; at least 2.
        numbers: number of all others, at least 2; of these the first half stays.
        hidden: width of the hidden layers of the network that moves numbers; those that turn have half of it.
        depth: number of hidden layers.
        seed: seed of the networks, or a CPU generator to draw them from (None: torch's default generator).
        dtype: float32 or float64.
        device: device of all tensors.
        context: length of c, 0 for none.

    Raises:
        OptionError, DtypeError: something is out of range.

    Cost for a batch of B: O(B hidden (d + depth hidden)), forward and inverse alike.
    Source: ours, from arXiv:1410.8516 (NICE) and arXiv:2002.02428 (flows on tori).

    Example:
        >>> y, logabsdet = TorusCoupling(2, 4, hidden=8)(torch.ones(5, 6))
        >>> y.shape, logabsdet
        (torch.Size([5, 6]), tensor([0., 0., 0., 0., 0.]))
    """

    def __init__(
        self,
        angles: int,
        numbers: int,
        hidden: int = 64,
        depth: int = 2,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_options(numbers, 1, dtype)
        if angles < 2 or numbers < 2 or hidden < 2 or depth < 1:
            raise OptionError(
                f"angles={angles}, numbers={numbers}, hidden={hidden}, depth={depth}: expected at least 2, 2, 2 and 1"
            )
        self.angles, self.numbers, self.dim = angles, numbers, angles + numbers
        self.cut, self.first, self.context = numbers // 2, angles // 2, check_length(context)
        generator = torch.Generator().manual_seed(seed_from(seed))
        seen, small = 2 * HARMONICS, hidden // 2

        def network(read: int, width: int, write: int) -> nn.Module:
            return coupling_network(read + context, width, write, generator, depth)

        self.move = network(self.cut + seen * angles, hidden, 2 * (numbers - self.cut))
        self.turn = network(numbers, small, angles)
        self.turn_second = network(seen * self.first, small, angles - self.first)
        self.turn_first = network(seen * (angles - self.first), small, self.first)
        self.to(dtype=dtype, device=device_of(device))

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, 0)`` of shapes (..., d) and (...), unchecked."""
        more = [] if context is None else [context]

        def read(*parts: Tensor) -> Tensor:
            return torch.cat([*parts, *more], -1) if len(parts) + len(more) > 1 else parts[0]

        turned, a, b = x.split((self.angles, self.cut, self.numbers - self.cut), -1)
        sizes = (self.first, self.angles - self.first)
        if inverse:
            p, q = turned.split(sizes, -1)
            p = p - self.turn_first(read(harmonics(q)))
            q = q - self.turn_second(read(harmonics(p)))
            turned = torch.cat([p, q], -1) - self.turn(read(x[..., self.angles :]))
        b, _ = SHEAR(b, self.move(read(harmonics(turned), a)), inverse, -1)
        if inverse:
            return torch.cat([turned, a, b], -1), x.new_zeros(x.shape[:-1])
        moved = torch.cat([a, b], -1)
        p, q = (turned + self.turn(read(moved))).split(sizes, -1)
        q = q + self.turn_second(read(harmonics(p)))
        return torch.cat([p + self.turn_first(read(harmonics(q))), q, moved], -1), x.new_zeros(x.shape[:-1])

    def extra_repr(self) -> str:
        """Return the widths."""
        context = f", context={self.context}" if self.context else ""
        return f"angles={self.angles}, numbers={self.numbers}{context}"


class BesideAngles(Bijective):
    r"""A linear layer of the numbers; angles stay.

    .. math:: (\varphi, x) \mapsto (\varphi, W x + b)

    Args:
        linear: the layer (`p4lab.flows.Linear`), such as P4Inv.
        angles: number of angles, the first coordinates; at least 1.

    Raises:
        OptionError: no angles.

    Cost: that of the layer.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> BesideAngles(P4Inv(3, init="identity"), 2)(torch.ones(1, 5))[0].detach()
        tensor([[1., 1., 1., 1., 1.]])
    """

    def __init__(self, linear: Linear, angles: int) -> None:
        super().__init__()
        if angles < 1:
            raise OptionError(f"angles={angles}: expected at least 1")
        self.linear: Any = linear
        self.angles = angles
        self.dim = angles + int(cast(Any, linear).dim)

    def check(self, x: Tensor) -> None:
        """Raise the error of what is no tensor; the layer refuses what does not fit."""
        check_tensor("BesideAngles", x)

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det W|)`` of shapes (..., d) and (...)."""
        numbers, logabsdet = through(self.linear, x[..., self.angles :], inverse)
        return torch.cat([x[..., : self.angles], numbers], -1), logabsdet


def harmonics(angles: Tensor) -> Tensor:
    """Return sines and cosines of multiples of angles, shape (..., 2 * HARMONICS * n) for shape (..., n)."""
    multiples = torch.cat([k * angles for k in range(1, HARMONICS + 1)], -1)
    return torch.cat([multiples.cos(), multiples.sin()], -1)
