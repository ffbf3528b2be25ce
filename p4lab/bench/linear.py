"""Time to mean squared error 1e-6 on the paper's linear problems, each method with its own best learning rate."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from p4lab.bench.timing import table
from p4lab.p4 import PAPER, RECOMMENDED, P4Inv, Preset
from p4lab.problems.linear import TARGETS, LinearProblem, linear_target

DIM = 101
TOLERANCE = 1e-6
ADAM_RATES = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2)
SGD_RATES = (5.0, 10.0, 15.0, 20.0, 30.0)
"""The loss is a mean over d components, so that plain gradient descent on W is stable up to a rate of about d / 2."""
MOMENTUM = 0.3
MOMENTUM_RATES = tuple(rate * (1 - MOMENTUM) for rate in SGD_RATES)


@dataclass(frozen=True)
class Method:
    """A way to solve a linear problem.

    Attributes:
        name: for the table.
        preset: P4 settings, or None for a plain `nn.Linear`.
        optimizer: its class.
        rates: learning rates to choose from; the same number for every method.
    """

    name: str
    preset: Preset | None
    optimizer: Callable[..., Optimizer]
    rates: tuple[float, ...]

    def model(self, seed: int) -> nn.Linear | P4Inv:
        """Return the layer, started at the identity."""
        if self.preset is not None:
            return self.preset.layer(DIM, seed=seed)
        layer = nn.Linear(DIM, DIM)
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer


METHODS = (
    Method("nn.Linear, Adam", None, Adam, ADAM_RATES),
    Method("nn.Linear, SGD", None, SGD, SGD_RATES),
    Method("P4Inv rank 1 gaussian, Adam (paper)", PAPER, Adam, ADAM_RATES),
    Method(
        "P4Inv rank 1 gradient, SGD", Preset("rank 1", 1, "gradient", False, every=10, refine_every=50), SGD, SGD_RATES
    ),
    Method(
        "P4Inv rank 8 gradient, SGD", Preset("rank 8", 8, "gradient", False, every=10, refine_every=50), SGD, SGD_RATES
    ),
    Method(
        f"P4Inv recommended (rank {RECOMMENDED.rank}, merge every {RECOMMENDED.every}), SGD momentum {MOMENTUM}",
        RECOMMENDED,
        partial(SGD, momentum=MOMENTUM),
        MOMENTUM_RATES,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: steps, seconds, last batch loss, exact error ``|W - T|_F^2 / d``, P4's ``|A A^-1 - I|``."""

    reached: bool
    steps: int
    seconds: float
    loss: float
    error: float
    residual: float | None


def solve(kind: str, method: Method, rate: float, seed: int, limit: float) -> Outcome:
    """Train until the batch loss is below 1e-6 or ``limit`` seconds are over."""
    problem = LinearProblem(linear_target(kind, DIM))
    generator = torch.Generator().manual_seed(seed)
    model = method.model(seed)
    optimizer = method.optimizer(model.parameters(), lr=rate)
    schedule = None if method.preset is None else method.preset.schedule(model, optimizer)
    value, count, start = torch.inf, 0, time.perf_counter()
    while value >= TOLERANCE and time.perf_counter() - start < limit:
        x, y = problem.sample(generator)
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        value, count = float(loss.detach()), count + 1
    seconds = time.perf_counter() - start
    residual = float(model.violation()) if isinstance(model, P4Inv) else None
    return Outcome(value < TOLERANCE, count, seconds, value, float(problem.error(model.weight.detach())), residual)


def linear(seeds: Sequence[int] = (0, 1, 2, 3, 4), tuning_limit: float = 4.0, limit: float = 20.0) -> str:
    """Race all methods on all targets.

    Each method's rate is chosen on one seed by time to target (by loss where none got there); the seeds of the reported
    runs are others, and methods are interleaved seed by seed. All run on one torch thread, the fastest choice for
    matrices of this size.

    Returns:
        Markdown: per target and method the rate, median and largest steps, median seconds, ratio to tuned ``nn.Linear,
        Adam``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _race(seeds, tuning_limit, limit)
    finally:
        torch.set_num_threads(threads)


def _race(seeds: Sequence[int], tuning_limit: float, limit: float) -> str:
    rows: list[list[object]] = []
    for kind in TARGETS:
        rates = {method.name: _tune(kind, method, tuning_limit) for method in METHODS}
        runs: dict[str, list[Outcome]] = {method.name: [] for method in METHODS}
        for seed in seeds:
            for method in METHODS:
                runs[method.name].append(solve(kind, method, rates[method.name], seed, limit))
        reference = statistics.median(run.seconds for run in runs[METHODS[0].name])
        rows += [_row(kind, method, rates[method.name], runs[method.name], reference) for method in METHODS]
        print(f"  {kind} done", flush=True)
    return table(
        ["target", "method", "rate", "reached", "steps (max)", "seconds", "x nn.Linear Adam", "residual"], rows
    )


def _tune(kind: str, method: Method, limit: float) -> float:
    def cost(rate: float) -> tuple[bool, float]:
        outcome = solve(kind, method, rate, seed=1000, limit=limit)
        usable = outcome.loss == outcome.loss  # NaN never wins
        return (not outcome.reached, outcome.seconds if outcome.reached else outcome.loss if usable else torch.inf)

    return min(method.rates, key=cost)


def _row(kind: str, method: Method, rate: float, runs: Sequence[Outcome], reference: float) -> list[object]:
    seconds = statistics.median(run.seconds for run in runs)
    reached = sum(run.reached for run in runs)
    steps = [run.steps for run in runs]
    residuals = [run.residual for run in runs if run.residual is not None]
    return [
        kind,
        method.name,
        rate,
        f"{reached}/{len(runs)}",
        f"{statistics.median(steps):.0f} ({max(steps)})",
        seconds if reached else f"> {seconds:.0f} (loss {statistics.median(run.loss for run in runs):.1e})",
        seconds / reference if reached else "-",
        max(residuals) if residuals else "-",
    ]
