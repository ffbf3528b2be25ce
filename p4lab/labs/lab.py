"""A lab as a value: settings, trainer, pictures, numbers, table and curves, which one dashboard shows."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from p4lab.errors import OptionError
from p4lab.p4 import PRESETS
from p4lab.plots import Figure, Loss
from p4lab.plots.layers import Images, Plot, Rows, Term
from p4lab.training import Engine, Frame, Lanes, Player, Snapshot, State
from p4lab.training.config import Rule, RunConfig, Setting, Settings, one_of, setting
from p4lab.training.player import SLOWEST

C = TypeVar("C", bound=RunConfig)
V = TypeVar("V", bound="View")

PICTURE, PANEL, CURVES = 0.11, 0.33, 1.0
"""Least seconds between two frames of a fast picture, of a panel, and of the curves."""
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
        "Curves on the right",
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
    """A picture in the plane; see `p4lab.widgets.Plane`."""

    title: str
    note: str = ""
    x_label: str = ""
    y_label: str = ""
    equal: bool = True
    height: int = 340


@dataclass(frozen=True)
class Box:
    """A picture in space; see `p4lab.widgets.Space`."""

    title: str
    note: str = ""
    labels: tuple[str, str, str] = ("x", "y", "z")
    equal: bool = True
    height: int = 380
    home: tuple[float, float] = (-55.0, 22.0)


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
        moved: what changes of the config, or of the view, when a handle, by its name, is moved to a point.
    """

    base: Base
    draw: Callable[[Sight[Any, Any]], Drawing] = nothing
    every: float = PICTURE
    area: str = ""
    moved: Callable[[Sight[Any, Any], str, tuple[float, ...]], Mapping[str, Any]] | None = None


# --- what stands beside the pictures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number in the header.

    Attributes:
        name: what it is called in messages.
        label: what people read.
        read: its text, or {"value": text, "unit": text}.
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


@dataclass(frozen=True)
class Lab(Generic[C, V]):
    """What a lab consists of; nothing in here needs a browser. `p4lab.widgets.Dashboard` shows it.

    Attributes:
        name: in the CSS class, ``p4-<name>``.
        title, subtitle: the heading.
        config: the settings of the first run.
        trainer: what trains a config.
        groups: headings, and below each the names of fields of config or view, of controls and of buttons.
        view: what is looked at first.
        pictures: from left to right and from top to bottom; a board stands above them, wherever it is named.
        numbers: in the header.
        curves: the figure of curves.
        loss: how losses read.
        lanes: what the lanes are called, by name, for a config.
        controls, buttons: by name, what is neither a setting of the config nor of the view.
        offers: what this lab says otherwise about a setting than its class does, by its name.
        disabled: names of what cannot be touched, for planned settings.
        hint: what to do next, if there is nothing more pressing to say (None: the usual).
        alarm: how loud it is said that a lane has stopped, "notice" or "error".
        layout: "side" (pictures beside the curves), "wide" (above them, over the full width) or "own" (``style`` says).
        style: CSS rules of what is this lab's alone, nested: their selectors look for parts of the lab.
    """

    name: str
    title: str
    subtitle: str
    config: C
    trainer: Callable[[Any], Engine | Lanes]
    groups: Mapping[str, Sequence[str]]
    curves: Callable[[Sight[Any, Any]], Figure]
    numbers: Sequence[Number]
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
    layout: str = "side"
    style: str = ""

    def __post_init__(self) -> None:
        if not self.config.problem:
            kind = type(self.config).__name__
            raise OptionError(f"{kind} has no name: give the class `problem: ClassVar[str] = ...`, as in config texts")
        areas = [picture.area for picture in self.pictures]
        if len({*areas, ""}) <= len(areas):
            raise OptionError(f"lab {self.name!r}: pictures in the areas {areas}: each needs an area of its own")
        both = {*self.config.settings} & {*self.view.settings}
        if both:
            raise OptionError(f"lab {self.name!r}: config and view both have settings named {', '.join(sorted(both))}")
        names = [name for group in self.groups.values() for name in group]
        names += [name for picture in self.pictures if isinstance(picture.base, Bar) for name in picture.base.items]
        unknown = [name for name in names if name not in self.buttons and self.setting(name) is None]
        if unknown:
            raise OptionError(
                f"lab {self.name!r}: no setting, control or button is named {unknown[0]!r}; expected one of "
                f"{', '.join((*self.config.settings, *self.view.settings, *self.controls, *self.buttons))}"
            )

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
