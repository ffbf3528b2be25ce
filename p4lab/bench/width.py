"""Wide tasks: each method's best annealed rate, and its test loss when all have trained for the same time."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from p4lab.baselines import METHODS
from p4lab.bench.lanes import Trace, Trial, traces_of
from p4lab.bench.methods import is_exact, label
from p4lab.bench.race import seconds_to
from p4lab.bench.tables import median, number_of, spread, table
from p4lab.bench.tuning import SEED, best, config_of, grid, racers
from p4lab.command import say
from p4lab.errors import ConfigError
from p4lab.problems.rates import Choice, choice
from p4lab.training.race import RaceConfig

DIMS = (16, 32, 48, 63, 64, 128, 255, 256, 512, 575, 1023, 1024)
"""Widths on offer: powers of two, and those of square photo patches."""
DEFAULT_TASKS = ("so", "spd_coloured", "ica_photos")
"""Tasks if none is named."""
DEFAULT_DIMS = (255, 575)
"""Widths if none is named."""
DEFAULT_METHODS = ("plain", "p4inv", "relative", "relative_adam", "plu", "dense", "cayley_descent")
"""Methods if none is named."""
SECONDS = 10.0
"""Seconds of training of a run."""
LOOKS = 50
"""Looks at the test loss in the course of a run, at most; they are not part of the training time."""
STEP = 2.5
"""Ratio of neighbouring rates, which the grid grows by where the best of them is at an end."""
SGD = (0.006, 0.015, 0.0375)
"""Rates of gradient descent divided by d that are tried first."""
ADAM = (4e-4, 1e-3, 2.5e-3)
"""Rates of Adam that are tried first."""
MOST = 12
"""Once so many choices of a method have been tried, there are no more."""
MARGIN = 0.01
"""How far above the lowest loss of an exact method the target is, as a share of the way from the loss at the start."""


Work = Callable[[Sequence[Trial]], list[Trace]]
"""This does trials, or finds them done."""


def width(
    tasks: Sequence[str] = DEFAULT_TASKS,
    methods: Sequence[str] = DEFAULT_METHODS,
    dims: Sequence[int] = DEFAULT_DIMS,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    seconds: float = SECONDS,
    tuning: float | None = None,
    batch: int = 64,
    file: Path | str | None = None,
    n_jobs: int = 1,
    backend: str | None = None,
    device: str = "cpu",
) -> Iterator[str]:
    """Tune every method on every task at every width, then train it with other seeds; all annealed, for the same time.

    Args:
        tasks, methods: names; methods that cannot do a task are left out.
        dims: widths; tasks whose data are narrower have their own.
        seeds: of the runs that are reported.
        seconds: of training for each run.
        tuning: seconds of training for each trial of rates (None: as many; 0: the rates of `p4lab.problems.rates`).
        batch: samples of a step.
        file: JSON lines: finished runs are kept here with the course of their losses, and not done again.
        n_jobs, backend: see `p4lab.bench.lanes.traces_of`.
        device: where it trains.

    Yields:
        Markdown: one table for each task and width, as soon as it is done.

    Raises:
        ConfigError: no method can do a task; and whatever `p4lab.bench.lanes.traces_of` raises.
    """
    work = partial(traces_of, backend=backend, n_jobs=n_jobs, file=file)
    for task in tasks:
        for dim in dict.fromkeys(config_of(task, dim, 0).width for dim in dims):
            names = racers(task, methods)
            if not names:
                raise ConfigError(f"methods={'+'.join(methods)!r}: none of them can do the task {task!r}")
            config = config_of(task, dim, SEED, device).replace(batch_size=batch, anneal=True)
            if tuning == 0:
                choices = {name: choice(task, METHODS[name], dim) for name in names}
            else:
                choices = tune_wide(config, names, seconds if tuning is None else tuning, work)
            # Seed by seed, so that a slow minute of the machine hits all methods.
            trials = [
                wide_trial(config.replace(seed=seed), name, choices[name], seconds) for seed in seeds for name in names
            ]
            traces: dict[str, list[Trace]] = {name: [] for name in names}
            for trace in work(trials):
                traces[trace.method].append(trace)
            yield f"**{task}**, d = {dim}\n\n{wide_table(choices, traces)}"
            say(f"{task}, d = {dim} done")


def wide_trial(config: RaceConfig, name: str, settings: Choice, seconds: float) -> Trial:
    """Return the trial of a method for some seconds, with at most 50 looks on the way."""
    return Trial.of(config, name, seconds, settings=settings, pause=seconds / LOOKS)


def tune_wide(config: RaceConfig, names: Sequence[str], seconds: float, work: Work) -> dict[str, Choice]:
    """Return each method's choice with the lowest loss at the end of its trial.

    Each gets the same few rates for each of its optimizers. Where the best of these is at an end of them, the next one
    beyond is tried as well, and so on.

    Args:
        config: task, width, seed and batch of the trials.
        names: of the methods.
        seconds: of training for each trial.
        work: what does them.
    """
    found: dict[str, dict[Choice, Trace]] = {name: {} for name in names}
    waiting = [
        (name, one) for name in names for one in grid(config.task, METHODS[name], config.width, sgd=SGD, adam=ADAM)
    ]
    while waiting:
        traces = work([wide_trial(config, name, one, seconds) for name, one in waiting])
        for (name, one), trace in zip(waiting, traces, strict=True):
            found[name][one] = trace
        waiting = [(name, one) for name in names for one in beyond(found[name])]
    return {name: best(trials) for name, trials in found.items()}


def beyond(trials: Mapping[Choice, Trace]) -> list[Choice]:
    """Return what to try next: for each optimizer, the rate beyond that end of its rates where the best of them is.

    Nothing if the best one is between others, or if `MOST` choices have been tried. Of rates that all broke down, or
    ended no lower than they started, the smallest counts as the best.
    """
    more = []
    for optimizer in dict.fromkeys(one.optimizer for one in trials):
        losses = {
            one: trial.loss if trial.loss < trial.checks[0][2] else math.inf
            for one, trial in trials.items()
            if one.optimizer == optimizer
        }
        first = min(losses, key=lambda one: (losses[one], one.rate))
        rates = [one.rate for one in losses]
        factor = {max(rates): STEP, min(rates): 1 / STEP}.get(first.rate)
        if factor is not None:
            more.append(dataclasses.replace(first, rate=float(f"{first.rate * factor:.3g}")))
    return more if len(trials) < MOST else []


def wide_target(traces: Mapping[str, Sequence[Trace]]) -> tuple[str, float]:
    """Return the exact method with the lowest median loss at the end, and the target: that loss and a margin.

    The margin is 1 % of the way from the loss at the start. Without an exact method it is the best of all.
    """
    names = [name for name in traces if is_exact(name)] or list(traces)
    losses = {name: median(trace.loss for trace in traces[name]) for name in names}
    first = min(losses, key=lambda name: losses[name])
    start = median(trace.checks[0][2] for trace in traces[first])
    return first, losses[first] + MARGIN * (start - losses[first])


def wide_table(choices: Mapping[str, Choice], traces: Mapping[str, Sequence[Trace]]) -> str:
    """Return how methods ended, the lowest loss first, and when they were at the target.

    Args:
        choices: by method.
        traces: by method, one for each seed.
    """
    first, target = wide_target(traces)
    header = ["method", "exact", "optimizer", "loss", "steps", "reached", "seconds to target", "steps to target"]
    losses = {name: median(trace.loss for trace in runs) for name, runs in traces.items()}
    rows = [_row(name, choices[name], traces[name], target) for name in sorted(losses, key=lambda name: losses[name])]
    text = f"Target: {target:.5g}, which is 1 % of the way from the start above what {label(first)} ends at."
    return f"{text}\n\n{table(header, rows)}"


def _row(name: str, settings: Choice, traces: Sequence[Trace], target: float) -> list[object]:
    there = [end for trace in traces if (end := trace.reached(target)) is not None]
    time = seconds_to(traces, target)
    return [
        label(name),
        "yes" if is_exact(name) else "no",
        settings,
        spread([trace.loss for trace in traces], ".5g"),
        spread([trace.checks[-1][0] for trace in traces], ".0f"),
        f"{len(there)}/{number_of(traces, sum(bool(trace.stopped) for trace in traces), 'broke down')}",
        time if math.isfinite(time) else "-",
        spread([steps for steps, _ in there], ".0f"),
    ]
