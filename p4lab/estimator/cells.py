"""Where the values of a column lie in a coordinate of a flow: in a point if they are exact, else in a cell."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EDGE = 1e-12
"""Gaussian quantiles are taken of shares that are so far from 0 and 1."""
SMOOTH = 0.5
"""Rows that a value counts more than it has, so that one without rows is rare, not impossible."""
Floats = NDArray[np.float64]


class Coordinate(NamedTuple):
    """One coordinate of all rows, arrays of shape (n,): see `Cells`."""

    low: Floats
    width: Floats
    curved: NDArray[np.bool_]
    log_volume: Floats


@dataclass(frozen=True)
class Cells:
    r"""Where rows lie in the space of a flow of density q.

    .. math:: y_j = l_j + w_j u_j \;\text{or the Gaussian quantile of it}, \quad u \sim U[0, 1)^d, \qquad
              p(\text{row}) = E_u\Big[ q(y) \prod_j \frac{\partial y_j}{\partial x_j} \Big]

    with the derivative by u instead of x where the value x fills a cell (:math:`w_j > 0`).

    Attributes:
        low, width: l and w, shape (n, d), float64.
        curved: where the Gaussian quantile is taken, shape (n, d).
        log_volume: logarithm of that part of the product that u does not change, shape (n,).
    """

    low: Tensor
    width: Tensor
    curved: Tensor
    log_volume: Tensor

    @classmethod
    def of(cls, coordinates: list[Coordinate]) -> Self:
        """Return the cells of rows from their coordinates."""
        low, width, curved, log_volume = (
            torch.from_numpy(np.stack(part, -1)) for part in zip(*coordinates, strict=True)
        )
        return cls(low, width, curved, log_volume.sum(-1))

    @property
    def exact(self) -> bool:
        """Whether every row is a point."""
        return not bool(self.width.any())

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        return type(self)(self.low[rows], self.width[rows], self.curved[rows], self.log_volume[rows])

    def split(self, size: int) -> list[Self]:
        """Return the rows in parts of at most so many."""
        return [self[start : start + size] for start in range(0, len(self), size)]

    def points(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the points y and the logarithms of the products, shapes (..., n, d) and (..., n), for u like y."""
        y = self.low + self.width * u
        z = torch.special.ndtri(y.clamp(EDGE, 1 - EDGE))
        log_normal = -0.5 * (z.square() + np.log(2 * np.pi))
        return torch.where(self.curved, z, y), self.log_volume - (log_normal * self.curved).sum(-1)


def shares(y: Floats) -> Floats:
    """Return the share of a standard normal distribution that is below y."""
    return torch.special.ndtr(torch.from_numpy(y)).clamp(EDGE, 1 - EDGE).numpy()


class Scale:
    """Numbers in standard units; an integer c fills the cell from c to c + 1.

    Args:
        x: numbers that are not all the same, or integers; at least one.
        whole: whether they are integers.
    """

    def __init__(self, x: Floats, whole: bool) -> None:
        self.whole = whole
        low, high = x.min(), x.max()
        # In units of half the range neither squares nor their sum can overflow or vanish.
        middle, half = low / 2 + high / 2, (high / 2 - low / 2) or 1.0
        parts = (x - middle) / half
        self.mean = middle + half * parts.mean() + whole / 2
        self.std = np.hypot(half * parts.std(), whole / 12**0.5)  # that of a cell is 1 / sqrt(12)

    def cells(self, x: Floats) -> Coordinate:
        """Return where numbers lie."""
        width = np.full(len(x), self.whole / self.std)
        return Coordinate((x - self.mean) / self.std, width, width < 0, np.full(len(x), -np.log(self.std)))

    def values(self, y: Floats) -> Floats:
        """Return the numbers at coordinates y."""
        x = y * self.std + self.mean
        return np.floor(x) if self.whole else x


class Counts:
    """Integers of a narrow range: each has a part of [0, 1] as large as its share, those outside half from one to next.

    Args:
        x: integers, at least one.
    """

    def __init__(self, x: Floats) -> None:
        self.low, self.high = x.min(), x.max()
        counts = np.bincount((x - self.low).astype(np.int64)) + SMOOTH
        self.edges = np.cumsum([SMOOTH, *counts]) / (counts.sum() + 2 * SMOOTH)
        self.tail = self.edges[0]

    def cells(self, x: Floats) -> Coordinate:
        """Return where integers lie."""
        beyond = np.maximum(np.maximum(self.low - x, x - self.high), 0)
        tail = self.tail * 0.5**beyond
        inside = (np.clip(x, self.low, self.high) - self.low).astype(np.int64)
        width = np.where(beyond > 0, tail, np.diff(self.edges)[inside])
        low = np.select([x < self.low, x > self.high], [tail, 1 - 2 * tail], self.edges[inside])
        log_width = np.where(beyond > 0, np.log(self.tail) - beyond * np.log(2), np.log(np.diff(self.edges)[inside]))
        return Coordinate(low, width, np.full(len(x), True), log_width)

    def values(self, y: Floats) -> Floats:
        """Return the integers at coordinates y."""
        share = shares(y)
        inside = self.low + np.searchsorted(self.edges[1:-1], share, side="right")
        below = self.low - np.ceil(np.log2(self.tail / share))
        above = self.high + 1 + np.floor(np.log2(self.tail / (1 - share)))
        return np.select([share < self.edges[0], share > self.edges[-1]], [below, above], inside)
