"""The lab of recurrent networks: orthogonal weights by P4, by a parametrization, and not at all, for the same time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.labs import equal_time, numbers
from p4lab.labs.lab import Axes, Board, Grid, Grids, Lab, Number, Picture, Sight, per_second
from p4lab.plots import Figure, Shown, gallery
from p4lab.plots.format import DASH, count, number
from p4lab.plots.layers import Images, Layer, Path, Plot, Points, Rows, Tile
from p4lab.plots.race import lane_style
from p4lab.problems.recurrent import CELLS
from p4lab.problems.sequences import LENGTH
from p4lab.training import Snapshot, State
from p4lab.training.config import setting
from p4lab.training.race import common_step, loss_at
from p4lab.training.rnn import INK, LANES, P4, PLAIN, RIVAL, TARGET, RnnConfig, cells_of, rnn_race, shown_task

COLORS = {lane: lane_style(place)[0] for place, lane in enumerate(LANES)}
LOSS_TEXTS = {"copy": "test loss (nats per step)", "adding": "test loss (mean squared error)"}
SMALL = (
    ("residual", "violation max |WᵀW − I|"),
    ("grad_norm", "norm of the gradient"),
    ("step_ms", "step time (ms)"),
)
DECADES = (-4.0, 2.0)
"""Gradients between these powers of ten are always in the picture."""
LOWEST, HIGHEST = -12.0, 8.0
REACH = 1.3
"""Real and imaginary parts that the picture of eigenvalues shows."""
SUMS = (-0.2, 2.2, -0.2, 2.2)
"""The frame of the picture of sums."""
STRIPS = ("asked", "right answer")
HINTS = {
    State.RUNNING: "All take turns. Learning rates, merges and time act at once; task, width and rival wait for Reset.",
    State.PAUSED: "Step gives every lane one turn, To merge goes on until P4Orthogonal has merged.",
}


@dataclass(frozen=True)
class RnnView(equal_time.RaceView):
    """What is looked at."""

    speed: float | None = setting(None, choices=per_second(1, 5, 20, None))


Look = Sight[RnnConfig, RnnView]


def labels(config: RnnConfig) -> dict[str, str]:
    """Return what the lanes are called."""
    return {lane: CELLS[cell].label for lane, cell in cells_of(config).items()}


def baseline(config: RnnConfig) -> float:
    """Return the best loss without memory."""
    return shown_task(config.task, config.delay, config.seed + 1, config.device, config.dtype).baseline


def on_top(sight: Look) -> list[tuple[str, Snapshot]]:
    """Return the lanes in the order in which they are drawn: P4Orthogonal last, and so on top."""
    return list(sight.lanes.items())[::-1]


# --- answers ----------------------------------------------------------------------------------------------------------


def answers(sight: Look) -> Images | None:
    """Return a sequence to copy, the right answer, and each lane's, with time from left to right; None if none copy."""
    pictures = {name: lane.pictures for name, lane in sight.lanes.items()}
    if "answers" not in pictures[P4]:
        return None
    names = labels(sight.config)
    tiles = [
        Tile(pictures[P4]["inputs"][None], f"{LENGTH} symbols, {sight.config.delay - 1} blanks, a sign to answer"),
        Tile(pictures[P4]["targets"][None], f"blanks, then the {LENGTH} symbols"),
    ]
    for lane, shown in pictures.items():
        right = right_ones(shown["answers"], shown["targets"])
        tiles.append(Tile(shown["answers"][None], f"{names[lane]}: {right} of {LENGTH} right"))
    return Images(tiles)


def right_ones(answers: NDArray[Any], targets: NDArray[Any]) -> int:
    """Return how many of the ten symbols at the end would be named; both are of shape (9, T + 20).

    Example:
        >>> targets = np.eye(9, dtype=np.uint8)[[1, 2, 3, 4, 5, 6, 7, 8, 1, 2]].T
        >>> right_ones(np.roll(targets, 1, axis=0), targets), right_ones(targets, targets)
        (0, 10)
    """
    said, asked = (shares[1:, -LENGTH:].argmax(0) for shares in (answers, targets))
    return int((said == asked).sum())


def sums(sight: Look) -> Plot | None:
    """Return each lane's sums over the right ones; None where nothing is added."""
    if "sums" not in sight.lanes[P4].pictures:
        return None
    x0, x1, y0, y1 = SUMS
    layers: list[Layer] = [
        Path([[x0, y0], [x1, y1]], "grey", 1, dashed=True, label="right"),
        Path([[x0, 1.0], [x1, 1.0]], "grey", 1, label="best without memory"),
    ]
    for lane, snapshot in on_top(sight):
        points = snapshot.pictures["sums"].astype(np.float64)
        points[:, 1] = np.where((points[:, 1] >= y0) & (points[:, 1] <= y1), points[:, 1], np.nan)
        layers.append(Points(points, COLORS[lane], "dot", 6))
    return Plot(layers, SUMS)


# --- gradients and eigenvalues ----------------------------------------------------------------------------------------


def gradients(sight: Look) -> Plot:
    """Return how large the gradient of the loss is at the states of every time step, for each lane."""
    copies = sight.config.task == "copy"
    asked = -1 - LENGTH if copies else -1  # from here back to the start nothing is added to the gradient
    lines = {lane: decades(snapshot.pictures["through_time"], asked) for lane, snapshot in on_top(sight)}
    steps = len(lines[P4])
    values = np.concatenate([*lines.values(), DECADES])
    low, high = math.floor(float(np.nanmin(values))), math.ceil(float(np.nanmax(values)))
    layers: list[Layer] = [Path([[0, 0.0], [steps, 0.0]], "grey", 1, dashed=True, label="neither more nor less")]
    if copies:
        ends = {LENGTH: "end of the symbols, sign to answer", steps - LENGTH: ""}
        layers += [Path([[t, low], [t, high]], "grey", 1, label=text) for t, text in ends.items()]
    for lane, line in lines.items():
        points = np.stack([np.arange(1, steps + 1), line], axis=1)
        layers.append(Path(points, COLORS[lane], width=2.5 if lane == P4 else 2))
    return Plot(layers, (0.0, float(steps), float(low), float(high)))


def decades(norms: NDArray[Any], at: int = -1) -> NDArray[np.float64]:
    """Return the decimal logarithm of norms as shares of one of them, within -12 and 8; NaN if that one is not above 0.

    Example:
        >>> decades(np.array([0.0, 1e-3, 100.0, 1.0])).tolist()
        [-12.0, -3.0, 2.0, 0.0]
    """
    wide = np.asarray(norms, np.float64)
    if not wide[at] > 0:
        return np.full(len(wide), np.nan)
    with np.errstate(divide="ignore"):
        return np.clip(np.log10(wide / wide[at]), LOWEST, HIGHEST)


def eigenvalue_picture(sight: Look) -> Plot | None:
    """Return the eigenvalues of recurrent weights, as at their last measurements; None if these are too wide."""
    lanes = [(lane, snapshot.spectrum.values) for lane, snapshot in on_top(sight)]
    if not all(len(values) for _, values in lanes):
        return None
    layers: list[Layer] = [gallery.unit_circle(label="unit circle")]
    for lane, values in lanes:
        points = gallery.within(gallery.complex_points(values[-1]), REACH)
        layers.append(Points(points, COLORS[lane], "dot", 5 if lane == P4 else 6))
    return Plot(layers, gallery.square(REACH))


# --- numbers ----------------------------------------------------------------------------------------------------------


def share(lane: Snapshot) -> float:
    """Return the test loss as a share of the best one without memory; NaN if the lane has stopped."""
    config: Any = lane.config
    return math.nan if lane.message else lane.last("test_loss") / baseline(config)


def leader(sight: Look) -> str | None:
    """Return the lane with the lowest loss at equal time; None as long as all have the same."""
    shares = {name: share(lane) for name, lane in sight.lanes.items()}
    running = {name: value for name, value in shares.items() if not math.isnan(value)}
    return min(running, key=lambda name: running[name]) if len(set(running.values())) > 1 else None


def solved(lane: Snapshot) -> float:
    """Return the seconds of training until the task was solved, NaN if it never was."""
    config: Any = lane.config
    return lane.seconds_below(TARGET * baseline(config))


def board(sight: Look) -> Rows:
    """Return how good each lane is, and what it costs; the one that is ahead is set in bold."""
    common, chance = common_step(sight.lanes), baseline(sight.config)
    columns = (
        numbers.Column(
            "loss",
            lambda lane: number(share(lane), ".3g"),
            "Test loss now, as a share of the best one without memory: all have trained for the same time",
        ),
        numbers.Column(
            "at equal steps",
            lambda lane: number(loss_at(lane, common) / chance, ".3g"),
            "The same when as many steps were done as the slowest lane has",
        ),
        numbers.Column(
            "solved after",
            lambda lane: number(solved(lane), ".2f", " s"),
            f"Seconds of training until the loss was below {TARGET:g} of the best one without memory",
        ),
        equal_time.STEPS,
        equal_time.MEAN_STEP,
        numbers.Column("violation", violation, "max |WᵀW − I| of the effective weights, in float64"),
        numbers.worst_violation(),
        numbers.Column(
            "merged", lambda lane: count(lane.counts["merge"]), "Perturbations merged into the frozen matrix"
        ),
    )
    return numbers.lane_table(sight, columns, labels(sight.config), colors=COLORS, active=leader(sight))


def violation(lane: Snapshot) -> str:
    """Return how far a lane's weights are from orthogonal ones."""
    return numbers.violation_text(lane.last("residual"))


def ahead(sight: Look) -> str:
    """Return what the lane that is ahead is called."""
    first = leader(sight)
    return labels(sight.config)[first] if first else DASH


def hint(sight: Look) -> str | None:
    """Return what to do next."""
    return equal_time.hint(sight, HINTS)


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(sight: Look) -> Figure:
    """Return the test losses of all lanes, and their violations, gradients and step times."""
    chance = baseline(sight.config)
    return equal_time.curves(
        sight,
        _lines,
        _changed,
        label=LOSS_TEXTS[sight.config.task],
        small=SMALL,
        levels={"best without memory": chance, "solved": TARGET * chance},
    )


def _lines(snapshot: Snapshot) -> list[Shown]:
    config: Any = snapshot.config
    return equal_time.lines(snapshot, labels(config), COLORS)


def _changed(snapshot: Snapshot) -> Sequence[float]:
    """Return the seconds of training at which settings were changed."""
    return sorted({snapshot.seconds_at(event.step) for event in snapshot.events if event.kind == "set"})


RNN = Lab(
    name="rnn",
    title="Orthogonal memory",
    subtitle="Three recurrent networks, the same training time for each",
    config=RnnConfig(),
    view=RnnView(),
    trainer=rnn_race,
    lanes=labels,
    groups={
        "Task": ("task", "delay", "batch_size"),
        "Recurrent weights": ("rival", "dim", "initial"),
        "Training": ("rate_factor", "budget", "axis"),
        "P4": ("merge_every", "rank", "reset"),
        "Run": ("seed", "device", "dtype", "speed"),
    },
    pictures=(
        Picture(
            Grids(
                [*(Grid(name) for name in STRIPS), *(Grid("", color=COLORS[lane]) for lane in LANES)],
                INK,
                ends=("probability 0", "1"),
            ),
            answers,
            0.2,
            "answers",
        ),
        Picture(
            Axes("Sums", "64 sequences of the test set", "right sum", "answer", equal=False, height=372),
            sums,
            0.2,
            "sums",
        ),
        Picture(
            Axes("Eigenvalues", "of the recurrent weights", "real part", "imaginary part", height=372),
            eigenvalue_picture,
            0.2,
            "eigenvalues",
        ),
        Picture(
            Axes(
                "Gradient through time",
                "0 is where answers begin",
                "time step t",
                "log₁₀ |∂L/∂hₜ|",
                equal=False,
                height=190,
            ),
            gradients,
            0.2,
            "gradients",
        ),
        Picture(Board("Lanes"), board, 0.5, "board"),
    ),
    numbers=(
        *equal_time.TURNS,
        *(
            numbers.of_lane(
                name,
                label,
                lane,
                lambda snapshot: number(share(snapshot), ".2g"),
                help="Test loss as a share of the best one without memory",
            )
            for name, label, lane in (
                ("share_p4", "P4 loss", P4),
                ("share_rival", "rival loss", RIVAL),
                ("share_plain", "plain loss", PLAIN),
            )
        ),
        Number(
            "violation_p4",
            "P4 violation",
            lambda sight: violation(sight.lanes[P4]),
            help="max |WᵀW − I| of the effective weights",
        ),
        Number("leader", "ahead", ahead, help="Lowest test loss at equal time"),
    ),
    curves=curves,
    hint=hint,
    layout="wide",
    # The answers stand above gradients with the same axis of time, eigenvalues beside both.
    style="""
.p4-layout .p4-pictures { grid-template-columns: minmax(0, 1.45fr) minmax(0, 1fr); gap: 12px 20px; }
.p4-rnn-eigenvalues { grid-column: 2; grid-row: 2 / span 2; }
.p4-layout .p4-rnn-answers { display: flex; flex-flow: column nowrap; gap: 6px; min-width: 0; }
.p4-rnn-answers > * { flex: none; min-width: 0; margin: 0; }
.p4-grid canvas {
  width: 100% !important; height: 45px !important; image-rendering: pixelated; outline-offset: 0;
}
.p4-grid figcaption { flex-direction: row; gap: 6px; margin-bottom: 2px; }
.p4-grid figcaption span { min-height: 0; }
.p4-grid .p4-chip { margin-right: 0; }
.p4-curves { min-height: 460px; }
.p4-side .p4-select { width: 96px; }
.p4-item-readout[data-name="leader"] { flex-grow: 2; }
""",
)
