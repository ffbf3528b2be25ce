"""Parts of drawings that several labs share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from p4lab.plots.layers import Layer, Path, Points

LEVELS = 254
"""Highest level of a heatmap, an even number: half of it is 0."""
SPANS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""How far the colours of heatmaps may reach from 0."""
LEGEND = {"x": 0.55, "y": 0.99, "xanchor": "right", "yanchor": "top", "bgcolor": "rgba(0,0,0,0)", "font": {"size": 11}}
"""A legend in the upper right of the losses, from where they have come down."""
_TURN = np.linspace(0, 2 * np.pi, 97)
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
"""The unit circle, shape (97, 2); its last point is its first."""
EARLIER = 24
"""How many earlier spectra leave faint points."""

Box = tuple[float, float, float, float]
"""x0, x1, y0, y1."""


def step_up(reach: float, steps: Sequence[float]) -> float:
    """Return the first of ascending steps that is not below ``reach``, or the last one: so a picture seldom moves."""
    return next((step for step in steps if reach <= step), steps[-1])


def span_of(matrices: Sequence[NDArray[Any]], share: float) -> float:
    """Return how far colours have to reach to tell apart a share of each matrix's entries; one of `SPANS`.

    Example:
        >>> span_of([np.eye(100)], 0.97)
        0.05
    """
    largest = [float(np.quantile(np.abs(np.nan_to_num(matrix)), share)) for matrix in matrices]
    return step_up(max(largest, default=0.0), SPANS)


def levels(matrix: NDArray[Any], span: float) -> NDArray[np.uint8]:
    """Return a matrix as levels of a diverging scale, 0 for -span and 254 for span; NaN counts as 0.

    Example:
        >>> levels(np.array([[-1.0, 0.0, 2.0]]), 1.0).tolist()
        [[0, 127, 254]]
    """
    share = np.clip(np.nan_to_num(matrix, nan=0.0, posinf=span, neginf=-span) / span, -1, 1)
    return np.rint((share + 1) * LEVELS / 2).astype(np.uint8)


def finite(values: NDArray[Any]) -> NDArray[Any]:
    """Return numbers with NaN in place of what is not finite."""
    return np.where(np.isfinite(values), values, np.nan)


def complex_points(values: ArrayLike) -> NDArray[np.float64]:
    """Return complex numbers, in one row, as points of the plane, shape (n, 2); NaN where one is not finite."""
    flat = finite(np.asarray(values).reshape(-1))
    return np.stack([flat.real, flat.imag], axis=1)


def strands(paths: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Return a line for each column, one after the other with NaN in between: shape (d (n + 1), 2) from (n, d)."""
    return complex_points(np.concatenate([paths, np.full((1, paths.shape[1]), np.nan)]).T)


def within(points: NDArray[Any], extent: float) -> NDArray[Any]:
    """Return points, shape (n, 2), with those left out (NaN) that are farther than this from 0 along either axis."""
    return np.where((np.abs(points) <= extent).all(-1, keepdims=True), points, np.nan)


def inside(points: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return points, shape (n, 2), with those left out (NaN) that lie outside of a box."""
    x0, x1, y0, y1 = box
    x, y = points.T
    return np.where(((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1))[:, None], points, np.nan)


def square(extent: float) -> Box:
    """Return a square frame around 0."""
    return -extent, extent, -extent, extent


def unit_circle(radius: float = 1.0, label: str = "") -> Path:
    """Return a dashed circle around 0."""
    return Path(radius * CIRCLE, "grey", width=1, dashed=True, label=label)


def error_bars(x: NDArray[Any], y: NDArray[Any], error: NDArray[Any]) -> NDArray[np.float64]:
    """Return the path of upright error bars, shape (3 n, 2); bars that are not finite are left out."""
    error = finite(error)
    rows = np.stack([np.stack([x, y - error], -1), np.stack([x, y + error], -1), np.full((len(x), 2), np.nan)], 1)
    return rows.reshape(-1, 2)


def spectrum(steps: NDArray[np.int64], values: NDArray[np.complex128]) -> tuple[list[Layer], Box]:
    """Return eigenvalues at present and before, the unit circle, and 0, where the determinant vanishes; and a frame.

    Args:
        steps: shape (n,), when they were recorded.
        values: shape (n, d), of which the last row is the present one.
    """
    layers: list[Layer] = [
        unit_circle(label="unit circle"),
        Points(np.zeros((1, 2)), "red", "cross", 9, label="0: det = 0"),
    ]
    if len(steps):
        earlier = values[-EARLIER - 1 : -1]
        if len(earlier):
            layers.append(Points(complex_points(earlier), "blue", "dot", 3, fade=True))
        now = complex_points(values[-1])
        labels = tuple(f"{x:.3g} {'−' if y < 0 else '+'} {abs(y):.3g} i" for x, y in now)
        layers.append(Points(now, "blue", "dot", 6, labels, label=f"step {int(steps[-1]):,}"))
    now = complex_points(values[-1:])
    # It moves in steps, not all the time.
    reach = max(1.0, float(np.nanmax(now[:, 0], initial=0.0)))
    back = min(0.0, float(np.nanmin(now[:, 0], initial=0.0)))
    up = max(0.25, float(np.nanmax(np.abs(now[:, 1]), initial=0.0)))
    right, left, top = (float(np.ceil(4.4 * extent) / 4) for extent in (reach, -back, up))
    return layers, (-max(left, 0.25), right, -top, top)
