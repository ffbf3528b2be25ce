"""The lab of recurrent networks: orthogonal weights by P4, by a parametrization, and not at all, for the same time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.labs import equal_time, numbers
from p4lab.labs.lab import BELOW, Axes, Board, Grid, Grids, Lab, Number, Picture, Sight, Try, per_second
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


COPYING: Mapping[str, Any] = {"task": "copy", "delay": 60, "dim": 128, "initial": "rotations", "rate_factor": 1.0}
"""What most things to try begin with."""

RNN = Lab(
    name="rnn",
    title="Orthogonal memory",
    subtitle="Three recurrent networks, the same training time for each",
    config=RnnConfig(),
    view=RnnView(),
    trainer=rnn_race,
    lanes=labels,
    groups={
        "Task": ("task", "delay"),
        "Recurrent weights": ("rival", "dim", "initial"),
        "Training": ("rate_factor", "budget"),
        "P4": ("merge_every",),
        "Show": ("axis",),
    },
    more={"Training": ("batch_size",), "P4": ("rank", "reset"), "Run": ("seed", "device", "dtype", "speed")},
    tries=(
        Try(
            "Copy",
            "Press *Start*. The losses fall below the best without memory after a few steps, and the symbols "
            "at the end light up one after the other. By *Curves over* compare Steps and Time: per step the "
            "lanes hardly differ.",
            {**COPYING, "page:pictures": "Answers", "restart": True},
        ),
        Try(
            "The circle",
            "Press *Start*. The eigenvalues of P4 and of the rival stay on the circle, the unconstrained ones "
            "leave it. Drag *Learning rates ×* to 5: all forget what they knew, and the unconstrained lane "
            "stops.",
            {**COPYING, "page:pictures": "Eigenvalues and gradients", "restart": True},
        ),
        Try(
            "Wider",
            "Press *Start*. The parametrization falls behind in steps done: compare ms/step, three times that of P4.",
            {**COPYING, "dim": 256, "page:below": "Lanes", "restart": True},
        ),
        Try(
            "A faster rival",
            "Press *Start*. torch's Cayley map solves one system of equations in place of an exponential: a "
            "step takes as long as one of P4. At these widths it is the hardest to beat.",
            {**COPYING, "rival": "cayley", "page:below": "Lanes", "restart": True},
        ),
        Try(
            "Longer",
            "Press *Start*. Three hundred factors W in a row: what shrinks or stretches by one per cent is "
            "lost, or twenty times as large. All three are slower; the gradients show how close to orthogonal "
            "the plain weights have to stay.",
            {**COPYING, "delay": 300, "page:pictures": "Eigenvalues and gradients", "restart": True},
        ),
        Try(
            "Start: identity",
            "Press *Start*. The same property, but no mixing: states are sums, and the order of the symbols "
            "is lost. After six seconds each, more than 80% of the loss is left. Orthogonality is not "
            "everything.",
            {**COPYING, "initial": "identity", "page:pictures": "Answers", "restart": True},
        ),
        Try(
            "Adding",
            "Press *Start*. This task needs the nonlinearity, not only a good memory: all are slower, and "
            "being orthogonal is less of a help. Plain weights are there first.",
            {**COPYING, "task": "adding", "page:pictures": "Answers", "restart": True},
        ),
        Try(
            "Other directions",
            "Press *Start*. One Gaussian direction, merged every 100 steps (the recommended ones follow the "
            "gradient): P4 solves the task all the same.",
            {**COPYING, "reset": "gaussian", "rank": 1, "merge_every": 100, "page:below": "Lanes", "restart": True},
        ),
    ),
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
            "Answers",
        ),
        Picture(
            Axes("Sums", "64 sequences of the test set", "right sum", "answer", equal=False, height=372),
            sums,
            0.2,
            "sums",
            "Answers",
        ),
        Picture(
            Axes("Eigenvalues", "of the recurrent weights", "real part", "imaginary part", height=372),
            eigenvalue_picture,
            0.2,
            "eigenvalues",
            "Eigenvalues and gradients",
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
            "Eigenvalues and gradients",
        ),
        Picture(Board("Lanes"), board, 0.5, "board", BELOW),
    ),
    numbers=(
        *equal_time.TURNS,
        *(
            numbers.of_lane(
                name,
                label,
                lane,
                lambda snapshot: number(share(snapshot), ".2g"),
                unit="× no memory",
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
    style="""
.p4-rnn-answers { overflow: hidden auto; }
.p4-layout .p4-grids > .p4-grid { flex: none; }
.p4-grid canvas {
  width: 100% !important; height: 30px !important; image-rendering: pixelated; outline-offset: 0;
}
.p4-grid figcaption { margin-bottom: 2px; }
.p4-item-readout[data-name="leader"] { flex-grow: 2; }
""",
)
