"""The pictures of the stability lab: frames in, layers out."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.plots import RUN_COLORS
from p4lab.plots.layers import Layer, Path, Points, Text
from p4lab.training import Frame
from p4lab.training.stability import LANES
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.plane import Plane
from p4lab.widgets.spectrum import CIRCLE

EXTENTS = (1.4, 2.5, 5.0)
"""How far the picture of eigenvalues may reach; what is farther out is left out."""
EARLIER = 24
"""How many earlier moments leave faint points."""
LOWEST = 1e-17


class _StyledPlane(Plane):
    # The lab's own look travels with a picture.
    _css: Any = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("pictures.css", "break_lab.css"))


class EigenvaluePicture:
    """Eigenvalues of both lanes and of the target in the complex plane."""

    def __init__(self) -> None:
        self.widget = _StyledPlane("Eigenvalues of W", "complex plane", x_label="Re λ", y_label="Im λ", height=264)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        lanes = frame.snapshot.lanes
        earlier = next(iter(lanes.values())).spectrum.values[-EARLIER - 1 : -1].ravel()
        points = [lanes[name].pictures["eigenvalues"] for name in LANES]
        target = frame.snapshot.pictures["target"]
        farthest = float(np.nan_to_num(np.abs(np.concatenate([*points, target]))).max())
        extent = next((size for size in EXTENTS if farthest < size), EXTENTS[-1])
        layers: list[Layer] = [
            Path(CIRCLE, "grey", width=1, dashed=True),
            Points(_within(np.stack([earlier.real, earlier.imag], -1), extent), RUN_COLORS[0], size=3, fade=True),
            Points(target, "orange", "cross", 11, label="target"),
            *_marks([_within(p, extent) for p in points]),
            Points([[0, 0]], "red", "square", 7),
            Text((0, 0), "det = 0", "red", "below"),
        ]
        self.widget.show(layers, (-extent, extent, -extent, extent))


class SingularPicture:
    """Singular values of both lanes on a logarithmic axis, down to the rounding errors of either precision."""

    def __init__(self) -> None:
        self.widget = _StyledPlane(
            "Singular values of W", "and rounding errors", "number", "log₁₀ σ", equal=False, height=264
        )

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        values = [frame.snapshot.lanes[name].pictures["singular"] for name in LANES]
        rank = np.arange(1, len(values[0]) + 1)
        width = len(rank) + 1
        layers: list[Layer] = []
        for name, color in zip(LANES, RUN_COLORS, strict=False):
            level = np.log10(np.finfo(name).eps)
            layers += [
                Path([[0, level], [width, level]], color, width=1, dashed=True),
                Text((width / 2, level), f"ε of {name}", color, "above"),
            ]
        with np.errstate(over="ignore"):
            points = [np.stack([rank, np.log10(np.maximum(value, LOWEST))], -1) for value in values]
        highest = max(1.0, *(float(np.nan_to_num(p[:, 1]).max()) for p in points))
        self.widget.show([*layers, *_marks(points)], (0, width, np.log10(LOWEST), 1.1 * highest))


def _marks(points: list[NDArray[np.float64]]) -> list[Layer]:
    (first, second), (dot, ring) = points, RUN_COLORS[:2]
    return [Points(first, dot, "dot", 7, label=LANES[0]), Points(second, ring, "ring", 12, label=LANES[1])]


def _within(points: NDArray[np.float64], extent: float) -> NDArray[np.float64]:
    return np.where(np.abs(points).max(-1, keepdims=True) <= extent, points, np.nan)
