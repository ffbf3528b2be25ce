"""Recurrent networks with orthogonal weights: configs, and a race of three kinds of weights on one task."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError
from p4lab.linalg import orthogonality_error
from p4lab.p4 import ORTHOGONAL
from p4lab.problems.recurrent import CELLS, STARTS, RecurrentNet, recurrent_net, recurrent_optimizer
from p4lab.problems.sequences import LONGEST, TASKS, Adding, CopyMemory, Task
from p4lab.training.config import RunConfig, budget, one_of, rate_factor, setting, turn, whole
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes
from p4lab.training.measure import eigenvalues

P4, RIVAL, PLAIN = "p4orthogonal", "rival", "plain"
LANES = (P4, RIVAL, PLAIN)
"""The lanes of the lab: P4Orthogonal, the parametrization that the setting ``rival`` names, and plain weights."""
RIVALS = tuple(name for name, cell in CELLS.items() if cell.orthogonal and name != P4)
TARGET = 0.1
"""A task counts as solved when the test loss is below this share of the best loss without memory."""
WATCHED = 4
"""Test sequences that gradients through time are averaged over."""
SUMS = 64
"""Test sequences in the picture of the adding task."""
INK = 255
"""Darkest level of the pictures of the copy task."""
WIDEST = 256
"""Widest weights whose eigenvalues are recorded."""


@dataclass(frozen=True)
class Choice:
    """Adam's rate for all but the recurrent weights, and theirs as a multiple of it."""

    rate: float
    factor: float

    def __str__(self) -> str:
        return f"{self.rate:g}, × {self.factor:g}"


DEFAULT = Choice(1e-2, 0.1)
CHOICES: dict[tuple[str, str], Choice] = {("copy", cell): DEFAULT for cell in CELLS}
"""What ``python -m p4lab.experiments.recurrent`` found best, by task and cell: one choice for all that copy."""


def known(task: str, cell: str) -> Choice:
    """Return the best rates that are known."""
    return CHOICES.get((task, cell), DEFAULT)


class ShownCopy(CopyMemory):
    """The copy task; what is shown of a lane are its answers to one sequence, and gradients through time."""

    def pictures(self, model: RecurrentNet, z: Tensor) -> dict[str, Tensor]:
        """Return "inputs" (10, T + 20), "targets" and "answers" (9, T + 20), uint8, 0 to 255, and "through_time".

        Rows are the blank, the symbols and (inputs) the sign to answer; answers are probabilities. ``z`` is not used.
        """
        x, y = (part[:, :WATCHED] for part in self.test)
        states, norms = model.through_time(lambda states: self.loss_of(model, states, y), x)
        with torch.no_grad():
            answers = self.answers(model, x[:, :1], states[:, :1])[:, 0]
        targets = torch.nn.functional.one_hot(y[:, 0], self.outputs)
        drawn = {"inputs": x[:, 0], "targets": targets, "answers": answers}
        images = {name: _ink(rows.t()) for name, rows in drawn.items()}
        return {**images, "through_time": norms.cpu()}


class ShownAdding(Adding):
    """The adding task; what is shown of a lane are sums and its answers, and gradients through time."""

    def pictures(self, model: RecurrentNet, z: Tensor) -> dict[str, Tensor]:
        """Return "sums" (64, 2), the right one and the model's, and "through_time". ``z`` is not used."""
        x, y = self.test[0][:, :SUMS], self.test[1][:SUMS]
        states, norms = model.through_time(lambda states: self.loss_of(model, states, y), x)
        with torch.no_grad():
            sums = torch.stack([y, self.answers(model, x, states)], dim=-1)
        return {"sums": sums.cpu(), "through_time": norms.cpu()}


def _ink(shares: Tensor) -> Tensor:
    return (INK * torch.nan_to_num(shares.float(), nan=0.0)).round().clamp(0, INK).to("cpu", torch.uint8)


@lru_cache(maxsize=8)
def shown_task(name: str, delay: int, seed: int, device: str, dtype: str) -> Task:
    """Return a task with pictures; the same one for the same arguments, for it never changes."""
    kind = ShownCopy if name == "copy" else ShownAdding
    return kind(delay, seed, torch.device(device), getattr(torch, dtype))


TASK_TEXTS = {"copy": "Copy ten symbols", "adding": "Add two numbers"}
START_TEXTS = {"rotations": "rotations by blocks", "orthogonal": "random rotation", "identity": "identity"}


@dataclass(frozen=True)
class RnnConfig(RunConfig):
    """Train recurrent networks that differ in what keeps their weights orthogonal, each for the same time.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "rnn"

    seed: int = setting(0, help="Of sequences, start and batches")
    rank: int = setting(
        ORTHOGONAL.rank, choices=(1, 2, 4, 8, 16, 32, 64), help="Directions of a perturbation, no more than fit"
    )
    reset: Any = setting(ORTHOGONAL.reset, help="How new directions are drawn at a merge")
    merge_every: int = setting(ORTHOGONAL.every, choices=(1, 2, 4, 10, 20, 50, 100))
    refine_every: int = ORTHOGONAL.refine_every
    learning_rate: float = setting(DEFAULT.rate, live=False)
    batch_size: int = setting(16, choices=(8, 16, 32, 64))
    measure_every: int = 10
    task: str = setting("copy", "Task", one_of(*TASKS), choices={name: TASK_TEXTS[name] for name in TASKS}, look="wide")
    delay: int = setting(
        60, "Delay T", whole(2, LONGEST), choices=(10, 20, 40, 60, 100, 200, 300), own=True, help="Time steps"
    )
    dim: int = setting(128, "Width d", whole(2, 1024), choices=(16, 32, 64, 128, 256, 512), own=True)
    rival: str = setting(
        "matrix_exp",
        "Rival",
        choices={name: CELLS[name].label for name in RIVALS},
        look="wide",
        help="The parametrization that P4Orthogonal is compared with",
    )
    initial: str = setting(
        "rotations", "Start", one_of(*STARTS), choices={name: START_TEXTS[name] for name in STARTS}, look="wide"
    )
    rate_factor: float = rate_factor(0.03, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0)
    turn: float = turn(50.0)
    budget: float = budget(60.0, "Of training")

    @property
    def width(self) -> int:
        """The width d."""
        return self.dim

    def parts(self) -> tuple[Task, nn.Module]:
        """Return the task, and the network of the first lane."""
        return self.parts_of(P4)

    def parts_of(self, cell: str) -> tuple[Task, RecurrentNet]:
        """Return the task, which all lanes share, and a network.

        Raises:
            OptionError: unknown cell.
            MissingPackageError: its package is not installed.
        """
        task = shown_task(self.task, self.delay, self.seed + 1, self.device, self.dtype)
        net = recurrent_net(
            cell,
            self.dim,
            task.channels,
            task.outputs,
            self.initial,
            self.rank,
            self.reset,
            self.seed,
            **self.where,
        )
        return task, net

    def measures(self, problem: Task, model: Any, watched: Tensor | None) -> dict[str, Any]:
        """Return the test loss, the violation as "residual", and the eigenvalues, unless weights are too wide."""
        weight = model.layer.weight.detach()
        return {
            "test_loss": float(problem.test_loss(model)),
            **dict.fromkeys(("logabsdet", "sign", "logabsdet_error", "condition"), math.nan),
            "residual": float(orthogonality_error(weight.cpu().double())),
            **({"spectrum": eigenvalues(weight.cpu().numpy())} if self.dim <= WIDEST else {}),
        }


def rnn_lane(
    config: RnnConfig, cell: str, choice: Choice | None = None, clock: Callable[[], float] | None = None
) -> Engine:
    """Return the engine of a recurrent network.

    Args:
        config: the race's settings.
        cell: name of its weights in `p4lab.problems.recurrent.CELLS`.
        choice: rates (None: the best ones that are known).
        clock: what tells the time that steps take (None: that of the wall).

    Raises:
        OptionError: unknown cell.
        MissingPackageError: its package is not installed.
    """
    choice = choice or known(config.task, cell)
    task, net = config.parts_of(cell)

    def rates(config: RnnConfig) -> tuple[float, float]:
        others = choice.rate * config.rate_factor
        return choice.factor * others, others

    return Engine(config, task, net, recurrent_optimizer(net, choice.rate, choice.factor), rates=rates, clock=clock)


def rnn_race(
    config: RnnConfig,
    cells: Mapping[str, str] | Sequence[str] | None = None,
    choices: Mapping[str, Choice] | None = None,
    clock: Callable[[], float] | None = None,
) -> Lanes:
    """Return lanes by kind of weights that take turns, so that each has trained for the same time.

    Args:
        config: the settings.
        cells: name of a lane to its kind of weights (None: `LANES`).
        choices: name of a lane to its rates (None: the best ones that are known).
        clock: what tells the time; `time.thread_time` is that of the processor, whatever else it has to do.

    Raises:
        OptionError: unknown cell.
        MissingPackageError: a package is not installed.

    Example:
        >>> race = rnn_race(RnnConfig(dim=8, delay=2, turn=1.0))
        >>> race.run(2)
        >>> sorted(race.engines)
        ['p4orthogonal', 'plain', 'rival']
    """
    cells = cells_of(config) if cells is None else cells
    lanes = cells if isinstance(cells, Mapping) else {name: name for name in cells}
    unknown = [cell for cell in lanes.values() if cell not in CELLS]
    if unknown:
        raise OptionError(f"cell {unknown[0]!r} is not known: choose one of {', '.join(CELLS)}")
    for cell in lanes.values():
        _warm_up(cell, config.dtype, config.device)
    rates = choices or {}
    return Lanes(config, "cell", {name: rnn_lane(config, cell, rates.get(name), clock) for name, cell in lanes.items()})


def cells_of(config: RnnConfig) -> dict[str, str]:
    """Return the kind of weights of each lane of the lab."""
    return {name: config.rival if name == RIVAL else name for name in LANES}


@lru_cache(maxsize=64)
def _warm_up(cell: str, dtype: str, device: str) -> None:
    """Do a few steps once: what libraries load at their first call would count as the lane's."""
    rnn_lane(RnnConfig(task="adding", delay=2, dim=4, batch_size=2, dtype=dtype, device=device), cell).run(5)
