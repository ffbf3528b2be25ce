"""The lab of the third notebook: a P4Inv layer that is driven toward det = 0, and what rescues it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from p4lab.errors import ConfigError
from p4lab.plots import Figure, Loss, Shown
from p4lab.plots.exact_loss import exact_loss
from p4lab.training import Engine, Frame, Lanes, Snapshot
from p4lab.training.runs import Runs
from p4lab.training.stability import DAMAGE, LANES, WRECK, StabilityConfig, damage, precisions, recompute
from p4lab.widgets import settings_items as shared
from p4lab.widgets.break_pictures import EigenvaluePicture, SingularPicture
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.old_dashboard import WAIT, Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, readout, speed_text, with_stopped

LOSS = Loss("loss |W − T|² / d", log=True, bits=False, test=False)
PUSHES = (-1.0, -0.3, -0.1, -1e-2, -1e-3, -1e-4, -1e-6, 0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0)
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
INTERVALS = (1, 2, 5, 10, 20, 50, 100)
SPEEDS = (5, 20, 100, None)
SPEED = 100


@dataclass(frozen=True)
class Attack:
    """A button that moves the push.

    Attributes:
        label: on the button.
        help: what it does.
        push: where to.
    """

    label: str
    help: str
    push: float


ATTACKS = {
    "attack:singular": Attack("Drive to 0", "Push = 0: the target is singular", 0.0),
    "attack:hover": Attack("Hover at 1e-3", "Push = 0.001: a target of condition number 1,000", 1e-3),
    "attack:cross": Attack("Cross det = 0", "Push = −1: a target of the other sign", -1.0),
    "attack:safety": Attack("Back to safety", "Push = 1: the target is a rotation", 1.0),
}
DEEDS: dict[str, Callable[[Engine | Lanes], None]] = {
    "damage": damage,
    "wreck": partial(damage, amount=WRECK),
    "recompute": recompute,
}
"""What is done to the frozen matrices of all lanes at once."""


def break_lab(config: StabilityConfig | None = None, name: str | None = None, **changes: Any) -> "BreakLab":
    """Return a lab in which P4Inv is driven toward det = 0, in float32 and float64 side by side.

    Args:
        config: the first settings (None: `StabilityConfig`'s defaults).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``skip=False``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    return BreakLab((config or StabilityConfig()).replace(**changes), name)


class BreakLab(Dashboard):
    """The lab: a dashboard over lanes by precision, with attacks and rescues.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: StabilityConfig, name: str | None = None) -> None:
        eigenvalues, singular = EigenvaluePicture(), SingularPicture()
        super().__init__(
            config,
            precisions,
            title="Break it: P4Inv near det = 0",
            subtitle="One layer in float32 and in float64, the same start, target and directions",
            settings=settings(config),
            pictures=[Picture(eigenvalues.widget, eigenvalues.draw), Picture(singular.widget, singular.draw)],
            style=Style(loss=LOSS, view="accuracy", readouts=numbers()),
            name=name,
        )
        self.root.add_class("p4-break")
        self.player.limit(SPEED)

    def _touched(self, name: str, value: Any) -> None:
        if name in ATTACKS:
            super()._touched("push", ATTACKS[name].push)
        elif name in DEEDS:
            self._refused = None
            try:
                self.player.ask(lambda runs: _do(runs, name), WAIT)
            except Exception as error:  # shown to the user; a callback's exception would vanish
                self._refused = error
            self.player.poke()
        else:
            super()._touched(name, value)

    def _message(self, frame: Frame) -> dict[str, str]:
        return with_stopped(super()._message(frame), frame, self._style.lanes, level="error")

    def _lane(self, name: str, number: int, lane: Snapshot) -> Shown:
        # The loss is exact; on a logarithmic axis a running mean would hide how far it has come.
        shown = super()._lane(name, number, lane)
        return replace(shown, curves={**lane.curves, "smooth_loss": lane.curves["loss"]})

    def _curves(self, frame: Frame) -> Figure:
        return exact_loss(super()._curves(frame))


def _do(runs: Runs, name: str) -> None:
    if runs.shown is not None:
        raise ConfigError(f"{name}: step {runs.shown.step:,} is past; press Now, or Branch here to change it")
    DEEDS[name](runs.active.engine)


# --- numbers ----------------------------------------------------------------------------------------------------------


def numbers() -> list[Readout]:
    """Return the numbers in the header."""

    def of_lane(key: str, lane: str) -> Callable[[Frame], str]:
        return lambda frame: _number(frame.snapshot.lanes[lane].pictures[key])

    residual, error = "Largest entry of |A A⁻¹ − I|", "Carried log|det W| against a factorization in float64, nats"
    return [
        readout("count", "step", "Optimizer steps", lambda frame: f"{frame.snapshot.step:,}"),
        readout("rate", "steps/s", "Speed", speed_text),
        readout("merges", "merged", "Merges: float32 | float64", lambda frame: _counts(frame, "merge")),
        readout(
            "skips", "refused", "Merges refused: float32 | float64", lambda frame: _counts(frame, "skip", "discard")
        ),
        readout("det", "sign of det", "By a factorization in float64; and what a lane carries, if that differs", _sign),
        readout("smallest", "smallest σ", "Smallest singular value of W, float32", _smallest),
        *(
            readout(f"residual_{name}", f"residual, {name[5:]} bit", residual, of_lane("residual", name))
            for name in LANES
        ),
        *(
            readout(f"error_{name}", f"log|det| off by, {name[5:]} bit", error, of_lane("logabsdet_error", name))
            for name in LANES
        ),
    ]


def _number(value: Any) -> str:
    return f"{float(value):.1e}" if np.isfinite(value) else "–"


def _smallest(frame: Frame) -> str:
    return _number(frame.snapshot.pictures["singular"][-1])


def _sign(frame: Frame) -> dict[str, str]:
    text = {1.0: "+", -1.0: "−", 0.0: "0"}
    wrong = [
        f"{name[5:]} bit: {text.get(float(lane.pictures['sign']), '?')}"
        for name, lane in frame.snapshot.lanes.items()
        if lane.pictures["sign"] != lane.pictures["det"]
    ]
    true = text.get(float(frame.snapshot.pictures["det"]), "?")
    return {"value": true, "unit": ", ".join(wrong) and f"carried {', '.join(wrong)}"}


def _counts(frame: Frame, *kinds: Any) -> dict[str, str]:
    one, two = (sum(frame.snapshot.lanes[name].counts[kind] for kind in kinds) for name in LANES)
    return {"value": f"{one:,}", "unit": f"| {two:,}"}


# --- settings ---------------------------------------------------------------------------------------------------------


def settings(config: StabilityConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    return [
        Group(
            "Attacks",
            [
                Item(
                    "slider", "push", "Push p", choices=grid("push", *PUSHES), help="det of the target, and its least σ"
                ),
                *(Item("button", name, attack.label, help=attack.help) for name, attack in ATTACKS.items()),
                Item("button", "damage", "Damage A⁻¹", help=f"Noise of {DAMAGE:.0%} on every entry, in both lanes"),
                Item("button", "wreck", "Wreck A⁻¹", help=f"Noise of {WRECK:.0%}: too much for refinement"),
            ],
        ),
        Group(
            "Rescues",
            [
                shared.skip("Refuse merges that would ruin the inverse"),
                shared.penalty(),
                shared.refine_or_not(config, 0, 1, 2, 5, 20),
                Item("segments", "refine_order", "Order of refinement", choices=(2, 3, 7), help="R becomes R^p"),
                Item("button", "recompute", "Recompute A⁻¹", help="Factorize A anew: the last resort, O(d³)"),
            ],
        ),
        Group(
            "Steps",
            [
                shared.learning_rate(config, *RATES, help=""),
                shared.merge_every(config, *INTERVALS),
                shared.most_steps(*SPEEDS),
            ],
        ),
        Group(
            "Layer",
            [
                Item("choice", "dim", "Width d", choices=grid("dim", 2, 8, 16, 64), live=False),
                Item("choice", "rank", "Rank", choices=grid("rank", 1, 4, 8, 16), live=False, help="At most d"),
                shared.method("adam", "sgd"),
                shared.seed(),
            ],
        ),
    ]
