"""The first lab: freeze, perturb, merge, on a 2 x 2 matrix."""

from typing import Any

import torch

from p4lab.errors import ConfigError
from p4lab.plots import Figure, Loss
from p4lab.plots.exact_loss import exact_loss
from p4lab.problems.matrix import MatrixModel, MatrixProblem
from p4lab.training import Engine, Frame, MatrixConfig, RunConfig, Snapshot, State
from p4lab.widgets import settings_items as shared
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.formula import Formula
from p4lab.widgets.old_dashboard import Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, loss_text, speed_text
from p4lab.widgets.start_pictures import ImagePicture, SearchPicture, equations

CONFIG = MatrixConfig(
    target="0.4 -1.3; 1.1 0.7",
    reset="gradient",
    learning_rate=0.1,
    merge_every=15,
    measure_every=1,
    dtype="float64",
)
SPEED = 5.0
LOSS = Loss("loss |W − T|² / 2", log=True, bits=False, test=False)


def start_lab(config: MatrixConfig | None = None, name: str | None = None, **changes: Any) -> Dashboard:
    """Return the first lab: what freezing, perturbing and merging do to a 2 x 2 matrix, at five steps a second.

    Args:
        config: settings of the first run; dim, route and rank must stay 2, "p4inv" and 1.
        name: see `Dashboard`.
        changes: settings that differ from ``config``, as in ``start_lab(merge_every=5)``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    config = (config or CONFIG).replace(**changes)
    if (config.dim, config.route, config.rank) != (2, "p4inv", 1):
        raise ConfigError(f"config={config.to_text()!r}: expected dim=2, route=p4inv and rank=1")
    return StartLab(config, name)


class StartLab(Dashboard):
    """The lab: a dashboard whose message tells what happens at this moment.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: MatrixConfig, name: str | None = None) -> None:
        strip, images, search = _Strip(), ImagePicture(), SearchPicture()
        super().__init__(
            config,
            _engine,
            title="Freeze, perturb, merge",
            subtitle="Only u trains. Drag the orange rings: they are the target.",
            settings=_settings(config),
            pictures=[
                Picture(strip, lambda frame: strip.show(equations(frame.snapshot))),
                Picture(images.widget, images.draw),
                Picture(search.widget, search.draw),
            ],
            style=Style(LOSS, readouts=_readouts()),
            name=name,
        )
        self.root.add_class("p4-start")
        images.moved = lambda target: self.player.set(target=target)
        self.player.limit(SPEED)

    def _curves(self, frame: Frame) -> Figure:
        return exact_loss(super()._curves(frame), frame.snapshot.merge_points.steps)

    def _message(self, frame: Frame) -> dict[str, str]:
        message = super()._message(frame)
        told = message["level"] == "info" and frame.state is not State.CLOSED
        return {**message, "text": phase(frame.snapshot)} if told else message


def phase(snapshot: Snapshot) -> str:
    """Return what is happening: frozen, perturbed, merged, or not merged."""
    tried = next((event for event in reversed(snapshot.events) if event.kind in ("merge", "skip", "discard")), None)
    if snapshot.step == 0:
        return "Frozen: A stands still, and W = A, because u = 0. Press Step or Start to perturb it."
    if tried is None or tried.step != snapshot.step:
        left = _until_merge(snapshot)
        when = f"{left} step{'s' if left > 1 else ''}"
        return f"Perturbed: W = A + u vᵀ moves with u, A stands still. Next merge in {when}."
    if tried.kind == "merge":
        return "Merged: A ← W and u ← 0, with a new direction v. W, and with it the loss, stays as it was."
    return "Not merged: A would become nearly singular, or its inverse inaccurate. u stays, and trains on."


class _Strip(Formula):
    _css = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("formula.css", "start_lab.css"))


class _Carried(MatrixProblem):
    """Adds what a P4Inv layer carries along to the pictures."""

    @torch.no_grad()
    def pictures(self, model: MatrixModel, z: torch.Tensor) -> dict[str, torch.Tensor]:
        layer: Any = model
        carried = {
            "frozen_inverse": layer.frozen_inverse,
            "weight_inverse": layer.weight_inverse,
            "frozen_det": layer.frozen_sign * layer.frozen_logabsdet.exp(),
        }
        return super().pictures(model, z) | {name: tensor.double().clone() for name, tensor in carried.items()}


def _engine(config: RunConfig) -> Engine:
    problem, model = config.parts()
    carried = _Carried(problem.start, problem.target, problem.sampled, problem.dtype, problem.device)
    return Engine(config, carried, model)


# --- what is set -----------------------------------------------------------------------------------------------------


def _settings(config: MatrixConfig) -> list[Group]:
    speeds = (1.0, 2.0, SPEED, 20.0, None)
    return [
        Group(
            "Try",
            [
                shared.merge_every(config, 1, 2, 5, 10, 15, 30, 60),
                shared.learning_rate(
                    config, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, help="Step size of plain gradient descent on u"
                ),
                Item(
                    "segments",
                    "speed",
                    "Steps per second",
                    choices=speeds,
                    texts=("1", "2", "5", "20", "max"),
                    help="Slow motion",
                ),
            ],
        ),
        Group("Directions", [shared.seed("Other directions v")]),
    ]


def _readouts() -> list[Readout]:
    def item(name: str, label: str, help: str = "", unit: str = "") -> Item:
        return Item("readout", name, label, help=help, unit=unit)

    return [
        Readout(item("count", "step", "Optimizer steps"), lambda frame: f"{frame.snapshot.step:,}"),
        Readout(item("rate", "steps/s"), speed_text),
        Readout(
            item("train", "loss", "|W − T|² / 2 before the last step"),
            lambda frame: loss_text(frame.snapshot.last("loss"), LOSS),
        ),
        Readout(item("merges", "merges"), lambda frame: f"{frame.snapshot.counts['merge']:,}"),
        Readout(item("next", "next merge in", unit="steps"), lambda frame: str(_until_merge(frame.snapshot))),
        Readout(
            item("skips", "skipped", "Merges refused, because A would become nearly singular"),
            lambda frame: f"{frame.snapshot.counts['skip'] + frame.snapshot.counts['discard']:,}",
        ),
    ]


def _until_merge(snapshot: Snapshot) -> int:
    tried = [event.step for event in snapshot.events if event.kind in ("merge", "skip") and event.step <= snapshot.step]
    return max(1, (tried[-1] if tried else 0) + snapshot.config.merge_every - snapshot.step)
