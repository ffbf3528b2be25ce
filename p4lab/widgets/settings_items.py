"""Settings that several labs offer, so that they read the same everywhere."""

from collections.abc import Callable
from functools import partial
from typing import Any

from p4lab.training import RunConfig, devices
from p4lab.widgets.controls import Item

METHOD_TEXTS = {"adam": "Adam", "sgd": "SGD"}


def grid(config: RunConfig) -> Callable[..., tuple[Any, ...]]:
    """Return a function of a setting's name and values: these, and the setting's own value, in ascending order."""
    return partial(_with_own, config)


def _with_own(config: RunConfig, name: str, *values: Any) -> tuple[Any, ...]:
    return tuple(sorted({*values, getattr(config, name)}))


# --- optimizer --------------------------------------------------------------------------------------------------------


def learning_rate(config: RunConfig, *rates: float, help: str = "Step size") -> Item:
    """Return the slider of learning rates."""
    return Item(
        "slider", "learning_rate", "Learning rate", choices=_with_own(config, "learning_rate", *rates), help=help
    )


def method(*names: str) -> Item:
    """Return the choice of optimizers, by name."""
    return Item(
        "choice", "optimizer", "Method", choices=names, texts=tuple(METHOD_TEXTS[name] for name in names), live=False
    )


# --- perturbations ----------------------------------------------------------------------------------------------------


def merge_every(config: RunConfig, *intervals: int) -> Item:
    """Return the slider of steps between merges."""
    choices = _with_own(config, "merge_every", *intervals)
    return Item("slider", "merge_every", "Merge every", unit="steps", choices=choices)


def directions(help: str = "") -> Item:
    """Return the choice of how new directions are drawn."""
    return Item(
        "choice", "reset", "Directions", choices=("gradient", "gaussian"), texts=("gradient", "Gaussian"), help=help
    )


def train_v() -> Item:
    """Return the switch for directions that train."""
    return Item("toggle", "train_v", "Train v, too", live=False, help="As in the paper; else v is fixed between merges")


def skip(help: str = "Refuse merges that would make a matrix nearly singular") -> Item:
    """Return the switch for refusing merges."""
    return Item("toggle", "skip", "Skip bad merges", help=help)


def penalty(help: str = "Add a penalty on vanishing determinants to the loss") -> Item:
    """Return the switch for the penalty on determinants."""
    return Item("toggle", "penalty", "Penalty on det", help=help)


def refine_every(config: RunConfig, *intervals: int, help: str = "") -> Item:
    """Return the slider of merges between refinements."""
    choices = _with_own(config, "refine_every", *intervals)
    return Item("slider", "refine_every", "Refine every", unit="merges", choices=choices, help=help)


def refine_or_not(config: RunConfig, *intervals: int) -> Item:
    """Return buttons for the merges between refinements; 0 reads "off"."""
    choices = _with_own(config, "refine_every", *intervals)
    return Item(
        "segments",
        "refine_every",
        "Refine every n merges",
        choices=choices,
        texts=tuple(str(n) if n else "off" for n in choices),
        help="Iterative refinement of the inverse",
    )


# --- run --------------------------------------------------------------------------------------------------------------


def seed(help: str = "") -> Item:
    """Return the field of the seed."""
    return Item("number", "seed", "Seed", live=False, help=help)


def device(config: RunConfig) -> Item:
    """Return the choice of devices, of those that are there."""
    return Item("choice", "device", "Device", choices=_with_own(config, "device", *devices()), live=False)


def precision() -> Item:
    """Return the choice of dtypes."""
    return Item("choice", "dtype", "Precision", choices=("float32", "float64"), live=False)


def speed_limit(*speeds: int | None) -> Item:
    """Return the choice of speed limits in steps per second; None is no limit."""
    return Item("choice", "speed", "Speed limit", choices=speeds, texts=_per_second(speeds))


def slow_speed_limit() -> Item:
    """Return the choice of speed limits for models whose steps one can follow."""
    texts = ("1 step/s", "5 steps/s", "20 steps/s", "none")
    return Item("choice", "speed", "Speed limit", choices=(1, 5, 20, None), texts=texts)


def most_steps(*speeds: int | None) -> Item:
    """Return the choice of speed limits, for labs that have one from the start."""
    help = "Speed limit, in steps per second"
    return Item("choice", "speed", "Most steps", choices=speeds, texts=_per_second(speeds), help=help)


def _per_second(speeds: tuple[int | None, ...]) -> tuple[str, ...]:
    return tuple("none" if speed is None else f"{speed} / s" for speed in speeds)
