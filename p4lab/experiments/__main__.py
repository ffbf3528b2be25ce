"""Train every method on every problem with several seeds, and print tables of medians and spread."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import joblib
import torch

from p4lab.bench.lanes import parallel
from p4lab.bench.timing import machine
from p4lab.errors import ConfigError, RunFileError
from p4lab.experiments.settings import DIGITS, MIXED, PROBLEMS, TOY, Run, runs_of
from p4lab.experiments.store import append, read
from p4lab.experiments.table import digits_verdict, problem_table, toy_verdict
from p4lab.experiments.train import train

QUICK = {"problems": "two_moons+eight_gaussians+digits", "seeds": 1, "steps": 20}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(prog="python -m p4lab.experiments", description=__doc__)
    methods = (*TOY.recipes, *MIXED.recipes)
    arguments.add_argument("--quick", action="store_true", help="few problems, one seed, 20 steps: a look, no result")
    arguments.add_argument("--problems", help=f"joined by + (default: all: {', '.join(PROBLEMS)})")
    arguments.add_argument("--methods", help=f"joined by + (default: all: {', '.join(methods)})")
    arguments.add_argument("--seeds", type=int, help="number of seeds: 0, 1, ... (default 5)")
    arguments.add_argument(
        "--steps", type=int, help=f"optimizer steps of a run (default {TOY.steps}, digits {MIXED.steps})"
    )
    arguments.add_argument(
        "--seconds",
        type=float,
        default=0.0,
        help="equal training time instead: seconds of each run, steps at most 10^6",
    )
    arguments.add_argument("--file", type=Path, help="JSON lines: finished runs are kept here, and not done again")
    arguments.add_argument("--jobs", type=int, default=-1, help="runs at a time (default: one for each core)")
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing and print the tables."""
    options = parser().parse_args(arguments)
    for name, value in QUICK.items() if options.quick else ():
        if getattr(options, name) is None:
            setattr(options, name, value)
    try:
        runs = chosen(options)
        results = perform(runs, options.file, options.jobs)
    except (ConfigError, RunFileError) as error:
        sys.exit(str(error))
    print(f"{machine()}\n\n{report(runs, results)}")


def chosen(options: argparse.Namespace) -> list[Run]:
    """Return the runs that the options ask for: all methods and problems with the first seed, then with the next one.

    Raises:
        ConfigError: an unknown problem or method, or a number out of range.
    """
    problems = tuple(options.problems.split("+")) if options.problems else PROBLEMS
    methods = tuple(options.methods.split("+")) if options.methods else None
    known = {*TOY.recipes, *MIXED.recipes}
    if methods and not known.issuperset(methods):
        unknown = ", ".join(name for name in methods if name not in known)
        raise ConfigError(f"--methods: {unknown} not known; choose of {', '.join(sorted(known))}")
    seeds = 5 if options.seeds is None else options.seeds
    if seeds < 1 or options.seconds < 0 or (options.steps is not None and options.steps < 1):
        raise ConfigError(
            f"--seeds {seeds}, --steps {options.steps}, --seconds {options.seconds}: expected at least 1, 1 and 0"
        )
    steps = 1_000_000 if options.seconds and options.steps is None else options.steps
    runs = [
        run
        for problem in problems
        for run in runs_of(problem, methods, range(seeds), steps=steps, seconds=options.seconds)
    ]
    if not runs:
        raise ConfigError(f"--methods {options.methods}: none of them is for --problems {options.problems}")
    return sorted(runs, key=lambda run: run.seed)


def perform(
    runs: Sequence[Run], file: Path | None = None, jobs: int = -1, work: Callable[[Run], dict[str, Any]] = train
) -> dict[str, dict[str, Any]]:
    """Return the result of every run by its key; those that ``file`` has already are not done again.

    Args:
        runs: what to do.
        file: JSON lines to read and to append to (None: nothing is kept).
        jobs: runs at a time, each on one torch thread; -1 is one for each core.
        work: what a run is done with.

    Raises:
        RunFileError: the file is not one of this command.
    """
    known = read(file) if file else {}
    missing = [run for run in runs if run.key() not in known]
    print(f"{len(runs)} runs, {len(runs) - len(missing)} of them known", file=sys.stderr, flush=True)
    found = parallel((joblib.delayed(_done)(work, run, file) for run in missing), n_jobs=jobs)
    return {**known, **{run.key(): result for run, result in zip(missing, found, strict=True)}}


def _done(work: Callable[[Run], dict[str, Any]], run: Run, file: Path | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    result = work(run)
    if file:
        append(file, run, result)
    print(
        f"  {run.problem} {run.method} seed {run.seed}: test NLL {result['test_nll']:.4f}, {result['seconds']:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return result


def report(runs: Sequence[Run], results: dict[str, dict[str, Any]]) -> str:
    """Return all tables as Markdown."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        grouped.setdefault(run.problem, {}).setdefault(run.method, []).append(results[run.key()])
    parts = [f"### {problem}\n\n{problem_table(problem, found)}" for problem, found in grouped.items()]
    toy = toy_verdict({problem: found for problem, found in grouped.items() if problem != DIGITS})
    parts += [f"### P4Inv + Bent against RealNVP\n\n{toy}"] if toy else []
    digits = digits_verdict(grouped.get(DIGITS, {}))
    parts += [f"### Swaps on digits\n\n{digits}"] if digits else []
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
