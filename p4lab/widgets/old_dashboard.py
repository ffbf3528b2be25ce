"""The live lab: a player, a pump, and the widgets that show and control them."""

import atexit
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import ipywidgets
from IPython import get_ipython

from p4lab.errors import ConfigError, OptionError
from p4lab.p4 import PRESETS
from p4lab.plots import RUN_COLORS, VIEWS, Figure, Loss, Shown, training_curves
from p4lab.training import Frame, Player, Pump, RunConfig, Snapshot, State, describe, load_run, save_run
from p4lab.training.runs import Factory
from p4lab.widgets import files
from p4lab.widgets.channel import Channel
from p4lab.widgets.controls import ControlPanel, Group
from p4lab.widgets.live_plot import LivePlot
from p4lab.widgets.old_panels import Readout, header, hint, readouts, run_rows, runs_panel, time_bar, view_group

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

PICTURE_INTERVAL = 0.11
PANEL_INTERVAL = 0.33
CURVE_INTERVAL = 1.0
WAIT = 10.0
BUTTONS = {"start", "step", "merge", "restart", "scrub", "now", "branch", "keep", "view", "runs", "config", "upload"}
"""What the lab's own controls are called; a setting of such a name would press them."""


@dataclass
class Picture:
    """A widget that shows frames, as the pump sees it.

    Attributes:
        widget: asked whether it is ready.
        draw: puts a frame on the widget.
        interval: least time between two frames in seconds.
    """

    widget: Channel
    draw: Callable[[Frame], None]
    interval: float = PICTURE_INTERVAL

    @property
    def ready(self) -> bool:
        """Whether the browser has shown the last frame."""
        return self.widget.ready


@dataclass(frozen=True)
class Style:
    """How a lab's curves and numbers read.

    Attributes:
        loss: how losses read.
        view: which diagnostics are shown first.
        lanes: what lanes are called, by value of the setting in which they differ.
        readouts: numbers in the header (None: step, speed, losses, merges).
    """

    loss: Loss = field(default_factory=Loss)
    view: str = "inverse"
    lanes: dict[str, str] = field(default_factory=dict)
    readouts: Sequence[Readout] | None = None


class Dashboard:
    """Train live in a notebook: transport, readouts, time travel, settings, fast pictures, curves, and runs to compare.

    It joins things and computes nothing: the factory makes engines, each picture draws frames, `p4lab.plots` draws the
    curves. Displaying the object shows the lab. A new lab of the same name closes the one before, threads and all.

    Args:
        config: settings of the first run.
        factory: makes the engine (or lanes) of a config.
        title: heading.
        subtitle: one line on what one sees.
        settings: groups of items named like the fields of the config; "preset" and "speed" are understood, too.
        pictures: fast pictures.
        style: how curves and numbers read.
        name: what replaces what (None: the notebook cell that runs this, so that two cells give two labs).

    Attributes:
        player: the player.
        root: the outermost ipywidget.

    Raises:
        OptionError: a setting has the name of one of the lab's own controls (`BUTTONS`).
        P4Error: whatever the factory raises on the first config.
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
        pictures: Sequence[Picture] = (),
        style: Style | None = None,
        name: str | None = None,
    ) -> None:
        self._key = name or _cell_id()
        if self._key in self._open:
            self._open[self._key].close()
        self._title, self._factory = title, factory
        self._style = style or Style()
        self._view = self._style.view
        self._readouts = readouts(self._style.loss) if self._style.readouts is None else self._style.readouts
        self._refused: Exception | None = None
        self._names = {item.name for group in settings for item in group.items}
        if taken := self._names & BUTTONS:
            raise OptionError(f"settings named {', '.join(sorted(taken))}: buttons have these names; choose others")
        self.player = Player(factory, config)
        self._head = ControlPanel(header(title, subtitle, self._readouts), self._touched, direction="row")
        self._time = ControlPanel(time_bar(), self._touched, direction="row")
        self._side = ControlPanel([*settings, view_group(self._view)], self._touched)
        self._runs = ControlPanel(runs_panel(), self._touched, direction="row")
        self._plot = LivePlot()
        # What moves fast goes first.
        self._views = [
            *pictures,
            Picture(self._head, self._show_head, PANEL_INTERVAL),
            Picture(self._time, self._show_time, PANEL_INTERVAL),
            Picture(self._side, self._show_side, PANEL_INTERVAL),
            Picture(self._runs, self._show_runs, CURVE_INTERVAL),
            Picture(self._plot, lambda frame: self._plot.show(self._curves(frame)), CURVE_INTERVAL),
        ]
        self.root = self._layout([picture.widget for picture in pictures])
        self._pump = Pump(self.player, self._views)
        for view in self._views:
            view.widget.on_ready = self._pump.wake
        self._open[self._key] = self
        atexit.register(self.close)

    def _layout(self, pictures: list[Channel]) -> ipywidgets.Box:
        areas = {
            "p4-head": self._head,
            "p4-time": self._time,
            "p4-side": self._side,
            "p4-pictures": ipywidgets.Box(pictures),
            "p4-curves": self._plot,
            "p4-runs": self._runs,
        }
        for css_class, widget in areas.items():
            widget.add_class(css_class)
        if not pictures:
            del areas["p4-pictures"]
        layout = ipywidgets.Box(list(areas.values())).add_class("p4-layout")
        return ipywidgets.Box([layout]).add_class("p4-lab")

    @property
    def error(self) -> Exception | None:
        """What went wrong in training, drawing or the browser; None if all is well."""
        drawn = (view.widget.error for view in self._views)
        return self.player.error or self._pump.error or next((error for error in drawn if error), None)

    def close(self) -> None:
        """End the threads and remove the widgets."""
        if self._open.get(self._key) is self:
            del self._open[self._key]
        atexit.unregister(self.close)
        self._pump.close()
        self.player.close()
        for view in self._views:
            view.widget.close()
        for box in (*self.root.children[0].children, *self.root.children, self.root):
            box.close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = self.root._repr_mimebundle_(**options) or {}
        data, *metadata = bundle if isinstance(bundle, tuple) else (bundle,)
        # The text is what a saved notebook keeps of the lab.
        data = {**data, "text/plain": f"{self._title}: run this cell in JupyterLab to see it live."}
        return (data, *metadata) if metadata else data

    # --- in Python ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> RunConfig:
        """The settings of the active run."""
        return self.player.ask(lambda runs: runs.active.engine.config, WAIT)

    @property
    def model(self) -> Any:
        """The model of the active run; touch it only while the lab is paused."""
        return self.player.engine.model

    def touch(self, name: str, value: Any = None) -> None:
        """Do what a person does with a control, by its name, and wait until it is done.

        Raises:
            P4Error: what the lab would show as its message.
            TimeoutError: the player is closed.
        """
        before = self._refused, self.player.error
        panels: list[Any] = [view.widget for view in self._views if isinstance(view.widget, ControlPanel)]
        of = {item["name"]: panel for panel in panels for group in panel._spec["groups"] for item in group["items"]}
        (of[name]._touched if name in of else self._touched)(name, value)
        self.player.frame(WAIT)
        for error in (self._refused, self.player.error):
            if error is not None and error not in before:
                raise error

    def values(self) -> dict[str, Any]:
        """Return the value of every setting and control as it stands now, by name."""
        frame = self.player.frame(WAIT)
        values: dict[str, Any] = {}
        for view in self._views:
            if isinstance(view.widget, ControlPanel) and view.interval == PANEL_INTERVAL:
                view.draw(frame)
                values |= view.widget._state["values"]
        return values

    def frame(self) -> "pandas.DataFrame":
        """Return the records of the active run, one row per step."""
        return self.player.ask(lambda runs: runs.active.engine.frame(), WAIT)

    def table(self) -> "pandas.DataFrame":
        """Return one row per run: steps, losses, merges, and the settings in which the runs differ."""
        return self.player.ask(lambda runs: runs.table(), WAIT)

    def figure(self) -> "plotly.graph_objects.Figure":
        """Return the curves as a plotly figure; it knows ``write_html`` and (with kaleido) ``write_image``."""
        return files.figure(self._curves(self.player.frame(WAIT)), self._title)

    def save(self, path: str | Path) -> None:
        """Write the active run to a file: settings, records, weights; `load` reads it."""
        self.player.ask(lambda runs: save_run(runs.active, path), WAIT)

    def load(self, source: str | Path | bytes) -> None:
        """Read a run from a file, or its content, and go on with it; the others are kept.

        Raises:
            RunFileError: not a saved run, damaged, or of another kind of lab.
        """
        self.player.add(load_run(source, self._factory))

    def export(self, path: str | Path) -> None:
        """Write the records (.csv, .parquet) or the figure (.html) of the active run.

        Raises:
            ConfigError: another ending.
        """
        kind = Path(path).suffix.removeprefix(".")
        Path(path).write_bytes(self._file(kind))

    def _file(self, kind: str) -> bytes:
        if kind == "html":
            return files.html(self.figure())
        if kind == "p4run":
            return self.player.ask(lambda runs: files.run_bytes(runs.active), WAIT)
        return self.player.ask(lambda runs: files.table_bytes(runs.active.engine, kind), WAIT)

    # --- from the browser: only commands -----------------------------------------------------------------------------

    def _touched(self, name: str, value: Any) -> None:
        player = self.player
        commands: dict[str, Callable[[], None]] = {
            "start": lambda: player.pause() if player.state is State.RUNNING else player.start(),
            "step": player.step,
            "merge": player.step_to_merge,
            "restart": player.reset,
            "speed": lambda: player.limit(value),
            "preset": lambda: player.set(**player.engine.config.preset_values(value)),
            "scrub": lambda: player.scrub(value),
            "now": lambda: player.scrub(None),
            "branch": player.branch,
            "keep": player.keep,
            "view": lambda: self._choose_view(value),
            "runs": lambda: self._edit_runs(**value),
            "config": lambda: player.set(**type(player.engine.config).from_text(value).to_dict()),
            "upload": lambda: self.load(value),
        }
        if name.startswith("download:"):
            commands[name] = lambda: self._download(name.removeprefix("download:"))
        self._refused = None
        try:
            commands.get(name, lambda: player.set(**{name: value}))()
        except Exception as error:  # shown to the user; a callback's exception would vanish
            self._refused = error
            player.poke()

    def _choose_view(self, view: str) -> None:
        if view not in VIEWS:
            raise ConfigError(f"view={view!r}: expected one of {', '.join(VIEWS)}")
        self._view = view
        self.player.poke()

    def _edit_runs(self, action: str, number: int, name: str = "") -> None:
        {
            "select": lambda: self.player.select(number),
            "remove": lambda: self.player.remove(number),
            "rename": lambda: self.player.rename(number, name),
        }[action]()

    def _download(self, kind: str) -> None:
        name = files.safe_name(self._title)
        if kind == "png":
            self._plot.save_picture(name)
        else:
            self._runs.download(f"{name}.{kind}", self._file(kind))

    # --- to the browser: only by the pump ----------------------------------------------------------------------------

    def _show_head(self, frame: Frame) -> None:
        running = frame.state is State.RUNNING
        self._head.show(
            {
                "state": str(frame.state),
                "start": {"label": "❚❚ Pause" if running else "▶ Start", "look": "primary"},
                "restart": {"look": "attention" if frame.pending and frame.shown is None else "plain"},
                "message": self._message(frame),
                **{readout.item.name: readout.value(frame) for readout in self._readouts},
            },
            disabled=["step", "merge"] if running else ["restart"] if frame.state is State.IDLE else [],
        )

    def _show_time(self, frame: Frame) -> None:
        past = frame.shown is not None
        self._time.show(
            {"scrub": {"moments": frame.moments, "shown": frame.shown}},
            disabled=[
                *(["scrub", "branch", "keep"] if frame.state is State.IDLE else []),
                *([] if past else ["now"]),
            ],
        )

    def _show_side(self, frame: Frame) -> None:
        planned = frame.planned
        values = planned.to_dict()
        preset = None
        if "preset" in self._names:
            preset = next((name for name in PRESETS if planned.preset_values(name).items() <= values.items()), None)
        values |= {"preset": preset, "speed": frame.speed}
        shown = {name: values[name] for name in values if name in self._names}
        self._side.show({**shown, "view": self._view}, pending=frame.pending)

    def _show_runs(self, frame: Frame) -> None:
        self._runs.show({"runs": run_rows(frame, self._style.loss), "config": frame.planned.to_text()})

    def _curves(self, frame: Frame) -> Figure:
        runs = sorted(frame.runs, key=lambda run: not run.active)
        shown = [
            Shown(run.name, _color(run.number), snapshot.curves, snapshot.events)
            for run, snapshot in ((run, frame.snapshot if run.active else run.snapshot) for run in runs)
        ]
        if frame.snapshot.lanes:
            lanes = frame.snapshot.lanes.items()
            shown[:1] = [self._lane(name, number, lane) for number, (name, lane) in enumerate(lanes)]
        return training_curves(shown, self._view, self._style.loss, frame.shown, frame.run)

    def _lane(self, name: str, number: int, lane: Snapshot) -> Shown:
        return Shown(self._style.lanes.get(name, name), RUN_COLORS[number], lane.curves, lane.events)

    def _message(self, frame: Frame) -> dict[str, str]:
        error = self._refused or self.error
        text = frame.message or (describe(error) if error else "")
        return {"level": "error", "text": text} if text else hint(frame)


def _color(number: int) -> str:
    return RUN_COLORS[(number - 1) % len(RUN_COLORS)]


def _cell_id() -> str:
    """Return the id of the notebook cell that is being run, "" outside of one."""
    shell = get_ipython()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return ""
    return str(kernel.get_parent().get("metadata", {}).get("cellId", ""))
