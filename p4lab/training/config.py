"""The serialisable description of a run: what every problem's config shares."""

import dataclasses
import json
import math
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch

from p4lab.errors import ConfigError
from p4lab.linalg.refine import ORDERS
from p4lab.p4 import PRESETS, RECOMMENDED
from p4lab.p4.linear import Reset


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
POSITIVE = Rule(float, lambda value: math.isfinite(value) and value > 0, "a number above 0")


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; the same config gives the same numbers on the same machine.

    A problem's config is a subclass with fields of its own, rules for them, and `parts`.

    Attributes:
        seed: seed of data split, initial weights, batches and pictures.
        dtype: "float32" or "float64".
        device: a torch device.
        threads: torch threads on the CPU, part of the config because they change rounding. For narrow layers one is
            fastest, and leaves the other cores to the browser.
        rank: rank-one terms per P4Inv layer.
        reset: how P4Inv directions are redrawn after a merge, "gradient" or "gaussian".
        train_v: whether the directions train (the paper) or stay fixed between merges.
        optimizer: "adam" or "sgd".
        learning_rate: step size of the optimizer.
        batch_size: samples per step.
        merge_every: optimizer steps between merge attempts.
        refine_every: merge attempts between refinements of the inverses; 0 is never.
        refine_order: order of a refinement: 2, 3 or 7.
        penalty: whether the loss contains the penalty on vanishing and exploding determinants.
        skip: whether merges that would make a matrix nearly singular are skipped.
        measure_every: steps between measurements (test loss, determinant, residual, condition number, eigenvalues).

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names key, value and what was expected.

    Example:
        >>> from p4lab.training import DigitsConfig
        >>> RunConfig.from_text(DigitsConfig(rank=2).to_text()).rank
        2
    """

    problem: ClassVar[str] = ""
    rules: ClassVar[dict[str, Rule]] = {}
    live: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "merge_every",
        "refine_every",
        "refine_order",
        "reset",
        "penalty",
        "skip",
    )
    """What can change while a run goes on; everything else applies when a run is built."""
    _kinds: ClassVar[dict[str, type["RunConfig"]]] = {}

    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    rank: int = RECOMMENDED.rank
    reset: Reset = RECOMMENDED.reset
    train_v: bool = RECOMMENDED.train_v
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    batch_size: int = 128
    merge_every: int = RECOMMENDED.every
    refine_every: int = RECOMMENDED.refine_every
    refine_order: int = 3
    penalty: bool = False
    skip: bool = True
    measure_every: int = 25

    def __init_subclass__(cls) -> None:
        cls.rules = {**cls.__mro__[1].__dict__.get("rules", {}), **cls.__dict__.get("rules", {})}
        cls._kinds[cls.problem] = cls

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), self.rules[field.name]
            if rule.kind is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, field.name, value)  # the way of a frozen dataclass to normalize a field
            if type(value) is not rule.kind or not rule.holds(value):
                raise ConfigError(f"{field.name}={value!r}: expected {rule.text}")

    # --- what a problem's config supplies ----------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Width d of the layers that presets are made for."""
        raise NotImplementedError

    def parts(self) -> tuple[Any, torch.nn.Module]:
        """Return the problem and the model of this config."""
        raise NotImplementedError

    def update(self, problem: Any) -> None:
        """Bring a problem up to date with those live settings that are its own."""

    # --- values ------------------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed.

        Raises:
            ConfigError: unknown key, or a value out of range.
        """
        return cast(Self, type(self).from_dict({**self.to_dict(), **changes}))

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
        unknown = [key for key in values if key not in kind.rules]
        if unknown:
            name, expected = unknown[0], ", ".join(kind.rules)
            raise ConfigError(f"{name}={values[name]!r}: there is no such setting; expected one of {expected}")
        return kind(**values)

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
            raise ConfigError(f"config={text!r}: expected something like 'digits?rank=8&seed=3' ({error})") from error
        return cls.from_dict({"problem": problem, **{name: kind._read(name, value) for name, value in pairs}})

    @classmethod
    def _kind(cls, problem: Any) -> type["RunConfig"]:
        expected = [name for name, kind in cls._kinds.items() if issubclass(kind, cls)]
        if problem not in expected:
            raise ConfigError(f"problem={problem!r}: expected {'one of ' * (len(expected) > 1)}{', '.join(expected)}")
        return cls._kinds[problem]

    @classmethod
    def _read(cls, name: str, text: str) -> Any:
        rule = cls.rules.get(name)
        if rule is None or rule.kind is str:
            return text
        if rule.kind is bool:
            return {"true": True, "false": False}.get(text, text)
        try:
            return rule.kind(text)
        except ValueError as error:
            raise ConfigError(f"{name}={text!r}: expected {rule.text}") from error


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
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # torch raises either for a name that it does not know or was not built for
        return False
    return True


RunConfig.rules = {
    "seed": whole(0, 2**32 - 1),
    "dtype": one_of("float32", "float64"),
    "device": Rule(str, _is_device, "a torch device that this machine has, such as cpu or cuda"),
    "threads": whole(1, 1024),
    "rank": whole(1, 64),
    "reset": one_of("gaussian", "gradient"),
    "train_v": SWITCH,
    "optimizer": one_of("adam", "sgd"),
    "learning_rate": POSITIVE,
    "batch_size": whole(1, 100_000),
    "merge_every": whole(1, 1_000_000),
    "refine_every": whole(0, 1_000_000),
    "refine_order": one_of(*ORDERS),
    "penalty": SWITCH,
    "skip": SWITCH,
    "measure_every": whole(1, 1_000_000),
}
