"""The lab of the paper's linear problems: six ways to learn a matrix, side by side."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from p4lab.plots import RUN_COLORS, Figure, Loss, Shown
from p4lab.plots.exact_loss import exact_loss
from p4lab.training import Frame, Snapshot
from p4lab.training.linear_setup import CASES, INTERVALS, LinearConfig, side_by_side, ways
from p4lab.widgets import settings_items as shared
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.linear_pictures import EigenvaluePicture
from p4lab.widgets.old_dashboard import Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, readout, speed_text, with_stopped

WAYS = {
    "plain": "plain",
    **{f"n{n}": f"N = {n}" for n in INTERVALS},
    "recommended": "preset",
    "through_inverse": "inverse",
}
"""What the lanes are called; see `p4lab.training.linear_setup.ways`."""
COLORS = dict(zip(ways(2), RUN_COLORS, strict=False))
RATES = {"spd": 0.01, "rotation": 0.2, "minus_identity": 0.2}
"""A learning rate for each problem at which the paper's findings show."""
GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
SPEEDS = (20, 100, 500, None)
SPEED = 100
LOSS = Loss("loss |W − T|² / d", log=True, bits=False, test=False)
LEGEND = {"x": 0.01, "y": 0.18, "xanchor": "left", "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"}
"""Below the loss curves, where there is room for six names."""
RUNAWAY = 100.0
"""Losses above it are not drawn: a lane that runs away would flatten all others."""


def linear_lab(config: LinearConfig | None = None, name: str | None = None, **changes: Any) -> "LinearLab":
    """Return a lab in which six ways to learn a matrix train side by side.

    Args:
        config: the first settings (None: `LinearConfig`'s defaults, the target −I of width 101).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``penalty=True``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    return LinearLab((config or LinearConfig()).replace(**changes), name)


class LinearLab(Dashboard):
    """The lab: a dashboard over lanes by way, of which one is looked at closely, beside the plain matrix.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: LinearConfig, name: str | None = None) -> None:
        self._plain = EigenvaluePicture(WAYS, COLORS, "plain", "of the plain matrix")
        self._chosen = EigenvaluePicture(WAYS, COLORS, "n1", "of the lane shown")
        super().__init__(
            config,
            side_by_side,
            title="Linear problems: from I to T",
            subtitle="Six ways to learn one matrix, from the same start and with the same data",
            settings=settings(config),
            pictures=[Picture(picture.widget, picture.draw) for picture in (self._plain, self._chosen)],
            style=Style(loss=LOSS, view="accuracy", lanes=WAYS, readouts=self._numbers()),
            name=name,
        )
        self.root.add_class("p4-linear")
        self.player.limit(SPEED)

    def _touched(self, name: str, value: Any) -> None:
        if name == "case":
            self.player.set(**CASES[value].settings, learning_rate=RATES[value])
        elif name == "way":
            self._chosen.lane = value
            self.player.poke()
        else:
            super()._touched(name, value)

    def _show_side(self, frame: Frame) -> None:
        values = {**frame.planned.to_dict(), "speed": frame.speed, "way": self._chosen.lane}
        values["case"] = next((name for name, case in CASES.items() if case.settings.items() <= values.items()), None)
        pending = ["case" if name in ("dim", "target") else name for name in frame.pending]
        shown = {name: values[name] for name in values if name in self._names}
        self._side.show({**shown, "view": self._view}, pending=pending)

    def _message(self, frame: Frame) -> dict[str, str]:
        return with_stopped(super()._message(frame), frame, self._style.lanes)

    def _lane(self, name: str, number: int, lane: Snapshot) -> Shown:
        shown = super()._lane(name, list(WAYS).index(name), lane)
        steps, losses = lane.curves["loss"]
        drawn = steps, np.where(losses < RUNAWAY, losses, np.nan)
        # On a logarithmic axis, a running mean of an exact loss hides how far it has come.
        mean = lane.curves["smooth_loss"] if lane.config.to_dict()["sampled"] else drawn
        return replace(shown, curves={**lane.curves, "loss": drawn, "smooth_loss": mean})

    def _curves(self, frame: Frame) -> Figure:
        # The lane that is looked at closely comes first, and with its merges.
        lanes = dict(sorted(_lanes(frame), key=lambda item: item[0] != self._chosen.lane))
        figure = super()._curves(replace(frame, snapshot=replace(frame.snapshot, lanes=lanes)))
        figure["layout"]["legend"] = LEGEND
        return figure if frame.snapshot.config.to_dict()["sampled"] else exact_loss(figure)

    def _numbers(self) -> list[Readout]:
        def of_chosen(key: str, form: str) -> Callable[[Frame], str]:
            return lambda frame: _number(frame.snapshot.lanes[self._chosen.lane].last(key), form)

        return [
            readout("count", "step", "Optimizer steps", lambda frame: f"{frame.snapshot.step:,}"),
            readout("rate", "steps/s", "Speed", speed_text),
            *(readout(f"loss_{name}", text, f"{LOSS.label}, {text}", _loss(name)) for name, text in WAYS.items()),
            readout("logabsdet", "log|det W|", "Carried, nats; of the lane shown", of_chosen("logabsdet", ".2f")),
            readout("residual", "|A A⁻¹ − I|", "Largest entry; of the lane shown", of_chosen("residual", ".0e")),
        ]


def _lanes(frame: Frame) -> list[tuple[str, Snapshot]]:
    return list(frame.snapshot.lanes.items())


def _number(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "−") if np.isfinite(value) else "–"


def _loss(lane: str) -> Callable[[Frame], str]:
    def shown(frame: Frame) -> str:
        snapshot = frame.snapshot.lanes[lane]
        return "stopped" if snapshot.message else _number(snapshot.last("test_loss"), ".0e")

    return shown


def settings(config: LinearConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""

    cases = tuple(case.title for case in CASES.values())
    return [
        Group(
            "Problem",
            [
                Item("choice", "case", "Target T", choices=tuple(CASES), texts=cases, live=False),
                Item("toggle", "sampled", "Sampled batches", live=False, help="x from N(0, I); if off, exact loss"),
            ],
        ),
        Group("Show", [Item("choice", "way", "Lane", choices=tuple(WAYS), texts=tuple(WAYS.values()))]),
        Group(
            "Steps",
            [
                shared.learning_rate(config, *GRID, help="Of all lanes"),
                shared.method("sgd", "adam"),
            ],
        ),
        Group(
            "Inverse and determinant",
            [
                shared.penalty(),
                shared.skip("Refuse merges that would ruin the inverse"),
                shared.refine_or_not(config, 0, 1, 10, 50),
            ],
        ),
        Group(
            "Run",
            [
                shared.most_steps(*SPEEDS),
                shared.seed(),
                shared.precision(),
            ],
        ),
    ]
