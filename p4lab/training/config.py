"""The serialisable description of a run."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

from p4lab.errors import ConfigError
from p4lab.p4 import PRESETS, RECOMMENDED
from p4lab.p4.invertible import Reset
from p4lab.problems import Digits


@dataclass(frozen=True)
class Rule:
    """What a value must be: its type, a test, and both in words."""

    kind: type
    holds: Callable[[Any], bool]
    text: str


def _whole(low: int, high: int) -> Rule:
    return Rule(int, lambda value: low <= value <= high, f"a whole number from {low} to {high}")


def _one_of(*choices: str) -> Rule:
    return Rule(str, lambda value: value in choices, "one of " + ", ".join(choices))


DIMS = {"digits": Digits.dim}
"""The problems, and how wide their layers are."""

_SWITCH = Rule(bool, lambda _: True, "true or false")

RULES = {
    "problem": _one_of(*DIMS),
    "seed": _whole(0, 2**32 - 1),
    "dtype": _one_of("float32", "float64"),
    "device": Rule(str, lambda value: _is_device(value), "a torch device that this machine has, such as cpu or cuda"),
    "threads": _whole(1, 1024),
    "blocks": _whole(0, 100),
    "rank": _whole(1, 64),
    "reset": _one_of("gaussian", "gradient"),
    "train_v": _SWITCH,
    "optimizer": _one_of("adam", "sgd"),
    "learning_rate": Rule(float, lambda value: math.isfinite(value) and value > 0, "a number above 0"),
    "batch_size": _whole(1, 100_000),
    "merge_every": _whole(1, 1_000_000),
    "refine_every": _whole(0, 1_000_000),
    "penalty": _SWITCH,
    "skip": _SWITCH,
    "measure_every": _whole(1, 1_000_000),
}

LIVE = ("learning_rate", "merge_every", "refine_every", "reset", "penalty", "skip")
"""What can change while a run goes on; everything else applies when a run is built."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; the same config gives the same numbers on the same machine.

    Attributes:
        problem: what is trained on.
        seed: seed of data split, initial weights, batches and pictures.
        dtype: "float32" or "float64".
        device: a torch device.
        threads: torch threads on the CPU, part of the config because they change rounding. For layers as narrow as the
            digits' one is fastest, and leaves the other cores to the browser.
        blocks: number of nonlinearities in the flow; it has one P4Inv layer more.
        rank: rank-one terms per P4Inv layer.
        reset: how P4Inv directions are redrawn after a merge, "gradient" or "gaussian".
        train_v: whether the directions train (the paper) or stay fixed between merges.
        optimizer: "adam" or "sgd".
        learning_rate: step size of the optimizer.
        batch_size: samples per step.
        merge_every: optimizer steps between merge attempts.
        refine_every: merge attempts between refinements of the inverses; 0 is never.
        penalty: whether the loss contains the penalty on vanishing and exploding determinants.
        skip: whether merges that would make a matrix nearly singular are skipped.
        measure_every: steps between measurements of test loss, log|det|, inverse residual and condition number.

    Raises:
        ConfigError: a value has the wrong type or is out of range; the message names key, value and what was expected.

    Example:
        >>> RunConfig.from_json(RunConfig(rank=2).to_json()).rank
        2
    """

    problem: str = "digits"
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    blocks: int = 12
    rank: int = RECOMMENDED.rank_for(DIMS["digits"])
    reset: Reset = RECOMMENDED.reset
    train_v: bool = RECOMMENDED.train_v
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    batch_size: int = 128
    merge_every: int = RECOMMENDED.every
    refine_every: int = RECOMMENDED.refine_every
    penalty: bool = False
    skip: bool = True
    measure_every: int = 25

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule = getattr(self, field.name), RULES[field.name]
            if rule.kind is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, field.name, value)  # the way of a frozen dataclass to normalize a field
            if type(value) is not rule.kind or not rule.holds(value):
                raise ConfigError(f"{field.name}={value!r}: expected {rule.text}")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some values changed.

        Raises:
            ConfigError: unknown key, or a value out of range.
        """
        return type(self).from_dict({**dataclasses.asdict(self), **changes})

    def with_preset(self, name: str) -> Self:
        """Return a copy with rank, reset, train_v, merge_every and refine_every of a named preset.

        Raises:
            ConfigError: unknown name.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset={name!r}: expected one of {', '.join(PRESETS)}")
        return self.replace(**preset_values(name, self.problem))

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain Python objects."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return the values as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Make a config from a mapping; what is missing has its default.

        Raises:
            ConfigError: unknown key, or a value out of range.
        """
        unknown = [key for key in values if key not in RULES]
        if unknown:
            raise ConfigError(
                f"{unknown[0]}={values[unknown[0]]!r}: there is no such setting; expected one of {', '.join(RULES)}"
            )
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Make a config from JSON.

        Raises:
            ConfigError: not a JSON object, unknown key, or a value out of range.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"config={text!r}: expected JSON ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f'config={text!r}: expected a JSON object with settings such as {{"rank": 8}}')
        return cls.from_dict(values)


def preset_values(name: str, problem: str) -> dict[str, Any]:
    """Return the settings that a preset of `p4lab.p4.PRESETS` stands for on a problem."""
    preset = PRESETS[name]
    return {
        "rank": preset.rank_for(DIMS[problem]),
        "reset": preset.reset,
        "train_v": preset.train_v,
        "merge_every": preset.every,
        "refine_every": preset.refine_every,
    }


def _is_device(name: str) -> bool:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError):  # torch raises either for a name that it does not know or was not built for
        return False
    return True
