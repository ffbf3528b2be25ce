"""The race: methods tick-boxed by the user train side by side with equal time."""

import math
import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from p4lab.baselines import METHODS, Method
from p4lab.plots import Figure, Shown
from p4lab.plots.layers import Layer, Path, Points
from p4lab.plots.race import Axis, lane_style, race_curves
from p4lab.problems.tasks import MAPS, TASKS
from p4lab.training import Frame, Snapshot, State
from p4lab.training.race import SEPARATOR, Race, RaceConfig, standings, unfit
from p4lab.widgets import settings_items as shared
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.image_grid import ImageGrid, Panel
from p4lab.widgets.old_dashboard import WAIT, Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, with_stopped
from p4lab.widgets.plane import Plane
from p4lab.widgets.spectrum import CIRCLE

METHOD = "method:"
TASK_TEXTS = {
    "spd": "Map: SPD",
    "so": "Map: rotation",
    "minus_identity": "Map: −I",
    "ill_conditioned": "Map: ill-conditioned",
    "negative": "Map: det < 0",
    "ica_photos": "ICA: photos",
    "ica_digits": "ICA: digits",
    "digits": "Flow: digits",
}
GROUP_TEXTS = {
    "invertible": "On GL(d)",
    "orthogonal": "On O(d)",
    "designed": "By design",
    "penalized": "By penalty",
}
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
BUDGETS = (2.0, 5.0, 10.0, 20.0, 60.0, 300.0)
WIDTHS = (8, 16, 32, 48, 64, 128, 256)
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
TABLE_INTERVAL = 0.5
HINTS = {
    State.RUNNING: "All take turns. Learning rates and time act at once; a new task or method waits for Reset.",
    State.PAUSED: "Step gives every method one turn. Tick others and press New run to compare, or Next seed to repeat.",
}


def race_lab(config: RaceConfig | None = None, name: str | None = None, **changes: Any) -> "RaceLab":
    """Return a lab in which methods race on a task.

    Args:
        config: the first settings (None: `RaceConfig`'s defaults).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``task="ica_photos"``.

    Raises:
        ConfigError: unknown setting, a value out of range, or a method that cannot do the task.
        MissingPackageError: a method's package is not installed.
    """
    return RaceLab((config or RaceConfig()).replace(**changes), name)


class RaceLab(Dashboard):
    """The lab: a dashboard over a `Race`, with a leaderboard; other seeds of the same race count into its medians.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: RaceConfig, name: str | None = None) -> None:
        self._axis: Axis = "seconds"
        board = ControlPanel([Group("", (Item("table", "board", "Leaderboard"),))], self._touched, direction="row")
        eigenvalues, images = EigenvaluePicture(), ImagePicture()
        self._board = board
        super().__init__(
            config,
            lambda config: Race(config),  # type: ignore[arg-type]
            title="The race",
            subtitle="The same start, data and training time for every method",
            settings=settings(config),
            pictures=[
                Picture(board, self._show_board, TABLE_INTERVAL),
                Picture(eigenvalues.widget, eigenvalues.draw),
                Picture(images.widget, images.draw),
            ],
            style=Style(readouts=numbers()),
            name=name,
        )
        self.root.add_class("p4-race")

    def _touched(self, name: str, value: Any) -> None:
        if name.startswith(METHOD):
            self._tick(name.removeprefix(METHOD), value)
        elif name == "axis":
            self._axis = value
            self.player.poke()
        elif name == "next_seed":
            planned = self.player.frame(WAIT).planned
            self.player.set(seed=planned.seed + 1)
            self.player.keep()
            self.player.start()
        elif name == "task":
            self._choose_task(value)
        else:
            super()._touched(name, value)

    def _tick(self, method: str, on: bool) -> None:
        planned = self.player.frame(WAIT).planned
        chosen = set(planned.to_dict()["methods"].split(SEPARATOR)) - {method} | ({method} if on else set())
        super()._touched("methods", SEPARATOR.join(name for name in METHODS if name in chosen))

    def _choose_task(self, task: str) -> None:
        """Set the task, a width that it has, and leave out the methods that cannot do it."""
        planned = self.player.frame(WAIT).planned.to_dict()
        fit = [name for name in planned["methods"].split(SEPARATOR) if not unfit(task, METHODS[name])]
        dim = min(planned["dim"], 48) if task.startswith("ica") else planned["dim"]
        self.player.set(task=task, dim=dim, methods=SEPARATOR.join(fit) or "p4inv")

    # --- to the browser ----------------------------------------------------------------------------------------------

    def _show_side(self, frame: Frame) -> None:
        values = frame.planned.to_dict()
        chosen, running = values["methods"].split(SEPARATOR), frame.snapshot.config.to_dict()["methods"]
        ticks = {METHOD + name: name in chosen for name in METHODS}
        changed = set(chosen) ^ set(running.split(SEPARATOR)) if "methods" in frame.pending else set()
        cannot = [METHOD + name for name, method in METHODS.items() if unfit(values["task"], method)]
        shown = {name: values[name] for name in values if name in self._names}
        self._side.show(
            {**shown, **ticks, "axis": self._axis},
            disabled=[*cannot, *(["dim"] if values["task"] == "digits" else [])],
            pending=[*frame.pending, *(METHOD + name for name in changed)],
        )

    def _show_board(self, frame: Frame) -> None:
        place = {name: number for number, name in enumerate(frame.snapshot.lanes)}
        others = [standings(run.snapshot) for run in _other_seeds(frame)]
        table = standings(frame.snapshot)
        rows = [
            {
                "color": lane_style(place[name])[0],
                "active": position == 0,
                "cells": _cells(row, [other.loc[name] for other in others]),
            }
            for position, (name, row) in enumerate(table.iterrows())
        ]
        label = f"Leaderboard, medians of {1 + len(others)} seeds" if others else "Leaderboard"
        value = {"columns": list(COLUMNS), "help": list(COLUMNS.values()), "rows": rows, "label": label}
        self._board.show({"board": value})

    def _curves(self, frame: Frame) -> Figure:
        config = frame.snapshot.config.to_dict()
        maps = config["task"] in MAPS
        return race_curves(
            _shown(frame.snapshot),
            [lane for run in _other_seeds(frame) for lane in _shown(run.snapshot)],
            self._axis,
            log=maps,
            label="test error, mean of squares" if maps else "test loss (nats/dim)",
            run=frame.run,
        )

    def _message(self, frame: Frame) -> dict[str, str]:
        labels = {name: method.label for name, method in METHODS.items()}
        message = with_stopped(super()._message(frame), frame, labels)
        if message["level"] != "info":
            return message
        config = frame.snapshot.config.to_dict()
        if frame.state is State.PAUSED and frame.snapshot.step * config["turn"] / 1000 >= config["budget"]:
            text = (
                f"Time is up: {config['budget']:g} s of training each. Next seed races again, Start goes on a little."
            )
            return {"level": "info", "text": text}
        return {"level": "info", "text": HINTS.get(frame.state, message["text"])}


def _shown(snapshot: Snapshot) -> list[Shown]:
    return [
        Shown(METHODS[name].label, lane_style(number)[0], lane.curves)
        for number, (name, lane) in enumerate(snapshot.lanes.items())
    ]


def _other_seeds(frame: Frame) -> list[Any]:
    """Return the runs that are not active and differ from the active one in nothing but the seed."""
    return [
        run
        for run in frame.runs
        if not run.active and set(run.snapshot.config.differences(frame.snapshot.config)) == {"seed"}
    ]


def _cells(row: Any, others: Sequence[Any]) -> list[str]:
    def median(key: str) -> str:
        values = [value for value in (row[key], *(other[key] for other in others)) if not math.isnan(value)]
        if not values:
            return "–"
        text = f"{statistics.median(values):.3g}"
        return f"{text} ({min(values):.2g} … {max(values):.2g})" if len(values) > 1 else text

    def number(key: str, form: str) -> str:
        return "–" if math.isnan(row[key]) else f"{row[key]:{form}}"

    if row["stopped"]:
        return [row["method"], "stopped", *["–"] * 6]
    return [
        row["method"],
        median("loss"),
        median("at_step"),
        f"{row['steps']:,}",
        number("step_ms", ".2f"),
        number("memory_kb", ",.0f"),
        number("inverse_error", ".0e"),
        number("logdet_error", ".0e"),
    ]


# --- pictures ---------------------------------------------------------------------------------------------------------


class _StyledPlane(Plane):
    # The lab's own look travels with a picture.
    _css: Any = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("pictures.css", "race_lab.css"))


def _leader(frame: Frame, key: str) -> tuple[str, Any] | None:
    """Return name and picture of the lane with the lowest loss that has such a picture."""
    lanes = {name: lane for name, lane in frame.snapshot.lanes.items() if key in lane.pictures and not lane.message}
    if not lanes:
        return None
    name = min(lanes, key=lambda name: np.nan_to_num(lanes[name].last("test_loss"), nan=np.inf))
    return name, lanes[name].pictures[key]


class EigenvaluePicture:
    """Eigenvalues of all lanes, and of the target, in the complex plane."""

    def __init__(self) -> None:
        self.widget = _StyledPlane(
            "Eigenvalues", "of every method's W, target as crosses", x_label="Re λ", y_label="Im λ", height=300
        )

    def draw(self, frame: Frame) -> None:
        """Show a frame; hide where the task has no target."""
        lanes = frame.snapshot.lanes
        found = [
            (i, lane.pictures["eigenvalues"]) for i, lane in enumerate(lanes.values()) if "eigenvalues" in lane.pictures
        ]
        self.widget.display(bool(found))
        if not found:
            return
        target = next(lane.pictures["target"] for lane in lanes.values() if "target" in lane.pictures)
        extent = 1.15 * max(1.0, float(np.abs(target).max()))
        layers: list[Layer] = [
            Path(CIRCLE, "grey", width=1, dashed=True),
            Points(target, "orange", "cross", 10, label="target"),
        ]
        layers += [
            Points(
                np.where(np.abs(points).max(-1, keepdims=True) <= extent, points, np.nan), lane_style(i)[0], "dot", 5
            )
            for i, points in found
        ]
        self.widget.show(layers, (-extent, extent, -extent, extent))


class ImagePicture:
    """Filters or samples of the leading method."""

    def __init__(self) -> None:
        self.widget = ImageGrid([Panel("The leader's images", "filters, or samples", 8)], top=16)

    def draw(self, frame: Frame) -> None:
        """Show a frame; hide where the task has no images."""
        leader = _leader(frame, "images")
        self.widget.display(leader is not None)
        if leader is not None:
            name, images = leader
            top = 16 if frame.snapshot.config.to_dict()["task"] == "digits" else 255
            self.widget.show(0, (images.astype(np.uint16) * 16 // top).astype(np.uint8), METHODS[name].label)


# --- numbers and settings ---------------------------------------------------------------------------------------------


def numbers() -> list[Readout]:
    """Return the numbers in the header."""

    def clock(frame: Frame) -> str:
        config = frame.snapshot.config.to_dict()
        return f"{frame.snapshot.step * config['turn'] / 1000:.1f} of {config['budget']:g}"

    def leader(frame: Frame) -> str:
        lanes = {name: lane.last("test_loss") for name, lane in frame.snapshot.lanes.items() if not lane.message}
        known = {name: loss for name, loss in lanes.items() if not math.isnan(loss)}
        return METHODS[min(known, key=lambda name: known[name])].label if known and frame.snapshot.step else "–"

    return [
        Readout(
            Item("readout", "count", "turn", help="Turns that every method has had"), lambda f: f"{f.snapshot.step:,}"
        ),
        Readout(Item("readout", "clock", "training time of each", unit="s"), clock),
        Readout(Item("readout", "lanes", "methods"), lambda f: str(len(f.snapshot.lanes))),
        Readout(Item("readout", "leader", "ahead", help="Lowest test loss at equal time"), leader),
    ]


def settings(config: RaceConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    race = Group(
        "Race",
        [
            Item("choice", "task", "Task", choices=TASKS, texts=tuple(TASK_TEXTS[t] for t in TASKS), live=False),
            Item("choice", "dim", "Width d", choices=grid("dim", *WIDTHS), live=False),
            Item(
                "choice", "budget", "Time each", unit="s", choices=grid("budget", *BUDGETS), help="Seconds of training"
            ),
            Item(
                "slider",
                "rate_factor",
                "Learning rates ×",
                choices=grid("rate_factor", *FACTORS),
                help="On top of each method's best",
            ),
            shared.seed(),
            Item("button", "next_seed", "Next seed", help="Keep this race, and run it again with another seed"),
            Item("segments", "axis", "Curves over", choices=("seconds", "steps"), texts=("Time", "Steps")),
        ],
    )
    return [race, *(_methods(group, list(members)) for group, members in groupby(_sorted(), key=lambda m: m.group))]


def _sorted() -> list[Method]:
    return sorted(METHODS.values(), key=lambda method: list(GROUP_TEXTS).index(method.group))


def _methods(group: str, members: list[Method]) -> Group:
    items = [
        Item("toggle", METHOD + method.name, method.label, help=f"{method.label}. Source: {method.source}", live=True)
        for method in members
    ]
    return Group(GROUP_TEXTS[group], items)
