"""The race: methods ticked by the user train side by side, each for the same time."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from p4lab.baselines import METHODS, Method
from p4lab.labs.equal_time import RaceView, clock_text, moment_in_time, time_is_up
from p4lab.labs.lab import Axes, Board, Button, Control, Grid, Grids, Lab, Number, Picture, Sight, Try
from p4lab.plots import Figure, Shown, gallery
from p4lab.plots.format import DASH, number
from p4lab.plots.layers import Images, Layer, Plot, Points, Row, Rows, Tile
from p4lab.plots.race import lane_style, race_curves
from p4lab.problems.tasks import TASKS
from p4lab.training import Player, Snapshot, State
from p4lab.training.config import Setting
from p4lab.training.race import SEPARATOR, RaceConfig, race, standings, unfit
from p4lab.training.runs import RunView

METHOD = "method:"
"""Before the name of a method in that of its control."""
GROUP_TEXTS = {
    "invertible": "On GL(d)",
    "orthogonal": "On O(d)",
    "nearly_orthogonal": "Next to O(d)",
    "designed": "By design",
    "penalized": "By penalty",
}
COLUMNS = {
    "method": "",
    "loss": "Test loss now: all have trained for the same time",
    "at step": "Test loss when as many steps were done as the slowest method has",
    "steps": "Optimizer steps done",
    "ms/step": "Milliseconds per step",
    "memory": "Parameters, buffers, gradients and optimizer state, kB",
    "inverse": "max |f⁻¹(f(I)) − I|",
    "log|det|": "Distance from a factorization in float64, nats",
}
HINTS = {
    State.RUNNING: "All take turns. Learning rates and time act at once; a new task or method waits for Reset.",
    State.PAUSED: "Step gives every method one turn. Tick others and press New run to compare, or Next seed to repeat.",
}
WAIT = 10.0
"""Seconds that the player may take to answer."""


# --- settings ---------------------------------------------------------------------------------------------------------


def tick(method: Method) -> Control:
    """Return the box that a method is ticked in."""

    def write(config: RaceConfig, on: bool) -> dict[str, str]:
        chosen = {*config.names} - {method.name} | ({method.name} if on else set())
        return {"methods": SEPARATOR.join(name for name in METHODS if name in chosen)}

    setting = Setting(method.label, kind="toggle", look="chip", help=f"{method.label}. Source: {method.source}")
    return Control(setting, lambda config: method.name in config.names, write)


def choose(config: RaceConfig, task: str) -> Mapping[str, Any]:
    """Return the settings of another task: a width that it has, and the methods that can do it."""
    fit = [name for name in config.names if not unfit(task, METHODS[name])]
    widths = (config.dim, *RaceConfig.settings["dim"].offered(config, config.dim))
    dim = (
        config.dim
        if TASKS[task].fixed
        else max(width for width in widths if width <= min(config.dim, TASKS[task].widest))
    )
    return {"task": task, "dim": dim, "methods": SEPARATOR.join(fit) or "p4inv"}


def next_seed(player: Player) -> None:
    """Keep the race, and start it with the next seed."""
    player.set(seed=player.frame(WAIT).planned.seed + 1)
    player.keep()
    player.start()


def impossible(config: RaceConfig) -> list[str]:
    """Return the methods that cannot do the task, and the width where that is the task's."""
    methods = [METHOD + name for name, method in METHODS.items() if unfit(config.task, method)]
    return [*methods, *(["dim"] if TASKS[config.task].fixed else [])]


# --- pictures ---------------------------------------------------------------------------------------------------------

Look = Sight[RaceConfig, RaceView]


def eigenvalue_picture(sight: Look) -> Plot | None:
    """Return the eigenvalues of all lanes, and of the target, in the complex plane; None where there is no target."""
    pictures = [(place, lane.pictures) for place, lane in enumerate(sight.lanes.values())]
    lanes = [(place, found["eigenvalues"]) for place, found in pictures if "eigenvalues" in found]
    if not lanes:
        return None
    target = next(found["target"] for _, found in pictures if "target" in found)
    extent = 1.15 * max(1.0, float(np.abs(target).max()))
    layers: list[Layer] = [gallery.unit_circle(), Points(target, "orange", "cross", 10, label="target")]
    layers += [Points(gallery.within(points, extent), lane_style(place)[0], "dot", 5) for place, points in lanes]
    return Plot(layers, gallery.square(extent))


def images(sight: Look) -> Images | None:
    """Return filters or samples of the leading method; None where the task has no images."""
    lanes = {name: lane for name, lane in sight.lanes.items() if "images" in lane.pictures and not lane.message}
    if not lanes:
        return None
    first = min(lanes, key=lambda name: np.nan_to_num(lanes[name].last("test_loss"), nan=np.inf))
    top = 16 if sight.config.task == "digits" else 255
    levels = (lanes[first].pictures["images"].astype(np.uint16) * 16 // top).astype(np.uint8)
    return Images([Tile(levels, METHODS[first].label)])


# --- the leaderboard --------------------------------------------------------------------------------------------------


def other_seeds(sight: Look) -> list[RunView]:
    """Return the runs that are not active and differ from the active one in nothing but the seed."""
    return [
        run
        for run in sight.frame.runs
        if not run.active and set(run.snapshot.config.differences(sight.config)) == {"seed"}
    ]


def leaderboard(sight: Look) -> Rows:
    """Return one row per method, the best first; with other seeds, medians and ranges over them."""
    colors = {name: lane_style(place)[0] for place, name in enumerate(sight.lanes)}
    others = [standings(run.snapshot) for run in other_seeds(sight)]
    rows = [
        Row(_cells(row, [other.loc[name] for other in others]), colors[str(name)], position == 0)
        for position, (name, row) in enumerate(standings(sight.snapshot).iterrows())
    ]
    label = f"Leaderboard, medians of {1 + len(others)} seeds" if others else "Leaderboard"
    return Rows(COLUMNS, rows, label)


def _cells(row: Any, others: Sequence[Any]) -> list[str]:
    if row["stopped"]:
        return [row["method"], "stopped", *[DASH] * 6]
    return [
        row["method"],
        *(_median([one[key] for one in (row, *others)]) for key in ("loss", "at_step")),
        f"{row['steps']:,}",
        number(row["step_ms"], ".2f"),
        number(row["memory_kb"], ",.0f"),
        number(row["inverse_error"], ".0e"),
        number(row["logdet_error"], ".0e"),
    ]


def _median(losses: Sequence[float]) -> str:
    values = [value for value in losses if not math.isnan(value)]
    if not values:
        return DASH
    text = number(statistics.median(values), ".3g")
    return f"{text} ({number(min(values), '.2g')} … {number(max(values), '.2g')})" if len(values) > 1 else text


# --- numbers and curves -----------------------------------------------------------------------------------------------


def ahead(sight: Look) -> str:
    """Return the method with the lowest test loss, a dash before the first turn."""
    losses = {name: lane.last("test_loss") for name, lane in sight.lanes.items() if not lane.message}
    finite = {name: loss for name, loss in losses.items() if not math.isnan(loss)}
    return METHODS[min(finite, key=lambda name: finite[name])].label if finite and sight.snapshot.step else DASH


def hint(sight: Look) -> str | None:
    """Return what to do next."""
    if time_is_up(sight):
        return f"Time is up: {sight.config.budget:g} s of training each. Next seed races again, Start goes on a little."
    return HINTS.get(sight.frame.state)


def curves(sight: Look) -> Figure:
    """Return the test losses of all methods, errors of inverse and determinant, and condition numbers."""
    maps = TASKS[sight.config.task].kind == "map"
    return race_curves(
        _lines(sight.snapshot),
        [line for run in other_seeds(sight) for line in _lines(run.snapshot)],
        sight.view.axis,  # type: ignore[arg-type]
        log=maps,
        label="test error (squares)" if maps else "test loss (nats/dim)",
        run=sight.frame.run,
        cursor=moment_in_time(sight),
    )


def _lines(snapshot: Snapshot) -> list[Shown]:
    return [
        Shown(METHODS[name].label, lane_style(place)[0], lane.curves)
        for place, (name, lane) in enumerate(snapshot.lanes.items())
    ]


RACE = Lab(
    name="race",
    title="The race",
    subtitle="The same start, data and training time for every method",
    config=RaceConfig(),
    view=RaceView(),
    trainer=race,
    lanes=lambda config: {name: METHODS[name].label for name in config.names},
    groups={
        "Race": ("task", "dim", "budget", "rate_factor", "anneal"),
        "Run": ("seed", "next_seed"),
        "Show": ("axis",),
    },
    more_label="Methods",
    more={
        **{
            text: tuple(METHOD + name for name, method in METHODS.items() if method.group == group)
            for group, text in GROUP_TEXTS.items()
        },
    },
    controls={
        "task": Control(RaceConfig.settings["task"], lambda config: config.task, choose),
        **{METHOD + name: tick(method) for name, method in METHODS.items()},
    },
    buttons={"next_seed": Button("Next seed", next_seed, "Keep this race, and run it again with another seed")},
    disabled=impossible,
    tries=(
        Try(
            "A rotation",
            "Press *Start*. Every method can do this one. Switch *Curves over* from Time to Steps: step for "
            "step the exponential is ahead of PLU, second for second it is behind.",
            {"task": "so", "dim": 64, "page:pictures": "Leaderboard", "restart": True},
        ),
        Try(
            "det < 0",
            "Press *Start*. From the identity the determinant must change its sign. What cannot cross det = 0 "
            "stays behind, however long it trains: the exponential here, GL+ and a rotation group among the "
            "*Methods*.",
            {"task": "negative", "dim": 64, "page:pictures": "Eigenvalues", "restart": True},
        ),
        Try(
            "Ill-conditioned",
            "Press *Start*. Singular values go from 1/10 to 10. Do not watch the loss alone: *Diagnostics* "
            "shows the errors of the inverses and of log|det|.",
            {
                "task": "ill_conditioned",
                "dim": 64,
                "page:pictures": "Leaderboard",
                "page:below": "Diagnostics",
                "restart": True,
            },
        ),
        Try(
            "ICA of photographs",
            "Press *Start*. Patches of photographs, whitened and mixed by a rotation, are to be separated. "
            "The images are the filters of the method that is ahead: edges appear.",
            {"task": "ica_photos", "dim": 64, "method:p4relative": True, "page:pictures": "Images", "restart": True},
        ),
        Try(
            "A flow of digits",
            "Press *Start*. The likelihood of a flow of five linear layers needs log|det| of each of them in "
            "every step.",
            {"task": "digits", "page:pictures": "Images", "restart": True},
        ),
        Try(
            "Wider",
            "Press *Start*. What is cubic in d falls behind: a step of the exponential takes fifty times as "
            "long as one of P4Inv. Methods that see a few directions only fall behind, too.",
            {"task": "so", "dim": 512, "page:pictures": "Leaderboard", "restart": True},
        ),
        Try(
            "Both ways",
            "Press *Start*. Tasks of this name train W and its inverse in every step: who solves for the "
            "inverse pays each time.",
            {"task": "so_both", "dim": 64, "page:pictures": "Leaderboard", "restart": True},
        ),
        Try(
            "Another seed",
            "When time is up, press *Next seed*: it races again with other data, and keeps the first race. "
            "The leaderboard then shows medians, with the range behind them.",
        ),
    ),
    pictures=(
        Picture(Board("Leaderboard"), leaderboard, 0.5, "board", "Leaderboard"),
        Picture(
            Axes("Eigenvalues", "of every method's W, target as crosses", "Re λ", "Im λ", height=300),
            eigenvalue_picture,
            area="eigenvalues",
            page="Eigenvalues",
        ),
        Picture(
            Grids([Grid("The leader's images", "filters, or samples", 8)], 16), images, area="images", page="Images"
        ),
    ),
    numbers=(
        Number("count", "turn", lambda sight: f"{sight.snapshot.step:,}", help="Turns that every method has had"),
        Number("clock", "training time of each", clock_text, "s"),
        Number("lanes", "methods", lambda sight: str(len(sight.lanes))),
        Number("leader", "ahead", ahead, help="Lowest test loss at equal time"),
    ),
    curves=curves,
    hint=hint,
    style="""
.p4-race-board { overflow: hidden auto; scrollbar-width: thin; }
.p4-item-readout[data-name="leader"] { flex-grow: 2; }
""",
)
