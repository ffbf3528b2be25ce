"""The live lab: a player, a pump, and the widgets that show and control them."""

import atexit
import dataclasses
import difflib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import ipywidgets
from IPython import get_ipython

from p4lab.errors import ConfigError, OptionError, TrainingError
from p4lab.files import writable, write_whole
from p4lab.labs.lab import (
    BUTTONS,
    CURVES,
    DIAGNOSTICS,
    LOSS_CURVES,
    PANEL,
    PLACES,
    RUNS,
    TRIES,
    Bar,
    Canvas,
    Drawing,
    Lab,
    Picture,
    Sight,
    noted,
)
from p4lab.plots.format import DASH
from p4lab.plots.parts import DIAGNOSTICS_PART, LOSS_PART, part
from p4lab.training import Engine, Frame, Lanes, Player, Pump, RunConfig, State, describe, load_run
from p4lab.training.config import Setting
from p4lab.widgets import files
from p4lab.widgets.channel import Channel
from p4lab.widgets.controls import ControlPanel, Group, Item, Kind
from p4lab.widgets.kept_picture import EVERY, KeptPicture
from p4lab.widgets.live_plot import LivePlot
from p4lab.widgets.panels import cards, header, hint, run_rows, runs_panel, stopped_lanes, tabs, time_bar
from p4lab.widgets.pictures import picture_widget
from p4lab.widgets.replay import MOMENTS, replay
from p4lab.widgets.sketch import Sketch

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

W = TypeVar("W", bound=Channel)
EXPORTS = (".csv", ".parquet", ".replay.html", ".html")
"""Endings of the files that `Dashboard.export` writes."""
_COUNT = itertools.count(1)
"""Numbers the labs that have neither a name nor a cell."""
REPLAY = "download:replay.html"
"""The button that makes a replay; it rests while one is made."""
WAIT = 10.0
"""Seconds that the player may take to answer."""
ROOMY = "@container (min-width: 760px)"
"""When a lab is laid out on one screen, as in dashboard.css."""


@dataclasses.dataclass
class WidgetScreen:
    """A widget that shows frames, as the pump sees it.

    Attributes:
        widget: asked whether it is ready.
        draw: puts a frame on the widget.
        interval: least time between two frames in seconds.
        shown: whether it stands on a page that is shown; what nobody sees is not drawn.
    """

    widget: Channel
    draw: Callable[[Frame], None]
    interval: float
    shown: Callable[[], bool] = lambda: True

    @property
    def ready(self) -> bool:
        """Whether it can be seen, and the browser has shown the last frame."""
        return self.shown() and self.widget.ready


class Dashboard:
    """Show a `p4lab.labs.Lab`: transport, numbers, time travel, settings, pictures, curves, and runs to compare.

    It joins things and computes nothing: the lab says what trains, and how frames become drawings. Displaying the
    object shows it. A new dashboard of the same name closes the one before, threads and all.

    Args:
        lab: what to show.
        config: settings of the first run, or their text (None: the lab's).
        name: what replaces what (None: the notebook cell that runs this, so that two cells give two labs; outside of
            notebooks nothing).
        changes: settings over those of ``config``, and of the lab's view.

    Attributes:
        lab: what is shown.
        player: the player.
        view: what is chosen to look at; `touch` changes it.
        screens: what is shown where, for the pump.
        pages: titles of the pages of each place; ``touch("page:<place>", title)`` turns to one.
        root: the outermost ipywidget.

    Raises:
        ConfigError: unknown setting, or a value out of range.
        OptionError: ``lab`` is no lab, or its trainer makes no engine.
        P4Error: whatever the trainer raises on the first config.
    """

    # Shared state, so that re-running a cell can close what it started before.
    _open: ClassVar[dict[str, "Dashboard"]] = {}

    def __init__(
        self, lab: Lab[Any, Any], config: RunConfig | str | None = None, name: str | None = None, **changes: Any
    ):
        if not isinstance(lab, Lab):
            raise OptionError(f"lab={lab!r:.80}: expected a p4lab.labs.Lab; digits_lab and the like are called")
        given: Any = lab.config if config is None else config
        if isinstance(given, str):
            given = type(lab.config).from_text(given)
        if not isinstance(given, RunConfig):
            raise ConfigError(f"config={given!r:.80}: expected {type(lab.config).__name__}(...), or its text")
        looks = {key: changes.pop(key) for key in list(changes) if key in lab.view.settings}
        first: RunConfig = given.replace(**changes)
        self._key = name or _cell_id() or f"lab {next(_COUNT)}"
        self.lab, self.view = lab, dataclasses.replace(lab.view, **looks)
        self._refused: BaseException | None = None
        self._unread: BaseException | None = None
        self._closed = self._recording = False
        self._memory: dict[str, Any] = {}
        self._painted: dict[str, tuple[Any, Callable[[], Mapping[str, Any]]]] = {}
        self.pages = {place: lab.pages(place) for place in PLACES}
        self._widgets: list[Channel] = []
        self.player = Player(self._engine_of, first)
        try:
            self._build(first)
        except BaseException:  # nothing of a lab that cannot be shown stays, and the one before does
            self.player.close()
            for widget in self._widgets:
                widget.close()
            raise
        before, self._open[self._key] = self._open.get(self._key), self
        atexit.register(self.close)
        if before is not None:
            before.close()

    def _build(self, first: RunConfig) -> None:
        lab, made = self.lab, self._made
        self._page = {place: pages[0] for place, pages in self.pages.items() if pages}
        strips = {place: tabs(place, pages) for place, pages in self.pages.items() if len(pages) > 1}
        side_tabs = strips.pop("side", [])
        self._tabs = {
            place: made(ControlPanel(strip, self._touched, direction="row").add_class("p4-tabs"))
            for place, strip in strips.items()
        }
        head = header(lab.title, lab.subtitle, lab.numbers)
        self._head = made(ControlPanel(head, self._touched, direction="row", **own_sheet(lab)))
        self._time = made(ControlPanel(time_bar(), self._touched, direction="row"))
        sides = [(page, *group) for page, groups in enumerate((lab.groups, lab.more)) for group in groups.items()]
        tries = [Group("", [cards(lab.tries)], self.pages["side"].index(TRIES))] if lab.tries else []
        groups = [Group(label, self._items(names, first), page) for page, label, names in sides]
        self._side = made(ControlPanel([*side_tabs, *groups, *tries], self._touched))
        side_names = [*(names for *_, names in sides), *([item.name for item in tab.items] for tab in side_tabs)]
        self._runs = made(ControlPanel(runs_panel(), self._touched, direction="row"))
        self._plot = made(LivePlot())
        self._kept = made(KeptPicture())
        pictures = [self._screen(picture, first) for picture in lab.pictures]
        # What moves fast goes first, and the slowest of a lab's pictures last, wherever they stand on the page.
        self.screens = [
            *sorted(pictures, key=lambda screen: screen.interval),
            WidgetScreen(self._head, self._show_head, PANEL),
            WidgetScreen(self._time, self._show_time, PANEL),
            WidgetScreen(self._side, lambda frame: self._show_panel(self._side, side_names, frame), PANEL),
            WidgetScreen(self._runs, self._show_runs, CURVES, partial(self._seen, "below", RUNS)),
            WidgetScreen(
                self._plot,
                self._show_curves,
                CURVES,
                lambda: self._page["below"] in (LOSS_CURVES, DIAGNOSTICS),
            ),
            *(
                WidgetScreen(panel, partial(self._show_tabs, place, panel), PANEL)
                for place, panel in self._tabs.items()
            ),
            WidgetScreen(self._kept, lambda frame: self._kept.show(frame.state), EVERY),
        ]
        self.root = self._layout([screen.widget for screen in pictures])
        if self.view.speed is not None:
            self.player.limit(self.view.speed)
        self._pump = Pump(self.player, self.screens)
        for screen in self.screens:
            screen.widget.on_ready = self._pump.wake

    def _made(self, widget: W) -> W:
        """Remember a widget, to be closed should the lab not come into being."""
        self._widgets.append(widget)
        return widget

    def _engine_of(self, config: RunConfig) -> Engine | Lanes:
        if type(config) is not type(self.lab.config):
            raise ConfigError(f"a run of {config.problem!r}: this lab shows runs of {self.lab.config.problem!r}")
        engine = self.lab.trainer(config)
        if not isinstance(engine, Engine | Lanes):
            raise self.lab.refusal(f"its trainer returned {engine!r:.80}: expected an Engine or Lanes")
        return engine

    def _layout(self, pictures: list[Channel]) -> ipywidgets.Box:
        shown: dict[str, list[Any]] = {place: [] for place in PLACES}
        bars: list[Any] = []
        for picture, widget in zip(self.lab.pictures, pictures, strict=True):
            place, page = picture.place
            where = bars if isinstance(picture.base, Bar) else shown[place]
            where.append(self._on_page(place, page, widget))
        runs = self._on_page("below", RUNS, self._runs.add_class("p4-runs"))
        shown["below"] += [self._plot.add_class("p4-curves"), runs]
        tabs = {place: [panel] for place, panel in self._tabs.items()}
        areas = {
            "p4-head": self._head,
            "p4-time": self._time,
            "p4-side": self._side,
            "p4-show": ipywidgets.Box(
                [*tabs.get("pictures", []), *bars, ipywidgets.Box(shown["pictures"]).add_class("p4-pictures")]
            ),
            "p4-below": ipywidgets.Box([*tabs.get("below", []), *shown["below"]]),
        }
        if not shown["pictures"]:
            del areas["p4-show"]
        layout = ipywidgets.Box([widget.add_class(name) for name, widget in areas.items()]).add_class("p4-layout")
        return ipywidgets.Box([layout, self._kept]).add_class("p4-lab").add_class(f"p4-{self.lab.name}")

    def _on_page(self, place: str, page: str, widget: Any) -> Any:
        return widget.add_class(f"p4-{place}-{self.pages[place].index(page)}") if page else widget

    def _part(self) -> int:
        return DIAGNOSTICS_PART if self._page["below"] == DIAGNOSTICS else LOSS_PART

    def _seen(self, place: str, page: str) -> bool:
        return not page or self._page[place] == page

    def _items(self, names: Iterable[str], config: RunConfig) -> list[Item]:
        values = self.lab.values(config, self.view)
        items = []
        for name in names:
            button, setting = self.lab.buttons.get(name), self.lab.setting(name)
            if button is not None:
                items.append(Item("button", name, button.label, help=button.help))
            elif setting is not None:
                items.append(item_of(name, setting, config, values[name]))
        return items

    def _screen(self, picture: Picture, config: RunConfig) -> WidgetScreen:
        lab = self.lab
        widget, show = self._widget(picture, config)
        self._made(widget)
        if picture.area:
            widget.add_class(f"p4-{self.lab.name}-{picture.area}")

        def draw(frame: Frame) -> None:
            drawing = lab.draw(picture, self._sight(frame))
            if not isinstance(picture.base, Canvas | Bar):
                widget.display(drawing is not None)
            if drawing is not None:
                with noted(f"in the picture {picture.area!r} of the lab {lab.name!r}"):
                    show(drawing)

        seen = partial(self._seen, *picture.place)
        if isinstance(picture.base, Bar):
            names = picture.base.items
            return WidgetScreen(widget, lambda frame: self._show_panel(widget, [names], frame), PANEL, seen)
        return WidgetScreen(widget, draw, picture.every, seen)

    def _widget(self, picture: Picture, config: RunConfig) -> tuple[Any, Callable[[Any], None]]:
        """Return the widget of a picture, and what puts a drawing on it."""
        base = picture.base
        if isinstance(base, Bar):
            items = self._items(base.items, config)
            return ControlPanel([Group("", items)], self._touched, direction="row").add_class("p4-bar"), lambda _: None
        if not isinstance(base, Canvas):
            return picture_widget(base, lambda name, point: self._moved(picture, name, point))
        use, copy = base.use, base.copy
        sketch = Sketch(
            base.size,
            base.levels,
            base.area,
            base.title,
            base.note,
            lambda ink: self._try(lambda: self._restart(use(ink))),
            lambda: self._try(lambda: sketch.show(copy(self._sight(self.player.frame(WAIT))))),
        )
        control, value = base.stands_for
        self._painted[control] = value, lambda: use(sketch.ink) if sketch.ink.any() else {}
        return sketch, sketch.show

    def _sight(self, frame: Frame) -> Sight[Any, Any]:
        return Sight(frame, self.view, self._memory)

    @property
    def error(self) -> BaseException | None:
        """What went wrong in training, drawing or the browser; None if all is well."""
        drawn = (screen.widget.error for screen in self.screens)
        others = (self._pump.error, self._unread, *drawn)
        return self.player.error or next((error for error in others if error), None)

    def close(self) -> None:
        """End the threads, remove the widgets, and free what the pictures hold."""
        if self._open.get(self._key) is self:
            del self._open[self._key]
        atexit.unregister(self.close)
        self._closed = True
        self._pump.close()
        self.player.close()
        for box in boxes_in(self.root):
            box.close()
        for _, held in self._memory.values():
            if hasattr(held, "close"):
                held.close()
        self._memory.clear()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        if self._closed:
            return {"text/plain": f"{self.lab.title}: closed. Run the cell again that made it."}
        bundle = self.root._repr_mimebundle_(**options) or {}
        data, *metadata = bundle if isinstance(bundle, tuple) else (bundle,)
        if self._kept.place():
            self.root.add_class("p4-pictured")
        # The text is what a saved notebook keeps of the lab, with its picture.
        data = {**data, "text/plain": f"{self.lab.title}: run this cell in JupyterLab to see it live."}
        return (data, *metadata) if metadata else data

    # --- in Python ---------------------------------------------------------------------------------------------------

    @property
    def config(self) -> RunConfig:
        """The settings of the active run."""
        return self.player.ask(lambda runs: runs.active.engine.config, WAIT)

    @property
    def model(self) -> Any:
        """The model of the active run; touch it only while the lab is paused.

        Raises:
            OptionError: several models train side by side.
        """
        engine = self.player.engine
        if isinstance(engine, Lanes):
            names = ", ".join(engine.engines)
            raise OptionError(f"lanes {names} train side by side: lab.player.engine.engines[name].model is one's model")
        return engine.model

    def touch(self, name: str, value: Any = None) -> None:
        """Do what a person does with a control, by its name, and wait until it is done.

        Raises:
            P4Error: what the lab would show as its message.
            TimeoutError: the player is closed.
        """
        with self._settled():
            self._touched(name, value)
            self.player.frame(WAIT)
        if self._refused is not None:
            raise self._refused

    @contextmanager
    def _settled(self) -> Iterator[None]:
        """Wait until what is asked of the player is done, and raise what it refuses."""
        before = self.player.error
        yield
        self.player.ask(lambda runs: None, WAIT)
        error = self.player.error
        if error is not None and error is not before:
            raise error

    def values(self) -> dict[str, Any]:
        """Return the value of every setting and control as it stands now, by name."""
        return self._values(self.player.frame(WAIT))

    def frame(self) -> "pandas.DataFrame":
        """Return the records of the active run, one row per step."""
        return self.player.ask(lambda runs: runs.active.engine.frame(), WAIT)

    def table(self) -> "pandas.DataFrame":
        """Return one row per run: steps, losses, merges, and the settings in which the runs differ."""
        return self.player.ask(lambda runs: runs.table(), WAIT)

    def sight(self, frame: Frame | None = None) -> Sight[Any, Any]:
        """Return what pictures, numbers and curves are made from (None: of this moment)."""
        return Sight(frame or self.player.frame(WAIT), self.view)

    def drawings(self, frame: Frame | None = None) -> dict[str, Drawing]:
        """Return what the pictures show (None: of this moment), by area, as plain data."""
        sight = self.sight(frame)
        return {picture.area: self.lab.draw(picture, sight) for picture in self.lab.pictures}

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of the header, by name."""
        sight = self.sight()
        return {number.name: self.lab.read(number, sight) for number in self.lab.numbers}

    def message(self) -> str:
        """Return what the lab tells at this moment."""
        return self._message(self.sight())["text"]

    def figure(self) -> "plotly.graph_objects.Figure":
        """Return the curves as a plotly figure; it knows ``write_html`` and (with kaleido) ``write_image``."""
        return files.figure(self.lab.figure(self.sight()), self.lab.title)

    def save(self, path: str | Path) -> None:
        """Write the active run to a file: settings, records, weights; `load` reads it.

        Raises:
            FileError: it cannot be written; what was there is as before.
        """
        writable(path)
        write_whole(path, self._file("p4run"))

    def load(self, source: str | Path | bytes) -> None:
        """Read a run from a file, or its content, and go on with it; the others are kept.

        Raises:
            FileError: it cannot be read.
            RunFileError: not a saved run, damaged, or of another kind of lab.
            ConfigError: there are too many runs.
        """
        with self._settled():
            self.player.add(load_run(source, self._engine_of))

    def export(self, path: str | Path) -> None:
        """Write the records (.csv, .parquet), the curves (.html) or all that was seen (.replay.html) of the active run.

        Raises:
            ConfigError: another ending.
            FileError: it cannot be written, which is known before anything is drawn; what was there is as before.
            ReplayError: what was seen does not fit into one page.
        """
        kind = next((ending for ending in EXPORTS if str(path).endswith(ending)), None)
        if kind is None:
            raise ConfigError(f"path={str(path)!r}: expected a name that ends in {', '.join(EXPORTS)}")
        writable(path)
        write_whole(path, self._file(kind.removeprefix(".")))

    def _file(self, kind: str) -> bytes:
        if kind == "html":
            return files.html(self.figure())
        if kind == "replay.html":
            return replay(self.lab, self.player.recorded(MOMENTS, WAIT), self.view)
        if kind == "p4run":
            return self.player.ask(lambda runs: files.run_bytes(runs.active), WAIT)
        return self.player.ask(lambda runs: files.table_bytes(runs.active.engine, kind), WAIT)

    # --- from the browser: only commands -----------------------------------------------------------------------------

    def _touched(self, name: str, value: Any) -> None:
        self._try(lambda: self._command(name, value))

    def _try(self, act: Callable[[], object]) -> None:
        self._refused = None
        try:
            act()
        except Exception as error:  # shown to the user; a callback's exception would vanish
            self._refused = error
            self.player.poke()

    def _command(self, name: str, value: Any) -> None:
        player, lab = self.player, self.lab
        commands: dict[str, Callable[[], object]] = {
            "start": lambda: player.pause() if player.state is State.RUNNING else player.start(),
            "step": player.step,
            "merge": player.step_to_merge,
            "restart": player.reset,
            "speed": lambda: player.limit(value),
            "scrub": lambda: player.scrub(value),
            "now": lambda: player.scrub(None),
            "branch": player.branch,
            "keep": player.keep,
            "runs": lambda: self._edit_runs(**value),
            "config": lambda: player.set(**type(player.engine.config).from_text(value).to_dict()),
            "upload": lambda: self.load(value),
            "try": lambda: self._prepare(value),
        }
        if name in commands:
            commands[name]()
        elif name.startswith("download:"):
            self._download(name.removeprefix("download:"))
        elif name.startswith("page:"):
            self._turn(name.removeprefix("page:"), value)
        elif name in lab.buttons:
            lab.buttons[name].act(player)
            player.poke()
        elif name in lab.controls:
            write = lab.controls[name].write
            player.change(lambda planned: write(planned, value))
        elif name in lab.view.settings:
            self._look({name: value})
        elif name not in lab.config.settings:
            names = [*lab.config.settings, *lab.view.settings, *lab.controls, *lab.buttons, *sorted(BUTTONS)]
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{name}={value!r}: there is no such setting; {hint}expected one of {', '.join(names)}")
        else:
            meant, painted = self._painted.get(name, (None, dict))
            player.set(**{name: value, **(painted() if value == meant else {})})

    def _edit_runs(self, action: str, number: int, name: str = "") -> None:
        {
            "select": lambda: self.player.select(number),
            "remove": lambda: self.player.remove(number),
            "rename": lambda: self.player.rename(number, name),
        }[action]()

    def _download(self, kind: str) -> None:
        name = files.safe_name(self.lab.title)
        if kind == "png":
            # The button stands on another page than the curves, which are not drawn meanwhile.
            self._plot.show(part(self.lab.figure(self.sight()), LOSS_PART))
            self._plot.save_picture(name)
        elif kind == "replay.html":
            self._record(f"{name}.{kind}")
        else:
            self._runs.download(f"{name}.{kind}", self._file(kind))

    def _prepare(self, number: int) -> None:
        if type(number) is not int or not 0 <= number < len(self.lab.tries):
            raise ConfigError(f"try={number!r}: expected the number of a card, below {len(self.lab.tries)}")
        for name, value in self.lab.tries[number].changes.items():
            with self._settled():  # what is refused ends it, and is not forgotten by what would follow
                if name == "start":  # the button of this name pauses a run that goes on
                    self.player.start()
                else:
                    self._command(name, value)

    def _turn(self, place: str, page: str) -> None:
        if page not in self.pages.get(place, ()):
            pages = "; ".join(f"page:{place}: {', '.join(pages)}" for place, pages in self.pages.items() if pages)
            raise ConfigError(f"page:{place}={page!r}: there is no such page; expected one of {pages}")
        self._page[place] = page
        self.player.poke()

    def _record(self, name: str) -> None:
        """Make a replay while the lab goes on, for drawing every moment may take half a minute; one at a time."""

        def work() -> None:
            try:
                content = self._file("replay.html")
                if not self._closed:
                    self._runs.download(name, content)
            except BaseException as error:  # shown to the user, as what else is refused
                self._refused = error
            self._recording = False
            self.player.poke()

        if not self._recording:
            self._recording = True
            threading.Thread(target=work, name="p4lab-replay", daemon=True).start()
            self.player.poke()

    def _moved(self, picture: Picture, name: str, point: tuple[float, ...]) -> None:
        moved = picture.moved
        if moved is not None:
            self._try(lambda: self._set(moved(self._sight(self.player.frame(WAIT)), name, point)))

    def _set(self, changes: Mapping[str, Any]) -> None:
        looks = {key: value for key, value in changes.items() if key in self.lab.view.settings}
        if looks:
            self._look(looks)
        if len(looks) < len(changes):
            self.player.set(**{key: value for key, value in changes.items() if key not in looks})

    def _look(self, looks: Mapping[str, Any]) -> None:
        self.view = dataclasses.replace(self.view, **looks)
        self.player.poke()

    def _restart(self, changes: Mapping[str, Any]) -> None:
        self.player.set(**changes)
        self.player.reset()
        self.player.start()

    # --- to the browser: only by the pump ----------------------------------------------------------------------------

    def _values(self, frame: Frame) -> dict[str, Any]:
        return {**self.lab.values(frame.planned, self.view), "speed": frame.speed}

    def _show_head(self, frame: Frame) -> None:
        running, sight = frame.state is State.RUNNING, self._sight(frame)
        self._unread = None
        numbers = {number.name: self._read(partial(self.lab.read, number, sight), DASH) for number in self.lab.numbers}
        self._head.show(
            {
                "state": str(frame.state),
                "start": {"label": "❚❚ Pause" if running else "▶ Start", "look": "primary"},
                "restart": {"look": "attention" if frame.pending and frame.shown is None else "plain"},
                "message": self._message(sight),
                **numbers,
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

    def _show_tabs(self, place: str, panel: ControlPanel, frame: Frame) -> None:
        panel.show({f"page:{place}": self._page[place]})

    def _show_panel(self, panel: ControlPanel, groups: Iterable[Sequence[str]], frame: Frame) -> None:
        values = self._values(frame) | {f"page:{place}": page for place, page in self._page.items()}
        shown = {name: values[name] for names in groups for name in names if name in values}
        waiting = self.lab.waiting(frame.snapshot.config, frame.planned)
        with noted(f"in what is disabled of the lab {self.lab.name!r}"):
            disabled = [name for name in self.lab.disabled(frame.planned) if name in shown]
        panel.show(shown, disabled, [name for name in waiting if name in shown])

    def _show_curves(self, frame: Frame) -> None:
        figure = self.lab.figure(self._sight(frame))
        with noted(f"in the curves of the lab {self.lab.name!r}"):
            self._plot.show(part(figure, self._part()))

    def _show_runs(self, frame: Frame) -> None:
        button = {"label": "Replay …" if self._recording else "Replay"}
        values = {"runs": run_rows(frame, self.lab.loss), "config": frame.planned.to_text(), REPLAY: button}
        self._runs.show(values, [REPLAY] if self._recording else [])

    def _message(self, sight: Sight[Any, Any]) -> dict[str, str]:
        frame = sight.frame
        error = self._refused or (None if frame.message else self.error)
        # Why a run stopped belongs to its present: who looks at its past is told what can be done there.
        past = frame.shown is not None and not self._refused and isinstance(self.player.error, TrainingError)
        if not past and (text := describe(error) if error else frame.message):
            return {"level": "error", "text": text}
        message = hint(frame, self._label)
        if message["level"] != "info" or frame.state is State.CLOSED:
            return message
        if text := stopped_lanes(frame, self._read(lambda: self.lab.lane_names(frame.snapshot.config), {})):
            return {"level": self.lab.alarm, "text": text}
        text = self._read(lambda: self.lab.advice(sight), None) or message["text"]
        return {"level": "error", "text": describe(self._unread)} if self._unread else {**message, "text": text}

    def _label(self, name: str) -> str:
        setting = self.lab.setting(name)
        return (setting and setting.label) or name.replace("_", " ").capitalize()

    def _read(self, read: Callable[[], Any], otherwise: Any) -> Any:
        """Return what a function of the lab's says; if it fails, the header goes on, and shows why."""
        try:
            return read()
        except BaseException as error:  # an exit, too, would end the pump's thread
            self._unread = self._unread or error
            return otherwise


def boxes_in(box: Any) -> Iterator[Any]:
    """Go through the widgets in a box, and then the box."""
    for child in getattr(box, "children", ()):
        yield from boxes_in(child)
    yield box


def own_sheet(lab: Lab[Any, Any]) -> dict[str, str]:
    """Return options for the widget that brings a lab's style along, as a sheet of the lab's own.

    Its rules are for the layout of one screen: where there is no room for it, everything stands below one another.
    A page has one sheet for widgets of one id, that of the latest; and sheets come in any order. So the lab has an id,
    and its rules, nested below its name, weigh more than the general ones.
    """
    own = f".p4-lab{4 * f'.p4-{lab.name}'} {{ --p4-share: {lab.share:g}; {ROOMY} {{ {lab.style} }} }}"
    return {"_css": own, "_anywidget_id": f"p4lab.labs.{lab.name}"}


def item_of(name: str, setting: Setting, config: RunConfig, value: Any) -> Item:
    """Return the control of a setting, the present value among its choices where that is promised."""
    texts = setting.offered(config, value)
    numbers = bool(texts) and all(isinstance(choice, int | float) and choice is not True for choice in texts)
    kind: Kind
    if setting.kind is not None:
        kind = setting.kind
    elif texts:
        kind = "slider" if setting.live and numbers else "choice"
    else:
        kind = {bool: "toggle", str: "text"}.get(setting.rule.kind, "number")  # type: ignore[assignment]
    if kind == "choice" and setting.unit:  # a menu has no place behind its value
        texts = {choice: f"{text} {setting.unit}" for choice, text in texts.items()}
    return Item(
        kind,
        name,
        setting.label,
        setting.unit,
        setting.help,
        tuple(texts),
        tuple(texts.values()),
        setting.live,
        setting.look,
    )


def _cell_id() -> str:
    """Return the id of the notebook cell that is being run, "" outside of one."""
    shell = get_ipython()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:
        return ""
    return str(kernel.get_parent().get("metadata", {}).get("cellId", ""))
