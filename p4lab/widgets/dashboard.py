"""The live lab: a player, a pump, and the widgets that show and control them."""

import atexit
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import ipywidgets
from IPython import get_ipython

from p4lab.p4 import PRESETS
from p4lab.plots import Figure
from p4lab.problems import bits
from p4lab.training import Frame, Player, Pump, RunConfig, State, describe, preset_values
from p4lab.training.player import Factory
from p4lab.widgets.channel import Channel
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.live_plot import LivePlot

PICTURE_INTERVAL = 0.1
PANEL_INTERVAL = 0.2
CURVE_INTERVAL = 0.6


@dataclass
class WidgetView:
    """A widget as the pump sees it.

    Attributes:
        widget: asked whether it is ready.
        interval: least time between two frames in seconds.
        show: puts a frame on the widget.
    """

    widget: Channel
    interval: float
    show: Callable[[Frame], None]

    @property
    def ready(self) -> bool:
        """Whether the browser has shown the last frame."""
        return self.widget.ready

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        self.show(frame)


class Dashboard:
    """Train live in a notebook: header with transport and readouts, settings, fast pictures, curves.

    It joins things and computes nothing: the factory makes engines, ``draw_pictures`` and ``curves`` turn frames into
    what is shown. Displaying the object shows the lab. A new lab of the same name closes the one before, threads and
    all.

    Args:
        config: settings of the first run.
        factory: makes the engine of a config.
        title: heading.
        subtitle: one line on what one sees.
        settings: groups of items named like the fields of the config; "preset" and "speed" are understood, too.
        pictures: the widget for fast pictures.
        draw_pictures: puts a frame on it.
        curves: makes the figure of a frame.
        name: what replaces what (None: the notebook cell that runs this, so that two cells give two labs).

    Attributes:
        player: the player.
        root: the outermost ipywidget.
    """

    # Shared state, so that re-running a cell can close what it started before.
    _open: ClassVar[dict[str, "Dashboard"]] = {}

    def __init__(
        self,
        config: RunConfig,
        factory: Factory,
        title: str,
        subtitle: str,
        settings: Sequence[Group],
        pictures: Channel,
        draw_pictures: Callable[[Frame], None],
        curves: Callable[[Frame], Figure],
        name: str | None = None,
    ) -> None:
        self._key = name or _cell_id()
        if self._key in self._open:
            self._open[self._key].close()
        self._title = title
        self._names = {item.name for group in settings for item in group.items}
        self._problem = config.problem
        self.player = Player(factory, config)
        self._head = ControlPanel(_header(title, subtitle), self._touched, direction="row")
        self._side = ControlPanel(settings, self._touched)
        self._plot = LivePlot()
        self._pictures = pictures
        self._widgets = {"p4-head": self._head, "p4-side": self._side, "p4-pictures": pictures, "p4-curves": self._plot}
        for css_class, widget in self._widgets.items():
            widget.add_class(css_class)
        layout = ipywidgets.Box(list(self._widgets.values())).add_class("p4-layout")
        self.root = ipywidgets.Box([layout]).add_class("p4-lab")
        self._pump = Pump(
            self.player,
            [
                WidgetView(self._head, PANEL_INTERVAL, self._show_head),
                WidgetView(self._side, PANEL_INTERVAL, self._show_side),
                WidgetView(pictures, PICTURE_INTERVAL, draw_pictures),
                WidgetView(self._plot, CURVE_INTERVAL, lambda frame: self._plot.show(curves(frame))),
            ],
        )
        for widget in self._widgets.values():
            widget.on_ready = self._pump.wake
        self._open[self._key] = self
        atexit.register(self.close)

    @property
    def error(self) -> Exception | None:
        """What went wrong in training, drawing or the browser; None if all is well."""
        drawn = (widget.error for widget in self._widgets.values())
        return self.player.error or self._pump.error or next((error for error in drawn if error), None)

    def close(self) -> None:
        """End the threads and remove the widgets."""
        if self._open.get(self._key) is self:
            del self._open[self._key]
        atexit.unregister(self.close)
        self._pump.close()
        self.player.close()
        for widget in (self.root, *self.root.children, *self._widgets.values()):
            widget.close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = self.root._repr_mimebundle_(**options) or {}
        data, *metadata = bundle if isinstance(bundle, tuple) else (bundle,)
        # The text is what a saved notebook keeps of the lab.
        data = {**data, "text/plain": f"{self._title}: run this cell in JupyterLab to see it live."}
        return (data, *metadata) if metadata else data

    # --- from the browser: only commands -----------------------------------------------------------------------------

    def _touched(self, name: str, value: Any) -> None:
        player = self.player
        if name == "start":
            player.pause() if player.state is State.RUNNING else player.start()
        elif name == "step":
            player.step()
        elif name == "merge":
            player.step_to_merge()
        elif name == "reset":
            player.reset()
        elif name == "speed":
            player.limit(value)
        elif name == "preset":
            player.set(**preset_values(value, self._problem))
        else:
            player.set(**{name: value})

    # --- to the browser: only by the pump ----------------------------------------------------------------------------

    def _show_head(self, frame: Frame) -> None:
        snapshot, running = frame.snapshot, frame.state is State.RUNNING
        counts = snapshot.counts
        self._head.show(
            {
                "state": str(frame.state),
                "start": {"label": "❚❚ Pause" if running else "▶ Start", "look": "primary"},
                "reset": {"look": "attention" if frame.pending else "plain"},
                "count": f"{snapshot.step:,}",
                "rate": f"{frame.steps_per_second:.0f}" if running else "–",
                "train": _loss(snapshot.last("smooth_loss")),
                "test": _loss(snapshot.last("test_loss")),
                "merges": f"{counts['merge']:,}",
                "skips": f"{counts['skip'] + counts['discard']:,}",
                "refines": f"{counts['refine']:,}",
                "message": self._message(frame),
            },
            disabled=["step", "merge"] if running else ["reset"] if frame.state is State.IDLE else [],
        )

    def _show_side(self, frame: Frame) -> None:
        planned = frame.planned.to_dict()
        preset = next(
            (name for name in PRESETS if preset_values(name, frame.planned.problem).items() <= planned.items()), None
        )
        values = {**planned, "preset": preset, "speed": frame.speed}
        self._side.show({name: values[name] for name in values if name in self._names}, pending=frame.pending)

    def _message(self, frame: Frame) -> dict[str, str]:
        if frame.message:
            return {"level": "error", "text": frame.message}
        if self.error:
            return {"level": "error", "text": describe(self.error)}
        if frame.pending:
            names = ", ".join(name.replace("_", " ") for name in frame.pending)
            return {"level": "notice", "text": f"Press Reset to apply: {names}."}
        return {"level": "info", "text": _HINTS[frame.state]}


_HINTS = {
    State.IDLE: "Press Start. Settings act at once; those marked “at reset” do so as long as no step has been taken.",
    State.RUNNING: "Move a slider: it acts on the next step and leaves a dotted mark on the curves.",
    State.PAUSED: "Step does one optimizer step, To merge goes on until the perturbations have been merged.",
    State.FAILED: "",
    State.CLOSED: "Closed. Run the cell again.",
}


def _header(title: str, subtitle: str) -> list[Group]:
    transport = (
        Item("title", "title", title, help=subtitle),
        Item("badge", "state"),
        Item("button", "start", "▶ Start", help="Train until paused", look="primary"),
        Item("button", "step", "Step", help="One optimizer step"),
        Item("button", "merge", "To merge", help="Train until the next merge has been tried"),
        Item("button", "reset", "Reset", help="Start over with these settings"),
    )
    readouts = (
        Item("readout", "count", "step", help="Optimizer steps"),
        Item("readout", "rate", "speed", unit="steps/s"),
        Item("readout", "train", "train loss per pixel", help="Negative log-likelihood, running mean"),
        Item("readout", "test", "test loss per pixel", help="Negative log-likelihood"),
        Item("readout", "merges", "merged layers", help="Perturbations merged into their frozen matrices"),
        Item("readout", "skips", "skipped", help="Merges refused, because a matrix would become nearly singular"),
        Item("readout", "refines", "refined", help="Corrections of the frozen inverses"),
    )
    return [Group("", transport), Group("", readouts), Group("", (Item("message", "message"),))]


def _loss(nats: float) -> dict[str, str]:
    return (
        {"value": "–", "unit": ""}
        if math.isnan(nats)
        else {"value": f"{nats:.3f}", "unit": f"nats = {bits(nats):.2f} bits"}
    )


def _cell_id() -> str:
    """Return the id of the notebook cell that is being run, "" outside of one."""
    shell = get_ipython()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return ""
    return str(kernel.get_parent().get("metadata", {}).get("cellId", ""))
