"""Orthogonal layers: cost of a training step, and time to a rotation, against the usual parametrizations."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from p4lab.baselines import METHODS, Method
from p4lab.bench.methods import Contender, _reference, _seconds, contender
from p4lab.bench.timing import interleaved, median_ratio, table
from p4lab.p4 import ORTHOGONAL, MergeSchedule, P4Givens, P4Reflections
from p4lab.problems.linear import LinearProblem, linear_target

STEP_SIZES = (64, 128, 256, 512, 1024)
STEP_BATCH = 512
SLOW = 1.5
"""Seconds: a method whose step takes longer is not timed at larger widths."""

BATCH = 128
TOLERANCE = 1e-6
SGD_RATES = (0.03, 0.05, 0.07, 0.1, 0.15, 0.25)
"""Times d: the loss is a mean over d components."""
ADAM_RATES = (3e-3, 1e-2, 2e-2, 5e-2)
INTERVALS = (2, 4, 10, 30, 100)
"""Steps between merges, or between new bases of a trivialization: each method that has such is tuned over them."""
LIMITS = {64: 3.0, 128: 6.0, 512: 30.0}
"""Seconds for each run, by width; those of tuning are half as long."""
WORSE = 1.5
"""A rate is given up once it has taken this many times as long as the method's best so far."""
SEED = 1000
"""Of tuning; the reported runs have others."""
STATIC = ("torch_matrix_exp", "torch_cayley", "torch_householder")
PACKAGED = tuple(name for name in METHODS if name.startswith(("torch_", "geotorch_so")))
"""The parametrizations of torch and geotorch."""


def _p4(name: str, label: str, build: Callable[..., Any], every: int) -> Method:
    return Method(
        name,
        label,
        "orthogonal",
        exact_inverse=True,
        exact_logabsdet=True,
        cubic=False,
        cubic_inverse=False,
        build=build,
        source="p4lab",
        schedule_of=partial(MergeSchedule, every=every, refine_every=ORTHOGONAL.refine_every),
    )


def _reflections(dim: int, **options: Any) -> P4Reflections:
    return P4Reflections(dim, rank=ORTHOGONAL.rank_for(dim), reset=ORTHOGONAL.reset, **options)


OWN = "p4orthogonal"
CONTENDERS: dict[str, Method] = {
    method.name: method
    for method in (
        _p4(OWN, "P4Orthogonal", ORTHOGONAL.layer, ORTHOGONAL.every),
        _p4("p4reflections", "P4Reflections", _reflections, ORTHOGONAL.every),
        _p4("p4givens", "P4Givens, 4 sweeps", partial(P4Givens, rank=4), ORTHOGONAL.every),
        *(method for method in METHODS.values() if method.group == "orthogonal"),
    )
}


def steps(sizes: Sequence[int] = STEP_SIZES, rounds: int = 7, names: Sequence[str] = tuple(CONTENDERS)) -> str:
    """Time a training step (forward, backward with input gradient, optimizer, merges, corrections) by width.

    Returns:
        Markdown: ratios to `nn.Linear`, medians over interleaved rounds.
    """
    rows: dict[str, list[object]] = {name: [] for name in names}
    micros = []
    slow: set[str] = set()
    for dim in sizes:
        made: dict[str, Contender] = {"": _reference(dim, STEP_BATCH)}
        for name in names:
            if name not in slow:
                made[name] = contender(CONTENDERS[name], dim, STEP_BATCH)
                if _seconds(made[name].steps) / made[name].unit > SLOW:
                    slow.add(name)
                    del made[name]
        seldom = {n: min(_seconds(c.rare) for _ in range(3)) / c.every for n, c in made.items() if c.rare}
        times = interleaved({name: one.steps for name, one in made.items()}, rounds)
        each = {name: [t / made[name].unit + seldom.get(name, 0.0) for t in ts] for name, ts in times.items()}
        micros.append(f"{1e6 * statistics.median(each['']):.0f}")
        for name in names:
            rows[name].append(median_ratio(each[name], each[""]) if name in each else f"> {SLOW} s")
        print(f"  steps, d = {dim} done", flush=True)
    body = [[CONTENDERS[name].label, *cells] for name, cells in rows.items()]
    return table(["method", *(f"d = {dim}" for dim in sizes)], [["nn.Linear [us]", *micros], *body])


@dataclass(frozen=True)
class Choice:
    """An optimizer by name, its learning rate, and the steps between merges or new bases (0: there are none)."""

    optimizer: str
    rate: float
    every: int = 0

    def __str__(self) -> str:
        return f"{self.optimizer} {self.rate:.3g}" + f", every {self.every}" * bool(self.every)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: whether it got there, steps, seconds, last batch loss, ``max |W^T W - I|``."""

    reached: bool
    steps: int
    seconds: float
    loss: float
    violation: float


def solve(name: str, dim: int, choice: Choice, seed: int, limit: float) -> Outcome:
    """Train from the identity to a rotation until the batch loss is below 1e-6, it diverges, or time is over.

    Args:
        name: of a method in `CONTENDERS`.
        dim: d.
        choice: optimizer, rate and interval.
        seed: of the batches and the layer.
        limit: seconds.
    """
    method = CONTENDERS[name]
    problem = LinearProblem(linear_target("so", dim), BATCH)
    generator = torch.Generator().manual_seed(seed)
    layer = method.build(dim, seed=seed, bias=False)
    optimizer = method.optimizer(layer, choice.rate, choice.optimizer)
    schedule = method.schedule(layer, optimizer)
    if schedule is not None and choice.every:
        schedule.every = choice.every
    loss, count, start = 1.0, 0, time.perf_counter()
    while TOLERANCE <= loss < 10.0 and time.perf_counter() - start < limit:  # NaN ends it, too
        x, y = problem.sample(generator)
        optimizer.zero_grad()
        value = (layer(x) - y).square().mean()
        value.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        loss, count = float(value.detach()), count + 1
    seconds = time.perf_counter() - start
    return Outcome(loss < TOLERANCE, count, seconds, loss, _violation(layer.weight.detach()))


def grid(method: Method, dim: int) -> list[Choice]:
    """Return the choices that a method is tuned over: the same rates and intervals for all that have them."""
    rates: Mapping[str, Sequence[float]] = {"sgd": [dim * rate for rate in SGD_RATES], "adam": ADAM_RATES}
    intervals = INTERVALS if method.schedule_of else (0,)
    return [Choice(name, rate, every) for name in method.optimizers for every in intervals for rate in rates[name]]


def tune(name: str, dim: int, limit: float) -> Choice:
    """Return the choice with the shortest time to target; with the lowest loss, if none gets there in ``limit``."""
    best, merit, seconds = grid(CONTENDERS[name], dim)[0], (True, math.inf), limit
    for choice in grid(CONTENDERS[name], dim):
        outcome = solve(name, dim, choice, SEED, seconds)
        found = (not outcome.reached, outcome.seconds if outcome.reached else outcome.loss)
        if found < merit:  # false for NaN
            best, merit = choice, found
        if outcome.reached:
            seconds = min(seconds, WORSE * outcome.seconds)
    return best


def targets(
    sizes: Sequence[int] = tuple(LIMITS),
    seeds: Sequence[int] = (0, 1, 2),
    names: Sequence[str] = tuple(CONTENDERS),
    limit: float | None = None,
) -> str:
    """Race all methods to a Haar rotation of each width, each with its own best `Choice`, seeds interleaved.

    All run on one torch thread.

    Args:
        sizes: widths d.
        seeds: of the reported runs.
        names: of the methods.
        limit: seconds for each run (None: `LIMITS`).

    Returns:
        Markdown: per width and method the choice, steps, seconds, ratio to P4Orthogonal and violation, and a line on
        the best parametrizations of torch and geotorch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    verdicts = []
    try:
        for dim in sizes:
            seconds = limit or LIMITS.get(dim, 30.0)
            chosen = {name: tune(name, dim, seconds / 2) for name in names}
            print(f"  targets, d = {dim} tuned", flush=True)
            runs: dict[str, list[Outcome]] = {name: [] for name in names}
            for seed in seeds:
                for name in names:
                    runs[name].append(solve(name, dim, chosen[name], seed, seconds))
            own = statistics.median(run.seconds for run in runs[OWN]) if OWN in runs else math.nan
            rows += [_row(dim, name, chosen[name], runs[name], own) for name in names]
            verdicts += [_verdict(dim, {name: runs[name] for name in names}, own)]
            print(f"  targets, d = {dim} done", flush=True)
    finally:
        torch.set_num_threads(threads)
    header = ["d", "method", "optimizer", "reached", "steps", "seconds", "x P4Orthogonal", "max abs(W^T W - I)"]
    return "\n\n".join([table(header, rows), *verdicts])


def _row(dim: int, name: str, choice: Choice, runs: Sequence[Outcome], own: float) -> list[object]:
    reached = sum(run.reached for run in runs)
    seconds = statistics.median(run.seconds for run in runs)
    late = f"> {seconds:.3g} (loss {statistics.median(run.loss for run in runs):.0e})"
    return [
        dim,
        CONTENDERS[name].label,
        str(choice),
        f"{reached}/{len(runs)}",
        f"{statistics.median(run.steps for run in runs):.0f}",
        seconds if reached == len(runs) else late,
        f"{'' if reached == len(runs) else '> '}{seconds / own:.3g}",
        f"{max(run.violation for run in runs):.0e}",
    ]


def _verdict(dim: int, runs: Mapping[str, Sequence[Outcome]], own: float) -> str:
    def best(names: Sequence[str]) -> str:
        found = [
            (statistics.median(run.seconds for run in runs[name]), name, all(run.reached for run in runs[name]))
            for name in names
            if name in runs
        ]
        if not found:
            return "not run"
        arrived = [entry for entry in found if entry[2]]
        seconds, name, there = min(arrived or found)
        return f"{CONTENDERS[name].label}, {'' if there else 'more than '}{seconds / own:.3g} x P4Orthogonal"

    return f"d = {dim}: best of torch as it comes: {best(STATIC)}; of torch and geotorch, re-based: {best(PACKAGED)}."


def _violation(weight: torch.Tensor) -> float:
    wide = weight.double()
    return float((wide.t() @ wide - torch.eye(len(wide), dtype=torch.float64)).abs().max())
