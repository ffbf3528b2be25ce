"""The lab of the second notebook: matrices on their way through the space of matrices, live."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from p4lab.plots import Figure, Loss, Shown
from p4lab.plots.exact_loss import exact_loss
from p4lab.training import Frame, Lanes, MatrixConfig, RunConfig, Snapshot
from p4lab.widgets import settings_items as shared
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.old_dashboard import WAIT, Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, readout, speed_text, with_stopped
from p4lab.widgets.parameter_pictures import ROUTES, EigenPlane, LossPlane, MatrixSpace, PathPlane, width

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
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0)
INTERVALS = (1, 2, 5, 10, 20, 50, 100)
SPEEDS = (2, 10, 50, 200, None)
SPEED = 50
LOSS = Loss("loss |W − T|² / d", log=True, bits=False, test=False)


def parameter_lab(config: MatrixConfig | None = None, name: str | None = None, **changes: Any) -> "ParameterLab":
    """Return a lab in which a plain weight, P4Inv and P4Inv through its inverse travel side by side to a target.

    Args:
        config: the first settings (None: `MatrixConfig`'s defaults).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``target="1 0; 0.5 1"``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
        OptionError, SingularMatrixError: a matrix that does not fit, a start that is singular.
    """
    return ParameterLab((config or MatrixConfig()).replace(**changes), name)


class ParameterLab(Dashboard):
    """The lab: a dashboard over lanes by route, in which start and target are set in pairs, as text, or by hand.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: MatrixConfig, name: str | None = None) -> None:
        self._space, self._paths = MatrixSpace(self._move), PathPlane()
        self._map, eigenvalues = LossPlane(), EigenPlane()
        super().__init__(
            config,
            _lanes,
            title="P4Inv in the space of matrices",
            subtitle="Three routes from one start to one target",
            settings=settings(config),
            pictures=[
                Picture(self._space.widget, self._space.draw),
                Picture(self._paths.widget, self._paths.draw, 0.3),
                Picture(self._map.widget, self._map.draw),
                Picture(eigenvalues.widget, eigenvalues.draw, 0.2),
            ],
            style=Style(loss=LOSS, lanes=ROUTES, readouts=self._numbers()),
            name=name,
        )
        self.root.add_class("p4-parameter")
        self.player.limit(SPEED)

    def _move(self, which: str, text: str) -> None:
        self.player.set(**{which: text})

    def _touched(self, name: str, value: Any) -> None:
        if name == "pair":
            _, start, target = PAIRS[value]
            self.player.set(start=start, target=target, **(_at_width(2) if _typed(start, target) else {}))
        elif name == "dim":
            planned = self.player.frame(WAIT).planned.to_dict()
            _, start, target = PAIRS["rotation"]
            ends = {"start": start, "target": target} if _typed(planned["start"], planned["target"]) else {}
            self.player.set(**_at_width(value), **ends)
        elif name == "from":  # a dashboard's "start" is the button
            self.player.set(start=value)
        elif name == "map":
            self._map.lane = value
            self.player.poke()
        else:
            super()._touched(name, value)

    def _show_side(self, frame: Frame) -> None:
        values = {**frame.planned.to_dict(), "speed": frame.speed, "map": self._map.lane}
        ends = (values["start"], values["target"])
        values["pair"] = next((pair for pair, (_, *both) in PAIRS.items() if tuple(both) == ends), None)
        values["from"] = values["start"]
        pending = ["from" if name == "start" else name for name in frame.pending]
        shown = {name: values[name] for name in values if name in self._names}
        self._side.show({**shown, "view": self._view}, pending=pending)

    def _message(self, frame: Frame) -> dict[str, str]:
        return with_stopped(super()._message(frame), frame, self._style.lanes)

    def _lane(self, name: str, number: int, lane: Snapshot) -> Shown:
        # On a logarithmic axis, a running mean of an exact loss hides how far it has come.
        shown = super()._lane(name, number, lane)
        return shown if _sampled(lane) else replace(shown, curves={**lane.curves, "smooth_loss": lane.curves["loss"]})

    def _curves(self, frame: Frame) -> Figure:
        figure = super()._curves(frame)
        return figure if _sampled(frame.snapshot) else exact_loss(figure)

    def _numbers(self) -> list[Readout]:
        def off(frame: Frame) -> str:
            return f"{self._space.off if width(frame) == 2 else self._paths.off:.2f}"

        return [
            readout("count", "step", "Optimizer steps", lambda frame: f"{frame.snapshot.step:,}"),
            readout("rate", "steps/s", "Speed", speed_text),
            *(readout(f"loss_{name}", f"loss: {text}", LOSS.label, _loss(name)) for name, text in _SHORT.items()),
            readout("det", "det, P4Inv", "Determinant of the matrix that maps x to y", _det),
            readout("off", "off picture", "Distance (Frobenius) of P4Inv's W from the slice or plane shown", off),
            readout("merges", "merged", "Merges of P4Inv", lambda frame: f"{frame.snapshot.counts['merge']:,}"),
            readout("skips", "skipped", "Merges that P4Inv refused", _skips),
        ]


_SHORT = {"plain": "plain", "p4inv": "P4Inv", "through_inverse": "inverse"}


def _sampled(snapshot: Snapshot) -> bool:
    return bool(snapshot.config.to_dict()["sampled"])


def _typed(*matrices: str) -> bool:
    return any(character.isdigit() for text in matrices for character in text)


def _at_width(dim: int) -> dict[str, Any]:
    """Return the settings that go with a width."""
    return {"dim": dim, "learning_rate": DIMS[dim]} if dim in DIMS else {"dim": dim}


def _lanes(config: RunConfig) -> Lanes:
    return Lanes(config, "route", tuple(ROUTES))


def _loss(lane: str) -> Callable[[Frame], str]:
    def shown(frame: Frame) -> str:
        snapshot = frame.snapshot.lanes[lane]
        return "stopped" if snapshot.message else f"{snapshot.last('test_loss'):.1e}"

    return shown


def _skips(frame: Frame) -> str:
    return f"{frame.snapshot.counts['skip'] + frame.snapshot.counts['discard']:,}"


def _det(frame: Frame) -> str:
    sign, logabsdet = np.linalg.slogdet(frame.snapshot.pictures["weight"])
    if width(frame) == 2:
        return f"{sign * np.exp(logabsdet):.3g}".replace("-", "−")
    return f"{'−' if sign < 0 else ''}e^{logabsdet:.1f}".replace("-", "−")


def settings(config: MatrixConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    typed = 'A name such as shear, or rows such as "1 0; 0.5 1"'
    pairs = Item("choice", "pair", "From, to", choices=tuple(PAIRS), texts=tuple(text for text, _, _ in PAIRS.values()))
    matrices = [
        pairs,
        Item("text", "from", "Start", help=typed, live=False),
        Item("text", "target", "Target", help=f"{typed}; it may move while the run goes on"),
        Item("choice", "dim", "Width d", choices=grid("dim", *DIMS), live=False, help="Sets a learning rate that fits"),
        Item("toggle", "sampled", "Sampled batches", live=False, help="x from N(0, I); if off, the loss is exact"),
    ]
    steps = [
        shared.learning_rate(config, *RATES),
        shared.method("sgd", "adam"),
    ]
    perturbations = [
        shared.merge_every(config, *INTERVALS),
        shared.directions("Of the next v"),
        Item("choice", "rank", "Rank", choices=grid("rank", 1, 2, 4), live=False, help="Rank-one terms"),
        shared.train_v(),
        shared.skip("Refuse merges that would make the matrix nearly singular"),
        shared.penalty("Add a penalty on vanishing and exploding determinants"),
    ]
    lane = Item("segments", "map", "Loss map of", choices=("p4inv", "through_inverse"), texts=("P4Inv", "inverse"))
    run = [
        shared.most_steps(*SPEEDS),
        shared.seed(),
        shared.precision(),
    ]
    return [
        Group("Matrices", matrices),
        Group("Steps", steps),
        Group("Perturbations", perturbations),
        Group("Show", [lane]),
        Group("Run", run),
    ]
