"""Recurrent networks with orthogonal weights: configs, and a race of three kinds of weights on one task."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from p4lab.baselines.layer import skewness
from p4lab.errors import OptionError
from p4lab.p4 import ORTHOGONAL
from p4lab.problems.recurrent import CELLS, STARTS, RecurrentNet, RecurrentRotation, recurrent_net, recurrent_optimizer
from p4lab.problems.sequences import LONGEST, TASKS, Adding, CopyMemory, Task
from p4lab.training.config import POSITIVE, Rule, RunConfig, one_of, whole
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


@dataclass(frozen=True)
class RnnConfig(RunConfig):
    """Train recurrent networks that differ in what keeps their weights orthogonal, each for the same time.

    Attributes:
        task: "copy" or "adding".
        delay: T of the task.
        dim: width d of the states.
        rival: the parametrization that P4Orthogonal is compared with.
        initial: how the recurrent weights start, see `p4lab.problems.recurrent.start_of`; the same in all lanes.
        rate_factor: factor on all learning rates; live.
        turn: milliseconds that each lane trains before the next one's turn.
        budget: seconds of training for each lane.
    """

    problem: ClassVar[str] = "rnn"
    rules: ClassVar[dict[str, Rule]] = {
        "task": one_of(*TASKS),
        "delay": whole(2, LONGEST),
        "dim": whole(2, 1024),
        "rival": one_of(*RIVALS),
        "initial": one_of(*STARTS),
        "rate_factor": POSITIVE,
        "turn": Rule(float, lambda value: 1 <= value <= 1000, "1 to 1000 milliseconds"),
        "budget": POSITIVE,
    }
    live: ClassVar[tuple[str, ...]] = ("rate_factor", "merge_every", "refine_every", "reset", "budget")

    rank: int = ORTHOGONAL.rank
    reset: Any = ORTHOGONAL.reset
    merge_every: int = ORTHOGONAL.every
    refine_every: int = ORTHOGONAL.refine_every
    learning_rate: float = DEFAULT.rate
    batch_size: int = 16
    measure_every: int = 10
    task: str = "copy"
    delay: int = 60
    dim: int = 128
    rival: str = "matrix_exp"
    initial: str = "rotations"
    rate_factor: float = 1.0
    turn: float = 50.0
    budget: float = 60.0

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
            dtype=getattr(torch, self.dtype),
            device=self.device,
        )
        return task, net


class RnnLane(Engine):
    """A recurrent network of a race.

    Args:
        config: the race's settings.
        cell: name of its weights in `p4lab.problems.recurrent.CELLS`.
        choice: rates (None: the best ones that are known).
        spectra: whether eigenvalues are recorded at measurements.
        clock: what tells the time that steps take.
    """

    model: RecurrentNet

    def __init__(
        self,
        config: RnnConfig,
        cell: str,
        choice: Choice | None = None,
        spectra: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.cell = CELLS[cell]
        self.choice = choice or known(config.task, cell)
        self._spectra = spectra and config.dim <= WIDEST
        task, net = config.parts_of(cell)
        super().__init__(config, task, net, recurrent_optimizer(net, self.choice.rate, self.choice.factor), clock=clock)

    def _apply(self, config: RunConfig) -> None:
        assert isinstance(config, RnnConfig)
        super()._apply(config)
        recurrent, others = self.optimizer.param_groups
        others["lr"] = self.choice.rate * config.rate_factor
        recurrent["lr"] = self.choice.factor * others["lr"]
        if isinstance(self.model.layer, RecurrentRotation):
            self.model.layer.reset_kind = config.reset

    @torch.no_grad()
    def _measure(self) -> None:
        weight = self.model.layer.weight.detach()
        values = dict.fromkeys(("logabsdet", "sign", "logabsdet_error", "condition"), math.nan)
        test = float(self.problem.test_loss(self.model))
        values["residual"] = float(skewness(weight.cpu().double()))
        self.records.measures.append(step=self.step, test_loss=test, **values)
        if self._spectra:
            self.records.spectrum.add(self.step, eigenvalues(weight.cpu().numpy()))


class RnnRace(Lanes):
    """Lanes by kind of weights that take turns, so that each has trained for the same time; a step is such a turn.

    Args:
        config: the settings.
        cells: name of a lane to its kind of weights (None: `LANES`).
        choices: name of a lane to its rates (None: the best ones that are known).
        spectra: whether eigenvalues are recorded.
        clock: what tells the time; `time.thread_time` is that of the processor, whatever else it has to do.

    Raises:
        ConfigError: a value is out of range.
        MissingPackageError: a package is not installed.

    Example:
        >>> race = RnnRace(RnnConfig(dim=8, delay=2, turn=1.0))
        >>> race.run(2)
        >>> sorted(race.engines)
        ['p4orthogonal', 'plain', 'rival']
    """

    def __init__(
        self,
        config: RnnConfig,
        cells: Mapping[str, str] | Sequence[str] | None = None,
        choices: Mapping[str, Choice] | None = None,
        spectra: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        named = cells_of(config) if cells is None else cells
        lanes = named if isinstance(named, Mapping) else {name: name for name in named}
        unknown = [cell for cell in lanes.values() if cell not in CELLS]
        if unknown:
            raise OptionError(f"cell {unknown[0]!r} is not known: choose one of {', '.join(CELLS)}")
        for cell in lanes.values():
            _warm_up(cell, config.dtype, config.device)
        rates = choices or {}
        engines = {name: RnnLane(config, cell, rates.get(name), spectra, clock) for name, cell in lanes.items()}
        super().__init__(config, "cell", engines)


def cells_of(config: RnnConfig) -> dict[str, str]:
    """Return the kind of weights of each lane of the lab."""
    return {name: config.rival if name == RIVAL else name for name in LANES}


@lru_cache(maxsize=64)
def _warm_up(cell: str, dtype: str, device: str) -> None:
    """Do a few steps once: what libraries load at their first call would count as the lane's."""
    RnnLane(RnnConfig(task="adding", delay=2, dim=4, batch_size=2, dtype=dtype, device=device), cell).run(5)
