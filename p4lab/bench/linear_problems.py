"""Time to mean squared error 1e-6 on the paper's linear problems, each method with its own best learning rate."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from p4lab.bench.tables import table
from p4lab.bench.timing import one_thread
from p4lab.command import say
from p4lab.fit import Schedule, fit
from p4lab.p4 import PAPER, RECOMMENDED, P4Inv, Preset
from p4lab.problems.linear_maps import TARGETS, LinearProblem, linear_target

DIM = 101
"""Width of the problems."""
TOLERANCE = 1e-6
"""The batch loss that is the target."""
SEED = 1000
"""The seed of tuning; the reported runs have others."""
WORSE = 1.5
"""A choice is given up once it has taken this many times as long as the best so far."""
ADAM_RATES = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2)
"""Learning rates that are tried with Adam."""
SGD_RATES = (5.0, 10.0, 15.0, 20.0, 30.0)
"""The loss is a mean over d components, so that plain gradient descent on W is stable up to a rate of about d / 2."""
MOMENTUM = 0.3
"""Momentum of the recommended preset's gradient descent."""
MOMENTUM_RATES = tuple(rate * (1 - MOMENTUM) for rate in SGD_RATES)
"""Learning rates that are tried with it."""


# --- one run, and the choice of its settings: for the orthogonal layers, too ------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        reached: whether it got to the target.
        steps: optimizer steps done.
        seconds: that they took.
        loss: of the last batch.
        violation: how far the layer is from its property, None if it has none.
    """

    reached: bool
    steps: int
    seconds: float
    loss: float
    violation: float | None

    @property
    def merit(self) -> tuple[bool, float]:
        """What tuning minimizes: whether the target was missed, then the seconds to it, or else the loss."""
        return (not self.reached, self.seconds if self.reached else self.loss)


def solve(
    problem: LinearProblem,
    layer: nn.Module,
    optimizer: Optimizer,
    schedule: Schedule | None,
    seed: int,
    limit: float,
    violation: Callable[[], Any],
    largest: float = math.inf,
) -> Outcome:
    """Train until the batch loss is below 1e-6, is not below ``largest``, or ``limit`` seconds are over.

    Args:
        problem: what is learnt.
        layer, optimizer, schedule: what learns it.
        seed: of the batches.
        limit: seconds.
        violation: called at the end, a number or None.
        largest: loss at which a run counts as diverged.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        x, y = problem.sample(generator)
        return (layer(x) - y).square().mean()

    # NaN ends it, too.
    end = fit(
        loss,
        optimizer,
        seconds=limit,
        schedules=[schedule],
        after=lambda now: not TOLERANCE <= float(now.loss) < largest,
    )
    value, missed = float(end.loss), violation()
    return Outcome(value < TOLERANCE, end.step, end.elapsed, value, None if missed is None else float(missed))


C = TypeVar("C")


def fastest(choices: Sequence[C], attempt: Callable[[C, float], Outcome], limit: float) -> C:
    """Return the choice with the shortest time to target; with the lowest loss, if none gets there in ``limit``."""
    best, merit = choices[0], (True, math.inf)
    for choice in choices:
        outcome = attempt(choice, limit)
        if outcome.merit < merit:  # false for NaN
            best, merit = choice, outcome.merit
        if outcome.reached:
            limit = min(limit, WORSE * outcome.seconds)
    return best


def reached(runs: Sequence[Outcome]) -> int:
    """Return how many runs got to the target."""
    return sum(run.reached for run in runs)


def seconds(runs: Sequence[Outcome]) -> float:
    """Return the median seconds of runs, whether they got to the target or not."""
    return statistics.median(run.seconds for run in runs)


# --- the linear problems ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """A way to solve a linear problem.

    Attributes:
        name: for the table.
        preset: P4 settings, or None for a plain `nn.Linear`.
        optimizer: its class.
        rates: learning rates to choose from; the same number for every way.
    """

    name: str
    preset: Preset | None
    optimizer: Callable[..., Optimizer]
    rates: tuple[float, ...]

    def solve(self, kind: str, rate: float, seed: int, limit: float) -> Outcome:
        """Train on a target from the identity, see `solve`; P4's violation is ``|A A^-1 - I|``."""
        layer: nn.Linear | P4Inv
        if self.preset is None:
            layer = nn.Linear(DIM, DIM)
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        else:
            layer = self.preset.layer(DIM, seed=seed)
        optimizer = self.optimizer(layer.parameters(), lr=rate)
        schedule = None if self.preset is None else self.preset.schedule(layer, optimizer)
        violation = layer.violation if isinstance(layer, P4Inv) else lambda: None
        return solve(LinearProblem(linear_target(kind, DIM)), layer, optimizer, schedule, seed, limit, violation)

    def best_rate(self, kind: str, limit: float) -> float:
        """Return the rate that is the first at a target, each tried for at most ``limit`` seconds."""
        return fastest(self.rates, lambda rate, most: self.solve(kind, rate, SEED, most), limit)


def _gradient(rank: int) -> Way:
    preset = Preset(f"rank {rank}", rank, "gradient", False, every=10, refine_every=50)
    return Way(f"P4Inv rank {rank} gradient, SGD", preset, SGD, SGD_RATES)


WAYS = (
    Way("nn.Linear, Adam", None, Adam, ADAM_RATES),
    Way("nn.Linear, SGD", None, SGD, SGD_RATES),
    Way("P4Inv rank 1 gaussian, Adam (paper)", PAPER, Adam, ADAM_RATES),
    _gradient(1),
    _gradient(8),
    Way(
        f"P4Inv recommended (rank {RECOMMENDED.rank}, merge every {RECOMMENDED.every}), SGD momentum {MOMENTUM}",
        RECOMMENDED,
        partial(SGD, momentum=MOMENTUM),
        MOMENTUM_RATES,
    ),
)


def linear(seeds: Sequence[int] = (0, 1, 2, 3, 4), tuning: float = 4.0, limit: float = 20.0) -> str:
    """Race all ways to all targets.

    Each way's rate is chosen on one seed by time to target (by loss where none got there); the seeds of the reported
    runs are others, and ways are interleaved seed by seed. All run on one torch thread, the fastest choice for
    matrices of this size.

    Returns:
        Markdown: per target and way the rate, median and largest steps, median seconds, ratio to tuned ``nn.Linear,
        Adam``.
    """
    rows: list[list[object]] = []
    with one_thread():
        for kind in TARGETS:
            rates = {way: way.best_rate(kind, tuning) for way in WAYS}
            runs: dict[Way, list[Outcome]] = {way: [] for way in WAYS}
            for seed in seeds:
                for way, rate in rates.items():
                    runs[way].append(way.solve(kind, rate, seed, limit))
            reference = seconds(runs[WAYS[0]])
            rows += [_row(kind, way, rates[way], runs[way], reference) for way in WAYS]
            say(f"{kind} done")
    return table(
        ["target", "method", "rate", "reached", "steps (max)", "seconds", "x nn.Linear Adam", "residual"], rows
    )


def _row(kind: str, way: Way, rate: float, runs: Sequence[Outcome], reference: float) -> list[object]:
    there, middle = reached(runs), seconds(runs)
    steps = [run.steps for run in runs]
    return [
        kind,
        way.name,
        rate,
        f"{there}/{len(runs)}",
        f"{statistics.median(steps):.0f} ({max(steps)})",
        middle if there else f"> {middle:.0f} (loss {statistics.median(run.loss for run in runs):.1e})",
        middle / reference if there else "-",
        max((run.violation for run in runs if run.violation is not None), default="-"),
    ]
