"""Train every method on every problem with several seeds, and print tables of medians and spread.

``python -m p4lab.experiments recurrent`` and the other modules of this room are commands of their own.
"""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence

from p4lab.bench.store import Result, perform
from p4lab.bench.tables import machine
from p4lab.command import Names, command
from p4lab.errors import ConfigError
from p4lab.experiments.settings import DIGITS, MIXED, PROBLEMS, TOY, Run
from p4lab.experiments.table import digits_verdict, problem_table, toy_verdict
from p4lab.experiments.train import runs_of, train

OTHERS = (
    "recurrent",
    "molecules",
    "temperature",
    "alanine_temperature",
    "replicas",
    "characters",
    "posteriors",
    "images",
)
"""Modules of this room that have a command line."""
METHODS = (*TOY.recipes, *MIXED.recipes)
"""Of all problems; each has some of them."""
MOST_STEPS = 1_000_000
"""Of a run that ends by time."""


@command(
    "p4lab.experiments",
    __doc__,
    {"problems": ("two_moons", "eight_gaussians", DIGITS), "seeds": 1, "steps": 20},
    problems=Names(PROBLEMS),
    methods=Names(METHODS),
    seeds=5,
    steps=None,
    seconds=0.0,
    file=None,
    jobs=-1,
    backend=None,
)
def densities(options: argparse.Namespace) -> None:
    """Run what is missing and print the tables."""
    runs = runs_for(options)
    results = perform(runs, train, summary, options.file, options.jobs, options.backend)
    print(f"{machine()}\n\n{report(runs, results)}")


def runs_for(options: argparse.Namespace) -> list[Run]:
    """Return the runs that the options ask for: all methods and problems with the first seed, then with the next one.

    Raises:
        ConfigError: a method that was chosen is for none of the problems.
    """
    steps = MOST_STEPS if options.seconds and options.steps is None else options.steps
    changes = {"steps": steps, "seconds": options.seconds}
    runs = [
        run
        for problem in options.problems
        for run in runs_of(problem, options.methods, range(options.seeds), **changes)
    ]
    left_out = [name for name in options.methods if name not in {run.method for run in runs}]
    if left_out and set(options.methods) != set(METHODS):
        problems = "+".join(options.problems)
        raise ConfigError(f"--methods {'+'.join(left_out)}: not for any of --problems {problems}")
    return sorted(runs, key=lambda run: run.seed)


def summary(run: Run, result: Result) -> str:
    """Return a line about a finished run."""
    return f"{run.problem} {run.method} seed {run.seed}: test NLL {result['test_nll']:.4f}, {result['seconds']:.0f} s"


def report(runs: Sequence[Run], results: Mapping[str, Result]) -> str:
    """Return all tables as Markdown."""
    by_problem: dict[str, dict[str, list[Result]]] = {}
    for run in runs:
        by_problem.setdefault(run.problem, {}).setdefault(run.method, []).append(results[run.key()])
    parts = [f"### {problem}\n\n{problem_table(problem, of_methods)}" for problem, of_methods in by_problem.items()]
    toy = toy_verdict({problem: of_methods for problem, of_methods in by_problem.items() if problem != DIGITS})
    parts += [f"### P4Inv + Bent against RealNVP\n\n{toy}"] if toy else []
    digits = digits_verdict(by_problem.get(DIGITS, {}))
    parts += [f"### Swaps on digits\n\n{digits}"] if digits else []
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that is named first, or else the one of densities."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in OTHERS:
        importlib.import_module(f"p4lab.experiments.{words[0]}").main(words[1:])
        return
    if words and not words[0].startswith("-"):
        sys.exit(f"{words[0]} is not known: choose of {', '.join(OTHERS)}, or give none for densities and digits")
    if {"-h", "--help"} & set(words):
        print(f"other commands, each with its own --help: {', '.join(OTHERS)}\n")
    densities(words)


if __name__ == "__main__":
    main()
