"""A lab as a value: settings, trainer, pictures, numbers, table and curves, which one dashboard shows."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from p4lab.errors import ConfigError, OptionError
from p4lab.p4 import PRESETS
from p4lab.plots import Figure, Loss
from p4lab.plots.layers import Images, Plot, Rows, Term
from p4lab.training import Engine, Frame, Lanes, Player, Snapshot, State, describe
from p4lab.training.config import Rule, RunConfig, Setting, Settings, one_of, setting, value_text
from p4lab.training.player import SLOWEST

C = TypeVar("C", bound=RunConfig)
V = TypeVar("V", bound="View")

PICTURE, PANEL, CURVES = 0.11, 0.33, 1.0
"""Least seconds between two frames of a fast picture, of a panel, and of the curves."""
PLACES = ("side", "pictures", "below")
"""Places of a lab with pages, of which one is shown at a time."""
MOST_PAGES = 9
"""Pages of a place, at most: the sheet has a rule for each."""
SETTINGS, TRIES, LOSS_CURVES, DIAGNOSTICS, RUNS = "Settings", "Try", "Loss", "Diagnostics", "Runs and files"
"""Titles of pages that labs have anyway."""
PRESSED = {"start", "step", "merge", "restart", "scrub", "now", "branch", "keep"}
"""The lab's own controls that a card may press, too."""
BUTTONS = PRESSED | {"runs", "config", "upload", "try"}
"""What the lab's own controls are called; a setting of such a name would press them."""
HEADER = {"title", "state", "message", "start", "step", "merge", "restart"}
"""What stands in the header besides a lab's numbers."""
WORD = re.compile(r"[\w-]+")
"""What can be part of the name of a CSS class."""
SPEED = Rule(
    object,
    lambda value: value is None or (isinstance(value, int | float) and value >= SLOWEST),
    f"{SLOWEST:g} or more steps per second, or None for full speed",
)
SLOW = {1: "1 step/s", 5: "5 steps/s", 20: "20 steps/s", None: "none"}
"""Speed limits for models whose steps one can follow."""


def per_second(*speeds: int | None) -> dict[int | None, str]:
    """Return speed limits with how they read."""
    return {speed: "none" if speed is None else f"{speed} / s" for speed in speeds}


def diagnostics(first: str) -> Any:
    """Return the setting that chooses the small curves on the right, at first "inverse", "accuracy" or "training"."""
    texts = {"inverse": "Inverse", "accuracy": "Accuracy", "training": "Training"}
    return setting(
        first,
        "What they show",
        one_of(*texts),
        choices={name: texts[name] for name in ("inverse" if first == "training" else first, "training")},
        kind="segments",
        live=True,
        help="Determinant and inverse; or gradients, perturbations and step time",
    )


@dataclass(frozen=True)
class View(Settings):
    """Settings that a run does not depend on, only what is seen of it; each lab may add its own."""

    view: str = diagnostics("inverse")
    speed: float | None = setting(
        None, "Speed limit", SPEED, choices=per_second(5, 20, 100, None), kind="choice", live=True
    )


@dataclass(frozen=True)
class Sight(Generic[C, V]):
    """What a picture, a number or a curve is made from: a frame, and what is chosen to look at.

    Attributes:
        frame: the player and its run at one moment.
        view: what is chosen.
        memory: what the pictures of one lab remember, see `keep`.
    """

    frame: Frame
    view: V
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def snapshot(self) -> Snapshot:
        """The run at this moment."""
        return self.frame.snapshot

    @property
    def config(self) -> C:
        """The settings of the run."""
        config: Any = self.frame.snapshot.config
        return config

    @property
    def lanes(self) -> Mapping[str, Snapshot]:
        """The lanes by name; empty if one model trains alone."""
        return self.frame.snapshot.lanes

    @property
    def running(self) -> bool:
        """Whether the run goes on, so that pictures ought to be quick rather than fine."""
        return self.frame.state is State.RUNNING

    def lane(self, name: str | None) -> Snapshot:
        """Return a lane (None: the run as a whole)."""
        return self.snapshot if name is None else self.lanes[name]

    def keep(self, name: str, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made under this name as long as the key stays the same; else make it anew."""
        if name not in self.memory or self.memory[name][0] != key:
            self.memory[name] = key, make()
        return self.memory[name][1]

    def moment(self, lane: str | None = None) -> tuple[Any, ...]:
        """Return what changes whenever the weights of a lane do."""
        snapshot = self.lane(lane)
        return self.frame.run, snapshot.step, snapshot.config

    def model(self, lane: str | None = None) -> Any:
        """Return a copy of a lane's model with the weights of this moment; using it does not touch what trains.

        It is built by ``config.model()``, and kept until a setting changes that is not live. The snapshot's pictures
        must be the model's weights by name, see `weights_of`.
        """
        snapshot, name = self.lane(lane), f"model of {lane}"
        model = self.keep(name, fixed(snapshot.config), lambda: snapshot.config.model().eval())
        key = id(model), self.moment(lane)
        self.keep(f"weights of {lane}", key, lambda: load_weights(model, snapshot.pictures))
        return model


def fixed(config: RunConfig) -> dict[str, Any]:
    """Return the settings that cannot change while a run goes on."""
    return {name: value for name, value in config.to_dict().items() if name not in config.live}


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of a model's weights by name, on the CPU: what a problem shows of a model that others look at.

    So looking costs the training no more than a copy of the weights, however fine the pictures are.
    """
    state = model.state_dict()
    return {name: value.detach().to("cpu", copy=True) for name, value in state.items() if torch.is_tensor(value)}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Take over weights: a model's state by name.

    Raises:
        OptionError: they are those of another model.
    """
    state = {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}
    if set(weights) != set(state):
        raise OptionError(f"weights of another model: {', '.join(sorted(set(weights) ^ set(state)))}")
    for name, value in state.items():
        value.copy_(torch.from_numpy(weights[name]))


# --- what stays of a picture as it is ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axes:
    """A picture in the plane; see `p4lab.widgets.Plane`. ``hint`` says what can be dragged, in the lab alone."""

    title: str
    note: str = ""
    x_label: str = ""
    y_label: str = ""
    equal: bool = True
    height: int = 340
    hint: str = ""


@dataclass(frozen=True)
class Box:
    """A picture in space; see `p4lab.widgets.Space`. ``hint`` says what can be dragged, in the lab alone."""

    title: str
    note: str = ""
    labels: tuple[str, str, str] = ("x", "y", "z")
    equal: bool = True
    height: int = 380
    home: tuple[float, float] = (-55.0, 22.0)
    hint: str = ""


@dataclass(frozen=True)
class Grid:
    """The heading of a grid of images, a few words after it, images per row, and the colour of a lane."""

    label: str
    note: str = ""
    columns: int = 1
    color: str = ""


@dataclass(frozen=True)
class Grids:
    """Grids of images side by side; see `p4lab.widgets.ImageGrid`."""

    grids: Sequence[Grid]
    top: int
    colors: str = "ink"
    ends: tuple[str, str] | None = None


@dataclass(frozen=True)
class Board:
    """A table; ``label`` is what it is called."""

    label: str


@dataclass(frozen=True)
class Equations:
    """Equations with the numbers of this moment; see `p4lab.widgets.Formula`."""

    decimals: int = 2


@dataclass(frozen=True)
class Bar:
    """A row of controls among the pictures; what it contains, as in `Lab.groups`."""

    items: Sequence[str]


@dataclass(frozen=True)
class Canvas:
    """A square to paint on; see `p4lab.widgets.Sketch`.

    Attributes:
        size, levels, area, title, note: as there.
        use: what a drawing changes of the config; the run starts over with it.
        copy: what stands on the square when a person asks for what is learnt.
        stands_for: a control and a value of it that mean what is on the square.
    """

    size: int
    levels: int
    area: tuple[float, float, float, float]
    title: str
    note: str
    use: Callable[[NDArray[np.uint8]], Mapping[str, Any]]
    copy: Callable[["Sight[Any, Any]"], NDArray[Any]]
    stands_for: tuple[str, Any] = ("", None)


BELOW = "below"
"""The page of a picture that shares the place of the curves, behind a tab with its label."""

Base = Axes | Box | Grids | Board | Equations | Bar | Canvas
Drawing = Plot | Images | Rows | Sequence[Sequence[Term | str]] | NDArray[Any] | None


def nothing(sight: Sight[Any, Any]) -> None:
    """Draw nothing: a bar shows the values of its controls by itself."""


@dataclass(frozen=True)
class Picture:
    """A picture: what stays of it as it is, and a function from what is seen to a drawing.

    Attributes:
        base: what stays.
        draw: returns a drawing that fits the base: `Plot` (axes, box), `Images` (grids), `Rows` (board), rows of terms
            (equations), ink or None for as it is (canvas). None takes the picture off the page.
        every: least seconds between two drawings while the run goes on.
        area: name of the picture in the layout.
        page: title of the page of pictures that it is on ("": on all of them); `BELOW` puts it behind a tab beside the
            curves.
        moved: what changes of the config, or of the view, when a handle, by its name, is moved to a point.
    """

    base: Base
    draw: Callable[[Sight[Any, Any]], Drawing] = nothing
    every: float = PICTURE
    area: str = ""
    page: str = ""
    moved: Callable[[Sight[Any, Any], str, tuple[float, ...]], Mapping[str, Any]] | None = None

    @property
    def place(self) -> tuple[str, str]:
        """The place, one of `PLACES`, and the title of the page there ("": it is on all pages)."""
        if self.page != BELOW:
            return "pictures", self.page
        base: Any = self.base
        return "below", base.label if isinstance(base, Board) else base.title


# --- what stands beside the pictures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number in the header.

    Attributes:
        name: what it is called in messages.
        label: what people read.
        read: its text, or {"value": text, "unit": text}; a number becomes text.
        unit: stands behind it.
        help: appears when the pointer rests on it.
        color: of the line beside it.
    """

    name: str
    label: str
    read: Callable[[Sight[Any, Any]], Any]
    unit: str = ""
    help: str = ""
    color: str = ""


@dataclass(frozen=True)
class Control:
    """A control that is not a setting, but sets some.

    Attributes:
        setting: how it looks.
        read: its value for a config.
        write: what changes of a config when it is set.
    """

    setting: Setting
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], Mapping[str, Any]]


@dataclass(frozen=True)
class Button:
    """A button: its label, what it does to the player, and what appears when the pointer rests on it."""

    label: str
    act: Callable[[Player], object]
    help: str = ""


@dataclass(frozen=True)
class Try:
    """Something to try.

    Attributes:
        title: in a few words.
        text: what to do and what to see, *names* of controls between asterisks; one short paragraph.
        changes: what a button sets for it, by the names of controls, pages ("page:pictures") and buttons, in this order
            (empty: there is no button).
    """

    title: str
    text: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def _preset_of(config: RunConfig) -> str | None:
    values = config.to_dict().items()
    return next((name for name in PRESETS if config.preset_values(name).items() <= values), None)


PRESET = Control(
    Setting(
        "Rank, directions, merges",
        choices={"recommended": "Recommended", "paper": "Paper"},
        kind="segments",
        live=True,
    ),
    _preset_of,
    lambda config, name: config.preset_values(name),
)
"""The choice of a preset of `p4lab.p4.PRESETS`."""


DRAWINGS: dict[Any, type] = {Axes | Box: Plot, Grids: Images, Board: Rows, Equations: Sequence}
"""What is drawn on a base; what is put on a canvas is checked there."""


@contextmanager
def noted(note: str) -> Iterator[None]:
    """Let what is raised meanwhile say where it was."""
    try:
        yield
    except BaseException as error:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def _named(kind: type) -> str:
    return "a sequence of rows of Term and text" if kind is Sequence else f"a {kind.__name__}"


def _check_count(what: str, number: int, expected: int) -> None:
    if number != expected:
        raise OptionError(f"draw returned {number} {what}: expected {expected}")


def _number_text(value: Any) -> str:
    if not isinstance(value, str) and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()  # of torch or numpy
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return value_text(value)
    raise OptionError(f"read returned {value!r:.80}: expected text, a number, or {{'value': ..., 'unit': ...}}")


@dataclass(frozen=True)
class Lab(Generic[C, V]):
    """What a lab consists of; nothing in here needs a browser. `p4lab.widgets.Dashboard` shows it.

    Attributes:
        name: in the CSS class, ``p4-<name>``.
        title, subtitle: the heading.
        config: the settings of the first run.
        trainer: what trains a config.
        groups: headings, and below each the names of fields of config or view, of controls and of buttons: what is
            always there, so keep to what fits beside the pictures.
        more: the same, for what is one click away, behind the tab ``more_label``.
        tries: things to try, one at a time, behind a tab.
        view: what is looked at first.
        pictures: from left to right; see `Picture.page` for those that are one click away.
        numbers: in the header.
        curves: the figure of curves.
        loss: how losses read.
        lanes: what the lanes are called, by name, for a config.
        controls, buttons: by name, what is neither a setting of the config nor of the view.
        offers: what this lab says otherwise about a setting than its class does, by its name.
        disabled: names of what cannot be touched, for planned settings.
        hint: what to do next, if there is nothing more pressing to say (None: the usual).
        alarm: how loud it is said that a lane has stopped, "notice" or "error".
        share: of the height of pictures and curves together, what the pictures get.
        style: CSS rules of what is this lab's alone, nested: their selectors look for parts of the lab.

    Raises:
        OptionError: something that could not be shown, such as a name that is not there or stands for something else.
    """

    name: str
    title: str
    subtitle: str
    config: C
    trainer: Callable[[Any], Engine | Lanes]
    groups: Mapping[str, Sequence[str]]
    curves: Callable[[Sight[Any, Any]], Figure]
    numbers: Sequence[Number]
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)
    more_label: str = "More"
    tries: Sequence[Try] = ()
    view: V = View()  # type: ignore[assignment]
    pictures: Sequence[Picture] = ()
    loss: Loss = field(default_factory=Loss)
    lanes: Callable[[Any], Mapping[str, str]] = lambda config: {}
    controls: Mapping[str, Control] = field(default_factory=dict)
    buttons: Mapping[str, Button] = field(default_factory=dict)
    offers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    disabled: Callable[[Any], Collection[str]] = lambda planned: ()
    hint: Callable[[Sight[Any, Any]], str | None] = lambda sight: None
    alarm: str = "notice"
    share: float = 0.55
    style: str = ""

    def __post_init__(self) -> None:
        for check in (_check_kinds, _check_settings, _check_numbers, _check_pictures, _check_pages, _check_tries):
            check(self)

    def draw(self, picture: Picture, sight: Sight[Any, Any]) -> Drawing:
        """Return what a picture shows; whatever it raises says in a note which one it is.

        Raises:
            OptionError: it returned something else than its base shows, or too few or many of it.
        """
        with noted(f"in the picture {picture.area!r} of the lab {self.name!r}"):
            drawing = picture.draw(sight)
            kind = next((kind for base, kind in DRAWINGS.items() if isinstance(picture.base, base)), object)
            if not (drawing is None or isinstance(drawing, kind)) or isinstance(drawing, str):
                raise OptionError(f"draw returned {drawing!r:.80}: expected {_named(kind)}, or None")
            if isinstance(picture.base, Grids) and isinstance(drawing, Images):
                _check_count("tiles", len(drawing.tiles), len(picture.base.grids))
            if isinstance(drawing, Rows):
                for row in drawing.rows:
                    _check_count("cells of a row", len(row.cells), len(drawing.columns))
            return drawing

    def figure(self, sight: Sight[Any, Any]) -> Figure:
        """Return the curves; whatever they raise says so in a note.

        Raises:
            OptionError: they are no figure.
        """
        with noted(f"in the curves of the lab {self.name!r}"):
            figure = self.curves(sight)
            if not isinstance(figure, dict) or not {"data", "layout"} <= {*figure}:
                raise OptionError(f"curves returned {figure!r:.80}: expected a dict with 'data' and 'layout'")
            return figure

    def read(self, number: Number, sight: Sight[Any, Any]) -> Any:
        """Return the text of a number, or {"value": text, "unit": text}; numbers of any library become text.

        Raises:
            OptionError: it is neither.
        """
        with noted(f"in the number {number.name!r} of the lab {self.name!r}"):
            value = number.read(sight)
            if isinstance(value, Mapping) and {"value"} <= {*value} <= {"value", "unit"}:
                return {name: _number_text(part) for name, part in value.items()}
            return _number_text(value)

    def advice(self, sight: Sight[Any, Any]) -> str | None:
        """Return what to do next, if the lab has something to say.

        Raises:
            OptionError: it is no text.
        """
        with noted(f"in the hint of the lab {self.name!r}"):
            text = self.hint(sight)
            if not (text is None or isinstance(text, str)):
                raise OptionError(f"hint returned {text!r:.80}: expected text or None")
            return text

    def lane_names(self, config: C) -> Mapping[str, str]:
        """Return what the lanes are called."""
        with noted(f"in the lanes of the lab {self.name!r}"):
            return self.lanes(config)

    def refusal(self, reason: str) -> OptionError:
        """Return the error that says what is wrong with this lab."""
        return OptionError(f"lab {self.name!r}: {reason}")

    def pages(self, place: str) -> list[str]:
        """Return the titles of the pages of a place, one of `PLACES`, in order."""
        if place == "side":
            return [SETTINGS, *([self.more_label] if self.more else []), *([TRIES] if self.tries else [])]
        places = (picture.place for picture in self.pictures)
        pages = list(dict.fromkeys(page for where, page in places if where == place and page))
        return [LOSS_CURVES, DIAGNOSTICS, *pages, RUNS] if place == "below" else pages

    def setting(self, name: str) -> Setting | None:
        """Return how a control looks; None if there is none of that name."""
        control = self.controls.get(name)
        setting = control.setting if control else self.view.settings.get(name) or self.config.settings.get(name)
        return dataclasses.replace(setting, **self.offers.get(name, {})) if setting else None

    def values(self, config: RunConfig, view: View) -> dict[str, Any]:
        """Return the value of every setting and control, by name."""
        settings = {**dataclasses.asdict(view), **dataclasses.asdict(config)}
        return settings | {name: control.read(config) for name, control in self.controls.items()}

    def waiting(self, running: RunConfig, planned: RunConfig) -> list[str]:
        """Return the names of what is planned otherwise than it is."""
        names = [name for name in running.differences(planned) if name not in self.controls]
        waiting = {name: control for name, control in self.controls.items() if not control.setting.live}
        others = (name for name, control in waiting.items() if control.read(running) != control.read(planned))
        return [*names, *others]


# --- what a lab must be, known when it is made ------------------------------------------------------------------------


def _check_kinds(lab: Lab[Any, Any]) -> None:
    """Refuse what is of another kind than `Lab` says."""
    for name, value in (("config", lab.config), ("view", lab.view)):
        if isinstance(value, type):
            raise lab.refusal(f"{name} is the class {value.__name__}: give an instance, {value.__name__}()")
    kinds: dict[type, tuple[str, ...]] = {
        str: ("name", "title", "subtitle", "more_label", "style"),
        RunConfig: ("config",),
        View: ("view",),
        Loss: ("loss",),
        Mapping: ("groups", "more", "controls", "buttons", "offers"),
        Sequence: ("numbers", "pictures", "tries"),
    }
    for kind, names in kinds.items():
        for name in names:
            if not isinstance(getattr(lab, name), kind):
                raise lab.refusal(f"{name} is {getattr(lab, name)!r:.80}: expected a {kind.__name__}")
    for name in ("trainer", "curves", "lanes", "disabled", "hint"):
        if not callable(getattr(lab, name)):
            raise lab.refusal(f"{name} is {getattr(lab, name)!r:.80}: expected a function")
    members: dict[str, tuple[Iterable[Any], type]] = {
        "numbers": (lab.numbers, Number),
        "pictures": (lab.pictures, Picture),
        "tries": (lab.tries, Try),
        "controls": (lab.controls.values(), Control),
        "buttons": (lab.buttons.values(), Button),
        "offers": (lab.offers.values(), Mapping),
    }
    for name, (values, kind) in members.items():
        for value in values:
            if not isinstance(value, kind):
                raise lab.refusal(f"{name} holds {value!r:.80}: expected each to be a {kind.__name__}")
    if not WORD.fullmatch(lab.name):
        raise lab.refusal("expected a name of letters, digits, - and _, for CSS is told of it")
    if not (isinstance(lab.share, int | float) and 0 < lab.share < 1):
        raise lab.refusal(f"share={lab.share!r}: expected a number between 0 and 1")
    if lab.alarm not in ("notice", "error"):
        raise lab.refusal(f"alarm={lab.alarm!r}: expected 'notice' or 'error'")


def _check_settings(lab: Lab[Any, Any]) -> None:
    """Refuse settings, controls and buttons that are not there, or that have the names of others."""
    if not lab.config.problem:
        kind = type(lab.config).__name__
        raise lab.refusal(f"{kind} has no name: give the class `problem: ClassVar[str] = ...`, as in config texts")
    settings, view = {*lab.config.settings}, {*lab.view.settings}
    if both := settings & view:
        raise lab.refusal(f"config and view both have settings named {', '.join(sorted(both))}")
    if both := {*lab.buttons} & (settings | view | {*lab.controls}):
        raise lab.refusal(f"buttons and settings both have the names {', '.join(sorted(both))}")
    own = {*lab.buttons, *lab.controls, *settings, *view}
    bars = [picture.base.items for picture in lab.pictures if isinstance(picture.base, Bar)]
    for names in (*lab.groups.values(), *lab.more.values(), *bars):
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise lab.refusal(f"{names!r:.80} among groups: expected names in a sequence, such as ('seed',)")
        for name in names:
            if name not in own:
                raise lab.refusal(_unknown(name, own))
            if name in BUTTONS or name.startswith(("page:", "download:")):
                raise lab.refusal(f"settings named {name}: buttons have these names; choose others")
    for name, attributes in lab.offers.items():
        if name not in own - {*lab.buttons}:
            raise lab.refusal(f"offers: {_unknown(name, own)}")
        if wrong := {*attributes} - {field.name for field in dataclasses.fields(Setting)}:
            raise lab.refusal(f"offers {name!r}: a Setting has no {', '.join(map(str, wrong))}")


def _unknown(name: Any, names: Collection[str]) -> str:
    near = difflib.get_close_matches(str(name), names, 1)
    expected = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(names))}"
    return f"no setting, control or button is named {name!r}; {expected}"


def _check_numbers(lab: Lab[Any, Any]) -> None:
    """Refuse numbers with the names of others, or of what else stands in the header."""
    names = [number.name for number in lab.numbers]
    for name in names:
        if name in HEADER or names.count(name) > 1:
            raise lab.refusal(f"a number is named {name!r}, as another part of the header; choose another name")


def _check_pictures(lab: Lab[Any, Any]) -> None:
    """Refuse pictures without an area of their own, or in a place that is not for them."""
    areas = [picture.area for picture in lab.pictures]
    if len({*areas, ""}) <= len(areas):
        raise lab.refusal(f"pictures in the areas {areas}: each needs an area of its own")
    for picture in lab.pictures:
        if not (isinstance(picture.area, str) and WORD.fullmatch(picture.area or "_")):
            raise lab.refusal(f"area {picture.area!r}: expected letters, digits, - and _, for CSS is told of it")
        if not isinstance(picture.base, Base):
            raise lab.refusal(f"picture {picture.area!r} on {picture.base!r:.80}: expected Axes, Box, Grids, ...")
        if not callable(picture.draw):
            raise lab.refusal(f"picture {picture.area!r}: draw is {picture.draw!r:.80}, expected a function")
        if picture.page == BELOW and not (isinstance(picture.base, Axes | Box | Board | Canvas) and picture.place[1]):
            kind = type(picture.base).__name__
            raise lab.refusal(f"picture {picture.area!r}: page=BELOW is for what has a title, not for this {kind}")


def _check_pages(lab: Lab[Any, Any]) -> None:
    """Refuse pages with the titles of others, and more than there is room for."""
    for place in PLACES:
        pages = lab.pages(place)
        for page in pages:
            if not page or pages.count(page) > 1:
                raise lab.refusal(f"a page of {place!r} is called {page!r}: empty, or as another; choose another title")
        if len(pages) > MOST_PAGES:
            raise lab.refusal(f"more than {MOST_PAGES} pages of {place}; join some")


def _check_tries(lab: Lab[Any, Any]) -> None:
    """Refuse cards that set what is not there, or to values that the first run cannot take."""
    for card in lab.tries:
        if not (isinstance(card.title, str) and isinstance(card.text, str) and isinstance(card.changes, Mapping)):
            raise lab.refusal(f"{card!r:.80}: expected title and text, and changes as a mapping")
        config, view = lab.config, lab.view
        for name, value in card.changes.items():
            place = name.removeprefix("page:") if isinstance(name, str) and name.startswith("page:") else None
            try:
                if place is not None:
                    if value not in (lab.pages(place) if place in PLACES else ()):
                        raise ConfigError(f"{name}={value!r}: there is no such page")
                elif name in lab.controls:
                    config = config.replace(**lab.controls[name].write(config, value))
                elif name in config.settings:
                    config = config.replace(**{name: value})
                elif name in view.settings:
                    view = dataclasses.replace(view, **{name: value})
                elif name not in lab.buttons and name not in PRESSED:
                    names = {*lab.buttons, *lab.controls, *config.settings, *view.settings, *PRESSED}
                    raise ConfigError(_unknown(name, names))
            except Exception as error:  # of a control's own function, too
                raise lab.refusal(f"the card {card.title!r} cannot be tried: {describe(error)}") from error
