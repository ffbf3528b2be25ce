"""Time to target on every task, each method with its best rate; and sweeps over seeds, on a cluster if there is one."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from p4lab.bench.lanes import Trace, Trial, traces_of
from p4lab.bench.methods import P4, is_exact, label
from p4lab.bench.tables import median, number_of, table
from p4lab.bench.tables import spread as spread_of
from p4lab.bench.tuning import RACED, SECONDS, Tuned, config_of, tune
from p4lab.command import say
from p4lab.packages import require
from p4lab.problems.rates import write
from p4lab.problems.tasks import TASKS
from p4lab.training.race import RaceConfig

if TYPE_CHECKING:
    import pandas

LIMIT = 3.0
"""Seconds of training of a run on the way to its target."""
SPREAD = ("loss", "steps", "step_ms", "memory_kb", "inverse_error", "logdet_error")
"""Columns of `sweep` that have a spread over seeds."""


# --- sweeps ----------------------------------------------------------------------------------------------------------


def sweep(
    config: RaceConfig,
    seeds: Iterable[int],
    seconds: float | None = None,
    steps: int | None = None,
    backend: str | None = None,
    n_jobs: int = -1,
    file: Path | str | None = None,
    progress: bool = True,
) -> "pandas.DataFrame":
    """Train every method of a race with every seed; each has its own data, start and batches.

    Args:
        config: task, methods, width; its own seed is not used.
        seeds: the seeds.
        seconds: of training for each method (None: the config's budget, or no limit if there are ``steps``).
        steps: at most so many; without ``seconds``, the same seeds give the same numbers.
        backend: of joblib (None: processes on this machine), or "dask": a cluster whose Client exists already; there a
            run that was lost with its worker is done again.
        n_jobs: runs at a time; -1 is one for each core, or as many as the cluster takes.
        file: JSON lines that keep finished runs: with the same settings these are not done again, so that a sweep
            that was stopped goes on where it was (None: nothing is kept).
        progress: whether stderr gets a line for each run that ends.

    Returns:
        One row per method and seed: "method", "seed", "loss" (test loss, NaN if it broke down), "steps", "seconds",
        "step_ms", "memory_kb", "inverse_error", "logdet_error", "stopped" (the reason).

    Raises:
        ConfigError: a method cannot do the task, joblib has no such backend, or there is no cluster.
        MissingPackageError: Dask is not installed.
        RunFileError: the file holds something else, or cannot be read or written.

    Example:
        >>> frame = sweep(RaceConfig(methods="plain", dim=4), seeds=(0, 1), steps=5, n_jobs=1)
        >>> list(frame["steps"])
        [5, 5]
    """
    pd = require("pandas", "lab")

    if seconds is None:
        seconds = config.budget if steps is None else math.inf
    trials = [Trial.of(config.replace(seed=seed), name, seconds, steps) for seed in seeds for name in config.names]
    return pd.DataFrame([_record(trace) for trace in traces_of(trials, backend, n_jobs, file, progress)])


def _record(trace: Trace) -> dict[str, object]:
    steps, seconds, _ = trace.checks[-1]
    return {
        "method": trace.method,
        "seed": trace.seed,
        "loss": trace.loss if math.isfinite(trace.loss) else math.nan,
        "steps": steps,
        "seconds": seconds,
        "step_ms": 1e3 * seconds / max(1, steps),
        "memory_kb": trace.memory / 1024,
        "inverse_error": trace.inverse_error,
        "logdet_error": trace.logdet_error,
        "stopped": trace.stopped,
    }


def spread(frame: "pandas.DataFrame") -> "pandas.DataFrame":
    """Return medians over seeds, the lowest loss first; NaN where no seed has a value.

    Args:
        frame: from `sweep`.

    Returns:
        One row per method: "runs", "broke_down" and, for each of loss, steps, step_ms, memory_kb, inverse_error and
        logdet_error, columns of that name (median) and with "_min" and "_max".
    """
    pd = require("pandas", "lab")

    groups = frame.groupby("method", sort=False)
    columns = {"runs": groups.size(), "broke_down": groups["stopped"].agg(lambda reasons: int((reasons != "").sum()))}
    for name in SPREAD:
        columns |= {name: groups[name].median(), f"{name}_min": groups[name].min(), f"{name}_max": groups[name].max()}
    return pd.DataFrame(columns).sort_values("loss", na_position="last")


# --- time to target --------------------------------------------------------------------------------------------------


def race(
    tasks: Sequence[str] = tuple(TASKS),
    methods: Sequence[str] = RACED,
    seeds: Sequence[int] = (0, 1, 2),
    dim: int = 64,
    tuning: float = SECONDS,
    limit: float = LIMIT,
    backend: str | None = None,
    n_jobs: int = -1,
    file: Path | str | None = None,
    save: bool = False,
    device: str = "cpu",
) -> Iterator[str]:
    """Tune every method on every task, then measure its time to the target with other seeds.

    Args:
        tasks, methods: names.
        seeds: of the runs that are reported.
        dim: width; tasks whose data are narrower have their own.
        tuning: seconds of training for each rate.
        limit: seconds of training for each run.
        backend, n_jobs, file: see `sweep`.
        save: whether the choices are written to `p4lab.problems.rates`.
        device: where it trains.

    Yields:
        Markdown: one table per task as soon as it is done, and at the end which methods with exact inverse and log|det|
        were faster than P4Inv.
    """
    verdicts = []
    for name in tasks:
        tuned = tune(name, methods, dim, tuning, backend, n_jobs, file, device)
        traces = _runs(tuned, seeds, dim, limit, backend, n_jobs, file, device)
        if save:
            write({name: tuned.choices})
        width = config_of(name, dim, 0).width
        yield f"**{name}**, d = {width}, to a test loss of {tuned.target:.4g}\n\n{_table(tuned, traces)}"
        verdicts.append([name, *verdict(tuned, traces)])
        say(f"{name} done")
    ends = table(["task", "P4Inv", "exact methods that are ahead", "exact methods"], verdicts)
    yield f"**P4Inv and the exact methods**\n\n{ends}"


def _runs(
    tuned: Tuned,
    seeds: Sequence[int],
    dim: int,
    limit: float,
    backend: str | None,
    n_jobs: int,
    file: Path | str | None,
    device: str,
) -> dict[str, list[Trace]]:
    # Seed by seed, so that a slow minute of the machine hits all methods.
    trials = [
        Trial.of(config_of(tuned.task, dim, seed, device), name, limit, None, tuned.target, settings)
        for seed in seeds
        for name, settings in tuned.choices.items()
    ]
    traces: dict[str, list[Trace]] = {name: [] for name in tuned.choices}
    for trace in traces_of(trials, backend, n_jobs, file):
        traces[trace.method].append(trace)
    return traces


def seconds_to(traces: Sequence[Trace], target: float) -> float:
    """Return the median seconds to the target, runs that did not get there counted as infinite."""
    reached = [trace.reached(target) for trace in traces]
    return statistics.median_high(math.inf if one is None else one[1] for one in reached)


def verdict(tuned: Tuned, traces: dict[str, list[Trace]]) -> tuple[str, str, int]:
    """Return P4Inv's time to target (the faster preset's), the exact methods ahead of it, and how many there are."""
    times = {name: seconds_to(runs, tuned.target) for name, runs in traces.items()}
    own = min((times[name] for name in P4 if name in times), default=math.inf)
    rivals = [name for name in times if is_exact(name) and name not in P4]
    ahead = sorted((name for name in rivals if times[name] < own), key=lambda name: times[name])
    text = ", ".join(f"{label(name)} ({times[name]:.3g} s)" for name in ahead)
    return f"{own:.3g} s" if math.isfinite(own) else "not reached", text or "none", len(rivals)


def _table(tuned: Tuned, traces: dict[str, list[Trace]]) -> str:
    ends = {name: (seconds_to(runs, tuned.target), median(run.loss for run in runs)) for name, runs in traces.items()}
    header = ["method", "exact", "optimizer", "reached", "seconds", "steps", "loss", "inverse error", "log-det error"]
    return table(header, [_row(name, tuned, traces[name]) for name in sorted(traces, key=ends.__getitem__)])


def _row(name: str, tuned: Tuned, traces: Sequence[Trace]) -> list[object]:
    there = [end for trace in traces if (end := trace.reached(tuned.target)) is not None]
    return [
        label(name),
        "yes" if is_exact(name) else "no",
        tuned.choices[name],
        f"{len(there)}/{number_of(traces, sum(bool(trace.stopped) for trace in traces), 'broke down')}",
        spread_of([seconds for _, seconds in there], ".2g"),
        spread_of([steps for steps, _ in there], ".0f"),
        median(trace.loss for trace in traces),
        max(trace.inverse_error for trace in traces),
        max(trace.logdet_error for trace in traces),
    ]
