"""The pictures of the lab of linear problems: eigenvalues and the ways that they came."""

import numpy as np
from numpy.typing import NDArray

from p4lab.plots.eigenvalues import Complex, eigenvalue_paths
from p4lab.plots.layers import Layer, Path, Points, Text
from p4lab.training import Frame, Snapshot, Trail
from p4lab.widgets.plane import Plane
from p4lab.widgets.spectrum import CIRCLE

TAIL = 40
"""How many earlier moments the tails reach back."""
SHADES = ("22", "55", "aa")
"""Opacities of a tail, its oldest third first, as hexadecimal digits behind a colour."""
EXTENTS = (1.35, 2.0, 3.0, 5.0)
"""How far a picture may reach; what is farther out is left out."""


class Followed:
    """Orders the spectra of one lane so that each column follows one eigenvalue; what is ordered stays so."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Complex, Complex]] = {}

    def paths(self, spectra: Trail) -> Complex:
        """Return the last `TAIL` spectra and the present one, shape (n, d), ordered.

        Cost O(d^2 log d) for each spectrum that is new.
        """
        ordered: list[Complex] = []
        kept: dict[int, tuple[Complex, Complex]] = {}
        values = spectra.values[-TAIL - 1 :]
        for step, row in zip(spectra.steps[-TAIL - 1 :].tolist(), values, strict=True):
            raw, path = self._seen.get(step, (None, None))
            if raw is None or path is None or not np.array_equal(raw, row, equal_nan=True):
                path = eigenvalue_paths(np.stack([ordered[-1], row]))[1] if ordered else row
            kept[step] = row, path
            ordered.append(path)
        self._seen = {**self._seen, **kept} if len(self._seen) < 8 * TAIL else kept
        return np.array(ordered, np.complex128).reshape(len(ordered), -1)


class EigenvaluePicture:
    """Eigenvalues of one lane in the complex plane, with tails, and those of the target.

    Args:
        names: what lanes are called.
        colors: of the lanes.
        lane: which lane is shown.
        note: beside the heading.

    Attributes:
        lane: which lane is shown; may be set at any time.
        widget: the picture.
    """

    def __init__(self, names: dict[str, str], colors: dict[str, str], lane: str, note: str) -> None:
        self._names, self._colors, self.lane = names, colors, lane
        self._followed = Followed()
        self._last = lane
        self.widget = Plane("Eigenvalues", note, x_label="real part", y_label="imaginary part", height=290)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        lane = self.lane
        if lane != self._last:
            self._followed, self._last = Followed(), lane
        snapshot = frame.snapshot.lanes[lane]
        paths = self._followed.paths(snapshot.spectrum)
        target = np.asarray(snapshot.pictures["target"])
        extent = extent_of(paths, target)
        layers = picture(paths, target, extent, self._colors[lane], f"{self._names[lane]}, {_moment(snapshot)}")
        self.widget.show(layers, (-extent, extent, -extent, extent))


def extent_of(paths: Complex, target: NDArray[np.float64]) -> float:
    """Return how far a picture has to reach: in steps, so that it does not move all the time."""
    now = _points(paths[-1:].ravel())
    farthest = float(np.nanmax(np.abs(np.concatenate([now, target])), initial=0.0))
    return next((extent for extent in EXTENTS if 1.05 * farthest < extent), EXTENTS[-1])


def picture(paths: Complex, target: NDArray[np.float64], extent: float, color: str, label: str) -> list[Layer]:
    """Return the layers: unit circle, det = 0, the target, tails that fade, and the present eigenvalues.

    Args:
        paths: shape (n, d), each column one eigenvalue; the last row is the present.
        target: eigenvalues of the target, shape (d, 2).
        extent: what is farther from 0 in real or imaginary part is left out.
        color: of the eigenvalues, as #rrggbb.
        label: of the present eigenvalues.
    """
    bounds = np.linspace(0, len(paths) - 1, len(SHADES) + 1).round().astype(int)
    tails = [
        Path(_lines(paths[first : last + 1], extent), color + shade, width=1.5)
        for shade, first, last in zip(SHADES, bounds[:-1], bounds[1:], strict=True)
        if last > first
    ]
    return [
        Path(CIRCLE, "grey", width=1, dashed=True),
        *tails,
        Points(_within(target, extent), "orange", "cross", 9, label="target"),
        Points([[0, 0]], "red", "square", 6),
        Text((0, 0), "det = 0", "red", "below"),
        Points(_within(_points(paths[-1:].ravel()), extent), color, "dot", 6, label=label),
    ]


def _moment(snapshot: Snapshot) -> str:
    steps = snapshot.spectrum.steps
    return f"step {int(steps[-1]):,}" if len(steps) else "no step yet"


def _lines(paths: Complex, extent: float) -> NDArray[np.float64]:
    """Return one line for each column, shape (m, 2), with a row of NaN behind each."""
    lines = _points(np.concatenate([paths, np.full((1, paths.shape[1]), np.nan)]).T.ravel())
    return _within(lines, extent)


def _points(values: Complex) -> NDArray[np.float64]:
    finite = np.where(np.isfinite(values), values, np.nan)
    return np.stack([finite.real, finite.imag], axis=1)


def _within(points: NDArray[np.float64], extent: float) -> NDArray[np.float64]:
    return np.where(np.abs(points).max(-1, keepdims=True) <= extent, points, np.nan)
