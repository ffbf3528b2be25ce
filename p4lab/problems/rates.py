"""With which optimizer each method trains best on each task, as `python -m p4lab.bench race --write` found."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from p4lab.baselines import Method
from p4lab.problems.tasks import entry_of

DATA = Path(__file__).with_name("rates.json")
"""Where the choices are kept."""
MOMENTUM = 0.3
"""Momentum of torch's gradient descent, where it is tried."""


@dataclass(frozen=True)
class Choice:
    """An optimizer and its settings.

    Attributes:
        optimizer: name in a method's ``optimizers``.
        rate: learning rate.
        momentum: of torch's SGD; 0 for all others.
        dim: width that it was tuned at; 0 if it belongs to no width.
        every: steps between merges, or between new bases; 0: the method's own.
    """

    optimizer: str
    rate: float
    momentum: float = 0.0
    dim: int = 0
    every: int = 0

    def __str__(self) -> str:
        more = {"momentum": self.momentum, "every": self.every}
        return ", ".join(
            [f"{self.optimizer} {self.rate:.3g}", *(f"{name} {value}" for name, value in more.items() if value)]
        )

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
    """Put choices by task and method into a JSON file, one a line; those that it has for other pairs stay."""
    before = read(path) if path.exists() else {}
    tasks = {task: {**before.get(task, {}), **choices.get(task, {})} for task in (*before, *choices)}
    lines = {task: [f'  "{name}": {_text(choice)}' for name, choice in tasks[task].items()] for task in tasks}
    parts = [f' "{task}": {{\n' + ",\n".join(of_task) + "\n }" for task, of_task in lines.items()]
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _text(choice: Choice) -> str:
    # What a field is by default goes without saying.
    return json.dumps(
        {field.name: value for field in fields(choice) if (value := getattr(choice, field.name)) != field.default}
    )


BEST: dict[str, dict[str, Choice]] = read()
"""Choices by task and method."""


def choice(task: str, method: Method, dim: int) -> Choice:
    """Return the tuned choice for a task at width d; for a pair that was not tuned, a rate that usually works."""
    tuned = BEST.get(task, {}).get(method.name)
    if tuned is not None:
        return tuned.at(dim)
    if "adam" in method.optimizers and method.name != "p4inv":
        return Choice("adam", 1e-2)
    return Choice("sgd", (0.01 if entry_of(task).kind == "flow" else 0.04) * dim)
