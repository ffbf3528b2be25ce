"""The lab of recurrent networks: orthogonal weights by P4, by a parametrization, and not at all, for the same time."""

from typing import Any

import numpy as np

from p4lab.labs.numbers import violation_text
from p4lab.plots import Figure, Shown
from p4lab.plots.format import number
from p4lab.plots.property_curves import step_times
from p4lab.plots.race import Axis, race_curves
from p4lab.problems.recurrent import CELLS, STARTS
from p4lab.problems.sequences import TASKS
from p4lab.training import Frame, Snapshot, State
from p4lab.training.rnn_setup import RIVALS, TARGET, RnnConfig, RnnRace
from p4lab.training.rnn_standings import baseline_of, config_of, labels_of, leader, standings
from p4lab.widgets import settings_items as shared
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.old_dashboard import Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, readout, with_stopped
from p4lab.widgets.rnn_pictures import (
    COLORS,
    AnswerPicture,
    Board,
    EigenvaluePicture,
    GradientPicture,
    SumPicture,
)

TASK_TEXTS = {"copy": "Copy ten symbols", "adding": "Add two numbers"}
START_TEXTS = {"rotations": "rotations by blocks", "orthogonal": "random rotation", "identity": "identity"}
LOSS_TEXTS = {"copy": "test loss (nats per step)", "adding": "test loss (mean squared error)"}
SMALL = (
    ("residual", "violation max |WᵀW − I|"),
    ("grad_norm", "norm of the gradient"),
    ("step_ms", "step time (ms)"),
)
DELAYS = (10, 20, 40, 60, 100, 200, 300)
WIDTHS = (16, 32, 64, 128, 256, 512)
FACTORS = (0.03, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0)
INTERVALS = (1, 2, 4, 10, 20, 50, 100)
BUDGETS = (2.0, 5.0, 10.0, 20.0, 60.0, 300.0)
SPEEDS = (1, 5, 20, None)
ANSWER_INTERVAL = 0.2
TABLE_INTERVAL = 0.5
HINTS = {
    State.RUNNING: "All take turns. Learning rates, merges and time act at once; task, width and rival wait for Reset.",
    State.PAUSED: "Step gives every lane one turn, To merge goes on until P4Orthogonal has merged.",
}


def rnn_lab(config: RnnConfig | None = None, name: str | None = None, **changes: Any) -> "RnnLab":
    """Return a lab in which recurrent networks with three kinds of weights race on a task of memory.

    Args:
        config: the first settings (None: `RnnConfig`'s defaults, the copy task).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``task="adding"``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
        MissingPackageError: the rival's package is not installed.
    """
    return RnnLab((config or RnnConfig()).replace(**changes), name)


class RnnLab(Dashboard):
    """The lab: a dashboard over an `RnnRace`, with answers, gradients through time, eigenvalues and a table.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: RnnConfig, name: str | None = None) -> None:
        self._axis: Axis = "seconds"
        self._board, self._answers, self._sums = Board(self._touched), AnswerPicture(), SumPicture()
        self._gradients, self._eigenvalues = GradientPicture(), EigenvaluePicture()
        pictures = [
            Picture(picture.widget, picture.draw, interval)
            for picture, interval in (
                (self._answers, ANSWER_INTERVAL),
                (self._sums, ANSWER_INTERVAL),
                (self._eigenvalues, ANSWER_INTERVAL),
                (self._gradients, ANSWER_INTERVAL),
                (self._board, TABLE_INTERVAL),
            )
        ]
        super().__init__(
            config,
            lambda config: RnnRace(config),  # type: ignore[arg-type]
            title="Orthogonal memory",
            subtitle="Three recurrent networks, the same training time for each",
            settings=settings(config),
            pictures=pictures,
            style=Style(readouts=numbers()),
            name=name,
        )
        self.root.add_class("p4-rnn")

    def _touched(self, name: str, value: Any) -> None:
        if name == "axis":
            self._axis = value
            self._refused = None
            self.player.poke()
        else:
            super()._touched(name, value)

    # --- to the browser ----------------------------------------------------------------------------------------------

    def _show_side(self, frame: Frame) -> None:
        values = {**frame.planned.to_dict(), "speed": frame.speed, "axis": self._axis}
        self._side.show(
            {name: values[name] for name in values if name in self._names} | {"view": self._view}, pending=frame.pending
        )

    def _message(self, frame: Frame) -> dict[str, str]:
        config = config_of(frame.snapshot)
        message = with_stopped(super()._message(frame), frame, labels_of(config))
        if message["level"] != "info":
            return message
        text = HINTS.get(frame.state, message["text"])
        if frame.state is State.PAUSED and _clock(frame.snapshot) >= config.budget:
            text = f"Time is up: {config.budget:g} s of training each. New run keeps this race; Start goes on a little."
        return {"level": "info", "text": text}

    def _curves(self, frame: Frame) -> Figure:
        config = config_of(frame.snapshot)
        baseline, in_time = baseline_of(config), self._axis == "seconds"
        others = [run.snapshot for run in frame.runs if not run.active]
        return race_curves(
            _shown(frame.snapshot),
            [lane for snapshot in others for lane in _shown(snapshot)],
            self._axis,
            label=LOSS_TEXTS[config.task],
            run=frame.run,
            small=SMALL,
            levels={"best without memory": baseline, "solved": TARGET * baseline},
            marks=_changed(frame.snapshot) if in_time else (),
            cursor=frame.shown * config.turn / 1000 if in_time and frame.shown is not None else None,
        )


def _clock(snapshot: Snapshot) -> float:
    return snapshot.step * config_of(snapshot).turn / 1000


def _shown(snapshot: Snapshot) -> list[Shown]:
    labels = labels_of(config_of(snapshot))
    return [
        Shown(labels[name], COLORS[name], {**lane.curves, "step_ms": step_times(lane.curves["step_seconds"])})
        for name, lane in snapshot.lanes.items()
    ]


def _changed(snapshot: Snapshot) -> list[float]:
    """Return the seconds of training at which settings were changed."""
    at, seconds = snapshot.curves["seconds"]
    steps = [event.step for event in snapshot.events if event.kind == "set"]
    return sorted({float(np.interp(step, np.append(0.0, at), np.append(0.0, seconds))) for step in steps})


def numbers() -> list[Readout]:
    """Return the numbers in the header."""

    def clock(frame: Frame) -> str:
        return f"{_clock(frame.snapshot):.1f} of {config_of(frame.snapshot).budget:g}"

    def ahead(frame: Frame) -> str:
        first = leader(standings(frame.snapshot))
        return first.label if first else "–"

    def share(place: int) -> Any:
        def text(frame: Frame) -> str:
            row = standings(frame.snapshot)[place]
            return "stopped" if row.stopped else number(row.share, ".2g")

        return text

    def missed(frame: Frame) -> str:
        return violation_text(standings(frame.snapshot)[0].violation)

    loss = "Test loss as a share of the best one without memory"
    return [
        readout("count", "turn", "Turns that every lane has had", lambda frame: f"{frame.snapshot.step:,}"),
        readout(
            "clock", "time each", "Training time of each lane; measurements and pictures do not count", clock, unit="s"
        ),
        readout("share_p4", "P4 loss", loss, share(0)),
        readout("share_rival", "rival loss", loss, share(1)),
        readout("share_plain", "plain loss", loss, share(2)),
        readout("violation_p4", "P4 violation", "max |WᵀW − I| of the effective weights", missed),
        readout("leader", "ahead", "Lowest test loss at equal time", ahead),
    ]


def settings(config: RnnConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    return [
        Group(
            "Task",
            [
                Item("choice", "task", "Task", choices=TASKS, texts=tuple(TASK_TEXTS[t] for t in TASKS), live=False),
                Item("choice", "delay", "Delay T", choices=grid("delay", *DELAYS), help="Time steps", live=False),
                Item("choice", "batch_size", "Batch", choices=grid("batch_size", 8, 16, 32, 64), live=False),
            ],
        ),
        Group(
            "Recurrent weights",
            [
                Item(
                    "choice",
                    "rival",
                    "Rival",
                    choices=RIVALS,
                    texts=tuple(CELLS[name].label for name in RIVALS),
                    help="The parametrization that P4Orthogonal is compared with",
                    live=False,
                ),
                Item("choice", "dim", "Width d", choices=grid("dim", *WIDTHS), live=False),
                Item(
                    "choice",
                    "initial",
                    "Start",
                    choices=STARTS,
                    texts=tuple(START_TEXTS[s] for s in STARTS),
                    live=False,
                ),
            ],
        ),
        Group(
            "Training",
            [
                Item(
                    "slider",
                    "rate_factor",
                    "Learning rates ×",
                    choices=grid("rate_factor", *FACTORS),
                    help="On top of each lane's best",
                ),
                Item("choice", "budget", "Time each", unit="s", choices=grid("budget", *BUDGETS), help="Of training"),
                Item("segments", "axis", "Curves over", choices=("seconds", "steps"), texts=("Time", "Steps")),
            ],
        ),
        Group(
            "P4",
            [
                shared.merge_every(config, *INTERVALS),
                Item(
                    "choice",
                    "rank",
                    "Rank",
                    choices=grid("rank", 1, 2, 4, 8, 16, 32, 64),
                    help="Directions of a perturbation, no more than fit",
                    live=False,
                ),
                shared.directions("How new directions are drawn at a merge"),
            ],
        ),
        Group(
            "Run",
            [
                shared.seed("Of sequences, start and batches"),
                shared.device(config),
                shared.precision(),
                shared.speed_limit(*SPEEDS),
            ],
        ),
    ]
