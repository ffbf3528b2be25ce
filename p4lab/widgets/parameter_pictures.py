"""The pictures of the lab of the space of matrices: frames in, layers out."""

import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.errors import OptionError
from p4lab.plots import RUN_COLORS
from p4lab.plots.eigenvalues import eigenvalue_paths
from p4lab.plots.layers import Arrow, Dots, Grip, Heatmap, Layer, Line, Path, Points, Surface
from p4lab.plots.parameter_space import Slice, principal_plane
from p4lab.plots.rank_one import loss_map
from p4lab.problems.matrix import as_text, matrix
from p4lab.training import Frame, Snapshot
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.plane import Plane
from p4lab.widgets.space import Space

Array = NDArray[np.float64]
T = TypeVar("T", np.float64, np.complex128)
Moved = Callable[[str, str], None]
"""Called with "start" or "target" and the matrix it was moved to, as text."""

ROUTES = {"p4inv": "P4Inv", "plain": "plain weight", "through_inverse": "P4Inv, through the inverse"}
FIRST = "p4inv"
COLORS = dict(zip(ROUTES, RUN_COLORS, strict=False))
ROOM = 1.25
BIGGEST = 1.6
"""How many times further than start and target the box reaches to follow a path that runs away."""
RUNAWAY = 1e3
STEPS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7, 10)
FOLLOWED = 8
"""Up to this d, eigenvalues are joined to paths."""


def lanes(frame: Frame) -> Iterator[tuple[str, Snapshot, str]]:
    """Yield name, snapshot and colour of each lane."""
    for name, lane in frame.snapshot.lanes.items():
        yield name, lane, COLORS[name]


def round_up(reach: float) -> float:
    """Return the next larger round number (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7 times a power of ten)."""
    power = 10.0 ** math.floor(math.log10(max(reach, 1e-6)))
    return next(power * step for step in STEPS if power * step >= reach * (1 - 1e-9))


def width(frame: Frame) -> int:
    """Return the width d of a frame's matrices."""
    return len(frame.snapshot.pictures["target"])


def finite(values: NDArray[T]) -> NDArray[T]:
    """Return numbers with NaN in place of infinities."""
    return np.where(np.isfinite(values), values, np.nan)


class MatrixSpace:
    """2 x 2 matrices in the slice through start and target, with the surface det = 0.

    Args:
        moved: called when start or target is moved.

    Attributes:
        widget: the picture.
        slice: what is shown; replaced by each `draw`.
        off: distance of the first lane's matrix from the slice.
    """

    def __init__(self, moved: Moved) -> None:
        self.slice, self.off = Slice(0.0, 0.0), 0.0
        self._moved = moved
        self.widget = _StyledSpace(
            "The space of 2 × 2 matrices",
            "drag the rings: start and target",
            labels=("p: half the trace", "s: turn", "q′: stretch"),
            height=600,
            home=(-52.0, 28.0),
            on_moved=self._dragged,
        )

    def _dragged(self, name: str, point: tuple[float, ...]) -> None:
        self._moved(name, as_text(torch.from_numpy(self.slice.lift(np.array(point)))))

    def draw(self, frame: Frame) -> None:
        """Show a frame (nothing, if its matrices are not 2 x 2)."""
        shown = width(frame) == 2
        self.widget.display(shown)
        if not shown:
            return
        start, target = (np.asarray(frame.snapshot.pictures[name]) for name in ("start", "target"))
        self.slice = Slice.through(start, target, self.slice)
        ends = {name: self.slice.project(_planned(frame, name)) for name in ("start", "target")}
        self.off = float(self.slice.offset(np.asarray(frame.snapshot.pictures["weight"])))
        drawn = [layer for name, lane, color in lanes(frame) for layer in self._lane(name, lane, color)]
        paths = [np.asarray(layer.points) for layer in drawn if isinstance(layer, Line)]
        half = self._half(np.stack(list(ends.values())), paths)
        surface = self.slice.surface(math.sqrt(half**2 - self.slice.level**2))
        layers: list[Layer] = [
            Surface(surface, "grey", opacity=0.3, label="det = 0 (negative inside)"),
            *drawn,
            Grip("start", ends["start"], "ink", "start"),
            Grip("target", ends["target"], "orange", "target"),
        ]
        self.widget.show(layers, (-half, half) * 3)

    def _lane(self, name: str, lane: Snapshot, color: str) -> list[Layer]:
        path = finite(self.slice.project(np.asarray(lane.trail.values, dtype=np.float64)))
        found: list[Layer] = [Line(path, color, width=2.5, label=ROUTES[name])]
        found.append(Dots(path[-1:], color, size=11))
        for kind, trail in (("merge", lane.merge_points), ("skip", lane.skip_points)):
            if len(trail.steps) or name == FIRST:  # the legend names both from the beginning, so that nothing jumps
                values = np.asarray(trail.values, dtype=np.float64).reshape(-1, 2, 2)
                points = finite(self.slice.project(values))
                found.append(self._marks(kind, lane, trail.steps, points, color))
        return found

    def _marks(self, kind: str, lane: Snapshot, steps: NDArray[np.int64], points: Array, color: str) -> Dots:
        reasons = {event.step: event.text for event in lane.events if event.kind == kind}
        verb, color, size, label = (
            ("merged", color, 6, "merge") if kind == "merge" else ("skipped", "red", 8, "merge skipped")
        )
        texts = [f"step {step:,}: {verb}" for step in steps.tolist()]
        told = tuple(_wrapped(text, reasons.get(step, "")) for text, step in zip(texts, steps.tolist(), strict=True))
        return Dots(points, color, size, told, label)

    def _half(self, ends: Array, paths: Sequence[Array]) -> float:
        """Return the half side of the box: start and target, the waist of the surface, and paths that stay near."""
        least = max(float(np.abs(ends).max()), abs(self.slice.level), 0.4)
        reach = [float(np.nanmax(np.abs(path), initial=0.0)) for path in paths if not np.isnan(path).all()]
        return round_up(ROOM * min(max([least, *reach]), BIGGEST * least))


class PathPlane:
    """Paths of larger matrices in the principal plane of their distances to the target, coloured by log|det|.

    Attributes:
        widget: the picture.
        off: distance of the first lane's matrix from the plane.
    """

    def __init__(self) -> None:
        self._axes: Array | None = None
        self._run: tuple[int, int] | None = None
        self.off = 0.0
        self.widget = Plane(
            "The paths in their main plane",
            "through the target, along the two principal directions",
            x_label="first principal direction of W − T",
            y_label="second principal direction",
            height=560,
        )

    def draw(self, frame: Frame) -> None:
        """Show a frame (nothing, if its matrices are 2 x 2)."""
        d = width(frame)
        self.widget.display(d != 2)
        if d == 2:
            return
        if self._run != (frame.run, d):
            self._run, self._axes = (frame.run, d), None
        target = np.asarray(frame.snapshot.pictures["target"])
        shown = list(lanes(frame))
        trails = [_near(np.asarray(lane.trail.values, dtype=np.float64), target) for _, lane, _ in shown]
        plane = principal_plane(np.concatenate(trails), target, self._axes)
        self._axes, self.off = plane.axes, float(plane.offset[len(trails[0]) - 1])
        volumes = [finite(np.linalg.slogdet(trail)[1]) for trail in trails]
        low, high = _span(np.concatenate(volumes))
        layers: list[Layer] = []
        ends = np.cumsum([len(trail) for trail in trails])
        for (name, _, color), points, volume in zip(
            shown, np.split(plane.coordinates, ends[:-1]), volumes, strict=True
        ):
            layers.append(Path(points, color, width=7, label=ROUTES[name]))
            bar = "" if layers[1:] else "log|det| (nats)"
            layers.append(Path(points, width=3, values=volume, low=low, high=high, label=bar))
            layers.append(Points(points[-1:], color, size=11))
        for name, lane, color in shown:
            layers += _events(lane, target, plane.axes, color, always=name == FIRST)
        told = f"target; the plane holds {plane.explained.sum():.0%} of the squared distances to it"
        layers.append(Points(plane.coordinates[:1], "ink", "ring", 10, label="start"))
        layers.append(Points(np.zeros((1, 2)), "orange", "cross", 12, label=told))
        self.widget.show(layers)


class LossPlane:
    """The loss over what the present rank-one perturbation of one lane can reach.

    Attributes:
        widget: the picture.
        lane: whose perturbation.
    """

    def __init__(self) -> None:
        self.lane = "p4inv"
        self.widget = Plane(
            "Loss within reach of u",
            "W = A + u vᵀ",
            x_label="|v| u, first direction",
            y_label="second direction",
            height=264,
        )

    def draw(self, frame: Frame) -> None:
        """Show a frame (nothing, if the lane has run away)."""
        pictures = frame.snapshot.lanes[self.lane].pictures
        frozen, u, v, target = (np.asarray(pictures[name]) for name in ("frozen", "u", "v", "target"))
        if not all(np.isfinite(part).all() for part in (frozen, u, v)):
            self.widget.show(())
            return
        found = loss_map(frozen, u, v, target, inverse=self.lane == "through_inverse")
        half, color = found.half, COLORS[self.lane]
        layers = [
            Heatmap(found.values, (-half, half, -half, half), label="log₁₀ loss"),
            Path(found.wall, "red", width=2, dashed=True, label="det = 0"),
            Arrow(np.zeros(2), found.present, color, width=2),
            Points(np.zeros((1, 2)), "ink", size=7, label="A"),
            Points(found.best[None], "orange", "cross", 10, label="least loss"),
            Points(found.present[None], color, size=10, label="W"),
        ]
        self.widget.show(layers, (-half, half, -half, half))


class EigenPlane:
    """Eigenvalues of all lanes on their way, and those of the target."""

    def __init__(self) -> None:
        self.widget = Plane("Eigenvalues of W", "complex plane", x_label="Re λ", y_label="Im λ", height=264)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        turn = np.linspace(0, 2 * np.pi, 73)
        circle = np.stack([np.cos(turn), np.sin(turn)], -1)
        layers: list[Layer] = [Path(circle, "grey", width=1, dashed=True, label="unit circle")]
        for _, lane, color in lanes(frame):
            values = finite(lane.spectrum.values)
            if values.shape[1] <= FOLLOWED:
                layers.append(Path(_strands(eigenvalue_paths(values)), color, width=2))
            else:
                layers.append(Points(_plane(values[:-1].ravel()), color, size=4, fade=True))
            layers.append(Points(_plane(values[-1]), color, size=9))
        target = np.linalg.eigvals(np.asarray(frame.snapshot.pictures["target"]))
        layers.append(Points(_plane(target), "orange", "cross", 11, label="eigenvalues of the target"))
        self.widget.show(layers, _frame_of(layers))


class _StyledSpace(Space):
    # The lab's own arrangement travels with its largest picture.
    _css: Any = (FOLDER / "pictures.css").read_text(encoding="utf-8") + (FOLDER / "parameter_lab.css").read_text(
        encoding="utf-8"
    )


def _planned(frame: Frame, name: str) -> Array:
    """Return start or target as planned; what does not fit (yet) is shown as it was."""
    try:
        return np.asarray(matrix(getattr(frame.planned, name), 2, frame.planned.seed))
    except OptionError:
        return np.asarray(frame.snapshot.pictures[name])


def _wrapped(text: str, reason: str, width: int = 44) -> str:
    return "\n".join([text, *textwrap.wrap(reason, width)])


def _events(lane: Snapshot, target: Array, axes: Array, color: str, always: bool) -> Iterator[Points]:
    """Yield the merges of a lane, and its skips in red, in a plane through the target; nothing if empty, or always."""
    kinds = (("merge", lane.merge_points, color, 5), ("merge skipped", lane.skip_points, "red", 8))
    for label, trail, shade, size in kinds:
        if not (len(trail.steps) or always):
            continue
        away = np.asarray(trail.values, dtype=np.float64).reshape(-1, *target.shape) - target
        near = np.abs(away).max((1, 2), initial=0) < RUNAWAY
        points = np.tensordot(away[near], axes, ((1, 2), (1, 2)))
        told = tuple(f"step {step:,}: {label}" for step in trail.steps[near].tolist())
        yield Points(points, shade, size=size, labels=told, label=label)


def _near(matrices: Array, target: Array) -> Array:
    """Return the matrices before a path runs away (at least the first one)."""
    far = ~(np.abs(matrices - target).max((1, 2)) < RUNAWAY)
    return matrices[: max(1, int(far.argmax()))] if far.any() else matrices


def _span(values: Array) -> tuple[float, float]:
    """Return the range of the colours of log|det|, at least one nat and all finite."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    middle, half = (low + high) / 2, max((high - low) / 2, 0.5)
    return middle - half, middle + half


def _plane(values: NDArray[np.complex128]) -> Array:
    return np.stack([values.real, values.imag], -1)


def _strands(paths: NDArray[np.complex128]) -> Array:
    """Return paths, shape (n, d), one after the other with NaN in between, shape (d (n + 1), 2)."""
    broken = np.concatenate([paths, np.full((1, paths.shape[1]), np.nan)])
    return _plane(broken.T.ravel())


def _frame_of(layers: Sequence[Layer]) -> tuple[float, float, float, float]:
    """Return a square frame around 0 that holds all points that have not run away."""
    reach = [float(np.nanmax(np.abs(layer.points), initial=0.0)) for layer in layers]  # type: ignore[attr-defined]
    half = round_up(1.1 * min(max(reach), BIGGEST * max(reach[0], reach[-1])))
    return -half, half, -half, half
