"""What a property costs and what it is worth: five ways to learn a matrix that has it, side by side."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p4lab.baselines.properties import MAP_TEXTS, PROPERTIES, WAYS, Spec, label_of
from p4lab.labs import numbers
from p4lab.labs.lab import BELOW, Axes, Board, Grid, Grids, Lab, Picture, Sight, Try, View, diagnostics, per_second
from p4lab.plots import RUN_COLORS, Figure, Loss, Shown, gallery
from p4lab.plots.format import number
from p4lab.plots.layers import Images, Layer, Path, Plot, Points, Rows, Tile
from p4lab.plots.property_curves import property_curves
from p4lab.problems.property_targets import PropertyProblem, property_target, violation
from p4lab.training import Engine, Lanes, Snapshot
from p4lab.training.config import POSITIVE, Rule, RunConfig, one_of, rate_factor, setting, whole
from p4lab.training.measure import eigenvalues

ROLES = {
    "p4": "P4",
    "usual": "usual way",
    "other": "another way",
    "penalty": "penalty",
    "plain": "no property",
}
"""What the lanes stand for."""
COLORS = dict(zip(WAYS, RUN_COLORS, strict=False))
"""The colour of each lane."""
BUSY = 128
"""Above this width eigenvalues are those of two lanes only: they cost O(d^3) for each lane and picture."""
GOAL = 1e-2
"""Error above the least possible one that the table measures time to."""
FLOORS = {"float32": 1e-8, "float64": 1e-17}
"""Below rounding: where the curves show a violation of 0."""
LOSS = Loss("error |W − T|² / d", log=True, bits=False)
_NOT_NEGATIVE = Rule(float, lambda value: math.isfinite(value) and value >= 0, "a number of at least 0")


# --- what is trained --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PropertyConfig(RunConfig):
    """Learn y = T x for a matrix T with a property, in one of the ways to keep it.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "properties"

    seed: int = setting(0, help="Of target, start and batches")
    rank: int = setting(32, choices=(1, 2, 4, 8, 16, 32), help="Directions of a perturbation, no more than fit")
    reset: Any = setting("gradient", help="How new directions are drawn at a merge")
    optimizer: str = "sgd"
    learning_rate: float = setting(1.0, live=False)
    batch_size: int = setting(128, choices=(32, 64, 128, 256, 512))
    merge_every: int = setting(4, choices=(1, 2, 4, 10, 20, 50, 100))
    measure_every: int = 5
    prop: str = setting(
        "orthogonal", "Property", choices={name: prop.label for name, prop in PROPERTIES.items()}, look="wide"
    )
    way: str = setting("p4", "", one_of(*WAYS), help="How it is kept")
    dim: int = setting(64, "Width d", whole(2, 512), choices=(8, 16, 32, 64, 128, 256), own=True)
    bound: float = setting(
        0.8,
        "Bound c",
        POSITIVE,
        choices=(0.5, 0.8, 1.0, 1.25),
        own=True,
        help="Of the spectral norm; that of the target is 1",
    )
    orthogonal_map: str = setting(
        "householder",
        "torch's map",
        choices=MAP_TEXTS,
        look="wide",
        help="Of torch.nn.utils.parametrizations.orthogonal",
    )
    rate_factor: float = rate_factor(0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
    noise: float = setting(
        0.1,
        "Noise of y",
        _NOT_NEGATIVE,
        choices=(0.0, 0.01, 0.03, 0.1, 0.3, 1.0),
        own=True,
        live=True,
        help="Standard deviation",
    )
    strength: float = setting(
        1.0,
        "Penalty",
        _NOT_NEGATIVE,
        choices=(0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
        own=True,
        live=True,
        help="Its weight, in the lane that has one",
    )
    samples: int = setting(
        0,
        "Samples",
        whole(0, 100_000),
        choices={0: "endless"} | dict.fromkeys((32, 128, 512, 2048), ""),
        own=True,
        help="How many pairs (x, y) there are to learn from",
    )

    @property
    def width(self) -> int:
        """The width d."""
        return self.dim

    @property
    def label(self) -> str:
        """What this way to keep the property is called."""
        return label_of(self.prop, self.way, self.orthogonal_map)

    @property
    def step_size(self) -> float:
        """The way's own rate, times the factor of all."""
        return self.learning_rate * self.rate_factor

    def parts(self) -> tuple[PropertyProblem, nn.Module]:
        """Return the regression, and the model of this way at its start."""
        target = property_target(self.prop, self.dim, self.seed)
        settings = {"noise": self.noise, "strength": self.strength, "samples": self.samples, "seed": self.seed + 2}
        problem = PropertyProblem(target, **settings, **self.where)  # type: ignore[arg-type]
        prop = PROPERTIES[self.prop]
        bound = self.bound if prop.bounded else None
        spec = Spec(self.dim, self.rank, self.reset, bound, self.orthogonal_map, self.seed, self.where, prop.begin)
        return problem, prop.ways[self.way].build(spec)

    def update(self, problem: PropertyProblem) -> None:
        """Set noise and penalty."""
        problem.noise, problem.strength = self.noise, self.strength

    def measures(self, problem: PropertyProblem, model: Any, watched: Tensor | None) -> dict[str, Any]:
        """Return the exact error, log|det| and its sign, and the violation as "residual"."""
        weight = model.weight
        sign, logabsdet = torch.linalg.slogdet(weight.cpu().double())
        return {
            "test_loss": float(problem.test_loss(model)),
            "logabsdet": float(logabsdet),
            "sign": float(sign),
            "logabsdet_error": math.nan,
            "residual": violation(self.prop, weight, self.bound, own_inverse(model)),
            "condition": math.nan,
        }


@torch.no_grad()
def own_inverse(model: Any) -> Tensor | None:
    """Return the inverse that a model knows of its weights, shape (d, d); None if it knows none."""
    if hasattr(model, "weight_inverse"):
        inverse: Tensor = model.weight_inverse
        return inverse
    if not hasattr(model, "inverse"):
        return None
    columns: Tensor = model.inverse(torch.eye(len(model.weight)).to(model.weight))
    return columns.t()


@lru_cache(maxsize=32)
def best_error(prop: str, dim: int, seed: int, bound: float) -> float:
    """Return the least error that the property allows: 0, but for a Lipschitz bound below the target's norm."""
    if not PROPERTIES[prop].bounded:
        return 0.0
    excess = (torch.linalg.svdvals(property_target(prop, dim, seed)) - bound).relu()
    return float(excess.square().sum() / dim)


def side_by_side(config: PropertyConfig, ways: Iterable[str] = WAYS) -> Lanes:
    """Return one lane for each way to keep the property, from the same start and with the same batches.

    Raises:
        ConfigError: a name is not one of `WAYS`.
        MissingPackageError: a package that a way is made of is not installed.

    Example:
        >>> lanes = side_by_side(PropertyConfig(prop="circulant", dim=8), ("p4", "plain"))
        >>> lanes.run(3)
        >>> [lane.config.label for lane in lanes.engines.values()]
        ['P4Circulant', 'nn.Linear']
    """
    _warm_up(config.prop, config.dtype, config.device)
    configs = [config.replace(way=way) for way in ways]
    settings = [PROPERTIES[one.prop].ways[one.way].settings(one.dim) for one in configs]
    return Lanes(
        config, "way", {one.way: Engine(one.replace(**own)) for one, own in zip(configs, settings, strict=True)}
    )


@lru_cache(maxsize=64)
def _warm_up(prop: str, dtype: str, device: str) -> None:
    """Do a few steps of every way once: what libraries load at their first call would count as the first lane's."""
    for way in WAYS:
        Engine(PropertyConfig(prop=prop, way=way, dtype=dtype, device=device, dim=8, learning_rate=1e-3)).run(5)


@dataclass(frozen=True)
class PropertyView(View):
    """What is looked at."""

    view: str = diagnostics("training")
    speed: float | None = setting(None, choices=per_second(1, 5, 20, None))
    matrix: str = setting(
        "matrix", "Heatmaps", choices={"matrix": "Matrix W", "error": "Error W − T"}, kind="segments", live=True
    )


# --- pictures ---------------------------------------------------------------------------------------------------------

Look = Sight[PropertyConfig, PropertyView]


def labels(config: PropertyConfig) -> dict[str, str]:
    """Return what the lanes of a run are called."""
    return {way: label_of(config.prop, way, config.orthogonal_map) for way in WAYS}


def target_of(sight: Look) -> NDArray[Any]:
    """Return the target T, shape (d, d)."""
    target: NDArray[Any] = sight.lanes["p4"].pictures["target"]
    return target


def heatmaps(sight: Look) -> Images:
    """Return the matrices of all lanes, or their errors, and the target."""
    target, error = target_of(sight), sight.view.matrix == "error"
    matrices = [sight.lanes[way].pictures["matrix"] - (target if error else 0) for way in WAYS]
    # The largest entries may be beyond, or a diagonal would hide the rest.
    span = gallery.span_of(matrices if error else [target], 0.97)
    notes = [*labels(sight.config).values(), ""]
    tiles = [
        Tile(gallery.levels(matrix, span)[None], note) for matrix, note in zip([*matrices, target], notes, strict=True)
    ]
    return Images(tiles, (f"{'error' if error else 'entry'} −{span:g}", f"{span:g}"))


def _spectra(
    sight: Look, name: str, ways: Iterable[str], compute: Callable[[NDArray[Any]], NDArray[Any]]
) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Return points for the target, and for lanes, P4's last so that it lies on top. Cost O(d^3) for what is new."""
    config = sight.config
    goal = sight.keep(f"{name} of target", (config.prop, config.dim, config.seed), lambda: compute(target_of(sight)))

    def points(way: str) -> NDArray[Any]:
        matrix = sight.lanes[way].pictures["matrix"]
        kept: NDArray[Any] = sight.keep(f"{name} of {way}", sight.moment(way), lambda: compute(matrix))
        return kept

    return goal, {way: points(way) for way in reversed(WAYS) if way in ways}


def eigenvalue_picture(sight: Look) -> Plot:
    """Return the eigenvalues of all lanes and of the target in the complex plane."""
    config = sight.config
    ways = ("p4", "plain") if config.dim > BUSY else WAYS
    goal, lanes = _spectra(sight, "eigenvalues", ways, lambda w: gallery.complex_points(eigenvalues(w)))
    radius = config.bound if PROPERTIES[config.prop].bounded else 1.0
    box = _around(goal, radius)
    layers: list[Layer] = [gallery.unit_circle(radius), Points(goal, "orange", "cross", 9, label="target")]
    for way, points in lanes.items():
        layers.append(Points(gallery.inside(points, box), COLORS[way], "dot", 6 if way == "p4" else 5))
    return Plot(layers, box)


def _around(goal: NDArray[Any], radius: float) -> gallery.Box:
    """Return a frame around the target's eigenvalues, the origin and most of the circle; it never moves."""
    right = 1.12 * max(radius, float(goal[:, 0].max()))
    left = min(-0.25 * radius, 1.12 * float(goal[:, 0].min()))
    up = 1.12 * max(0.5 * radius, float(np.abs(goal[:, 1]).max()))
    return left, right, -up, up


def singular_values(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return singular values over their share of the dimensions, shape (d, 2). Cost O(d^3)."""
    d, finite = len(matrix), np.isfinite(matrix).all()
    values = torch.linalg.svdvals(torch.from_numpy(matrix)).numpy() if finite else np.full(d, np.nan)
    return np.stack([(np.arange(d) + 0.5) / d, values], axis=1).astype(np.float64)


def singular_value_picture(sight: Look) -> Plot:
    """Return the singular values of all lanes and of the target, the largest first."""
    goal, lanes = _spectra(sight, "singular values", WAYS, singular_values)
    box = (0.0, 1.0, 0.0, 1.25 * max(1.0, float(goal[:, 1].max())))
    layers: list[Layer] = [Points(goal, "orange", "cross", 8, label="target")]
    if PROPERTIES[sight.config.prop].bounded:
        bound = sight.config.bound
        layers.insert(0, Path([[0, bound], [1, bound]], "grey", 1, dashed=True, label="bound c"))
    layers += [Path(gallery.inside(points, box), COLORS[way], width=2) for way, points in lanes.items()]
    return Plot(layers, box)


# --- numbers ----------------------------------------------------------------------------------------------------------


def seconds_to(lane: Snapshot, goal: float = GOAL) -> float:
    """Return the training time of a lane until its error was below the least possible one plus a goal; NaN if never."""
    config: Any = lane.config
    return lane.seconds_below(best_error(config.prop, config.dim, config.seed, config.bound) + goal)


def _keeps(lane: Snapshot) -> str:
    config: Any = lane.config
    return PROPERTIES[config.prop].ways[config.way].keeps


def _error(lane: Snapshot) -> str:
    return number(lane.last("test_loss"), ".1e")


def _violation(lane: Snapshot) -> str:
    return numbers.violation_text(lane.last("residual"))


COLUMNS = (
    numbers.Column("kept by", _keeps, "What keeps the property in this lane"),
    numbers.Column("error", _error, "|W − T|² / d, exact: without noise"),
    numbers.Column(
        "s to 1e-2",
        lambda lane: number(seconds_to(lane), ".2f"),
        "Seconds of training until the error was 0.01 above the least that the property allows",
    ),
    numbers.Column("violation", _violation, "How far the effective weights are from the property, in float64"),
    numbers.worst_violation(),
    numbers.step_time(".2f", "Median time of a step of this lane, its merges and projections among them"),
    *numbers.merge_columns(),
)


def board(sight: Look) -> Rows:
    """Return what each way costs, and how well it keeps the property."""
    return numbers.lane_table(sight, COLUMNS, labels(sight.config), colors=COLORS)


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(sight: Look) -> Figure:
    """Return error over steps and over seconds, violation, and step time of all lanes."""
    config, frame = sight.config, sight.frame
    return property_curves(
        _lines(sight.snapshot),
        PROPERTIES[config.prop].symbols,
        sight.snapshot.events,
        [line for run in frame.runs if not run.active for line in _lines(run.snapshot)],
        best_error(config.prop, config.dim, config.seed, config.bound),
        frame.shown,
        frame.run,
        FLOORS[config.dtype],
    )


def _lines(snapshot: Snapshot) -> list[Shown]:
    config: Any = snapshot.config
    names = labels(config)
    return [Shown(names[way], COLORS[way], lane.curves, lane.events) for way, lane in snapshot.lanes.items()]


def without_meaning(config: PropertyConfig) -> list[str]:
    """Return the settings that mean nothing to the property that is chosen."""
    useless = {
        "bound": not PROPERTIES[config.prop].bounded,
        "orthogonal_map": config.prop != "orthogonal",
        "rank": config.prop == "circulant",
        "reset": config.prop == "circulant",
    }
    return [name for name, without in useless.items() if without]


HOW_FAR = "How far the effective weights are from the property"

ORTHOGONAL: Mapping[str, Any] = {"prop": "orthogonal", "dim": 64, "noise": 0.1, "samples": 0, "strength": 1.0}
"""What most things to try begin with."""

PROPERTY = Lab(
    name="property",
    title="Every property on the poster",
    subtitle="P4 beside the usual ways",
    config=PropertyConfig(),
    view=PropertyView(),
    trainer=side_by_side,
    lanes=labels,
    groups={
        "Property": ("prop", "bound", "orthogonal_map", "dim"),
        "Optimizer": ("rate_factor", "strength"),
        "P4": ("merge_every", "rank"),
        "Show": ("matrix",),
        "Run": ("speed",),
    },
    more={
        "Data": ("noise", "samples", "batch_size"),
        "P4": ("reset",),
        "Run": ("seed", "device", "dtype"),
    },
    tries=(
        Try(
            "Orthogonal",
            "Press *Start*. P4, torch and geotorch stay at rounding level; penalty and plain weights end at a "
            "violation that the noise dictates. On *Loss*, compare the errors over steps and over seconds.",
            {**ORTHOGONAL, "page:below": "Diagnostics", "restart": True},
        ),
        Try(
            "Noise",
            "Set this up after some 300 steps: *Noise of y* (page *More*) goes to 0, and plain weights find "
            "the target, and the property with it. Drag it up: they lose it at once. P4 cannot lose it.",
            {"noise": 0.0, "page:below": "Diagnostics"},
        ),
        Try(
            "Few samples",
            "Press *Start*. 32 samples do not determine the 64 × 64 numbers of plain weights, but the 64 of a "
            "circulant matrix they do: the error of the one is thousands of times that of the other.",
            {**ORTHOGONAL, "prop": "circulant", "samples": 32, "restart": True},
        ),
        Try(
            "A stronger penalty",
            "Press *Start*, and raise *Penalty* to 3: a little less violation. At 10 its steps are too long, "
            "and the lane stops within ten of them.",
            {**ORTHOGONAL, "page:below": "Diagnostics", "restart": True},
        ),
        Try(
            "Lipschitz",
            "Press *Start*. The target has norm 1, the bound is 0.8: what falls below the dashed line, the "
            "least error that the bound allows, has broken it. The estimate in torch's spectral_norm lags "
            "behind: violation 0.2.",
            {**ORTHOGONAL, "prop": "lipschitz", "bound": 0.8, "restart": True},
        ),
        Try(
            "Wider",
            "Press *Start*. The step times tell who pays O(d³) in each step: P4 takes about a tenth of what "
            "torch's map and geotorch take.",
            {**ORTHOGONAL, "dim": 256, "page:below": "Diagnostics", "restart": True},
        ),
        Try(
            "Back in time",
            "Pause, and drag *Time travel*: matrices, eigenvalues and singular values as they were.",
            {"page:pictures": "Eigenvalues and singular values"},
        ),
    ),
    pictures=(
        Picture(
            Grids(
                [*(Grid(ROLES[way], color=COLORS[way]) for way in WAYS), Grid("target T", color="var(--p4-orange)")],
                gallery.LEVELS,
                "diverging",
                ("−1", "1"),
            ),
            heatmaps,
            0.25,
            "matrices",
            "Matrices",
        ),
        Picture(
            Axes("Eigenvalues", "of every W", "real part", "imaginary part", height=250),
            eigenvalue_picture,
            0.5,
            "eigenvalues",
            "Eigenvalues and singular values",
        ),
        Picture(
            Axes("Singular values", "the largest first", "share of the d directions", equal=False, height=250),
            singular_value_picture,
            0.5,
            "singular-values",
            "Eigenvalues and singular values",
        ),
        Picture(Board("Lanes"), board, 0.5, "board", BELOW),
    ),
    numbers=(
        *numbers.steps("Optimizer steps of every lane", "Steps of all lanes together"),
        numbers.of_lane("error_p4", "P4 error", "p4", _error, help=LOSS.label),
        *(
            numbers.of_lane(f"violation_{way}", f"{name} violation", way, _violation, help=HOW_FAR)
            for way, name in {"p4": "P4", "usual": "usual", "penalty": "penalty", "plain": "plain"}.items()
        ),
    ),
    curves=curves,
    loss=LOSS,
    disabled=without_meaning,
    style="""
.p4-pictures > .p4-grids {
  display: grid; grid-template: repeat(2, minmax(0, 1fr)) auto / repeat(3, minmax(0, 1fr)); gap: 4px 16px;
}
.p4-grids > .p4-scale { grid-column: 1 / -1; }
.p4-table :is(th, td):nth-child(2) { text-align: left; }
""",
)
