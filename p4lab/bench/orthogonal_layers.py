"""Orthogonal layers: cost of a training step, and time to a rotation, against the usual parametrizations."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from p4lab.baselines import METHODS, ORTHOGONAL_GROUPS, Method
from p4lab.bench import linear_problems
from p4lab.bench.linear_problems import SEED, Outcome, fastest, reached, seconds
from p4lab.bench.methods import SLOW, Contender, contender, seconds_of_steps
from p4lab.bench.tables import table
from p4lab.bench.timing import by_clock, median_ratio, one_thread
from p4lab.command import say
from p4lab.p4 import ORTHOGONAL, MergeSchedule, P4Givens, P4Reflections
from p4lab.problems.linear_maps import LinearProblem, linear_target
from p4lab.problems.rates import Choice

STEP_SIZES = (64, 128, 256, 512, 1024)
"""Widths at which steps are timed."""
STEP_BATCH = 512
"""Samples of a step that is timed."""
BATCH = 128
"""Samples of a step on the way to a rotation."""
DIVERGED = 10.0
"""A batch loss that ends a run."""
SGD_RATES = (0.03, 0.05, 0.07, 0.1, 0.15, 0.25)
"""Learning rates of gradient descent divided by d: the loss is a mean over d components."""
ADAM_RATES = (3e-3, 1e-2, 2e-2, 5e-2)
"""Learning rates that are tried with Adam."""
INTERVALS = (2, 4, 10, 30, 100)
"""Steps between merges, or between new bases of a trivialization: each method that has such is tuned over them."""
LIMITS = {64: 3.0, 128: 6.0, 512: 30.0}
"""Seconds for each run, by width; those of tuning are half as long."""
STATIC = ("torch_matrix_exp", "torch_cayley", "torch_householder")
"""The parametrizations of torch, as they come."""
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
"""The method that the others are compared with."""
CONTENDERS: dict[str, Method] = {
    method.name: method
    for method in (
        _p4(OWN, "P4Orthogonal", ORTHOGONAL.layer, ORTHOGONAL.every),
        _p4("p4reflections", "P4Reflections", _reflections, ORTHOGONAL.every),
        _p4("p4givens", "P4Givens, 4 sweeps", partial(P4Givens, rank=4), ORTHOGONAL.every),
        *(method for method in METHODS.values() if method.group in ORTHOGONAL_GROUPS),
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
        contenders: dict[str, Contender] = {"": contender(None, dim, STEP_BATCH)}
        for name in names:
            if name not in slow:
                contenders[name] = contender(CONTENDERS[name], dim, STEP_BATCH)
                if by_clock(contenders[name].steps, 1) / contenders[name].unit > SLOW:
                    slow.add(name)
                    del contenders[name]
        each = seconds_of_steps(contenders, rounds)
        micros.append(f"{1e6 * statistics.median(each['']):.0f}")
        for name in names:
            rows[name].append(median_ratio(each[name], each[""]) if name in each else f"> {SLOW} s")
        say(f"steps, d = {dim} done")
    body = [[CONTENDERS[name].label, *cells] for name, cells in rows.items()]
    return table(["method", *(f"d = {dim}" for dim in sizes)], [["nn.Linear [us]", *micros], *body])


def solve(name: str, dim: int, choice: Choice, seed: int, limit: float) -> Outcome:
    """Train from the identity to a rotation until the batch loss is below 1e-6, it diverges, or time is over.

    Args:
        name: of a method in `CONTENDERS`.
        dim: d.
        choice: optimizer, rate and interval.
        seed: of the batches and the layer.
        limit: seconds.

    Returns:
        The outcome; its violation is ``max |W^T W - I|``.
    """
    method = CONTENDERS[name]
    layer = method.build(dim, seed=seed, bias=False)
    optimizer = method.optimizer(layer, choice.rate, choice.optimizer)
    schedule = method.schedule(layer, optimizer)
    if schedule is not None and choice.every:
        schedule.every = choice.every
    problem = LinearProblem(linear_target("so", dim), BATCH)
    return linear_problems.solve(
        problem, layer, optimizer, schedule, seed, limit, lambda: _violation(layer.weight.detach()), DIVERGED
    )


def grid(method: Method, dim: int) -> list[Choice]:
    """Return the choices that a method is tuned over: the same rates for all, and intervals where these are free."""
    rates: Mapping[str, Sequence[float]] = {"sgd": [dim * rate for rate in SGD_RATES], "adam": ADAM_RATES}
    intervals = INTERVALS if method.schedule_of else (0,)
    if method.preset is not None and method.preset.every == 1:  # what follows whole gradients has room for one batch
        intervals = (1,)
    return [
        Choice(name, rate, every=every) for name in method.optimizers for every in intervals for rate in rates[name]
    ]


def tune(name: str, dim: int, limit: float) -> Choice:
    """Return the choice with the shortest time to target; with the lowest loss, if none gets there in ``limit``."""
    return fastest(grid(CONTENDERS[name], dim), lambda choice, most: solve(name, dim, choice, SEED, most), limit)


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
    rows: list[list[object]] = []
    verdicts = []
    with one_thread():
        for dim in sizes:
            most = limit or LIMITS.get(dim, 30.0)
            choices = {name: tune(name, dim, most / 2) for name in names}
            say(f"targets, d = {dim} tuned")
            runs: dict[str, list[Outcome]] = {name: [] for name in names}
            for seed in seeds:
                for name in names:
                    runs[name].append(solve(name, dim, choices[name], seed, most))
            own = seconds(runs[OWN]) if OWN in runs else math.nan
            rows += [_row(dim, name, choices[name], runs[name], own) for name in names]
            verdicts.append(_verdict(dim, runs, own))
            say(f"targets, d = {dim} done")
    header = ["d", "method", "optimizer", "reached", "steps", "seconds", "x P4Orthogonal", "max abs(W^T W - I)"]
    return "\n\n".join([table(header, rows), *verdicts])


def _row(dim: int, name: str, choice: Choice, runs: Sequence[Outcome], own: float) -> list[object]:
    there, middle = reached(runs), seconds(runs)
    late = f"> {middle:.3g} (loss {statistics.median(run.loss for run in runs):.0e})"
    return [
        dim,
        CONTENDERS[name].label,
        choice,
        f"{there}/{len(runs)}",
        f"{statistics.median(run.steps for run in runs):.0f}",
        middle if there == len(runs) else late,
        f"{'' if there == len(runs) else '> '}{middle / own:.3g}",
        f"{max(run.violation or 0.0 for run in runs):.0e}",
    ]


def _verdict(dim: int, runs: Mapping[str, Sequence[Outcome]], own: float) -> str:
    def best(names: Sequence[str]) -> str:
        # Those that got there come before those that did not.
        ends = [(reached(runs[name]) < len(runs[name]), seconds(runs[name]), name) for name in names if name in runs]
        if not ends:
            return "not run"
        late, middle, name = min(ends)
        return f"{CONTENDERS[name].label}, {'more than ' if late else ''}{middle / own:.3g} x P4Orthogonal"

    return f"d = {dim}: best of torch as it comes: {best(STATIC)}; of torch and geotorch, re-based: {best(PACKAGED)}."


def _violation(weight: torch.Tensor) -> float:
    wide = weight.double()
    return float((wide.t() @ wide - torch.eye(len(wide), dtype=torch.float64)).abs().max())
