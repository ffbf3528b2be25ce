"""With which optimizer each method trains best on each task, as `python -m p4lab.bench race --write` found."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from p4lab.baselines import Method

DATA = Path(__file__).with_name("rates.json")
MOMENTUM = 0.3


@dataclass(frozen=True)
class Choice:
    """An optimizer and its settings.

    Attributes:
        optimizer: name in a method's ``optimizers``.
        rate: learning rate.
        momentum: of torch's SGD; 0 for all others.
        dim: width that it was tuned at; 0 if it belongs to no width.
    """

    optimizer: str
    rate: float
    momentum: float = 0.0
    dim: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """What goes to the optimizer's constructor besides the rate."""
        return {"momentum": self.momentum} if self.momentum else {}

    def at(self, dim: int) -> "Choice":
        """Return the choice for another width: all losses are means over d, so that rates of descent grow with d."""
        if self.optimizer != "sgd" or not self.dim:
            return self
        return replace(self, rate=self.rate * dim / self.dim, dim=dim)


def read(path: Path = DATA) -> dict[str, dict[str, Choice]]:
    """Return the choices of a JSON file by task and method."""
    tasks = json.loads(path.read_text())
    return {task: {name: Choice(**values) for name, values in methods.items()} for task, methods in tasks.items()}


def write(choices: Mapping[str, Mapping[str, Choice]], path: Path = DATA) -> None:
    """Put choices by task and method into a JSON file; those that it has for other pairs stay."""
    known = read(path) if path.exists() else {}
    tasks = {task: {**known.get(task, {}), **choices.get(task, {})} for task in (*known, *choices)}
    plain = {task: {name: asdict(choice) for name, choice in methods.items()} for task, methods in tasks.items()}
    path.write_text(json.dumps(plain, indent=1) + "\n")


BEST: dict[str, dict[str, Choice]] = read()
"""Choices by task and method."""


def choice(task: str, method: Method, dim: int) -> Choice:
    """Return the tuned choice for a task at width d; for a pair that was not tuned, a rate that usually works."""
    known = BEST.get(task, {}).get(method.name)
    if known is not None:
        return known.at(dim)
    if "adam" in method.optimizers and method.name != "p4inv":
        return Choice("adam", 1e-2)
    return Choice("sgd", (0.01 if task == "digits" else 0.04) * dim)
