"""What a density in the plane has to offer."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError

Bounds = tuple[float, float, float, float]
"""x0, x1, y0, y1."""
BOUNDS: Bounds = (-4.0, 4.0, -4.0, 4.0)
"""Where pictures of a density end if it does not say otherwise."""
REFERENCE = 50_000
"""Number of samples that levels and shares of pieces are taken from."""
SHARE = 0.999
"""The mass that counts as not negligible."""
CHUNK = 2_000_000
"""Largest number of float64 entries in a temporary tensor."""


@dataclass(frozen=True)
class Modes:
    """Separate round modes.

    Attributes:
        centres: shape (m, 2), float64.
        radius: distance from its centre within which nearly all of a mode lies.
    """

    centres: Tensor
    radius: float


@dataclass(frozen=True)
class Level:
    """A superlevel set of a density: all x with log p(x) >= ``log_density``.

    Attributes:
        log_density: nats.
        outside: true probability of being outside of the set.
    """

    log_density: float
    outside: float


class Density2D(ABC):
    r"""A probability density in the plane that can be sampled and evaluated exactly.

    It is a sum of separate pieces (arms, rings, squares), each with its share of the mass:

    .. math:: p(x) = \sum_{j=1}^m p_j(x)

    Args:
        name: what `density` calls it.
        label: what a reader is shown.
        bounds: x0, x1, y0, y1 of pictures; nearly all of the mass lies inside.

    Raises:
        ShapeError: from all methods, if points have another last dimension than 2.

    Attributes:
        modes: the pieces as round modes, None if they are not round.
    """

    def __init__(self, name: str, label: str, bounds: Bounds = BOUNDS, modes: Modes | None = None) -> None:
        self.name, self.label, self.bounds, self.modes = name, label, bounds, modes

    @abstractmethod
    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Return samples of shape (n, 2), float64."""

    @abstractmethod
    def _piece_log_prob(self, x: Tensor) -> Tensor:
        """Return log p_j(x) of shape (n, m) for x of shape (n, 2), float64, of which each row is on its own."""

    _width: int = 1
    """Entries of temporary tensors for each x, which bounds the rows that are evaluated at a time."""

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw ``n`` points, shape (n, 2), on the CPU.

        Args:
            n: number of points, at least 0.
            generator: CPU generator.
            dtype: of the result; the draw itself is float64.

        Raises:
            OptionError: n < 0.
        """
        if n < 0:
            raise OptionError(f"n={n}: expected at least 0 samples")
        return self._draw(n, generator).to(dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape (...) for x of shape (..., 2), in the dtype and on the device of x.

        Computed in float64 on the CPU; -inf where p is 0.
        """
        return self.piece_log_prob(x).logsumexp(-1)

    def piece_log_prob(self, x: Tensor) -> Tensor:
        """Return the logarithms of the m pieces at x, shape (..., m) for x of shape (..., 2)."""
        if x.shape[-1:] != (2,):
            raise ShapeError(f"points of shape {tuple(x.shape)}: expected (..., 2)")
        rows = x.reshape(-1, 2).to("cpu", torch.float64).split(max(1, CHUNK // self._width))
        result = torch.cat([self._piece_log_prob(chunk) for chunk in rows])
        return result.reshape(*x.shape[:-1], result.shape[-1]).to(x)

    def level(self, share: float = SHARE) -> Level:
        """Return the smallest superlevel set that holds this share of the mass.

        From 50,000 samples with a fixed seed: a share of 0.999 has a standard error of 0.00014.

        Raises:
            OptionError: share is not in (0, 1).
        """
        if not 0 < share < 1:
            raise OptionError(f"share={share}: expected a number between 0 and 1")
        _, values = self._reference
        level = values.quantile(1 - share, interpolation="lower")
        return Level(level.item(), (values < level).double().mean().item())

    @cached_property
    def piece_shares(self) -> Tensor:
        """The share of the mass that each piece has inside of the set of `level`, shape (m,), float64."""
        pieces, values = self._reference
        inside = values >= self.level().log_density
        return pieces[inside].argmax(-1).bincount(minlength=pieces.shape[-1]).double() / REFERENCE

    @cached_property
    def _reference(self) -> tuple[Tensor, Tensor]:
        pieces = self.piece_log_prob(self.sample(REFERENCE, torch.Generator().manual_seed(0)))
        return pieces, pieces.logsumexp(-1)

    def grid(self, side: int = 96) -> Tensor:
        """Return the centres of ``side`` x ``side`` cells over the bounds, shape (side, side, 2), float64.

        The first row is at the top (largest y), as in an image.

        Raises:
            OptionError: side < 1.
        """
        return grid(self.bounds, side)

    def cell_area(self, side: int = 96) -> float:
        """Return the area of a cell of `grid`."""
        return cell_area(self.bounds, side)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def cell_area(bounds: Bounds, side: int) -> float:
    """Return the area of a cell of `grid`."""
    x0, x1, y0, y1 = bounds
    return (x1 - x0) * (y1 - y0) / side**2


def grid(bounds: Bounds, side: int) -> Tensor:
    """Return the centres of ``side`` x ``side`` cells, shape (side, side, 2), float64, the first row at the top.

    Raises:
        OptionError: side < 1.
    """
    if side < 1:
        raise OptionError(f"side={side}: expected at least 1 cell")
    x0, x1, y0, y1 = bounds
    centres = (torch.arange(side, dtype=torch.float64, device="cpu") + 0.5) / side
    y, x = torch.meshgrid(y1 - (y1 - y0) * centres, x0 + (x1 - x0) * centres, indexing="ij")
    return torch.stack([x, y], dim=-1)
