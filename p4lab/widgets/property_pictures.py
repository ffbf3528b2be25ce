"""The pictures of the lab of properties: matrices, eigenvalues and singular values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.plots.gallery import LEVELS, SPANS, levels
from p4lab.plots.layers import Layer, Path, Points
from p4lab.training import Frame
from p4lab.training.measure import eigenvalues
from p4lab.training.property_ways import WAYS
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.image_grid import ImageGrid, Panel
from p4lab.widgets.plane import Plane
from p4lab.widgets.property_board import COLORS, config_of, label
from p4lab.widgets.spectrum import CIRCLE

ROLES = {
    "p4": "P4",
    "usual": "usual way",
    "other": "another way",
    "penalty": "penalty",
    "plain": "no property",
}
"""What the lanes stand for."""
BUSY = 128
"""Above this width eigenvalues are those of two lanes only: they cost O(d^3) for each lane and picture."""
Points2 = NDArray[np.float64]


class StyledGrid(ImageGrid):
    """A grid that brings the lab's look along."""

    _css: Any = (FOLDER / "property_lab.css").read_text(encoding="utf-8")


# --- matrices ---------------------------------------------------------------------------------------------------------


class Look:
    """What is chosen for the pictures; the lab changes it.

    Attributes:
        error: whether heatmaps show W - T, and not W.
    """

    error = False


class MatrixPicture:
    """Heatmaps of every lane's matrix and of the target.

    Args:
        look: what is chosen.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        panels = [Panel(role, "", 1) for role in (*ROLES.values(), "target T")]
        self.widget = StyledGrid(panels, LEVELS, "diverging", ("−1", "1"))
        self.widget.add_class("p4-property-matrices")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        lanes = frame.snapshot.lanes
        target = next(iter(lanes.values())).pictures["target"]
        matrices = [lanes[lane].pictures["matrix"] for lane in ROLES]
        if self._look.error:
            matrices = [matrix - target for matrix in matrices]
        span = span_of(matrices if self._look.error else [target])
        quantity = "error" if self._look.error else "entry"
        self.widget.scale(f"{quantity} −{span:g}", f"{span:g}")
        notes = [label(config_of(frame.snapshot), lane) for lane in ROLES]
        for index, (matrix, note) in enumerate(zip([*matrices, target], [*notes, ""], strict=True)):
            self.widget.show(index, levels(matrix, span)[None], note)


def span_of(matrices: list[NDArray[np.float32]]) -> float:
    """Return how far the colours reach, in steps: the largest entries may be beyond, or a diagonal would hide the rest.

    Example:
        >>> span_of([np.eye(100, dtype=np.float32)])
        0.05
    """
    largest = max(float(np.quantile(np.abs(np.nan_to_num(matrix)), 0.97)) for matrix in matrices)
    return next((span for span in SPANS if largest <= span), SPANS[-1])


# --- spectra ----------------------------------------------------------------------------------------------------------


class Spectra:
    """Eigenvalues and singular values of all lanes, kept until the matrices change."""

    def __init__(self) -> None:
        self._eigen: dict[str, tuple[NDArray[np.float32], Points2]] = {}
        self._singular: dict[str, tuple[NDArray[np.float32], Points2]] = {}

    def eigen(self, name: str, matrix: NDArray[np.float32]) -> Points2:
        """Return the eigenvalues of a matrix in the complex plane, shape (d, 2). Cost O(d^3) if it is new."""
        return _remembered(self._eigen, name, matrix, _eigenvalues)

    def singular(self, name: str, matrix: NDArray[np.float32]) -> Points2:
        """Return the singular values over their share of the dimensions, shape (d, 2). Cost O(d^3) if it is new."""
        return _remembered(self._singular, name, matrix, _singular_values)


def _remembered(
    known: dict[str, tuple[NDArray[np.float32], Points2]],
    name: str,
    matrix: NDArray[np.float32],
    compute: Callable[[NDArray[np.float32]], Points2],
) -> Points2:
    if name not in known or known[name][0] is not matrix:
        known[name] = matrix, compute(matrix)
    return known[name][1]


def _eigenvalues(matrix: NDArray[np.float32]) -> Points2:
    values = eigenvalues(matrix)
    return np.stack([values.real, values.imag], axis=1).astype(np.float64)


def _singular_values(matrix: NDArray[np.float32]) -> Points2:
    d = len(matrix)
    finite = np.isfinite(matrix).all()
    values = torch.linalg.svdvals(torch.from_numpy(matrix)).numpy() if finite else np.full(d, np.nan)
    return np.stack([(np.arange(d) + 0.5) / d, values], axis=1).astype(np.float64)


class EigenvaluePicture:
    """Eigenvalues of all lanes and of the target in the complex plane.

    Args:
        spectra: shared with the other picture.
    """

    def __init__(self, spectra: Spectra) -> None:
        self._spectra = spectra
        self.widget = Plane("Eigenvalues", "of every W", x_label="real part", y_label="imaginary part", height=250)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        config = config_of(frame.snapshot)
        target, lanes = _matrices(frame, ("p4", "plain") if config.dim > BUSY else WAYS)
        goal = self._spectra.eigen("target", target)
        radius = config.bound if config.prop == "lipschitz" else 1.0
        frame_of = _bounds(goal, radius)
        layers: list[Layer] = [
            Path(radius * CIRCLE, "grey", width=1, dashed=True),
            Points(goal, "orange", "cross", 9, label="target"),
        ]
        for lane, matrix in lanes:
            points = _inside(self._spectra.eigen(lane, matrix), frame_of)
            layers.append(Points(points, COLORS[lane], "dot", 6 if lane == "p4" else 5))
        self.widget.show(layers, frame_of)


class SingularValuePicture:
    """Singular values of all lanes and of the target, the largest first.

    Args:
        spectra: shared with the other picture.
    """

    def __init__(self, spectra: Spectra) -> None:
        self._spectra = spectra
        self.widget = Plane(
            "Singular values", "the largest first", x_label="share of the d directions", equal=False, height=250
        )

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        config = config_of(frame.snapshot)
        target, lanes = _matrices(frame, WAYS)
        goal = self._spectra.singular("target", target)
        top = 1.25 * max(1.0, float(goal[:, 1].max()))
        layers: list[Layer] = [Points(goal, "orange", "cross", 8, label="target")]
        if config.prop == "lipschitz":
            layers.insert(0, Path([[0, config.bound], [1, config.bound]], "grey", 1, dashed=True, label="bound c"))
        box = (0.0, 1.0, 0.0, top)
        layers += [
            Path(_inside(self._spectra.singular(lane, matrix), box), COLORS[lane], width=2) for lane, matrix in lanes
        ]
        self.widget.show(layers, box)


def _matrices(frame: Frame, names: Any) -> tuple[NDArray[np.float32], list[tuple[str, NDArray[np.float32]]]]:
    """Return the target, and the matrices of lanes, P4's last so that it lies on top."""
    lanes = frame.snapshot.lanes
    target = next(iter(lanes.values())).pictures["target"]
    return target, [(lane, lanes[lane].pictures["matrix"]) for lane in reversed(WAYS) if lane in names]


def _bounds(goal: Points2, radius: float) -> tuple[float, float, float, float]:
    """Return a frame around the target's eigenvalues, the origin and most of the circle; it never moves."""
    right = 1.12 * max(radius, float(goal[:, 0].max()))
    left = min(-0.25 * radius, 1.12 * float(goal[:, 0].min()))
    up = 1.12 * max(0.5 * radius, float(np.abs(goal[:, 1]).max()))
    return left, right, -up, up


def _inside(points: Points2, box: tuple[float, float, float, float]) -> Points2:
    x0, x1, y0, y1 = box
    x, y = points.T
    kept = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    return np.where(kept[:, None], points, np.nan)
