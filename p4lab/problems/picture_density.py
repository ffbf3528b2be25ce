"""Densities from pictures: what is drawn, printed or photographed, as something to sample from."""

import math
from typing import Any

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.problems.density2d import BOUNDS, Bounds, Density2D, grid

FACE_BOUNDS: Bounds = (-3.2, 3.2, -3.2, 3.2)
"""Where the built-in picture lies."""


class GridDensity(Density2D):
    r"""Bilinear interpolation of values on a grid, normalized.

    Value v_i sits in the centre c_i of its cell of width a and height b, and fades to 0 over one cell:

    .. math:: p(x) = \sum_i \frac{v_i}{\sum_j v_j}\; \Lambda\left(\frac{x_1 - c_{i1}}{a}\right) \frac1a\;
              \Lambda\left(\frac{x_2 - c_{i2}}{b}\right) \frac1b, \qquad \Lambda(t) = \max(0, 1 - |t|)

    This is a mixture: a cell is drawn, then the sum of two uniform variables for each coordinate. Both are exact.

    Args:
        name, label: as `Density2D`.
        values: shape (rows, columns), none negative, the first row at the top (largest y).
        area: x0, x1, y0, y1 that the cells cover.
        bounds: as `Density2D`.

    Raises:
        ShapeError: values are not a table with at least one entry.
        OptionError: a value is negative or not finite, all are 0, or the area is empty.
    """

    def __init__(self, name: str, label: str, values: Any, area: Bounds, bounds: Bounds | None = None) -> None:
        super().__init__(name, label, bounds or area)
        table = torch.as_tensor(values, device="cpu").detach().to("cpu", torch.float64)
        if table.ndim != 2 or not table.numel():
            raise ShapeError(f"picture of shape {tuple(table.shape)}: expected (rows, columns), at least one of each")
        if not bool(torch.isfinite(table).all()) or bool((table < 0).any()):
            raise OptionError("picture: expected values that are finite and at least 0; found others")
        x0, x1, y0, y1 = area
        if not (x0 < x1 and y0 < y1):
            raise OptionError(f"area={area}: expected x0 < x1 and y0 < y1")
        table = table / table.max().clamp_min(torch.finfo(torch.float64).tiny)
        if not table.sum() > 0:
            raise OptionError("the picture is empty: draw something first, at least one value must be above 0")
        self.area, self.shape = area, (table.shape[0], table.shape[1])
        self._cell = torch.tensor(
            [(x1 - x0) / self.shape[1], (y1 - y0) / self.shape[0]], dtype=torch.float64, device="cpu"
        )
        self._share = table.flip(0) / table.sum()  # row 0 at the bottom: rows then grow with y
        self._padded = torch.nn.functional.pad(self._share / self._cell.prod(), (1, 1, 1, 1))
        self._origin = torch.tensor([x0, y0], dtype=torch.float64, device="cpu")

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(n, 5, generator=generator, dtype=torch.float64, device="cpu")
        ladder = self._share.flatten().cumsum(0)
        # The last rung is 1 but for rounding; right=True never lands on a cell without mass.
        cell = torch.searchsorted(ladder, u[:, 0] * ladder[-1], right=True).clamp_max(len(ladder) - 1)
        index = torch.stack([cell % self.shape[1], cell // self.shape[1]], dim=-1)
        return self._origin + self._cell * (index + 0.5 + (u[:, 1:3] + u[:, 3:5] - 1))

    def _piece_log_prob(self, x: Tensor) -> Tensor:
        position = (x - self._origin) / self._cell + 0.5  # in cells, counted from the padding's centres
        limit = torch.tensor([self.shape[1] + 1, self.shape[0] + 1], dtype=torch.float64, device="cpu")
        inside = ((position > 0) & (position < limit)).all(-1)
        position = torch.where(inside[:, None], position, 0.0)
        corner = position.floor()
        tx, ty = (position - corner).unbind(-1)
        column, row = corner.long().unbind(-1)
        p = self._padded
        low = (1 - tx) * p[row, column] + tx * p[row, column + 1]
        high = (1 - tx) * p[row + 1, column] + tx * p[row + 1, column + 1]
        return torch.where(inside, (1 - ty) * low + ty * high, 0.0).log()[:, None]


def grid_density(
    values: Any, bounds: Bounds = BOUNDS, name: str = "drawing", label: str = "Your own drawing"
) -> GridDensity:
    """Return the density that is drawn on a grid: darkness or brightness, whatever is not negative.

    Args:
        values: array, tensor or nested list of shape (rows, columns), none negative; the first row is at the top.
        bounds: x0, x1, y0, y1 that the grid covers.
        name, label: of the density.

    Raises:
        ShapeError: values are not a table.
        OptionError: the picture is empty, a value is negative or not finite, or the bounds are empty.

    Example:
        >>> drawing = grid_density([[0, 0], [1, 0]], bounds=(-1, 1, -1, 1))
        >>> round(drawing.log_prob(torch.tensor([-0.5, -0.5])).exp().item(), 6)
        1.0
    """
    return GridDensity(name, label, values, bounds)


def face(side: int = 64) -> Tensor:
    """Return a smiling face as a grey picture: values from 0 to 1 of shape (side, side), the first row at the top."""
    x, y = grid((-1, 1, -1, 1), side).unbind(-1)
    r = torch.hypot(x, y)
    outline = _stroke(r - 0.88, 0.07)
    eyes = _stroke(torch.hypot(x.abs() - 0.33, (y - 0.28) / 1.5), 0.12)
    mouth = _stroke(torch.hypot(x, y + 0.02) - 0.52, 0.06) * (y < -0.2)
    nose = _stroke(torch.maximum((x - 0.02).abs() * 1.5, (y + 0.02).abs() - 0.08), 0.05)
    return torch.stack([0.55 * outline, eyes, mouth, 0.7 * nose]).amax(0)


def _stroke(distance: Tensor, width: float) -> Tensor:
    """Return 1 on a line, 0 outside of its width, and a soft edge in between."""
    return (1.5 - 1.5 * (distance.abs() / width).clamp_max(math.inf)).clamp(0, 1)


def picture() -> GridDensity:
    """Return the built-in picture, a face, as a density."""
    return GridDensity("picture", "Picture", face(), FACE_BOUNDS, BOUNDS)
