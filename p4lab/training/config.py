"""The serialisable description of a run: what every problem's config shares."""

import dataclasses
import json
import math
import sys
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch

from p4lab.errors import ConfigError
from p4lab.linalg.refine import ORDERS
from p4lab.p4 import PRESETS, RECOMMENDED, Preset
from p4lab.p4.linear import Reset
from p4lab.training.measure import figures


@dataclass(frozen=True)
class Rule:
    """What a value must be: its type, a test, and both in words."""

    kind: type
    holds: Callable[[Any], bool]
    text: str


def whole(low: int, high: int) -> Rule:
    """Return the rule of a whole number within bounds."""
    return Rule(int, lambda value: low <= value <= high, f"a whole number from {low} to {high}")


def one_of(*choices: Any) -> Rule:
    """Return the rule of a value out of a few."""
    return Rule(type(choices[0]), lambda value: value in choices, "one of " + ", ".join(map(str, choices)))


SWITCH = Rule(bool, lambda _: True, "true or false")
POSITIVE = Rule(float, lambda value: 0 < value <= 1e15, "a number above 0, at most 1e15")
ControlKind = Literal["slider", "choice", "segments", "toggle", "number", "text"]
Choices = Mapping[Any, str] | Iterable[Any]
GIVEN = "p4lab"
"""Under this key the metadata of a dataclass field hold what `setting` was given."""


@dataclass(frozen=True)
class Setting:
    """What there is to know about a setting, besides its name, type and default.

    Attributes:
        label: what people read beside the control ("": no lab offers it).
        rule: what a value must be.
        choices: the values that a control offers, ascending for a slider, with how they read ("": as they are); or a
            function that returns them for a config.
        kind: the control (None: a toggle for true or false, a slider for numbers that are live, else a choice).
        own: whether the present value is always among the choices.
        live: whether it can change while a run goes on.
        unit: stands behind the value.
        help: appears when the pointer rests on the control.
        look: "wide" gives the control a line of its own, "play" lets a slider play.
        brief: how a value reads in a table of runs (None: name and value).
    """

    label: str = ""
    rule: Rule = SWITCH
    choices: Choices | Callable[[Any], Choices] = ()
    kind: ControlKind | None = None
    own: bool = False
    live: bool = False
    unit: str = ""
    help: str = ""
    look: str = "plain"
    brief: Callable[[Any], str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rule, Rule):
            raise ConfigError(f"rule={self.rule!r}: expected a Rule, such as whole(1, 9) or one_of('a', 'b')")
        if self.kind is not None and self.kind not in get_args(ControlKind):
            raise ConfigError(f"kind={self.kind!r}: expected one of {', '.join(get_args(ControlKind))}")

    def offered(self, config: Any, value: Any) -> dict[Any, str]:
        """Return the choices for a config, the present value among them if that is promised, with how they read."""
        choices = self.choices(config) if callable(self.choices) else self.choices
        texts = dict(choices) if isinstance(choices, Mapping) else dict.fromkeys(choices, "")
        if self.own and value not in texts:
            texts = {choice: texts.get(choice, "") for choice in sorted({*texts, value})}
        return {choice: text or value_text(choice) for choice, text in texts.items()}


def value_text(value: Any) -> str:
    """Return how a setting's value reads, if nobody says otherwise."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting(default: Any, label: str | None = None, rule: Rule | None = None, **further: Any) -> Any:
    """Return a field of a `Settings` dataclass: its default, and what else there is to know about it.

    A field that a base class has, too, keeps everything that is not given here; so does one with a plain default.

    Args:
        default: the value where none is given.
        label: see `Setting`, as all that follows.
        rule: what a value must be (None: as in the base class; else one of the choices, or true or false).
        further: other attributes of `Setting`.

    Raises:
        ConfigError: an attribute that no `Setting` has; where the class is defined, also one without rule and choices.

    Example:
        >>> @dataclass(frozen=True)
        ... class Look(Settings):
        ...     size: int = setting(2, "Size", choices=(1, 2, 3))
        >>> Look.settings["size"].rule.text
        'one of 1, 2, 3'
    """
    names = [field.name for field in dataclasses.fields(Setting)]
    if unknown := [name for name in further if name not in names]:
        raise ConfigError(f"setting({default!r}, {label!r}, {unknown[0]}=...): expected some of {', '.join(names)}")
    given = {"label": label, "rule": rule, **further}
    return dataclasses.field(
        default=default, metadata={GIVEN: {name: value for name, value in given.items() if value is not None}}
    )


def rate_factor(*choices: float, help: str = "On top of each lane's best") -> Any:
    """Return the setting of a factor on the learning rates of all lanes, each of which has its own."""
    return setting(1.0, "Learning rates ×", POSITIVE, choices=choices, own=True, live=True, help=help)


def turn(milliseconds: float) -> Any:
    """Return the setting of how long lanes train before the next one's turn, see `p4lab.training.Lanes`."""
    rule = Rule(float, lambda value: 1 <= value <= 1000, "1 to 1000 milliseconds")
    return setting(milliseconds, "", rule, help="Milliseconds that each lane trains before the next one's turn")


def budget(seconds: float, help: str) -> Any:
    """Return the setting of how long each lane trains in all, see `p4lab.training.Lanes`."""
    choices = (2.0, 5.0, 10.0, 20.0, 60.0, 300.0)
    return setting(
        seconds, "Time each", POSITIVE, choices=choices, kind="choice", own=True, live=True, unit="s", help=help
    )


def half_cosine(progress: float) -> float:
    """Return what learning rates are multiplied by at a share of a run: 1 at its start, 1/2 at 1/2, 0 from its end on.

    Example:
        >>> half_cosine(0.0), round(half_cosine(0.5), 9), half_cosine(2.0)
        (1.0, 0.5, 0.0)
    """
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Settings:
    """A frozen dataclass whose fields are declared by `setting`, and whose values are checked.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names key, value and what was expected.
    """

    settings: ClassVar[dict[str, Setting]] = {}
    """What there is to know about each field, by name."""

    def __init_subclass__(cls) -> None:
        cls.settings = dict(cls.settings)
        for name, value in vars(cls).items():
            if isinstance(value, dataclasses.Field) and GIVEN in value.metadata:
                given = value.metadata[GIVEN]
                if name not in cls.settings and "rule" not in given and not isinstance(value.default, bool):
                    choices = given.get("choices", ())
                    if callable(choices) or not (choices := [*choices]):
                        raise ConfigError(
                            f"{cls.__name__}.{name} = setting({value.default!r}, ...): say what it may be, by a rule "
                            "such as whole(1, 9), POSITIVE or Rule(kind, test, text), or by choices=(...)"
                        )
                    given = {"rule": one_of(*choices), **given}
                cls.settings[name] = dataclasses.replace(cls.settings.get(name, Setting()), **given)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if field.name not in self.settings:
                raise ConfigError(
                    f"{type(self).__name__}.{field.name} = {given!r}: declare it by setting({given!r}, label, rule)"
                )
            rule = self.settings[field.name].rule
            value = given.item() if isinstance(given, np.generic) else given
            if rule.kind is float and type(value) is int and abs(value) < sys.float_info.max:
                value = float(value)
            if value is not given:
                object.__setattr__(self, field.name, value)  # the way of a frozen dataclass to normalize a field
            if (type(value) is not rule.kind and rule.kind is not object) or not rule.holds(value):
                raise ConfigError(f"{field.name}={value!r}: expected {rule.text}")


@dataclass(frozen=True)
class RunConfig(Settings):
    """Everything that determines a run; the same config gives the same numbers on the same machine.

    A problem's config is a subclass with fields of its own and `parts`. Of the settings that all configs share,
    ``threads`` is among them because it changes rounding: for narrow layers one thread is fastest, and leaves the other
    cores to the browser. Settings that can change while a run goes on are named in ``live``.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names key, value and what was expected.

    Example:
        >>> from p4lab.training import DigitsConfig
        >>> RunConfig.from_text(DigitsConfig(rank=2).to_text()).rank
        2
    """

    problem: ClassVar[str] = ""
    live: ClassVar[tuple[str, ...]] = ()
    """What can change while a run goes on; everything else applies when a run is built."""
    _kinds: ClassVar[dict[str, type["RunConfig"]]] = {}

    seed: int = setting(0, "Seed", whole(0, 2**32 - 1), kind="number")
    dtype: str = setting("float32", "Precision", choices=("float32", "float64"))
    device: str = setting(
        "cpu",
        "Device",
        Rule(str, lambda name: _is_device(name), "a torch device that this machine has, such as cpu or cuda"),
        choices=lambda _: devices(),
        own=True,
    )
    threads: int = setting(1, "", whole(1, 1024), help="torch threads on the CPU")
    rank: int = setting(RECOMMENDED.rank, "Rank", whole(1, 64), own=True, help="Rank-one terms per layer")
    reset: Reset = setting(
        RECOMMENDED.reset, "Directions", choices={"gradient": "gradient", "gaussian": "Gaussian"}, live=True
    )
    train_v: bool = setting(
        RECOMMENDED.train_v, "Train v, too", SWITCH, help="As in the paper; else v is fixed between merges"
    )
    optimizer: str = setting("adam", "Optimizer", choices={"adam": "Adam", "sgd": "SGD"})
    learning_rate: float = setting(2e-3, "Learning rate", POSITIVE, own=True, live=True, help="Step size")
    batch_size: int = setting(128, "Batch", whole(1, 100_000), own=True)
    merge_every: int = setting(RECOMMENDED.every, "Merge every", whole(1, 1_000_000), own=True, live=True, unit="steps")
    refine_every: int = setting(
        RECOMMENDED.refine_every, "Refine every", whole(0, 1_000_000), own=True, live=True, unit="merges"
    )
    refine_order: int = setting(
        3, "Order of refinement", choices=ORDERS, kind="segments", live=True, help="R becomes R^p"
    )
    penalty: bool = setting(
        False, "Penalty on det", SWITCH, live=True, help="Add a penalty on vanishing determinants to the loss"
    )
    skip: bool = setting(
        True, "Skip bad merges", SWITCH, live=True, help="Refuse merges that would make a matrix nearly singular"
    )
    measure_every: int = setting(25, "", whole(1, 1_000_000), help="Steps between measurements of the model")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "live" not in vars(cls):
            cls.live = tuple(name for name, setting in cls.settings.items() if setting.live)
        if "problem" in vars(cls):
            cls._kinds[cls.problem] = cls

    # --- what a problem's config supplies ----------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Width d of the layers that presets are made for."""
        raise NotImplementedError

    @property
    def where(self) -> dict[str, Any]:
        """Dtype and device, as torch's functions take them."""
        return {"dtype": getattr(torch, self.dtype), "device": torch.device(self.device)}

    @property
    def preset(self) -> Preset:
        """What the settings of perturbations and merges stand for."""
        return dataclasses.replace(
            RECOMMENDED, rank=self.rank, reset=self.reset, train_v=self.train_v, every=self.merge_every
        )

    @property
    def step_size(self) -> float:
        """The learning rate that is in force."""
        return self.learning_rate

    def parts(self) -> tuple[Any, torch.nn.Module]:
        """Return the problem and the model of this config."""
        raise NotImplementedError

    def model(self) -> torch.nn.Module:
        """Return the model at its start; what looks at a run copies the run's weights into it."""
        model: torch.nn.Module = self.parts()[1]
        return model

    def update(self, problem: Any) -> None:
        """Bring a problem up to date with those live settings that are its own."""

    def measures(self, problem: Any, model: torch.nn.Module, watched: torch.Tensor | None) -> dict[str, Any]:
        """Return what a measurement of a model finds, by name; numbers that not every run has get columns of their own.

        "spectrum" may be the eigenvalues of some matrix, a numpy array of shape (d,).
        """
        test = problem.test_loss(model) if hasattr(problem, "test_loss") else math.nan
        return {"test_loss": float(test), **figures(model, watched)}

    # --- values ------------------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed.

        Raises:
            ConfigError: unknown key, or a value out of range.
        """
        if changes.pop("problem", self.problem) != self.problem:
            raise ConfigError(f"a run of {self.problem!r} cannot become one of another problem")
        self._check(changes)
        return dataclasses.replace(self, **changes)

    def preset_values(self, name: str) -> dict[str, Any]:
        """Return the settings that a preset of `p4lab.p4.PRESETS` stands for at this width.

        Raises:
            ConfigError: unknown name.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset={name!r}: expected one of {', '.join(PRESETS)}")
        preset = PRESETS[name]
        return {
            "rank": preset.rank_for(self.width),
            "reset": preset.reset,
            "train_v": preset.train_v,
            "merge_every": preset.every,
            "refine_every": preset.refine_every,
        }

    def differences(self, other: "RunConfig") -> dict[str, tuple[Any, Any]]:
        """Return the settings that differ: name to (here, there)."""
        here, there = self.to_dict(), other.to_dict()
        return {name: (here[name], there.get(name)) for name in here if here[name] != there.get(name)}

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain Python objects, the problem's name among them."""
        return {"problem": self.problem, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Return the values as JSON."""
        return json.dumps(self.to_dict())

    def to_text(self) -> str:
        """Return a short string to paste elsewhere: the problem, and what differs from its defaults.

        Example:
            >>> from p4lab.training import DigitsConfig
            >>> DigitsConfig(rank=8, seed=3).to_text()
            'digits?seed=3&rank=8'
        """
        default = type(self)().to_dict()
        changed = {name: _plain(value) for name, value in self.to_dict().items() if value != default[name]}
        return f"{self.problem}?{urllib.parse.urlencode(changed)}" if changed else self.problem

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Make the config of a problem from a mapping; what is missing has its default.

        Raises:
            ConfigError: unknown problem or key, a value out of range, or (on a subclass) another class's problem.
        """
        values = dict(values)
        kind = cls._kind(values.pop("problem", cls.problem))
        kind._check(values)
        return kind(**values)

    @classmethod
    def _check(cls, values: Mapping[str, Any]) -> None:
        for name in values:
            if name not in cls.settings:
                expected = ", ".join(cls.settings)
                given = f"{name:.80}={values[name]!r:.80}"
                raise ConfigError(f"{given}: there is no such setting; expected one of {expected}")

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """Make a config from JSON.

        Raises:
            ConfigError: not a JSON object, or as `from_dict`.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"config={text!r}: expected JSON ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f'config={text!r}: expected a JSON object with settings such as {{"rank": 8}}')
        return cls.from_dict(values)

    @classmethod
    def from_text(cls, text: str) -> "RunConfig":
        """Make a config from the short string of `to_text`.

        Raises:
            ConfigError: not such a string, or as `from_dict`.
        """
        problem, _, settings = text.strip().partition("?")
        kind = cls._kind(problem)
        try:
            pairs = urllib.parse.parse_qsl(settings, keep_blank_values=True, strict_parsing=bool(settings))
        except ValueError as error:
            like = "'digits?rank=8&seed=3'"
            raise ConfigError(f"config={text!r:.80}: expected something like {like} ({error!s:.80})") from error
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = ", ".join(name for name in values if names.count(name) > 1)
            raise ConfigError(f"config={text!r:.80}: expected each setting once, but {twice} came more often")
        return cls.from_dict({"problem": problem, **{name: kind._read(name, value) for name, value in values.items()}})

    @classmethod
    def _kind(cls, problem: Any) -> type["RunConfig"]:
        expected = [name for name, kind in cls._kinds.items() if issubclass(kind, cls)]
        if problem not in expected:
            some = "one of " * (len(expected) > 1)
            raise ConfigError(f"problem={problem!r:.80}: expected {some}{', '.join(expected)}")
        return cls._kinds[problem]

    @classmethod
    def _read(cls, name: str, text: str) -> Any:
        rule = cls.settings[name].rule if name in cls.settings else None
        if rule is None or rule.kind is str:
            return text
        if rule.kind is bool:
            return {"true": True, "false": False}.get(text, text)
        try:
            return rule.kind(text)
        except ValueError as error:
            raise ConfigError(f"{name}={text!r:.80}: expected {rule.text}") from error


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value!r}" if isinstance(value, float) else str(value)


def devices() -> tuple[str, ...]:
    """Return the torch devices that this machine has, the CPU first."""
    found = [
        name for name in ("cuda", "mps", "xpu") if getattr(torch, name, None) and getattr(torch, name).is_available()
    ]
    return ("cpu", *found)


def _is_device(name: str) -> bool:
    try:
        torch.empty(1, device=name).item()
    except Exception:  # torch raises many kinds: for names it does not know, was not built for, and for meta
        return False
    return True


RunConfig.live = tuple(name for name, field in RunConfig.settings.items() if field.live)
