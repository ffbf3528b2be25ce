"""How many directions a perturbation needs: one layer with 1, 4 or 16 of them, or all weights free, side by side."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import BELOW, Axes, Board, Lab, Picture, Sight, Try, View, diagnostics, per_second
from p4lab.p4.linear import Reset
from p4lab.plots import RUN_COLORS, Figure, Loss
from p4lab.plots.format import number
from p4lab.plots.gallery import LEGEND
from p4lab.plots.layers import Layer, Path, Plot, Points, Rows
from p4lab.training import Lanes, MatrixConfig, RunConfig, Snapshot
from p4lab.training.config import one_of, setting

RANKS = (1, 4, 16)
NAMES = {**{f"k{k}": f"{k} direction{'s' * (k > 1)}" for k in RANKS}, "plain": "all weights"}
"""What the lanes are called."""
COLORS = dict(zip(NAMES, RUN_COLORS, strict=False))
LOSS = Loss("loss |W − T|² / d", log=True, bits=False, test=False, exact=True)
LOWEST = 1e-8
"""Singular values below it are drawn at it."""
Look = Sight["DirectionsConfig", View]


@dataclass(frozen=True)
class DirectionsConfig(MatrixConfig):
    """Learn a matrix T from the identity, by P4Inv with a few directions, or by a plain weight."""

    problem: ClassVar[str] = "directions"

    learning_rate: float = setting(0.2, choices=(0.02, 0.05, 0.1, 0.2, 0.4, 0.8), help="Of all lanes")
    merge_every: int = setting(4, choices=(1, 2, 4, 10, 20, 50))
    reset: Reset = setting("gradient", help="Where new directions come from: the gradient since the merge, or chance")
    dim: int = setting(32, choices=(16, 32, 64))
    start: str = setting("identity", rule=one_of("identity"))
    target: str = setting(
        "rotation",
        rule=one_of("rotation", "spd_near_one", "random"),
        choices={"rotation": "A rotation", "spd_near_one": "SPD, near I", "random": "Any matrix"},
        look="wide",
        live=False,
    )


def side_by_side(config: RunConfig) -> Lanes:
    """Return one lane for each number of directions, and one for a plain weight."""
    ways: dict[str, dict[str, Any]] = {f"k{k}": {"route": "p4inv", "rank": k} for k in RANKS}
    return Lanes(config, "rank", {**ways, "plain": {"route": "plain"}})


def error_of(lane: Snapshot) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return what is left to learn, W - T, shape (d, d)."""
    return np.asarray(lane.pictures["weight"] - lane.pictures["target"], np.float64)


def within_reach(lane: Snapshot) -> float:
    r"""Return the share of the error that the present directions v can take away.

    .. math:: |E P|_F^2 / |E|_F^2, \qquad E = W - T, \qquad P \text{ the projection on the rows of } v

    It is 1 for a plain weight, and k / d in the mean for k random directions.
    """
    error = error_of(lane)
    if lane.config.to_dict()["route"] == "plain" or not np.isfinite(error).all() or not error.any():
        return 1.0
    basis, _ = np.linalg.qr(np.asarray(lane.pictures["v"], np.float64).T)
    return float(np.square(error @ basis).sum() / np.square(error).sum())


def spectra(sight: Look) -> Plot:
    """Return the singular values of what is left to learn, of every lane."""
    layers: list[Layer] = []
    for name, lane in sight.lanes.items():
        error = error_of(lane)
        values = np.linalg.svd(error, compute_uv=False) if np.isfinite(error).all() else np.full(len(error), np.nan)
        heights = np.log10(np.maximum(values, LOWEST))
        layers.append(Path(np.stack([np.arange(1, len(values) + 1), heights], axis=1), COLORS[name], label=NAMES[name]))
    return Plot(layers, (0.0, len(values) + 1.0, np.log10(LOWEST), 1.0))


def reach(sight: Look) -> Plot:
    """Return the share of the error within reach of each lane's directions, beside that of as many random ones."""
    d = sight.config.dim
    at = np.log2(RANKS)
    layers: list[Layer] = [
        Path([[at[0] - 1, 0], [at[-1] + 1, 0]], "grey", 1),
        Points(np.stack([at, np.minimum(1.0, np.array(RANKS) / d)], 1), "grey", "ring", 12, label="random directions"),
    ]
    for x, name in zip(at, (name for name in NAMES if name != "plain"), strict=True):
        layers.append(Points([[x, within_reach(sight.lanes[name])]], COLORS[name], "dot", 12, label=NAMES[name]))
    return Plot(layers, (at[0] - 1, at[-1] + 1, 0.0, 1.05))


def _trained(lane: Snapshot) -> str:
    config: Any = lane.config
    return f"{config.dim * (config.dim if config.route == 'plain' else min(config.rank, config.dim)):,}"


COLUMNS = (
    numbers.Column("trained", _trained, "Numbers that the optimizer moves in each step: k × d, or d × d"),
    numbers.Column("loss", lambda lane: number(lane.last("test_loss"), ".1e"), "|W − T|² / d"),
    numbers.Column("in reach", lambda lane: number(100 * within_reach(lane), ".0f", " %"), "Share of the error"),
    *numbers.merge_columns(),
    numbers.step_time(".2f"),
)


def board(sight: Look) -> Rows:
    """Return what each number of directions costs, and how far it has come."""
    return numbers.lane_table(sight, COLUMNS, NAMES, colors=COLORS)


def curves(sight: Look) -> Figure:
    """Return the losses of all lanes."""
    figure = training_figure(sight, LOSS, NAMES, colors=COLORS)
    return {**figure, "layout": {**figure["layout"], "legend": LEGEND}}


@dataclass(frozen=True)
class DirectionsView(View):
    """What is looked at."""

    view: str = diagnostics("training")
    speed: float | None = setting(20, choices=per_second(2, 5, 20, 100, None))


DIRECTIONS = Lab(
    name="directions",
    title="How many directions?",
    subtitle="One matrix, learnt with 1, 4 or 16 directions at a time",
    config=DirectionsConfig(),
    view=DirectionsView(),
    trainer=side_by_side,
    lanes=lambda config: NAMES,
    groups={
        "Matrix": ("target", "dim"),
        "Directions": ("reset", "merge_every"),
        "Steps": ("learning_rate", "optimizer", "speed"),
    },
    more={"Run": ("seed", "dtype"), "Diagnostics": ("view",)},
    tries=(
        Try(
            "Within reach",
            "Press *Start*. Dots are the share of the error along v, rings that of random directions. Those "
            "of the gradient reach one and a half times as much as random ones.",
            {"reset": "gradient", "merge_every": 4, "learning_rate": 0.2, "restart": True},
        ),
        Try(
            "What is left to learn",
            "The singular values of W − T. With few directions the large ones stay for long; 16 directions "
            "take the spectrum down nearly as a whole, as all weights do.",
        ),
        Try(
            "Directions that are used up",
            "Press *Start*. Gaussian directions are √32 times as long, the same rate 32 times as bold. So the "
            "share in reach falls within a stroke, and jumps at the merge. With 16 of them the loss falls "
            "faster than with all weights.",
            {"reset": "gaussian", "merge_every": 10, "learning_rate": 0.2, "speed": 5, "restart": True},
        ),
        Try(
            "Too bold",
            "Press *Start*. At this rate Gaussian directions run away: the lane with 16 stops. *Directions* "
            "gradient and *Reset*: these have length 1, and all lanes learn.",
            {"reset": "gaussian", "merge_every": 4, "learning_rate": 0.8, "speed": 20, "restart": True},
        ),
        Try(
            "Merge every",
            "Press *Start*, and compare merges every 50 steps with those after each: the loss after 200 steps "
            "is 1.0 against 0.8 with 4 directions. At this rate a direction is hardly used up in 50 steps.",
            {"reset": "gradient", "merge_every": 50, "learning_rate": 0.2, "restart": True},
        ),
    ),
    pictures=(
        Picture(Board("Lanes"), board, 0.5, "board", BELOW),
        Picture(
            Axes("What is left to learn", "singular values of W − T", "index", "log₁₀ σ", equal=False, height=260),
            spectra,
            area="spectra",
        ),
        Picture(
            Axes(
                "Within reach",
                "share of the error along v",
                "log₂ of the number of directions",
                "share",
                equal=False,
                height=260,
            ),
            reach,
            area="reach",
        ),
    ),
    numbers=(
        *numbers.steps(),
        *(
            numbers.of_lane(
                f"loss_{lane}", name, lane, lambda s: number(s.last("test_loss"), ".1e"), color=COLORS[lane]
            )
            for lane, name in NAMES.items()
        ),
        *numbers.merges(lanes=True, label="merged", help="Perturbations merged, all lanes"),
    ),
    curves=curves,
    loss=LOSS,
)
