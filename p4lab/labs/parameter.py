"""Matrices on their way through the space of matrices: three routes from one start to one target."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.errors import OptionError
from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import Axes, Box, Control, Lab, Number, Picture, Sight, Try, View, per_second
from p4lab.plots import RUN_COLORS, Figure, Loss, gallery
from p4lab.plots.eigenvalues import eigenvalue_paths
from p4lab.plots.format import number
from p4lab.plots.layers import Arrow, Dots, Grip, Heatmap, Layer, Line, Path, Plot, Points, Surface
from p4lab.plots.parameter_space import PrincipalPlane, Slice, principal_plane
from p4lab.plots.rank_one import loss_map
from p4lab.problems.matrix import as_text, matrix
from p4lab.training import Lanes, MatrixConfig, RunConfig, Snapshot
from p4lab.training.config import Setting, setting

Array = NDArray[np.float64]

ROUTES = {"p4inv": "P4Inv", "plain": "plain weight", "through_inverse": "P4Inv, through the inverse"}
FIRST = "p4inv"
COLORS = dict(zip(ROUTES, RUN_COLORS, strict=False))
PAIRS = {
    "rotation": ("Turn by 120°", "identity", "rotation"),
    "half_turn": ("Half turn, I to −I", "identity", "minus_identity"),
    "same_sign": ("Same sign of det", "identity", "spd"),
    "opposite_sign": ("Opposite sign of det", "identity", "reflection"),
    "sheared": ("Opposite sign, sheared", "shear", "reflection"),
    "nearly_singular": ("Nearly singular", "identity", "nearly_singular"),
    "singular": ("Singular target", "identity", "1 1; 1 1"),
}
"""What start and target may be set to together: how it reads, start, target."""
DIMS = {2: 0.05, 8: 0.2, 32: 0.4}
"""The widths on offer, and a learning rate that suits each."""
LOSS = Loss("loss |W − T|² / d", log=True, bits=False, test=False, exact=True)
ROOM = 1.25
"""How much further a box reaches than what it holds."""
BIGGEST = 1.6
"""How many times further than start and target the box reaches to follow a path that runs away."""
RUNAWAY = 1e3
"""Matrices with an entry so far from the target's are left out of the main plane."""
STEPS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7, 10)
FOLLOWED = 8
"""Up to this d, eigenvalues are joined to paths."""


@dataclass(frozen=True)
class ParameterView(View):
    """What is looked at."""

    speed: float | None = setting(50, choices=per_second(2, 10, 50, 200, None))
    map: str = setting(
        FIRST,
        "Loss map of",
        choices={"p4inv": "P4Inv", "through_inverse": "inverse"},
        kind="segments",
        live=True,
    )


Look = Sight[MatrixConfig, ParameterView]


def routes(config: RunConfig) -> Lanes:
    """Return one lane for each of `ROUTES`, from the same start to the same target."""
    return Lanes(config, "route", tuple(ROUTES))


# --- start and target -------------------------------------------------------------------------------------------------


def pair_of(config: MatrixConfig) -> str | None:
    """Return which of `PAIRS` start and target are; None if they are others."""
    return next((name for name, (_, *ends) in PAIRS.items() if ends == [config.start, config.target]), None)


def to_pair(config: MatrixConfig, name: str) -> dict[str, Any]:
    """Return what to set for a pair; typed matrices are 2 x 2."""
    _, start, target = PAIRS[name]
    return {"start": start, "target": target, **(at_width(2) if _typed(start, target) else {})}


def to_width(config: MatrixConfig, dim: int) -> dict[str, Any]:
    """Return what to set for a width; typed matrices give way to named ones."""
    return {**at_width(dim), **(to_pair(config, "rotation") if _typed(config.start, config.target) else {})}


def at_width(dim: int) -> dict[str, Any]:
    """Return the settings that go with a width."""
    return {"dim": dim, "learning_rate": DIMS[dim]} if dim in DIMS else {"dim": dim}


def _typed(*matrices: str) -> bool:
    return any(character.isdigit() for text in matrices for character in text)


def by_hand(sight: Look, name: str, point: tuple[float, ...]) -> Mapping[str, str]:
    """Return what to set when start or target was moved to a point of the slice."""
    return {name: as_text(torch.from_numpy(slice_of(sight).lift(np.array(point))))}


# --- 2 x 2 matrices in space ------------------------------------------------------------------------------------------


def slice_of(sight: Look) -> Slice:
    """Return the slice through start and target, near the one before."""
    start, target = (sight.snapshot.pictures[name] for name in ("start", "target"))
    _, before = sight.memory.get("slice", (None, Slice(0.0, 0.0)))
    key = start.tobytes(), target.tobytes()
    return sight.keep("slice", key, lambda: Slice.through(start, target, before))


def space(sight: Look) -> Plot | None:
    """Return paths and det = 0 in the slice through start and target; None for matrices that are not 2 x 2."""
    if width(sight) != 2:
        return None
    plane = slice_of(sight)
    ends = {name: plane.project(_planned(sight, name)) for name in ("start", "target")}
    paths = [layer for name, lane in sight.lanes.items() for layer in _in_slice(plane, name, lane)]
    half = _half(plane, list(ends.values()), [np.asarray(layer.points) for layer in paths if isinstance(layer, Line)])
    layers: list[Layer] = [
        Surface(
            plane.surface(math.sqrt(half**2 - plane.level**2)), "grey", opacity=0.3, label="det = 0 (negative inside)"
        ),
        *paths,
        Grip("start", ends["start"], "ink", "start"),
        Grip("target", ends["target"], "orange", "target"),
    ]
    return Plot(layers, (-half, half) * 3)


def width(sight: Look) -> int:
    """Return the width d of the matrices that are seen."""
    return len(sight.snapshot.pictures["target"])


def _planned(sight: Look, name: str) -> Array:
    """Return start or target as planned; what does not fit (yet) is shown as it was."""
    planned: Any = sight.frame.planned
    try:
        return np.asarray(matrix(getattr(planned, name), 2, planned.seed))
    except OptionError:
        return np.asarray(sight.snapshot.pictures[name])


def _in_slice(plane: Slice, name: str, lane: Snapshot) -> Iterator[Line | Dots]:
    path, color = gallery.finite(plane.project(_values(lane.trail.values))), COLORS[name]
    yield Line(path, color, width=2.5, label=ROUTES[name])
    yield Dots(path[-1:], color, size=11)
    kinds = (("merge", "merge", lane.merge_points, color, 6), ("skip", "merge skipped", lane.skip_points, "red", 8))
    for kind, label, trail, shade, size in kinds:
        if len(trail.steps) or name == FIRST:  # the legend names both from the beginning, so that nothing jumps
            points = gallery.finite(plane.project(_values(trail.values).reshape(-1, 2, 2)))
            reasons = {event.step: event.text for event in lane.events if event.kind == kind}
            verb = "merged" if kind == "merge" else "skipped"
            texts = tuple(
                "\n".join([f"step {step:,}: {verb}", *textwrap.wrap(reasons.get(step, ""), 44)])
                for step in trail.steps.tolist()
            )
            yield Dots(points, shade, size, texts, label)


def _half(plane: Slice, ends: Sequence[Array], paths: Sequence[Array]) -> float:
    """Return the half side of the box: start and target, the waist of the surface, and paths that stay near."""
    least = max(float(np.abs(ends).max()), abs(plane.level), 0.4)
    reach = [float(np.nanmax(np.abs(path), initial=0.0)) for path in paths if not np.isnan(path).all()]
    return round_up(ROOM * min(max([least, *reach]), BIGGEST * least))


def round_up(reach: float) -> float:
    """Return the next larger round number (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7 times a power of ten)."""
    power = 10.0 ** math.floor(math.log10(max(reach, 1e-6)))
    return next(power * step for step in STEPS if power * step >= reach * (1 - 1e-9))


def _values(values: Any) -> Array:
    return np.asarray(values, dtype=np.float64)


# --- larger matrices in their main plane ------------------------------------------------------------------------------


def main_plane(sight: Look) -> tuple[PrincipalPlane, list[Array]]:
    """Return the plane through the target that holds most of the paths, and the paths until they run away.

    Order and signs of its axes follow the plane before, as long as it is the same run.
    """
    target, key = sight.snapshot.pictures["target"], _run(sight)
    run, axes = sight.memory.get("axes", (None, None))
    trails = [_near(_values(lane.trail.values), target) for lane in sight.lanes.values()]
    plane = principal_plane(np.concatenate(trails), target, axes if run == key else None)
    sight.memory["axes"] = key, plane.axes
    return plane, trails


def paths(sight: Look) -> Plot | None:
    """Return the paths in their main plane, coloured by log|det|; None for 2 x 2 matrices, which are seen in space."""
    if width(sight) == 2:
        return None
    plane, trails = main_plane(sight)
    volumes = [gallery.finite(np.linalg.slogdet(trail)[1]) for trail in trails]
    low, high = _span(np.concatenate(volumes))
    ends = np.cumsum([len(trail) for trail in trails])[:-1]
    layers: list[Layer] = []
    for name, points, volume in zip(sight.lanes, np.split(plane.coordinates, ends), volumes, strict=True):
        bar = "" if layers else "log|det| (nats)"
        layers += [
            Path(points, COLORS[name], width=7, label=ROUTES[name]),
            Path(points, width=3, values=volume, low=low, high=high, label=bar),
            Points(points[-1:], COLORS[name], size=11),
        ]
    for name, lane in sight.lanes.items():
        layers += _in_plane(plane.axes, sight.snapshot.pictures["target"], name, lane)
    share = f"target; the plane holds {plane.explained.sum():.0%} of the squared distances to it"
    layers.append(Points(plane.coordinates[:1], "ink", "ring", 10, label="start"))
    layers.append(Points(np.zeros((1, 2)), "orange", "cross", 12, label=share))
    return Plot(layers)


def _run(sight: Look) -> tuple[int, int]:
    return sight.frame.run, width(sight)


def _in_plane(axes: Array, target: Array, name: str, lane: Snapshot) -> Iterator[Points]:
    """Yield the merges of a lane, and its skips in red; nothing if there are none, but for the first lane."""
    kinds = (("merge", lane.merge_points, COLORS[name], 5), ("merge skipped", lane.skip_points, "red", 8))
    for label, trail, shade, size in kinds:
        if len(trail.steps) or name == FIRST:
            away = _values(trail.values).reshape(-1, *target.shape) - target
            near = np.abs(away).max((1, 2), initial=0) < RUNAWAY
            points = np.tensordot(away[near], axes, ((1, 2), (1, 2)))
            texts = tuple(f"step {step:,}: {label}" for step in trail.steps[near].tolist())
            yield Points(points, shade, size=size, labels=texts, label=label)


def _near(matrices: Array, target: Array) -> Array:
    """Return the matrices before a path runs away (at least the first one)."""
    far = ~(np.abs(matrices - target).max((1, 2)) < RUNAWAY)
    return matrices[: max(1, int(far.argmax()))] if far.any() else matrices


def _span(values: Array) -> tuple[float, float]:
    """Return the range of the colours of log|det|, at least one nat and all finite."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    middle, half = (low + high) / 2, max((high - low) / 2, 0.5)
    return middle - half, middle + half


# --- loss and eigenvalues ---------------------------------------------------------------------------------------------


def loss_in_reach(sight: Look) -> Plot:
    """Return the loss over what the present rank-one perturbation of one lane can reach; nothing if it has run away."""
    lane = sight.view.map
    frozen, u, v, target = (sight.lanes[lane].pictures[name] for name in ("frozen", "u", "v", "target"))
    if not all(np.isfinite(part).all() for part in (frozen, u, v)):
        return Plot(())
    seen = loss_map(frozen, u, v, target, inverse=lane == "through_inverse")
    bounds = gallery.square(seen.half)
    layers = [
        Heatmap(seen.values, bounds, label="log₁₀ loss"),
        Path(seen.wall, "red", width=2, dashed=True, label="det = 0"),
        Arrow(np.zeros(2), seen.present, COLORS[lane], width=2),
        Points(np.zeros((1, 2)), "ink", size=7, label="A"),
        Points(seen.best[None], "orange", "cross", 10, label="least loss"),
        Points(seen.present[None], COLORS[lane], size=10, label="W"),
    ]
    return Plot(layers, bounds)


def eigenvalues(sight: Look) -> Plot:
    """Return the eigenvalues of all lanes on their way, and those of the target."""
    layers: list[Any] = [gallery.unit_circle(label="unit circle")]
    for name, lane in sight.lanes.items():
        values, color = gallery.finite(lane.spectrum.values), COLORS[name]
        if values.shape[1] <= FOLLOWED:
            layers.append(Path(gallery.strands(eigenvalue_paths(values)), color, width=2))
        else:
            layers.append(Points(gallery.complex_points(values[:-1]), color, size=4, fade=True))
        layers.append(Points(gallery.complex_points(values[-1]), color, size=9))
    target = np.linalg.eigvals(sight.snapshot.pictures["target"])
    layers.append(Points(gallery.complex_points(target), "orange", "cross", 11, label="eigenvalues of the target"))
    reach = [float(np.nanmax(np.abs(layer.points), initial=0.0)) for layer in layers]
    # A path that runs away does not take the unit circle and the target out of sight.
    return Plot(layers, gallery.square(round_up(1.1 * min(max(reach), BIGGEST * max(reach[0], reach[-1])))))


# --- curves and numbers -----------------------------------------------------------------------------------------------


def curves(sight: Look) -> Figure:
    """Return the losses of all routes."""
    return training_figure(sight, replace(LOSS, exact=not sight.config.sampled), ROUTES)


def off(sight: Look) -> str:
    """Return how far the first lane's matrix is from the slice or plane that is shown."""
    weight, target = (sight.snapshot.pictures[name] for name in ("weight", "target"))
    if width(sight) == 2:
        return number(slice_of(sight).offset(weight), ".2f")
    axes = sight.keep("axes", _run(sight), lambda: main_plane(sight)[0].axes).reshape(2, -1)
    away = (weight - target).ravel()
    return number(np.linalg.norm(away - axes @ away @ axes), ".2f")


def det(sight: Look) -> str:
    """Return the determinant of the first lane's matrix; of larger ones as a power of e."""
    sign, logabsdet = np.linalg.slogdet(sight.snapshot.pictures["weight"])
    if width(sight) == 2:
        return number(sign * np.exp(logabsdet), ".3g")
    return f"{'−' if sign < 0 else ''}e^{number(logabsdet, '.1f')}"


def _loss(lane: Snapshot) -> str:
    return number(lane.last("test_loss"), ".1e")


PARAMETER = Lab(
    name="parameter",
    title="P4Inv in the space of matrices",
    subtitle="Three routes from one start to one target",
    config=MatrixConfig(),
    view=ParameterView(),
    trainer=routes,
    lanes=lambda config: ROUTES,
    groups={
        "Matrices": ("pair", "from", "target", "dim", "sampled"),
        "Steps": ("learning_rate", "optimizer"),
        "Perturbations": ("merge_every", "reset"),
        "Run": ("speed",),
    },
    more={
        "Perturbations": ("rank", "train_v", "skip", "penalty"),
        "Show": ("map",),
        "Run": ("seed", "dtype"),
        "Diagnostics": ("view",),
    },
    controls={
        "pair": Control(
            Setting(
                "From, to",
                choices={name: text for name, (text, *_) in PAIRS.items()},
                kind="choice",
                live=True,
                look="wide",
            ),
            pair_of,
            to_pair,
        ),
        # A dashboard's "start" is the button.
        "from": Control(
            MatrixConfig.settings["start"], lambda config: config.start, lambda config, text: {"start": text}
        ),
        "dim": Control(
            replace(MatrixConfig.settings["dim"], help="Sets a learning rate that fits"),
            lambda config: config.dim,
            to_width,
        ),
    },
    tries=(
        Try(
            "Turn by 120°",
            "Press *Start*. The plain weight goes straight, P4Inv in rank-one strokes, each towards the best "
            "point of its loss map; both are there after 200 steps. Through the inverse the way is a detour "
            "that keeps clear of the surface: some 800 steps.",
            {"dim": 2, "pair": "rotation", "page:pictures": "Within reach", "restart": True},
        ),
        Try(
            "Opposite sign of det",
            "Press *Start*. The target lies inside the cone. Plain weight and P4Inv walk through the surface, "
            "for P4Inv only a line of its map. Through the inverse nothing gets there: a W⁻¹ without an "
            "inverse would need an infinite W.",
            {"dim": 2, "pair": "opposite_sign", "page:pictures": "Within reach", "restart": True},
        ),
        Try(
            "Half turn",
            "Press *Start*. From I to −I the plain weight runs through the tip of the cone, the zero matrix. "
            "P4Inv passes beside it: on *Diagnostics* its log|det| dips less.",
            {"dim": 2, "pair": "half_turn", "page:below": "Diagnostics", "restart": True},
        ),
        Try(
            "Move the target",
            "Press *Start*, and drag the ring of the target: it moves at once, and what is already learned "
            "stays. The ring of the start acts at *Reset*.",
        ),
        Try(
            "Singular target",
            "Press *Start*. P4Inv comes as close as it likes, but from step 360 on nearly every merge is "
            "refused (red): it would spoil the inverse. The perturbation stays and trains on. Rest the "
            "pointer on a red dot.",
            {"pair": "singular", "restart": True},
        ),
        Try(
            "Too large a rate",
            "Press *Start*. The loss of P4Inv jumps up again and again, where its random v happens to be "
            "long. Then choose *Directions* gradient: these have length 1, and it arrives.",
            {"dim": 2, "pair": "rotation", "learning_rate": 0.5, "reset": "gaussian", "restart": True},
        ),
        Try(
            "Width 32",
            "Press *Start*. There is no room in space for matrices of this width. You see the plane that "
            "holds most of the ways, coloured by log|det|.",
            {"pair": "rotation", "dim": 32, "restart": True},
        ),
        Try(
            "Two runs, compared",
            "Pause, go back by *Time travel* to a step before a turn, change *Merge every*, and press *Branch "
            "here* and *Start*: a second run starts from there.",
        ),
    ),
    pictures=(
        Picture(
            Box(
                "The space of 2 × 2 matrices",
                "",
                ("p: half the trace", "s: turn", "q′: stretch"),
                height=600,
                home=(-52.0, 28.0),
                hint="drag the rings: start and target",
            ),
            space,
            area="space",
            moved=by_hand,
        ),
        Picture(
            Axes(
                "The paths in their main plane",
                "through the target, along the two principal directions",
                "first principal direction of W − T",
                "second principal direction",
                height=560,
            ),
            paths,
            0.3,
            "paths",
        ),
        Picture(
            Axes("Loss within reach of u", "W = A + u vᵀ", "|v| u, first direction", "second direction", height=264),
            loss_in_reach,
            area="map",
            page="Within reach",
        ),
        Picture(
            Axes("Eigenvalues of W", "complex plane", "Re λ", "Im λ", height=264),
            eigenvalues,
            0.2,
            "eigenvalues",
            "Eigenvalues",
        ),
    ),
    numbers=(
        *numbers.steps(rate_help="Speed"),
        *(
            numbers.of_lane(f"loss_{lane}", f"loss: {text}", lane, _loss, help=LOSS.label, color=COLORS[lane])
            for lane, text in (("plain", "plain"), ("p4inv", "P4Inv"), ("through_inverse", "inverse"))
        ),
        Number("det", "det, P4Inv", det, help="Determinant of the matrix that maps x to y"),
        Number("off", "off picture", off, help="Distance (Frobenius) of P4Inv's W from the slice or plane shown"),
        *numbers.merges(label="merged", help="Merges of P4Inv", refused="Merges that P4Inv refused"),
    ),
    curves=curves,
    loss=LOSS,
    share=0.58,
    style="""
.p4-pictures { grid-template-columns: minmax(0, 1.3fr) minmax(0, 1fr); }
.p4-side .p4-item-text .p4-flag { display: inline; margin-left: auto; }
""",
)
