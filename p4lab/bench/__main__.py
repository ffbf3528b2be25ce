"""Command line of the benchmarks."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from p4lab.baselines import METHODS
from p4lab.bench import against, flows, linear, live, methods, orthogonal, properties, race, steps, timing, tuning
from p4lab.errors import ConfigError, P4Error
from p4lab.problems.tasks import TASKS


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(prog="python -m p4lab.bench", description=__doc__)
    arguments.add_argument(
        "what",
        nargs="?",
        choices=("all", "steps", "linear", "methods", "race", "flows", "orthogonal", "properties", "live", "against"),
        default="all",
        help="all: steps, linear and methods",
    )
    arguments.add_argument("--checkout", type=Path, help="against: folder of another checkout, such as a git worktree")
    arguments.add_argument("--quick", action="store_true", help="few sizes, rounds and seeds: a look, no measurement")
    arguments.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    arguments.add_argument("--notebook", default=live.DEFAULT.name, help="live: file name in notebooks/, or a path")
    arguments.add_argument("--minutes", type=float, help="live: how long to watch the memory (default 10)")
    arguments.add_argument("--methods", help="methods, race, orthogonal: names joined by + (default: all, race most)")
    arguments.add_argument("--dims", help="orthogonal: widths of the races, joined by + (default: 64+128+512)")
    arguments.add_argument("--tasks", default="+".join(TASKS), help="race: names joined by + (default: all)")
    arguments.add_argument("--dim", type=int, default=64, help="race: width (default 64)")
    arguments.add_argument("--seeds", type=int, default=3, help="race: number of runs of each method (default 3)")
    arguments.add_argument("--tuning", type=float, help=f"race: seconds for each rate (default {tuning.SECONDS})")
    arguments.add_argument("--limit", type=float, help=f"race: seconds for each run (default {race.LIMIT})")
    arguments.add_argument("--backend", help="race: of joblib, such as dask (default: processes on this machine)")
    arguments.add_argument("--jobs", type=int, default=-1, help="race: runs at a time (default: one for each core)")
    arguments.add_argument("--write", action="store_true", help="race: keep the tuned rates for the race notebook")
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen benchmarks and print Markdown tables."""
    options = parser().parse_args(arguments)
    widths: Sequence[int]
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(f"{timing.machine()}\n", flush=True)
    if options.what in ("all", "steps"):
        sizes, rounds = ((2, 64, 256, 512), 3) if options.quick else (steps.SIZES, 9)
        large = [size for size in sizes if size >= 256]
        _print(
            "Training step (forward, backward, Adam, merge every 10), batch 512, as a ratio to nn.Linear",
            steps.steps(sizes, rounds=rounds),
        )
        _print(
            "The same for a first layer (no input gradient)", steps.steps(large, rounds=rounds, input_gradient=False)
        )
    if options.what in ("all", "linear"):
        seeds, limit = ((0,), 5.0) if options.quick else ((0, 1, 2, 3, 4), 20.0)
        _print("Linear problems, d = 101, batch 64: to mean squared error 1e-6", linear.linear(seeds, limit=limit))
    if options.what in ("all", "methods"):
        widths, rounds = ((16, 64), 2) if options.quick else (methods.SIZES, 5)
        names = _names("methods", options.methods or "+".join(METHODS), METHODS)
        _print(
            "Training step of every method, log|det| in the loss, batch 512, as a ratio to nn.Linear",
            methods.methods(widths, names, rounds=rounds),
        )
    if options.what == "flows":
        _print("Flows: training and sampling", flows.flows(rounds=2 if options.quick else flows.ROUNDS))
    if options.what == "orthogonal":
        _orthogonal(options)
    if options.what == "properties":
        dims, rounds = ((16, 64), 2) if options.quick else (properties.SIZES, 9)
        _print(
            "Training step of every P4 property (forward, backward, Adam, merge every 10), batch 512, rank 8, "
            "as a ratio to nn.Linear",
            properties.properties(dims, rounds=rounds),
        )
    if options.what == "race":
        try:
            _print(f"Time to target, batch 64, training time only, {options.seeds} seeds", _race(options))
        except ConfigError as error:
            sys.exit(str(error))
    if options.what == "against":
        if options.checkout is None:
            sys.exit("against: name the folder of another checkout with --checkout")
        widths, rounds = ((8, 64), 3) if options.quick else (against.SIZES, 15)
        _print(
            f"Times of this checkout as a ratio to those of {options.checkout.name}, batch 512",
            against.against(options.checkout, widths, rounds=rounds),
        )
    if options.what == "live":
        try:
            _print(f"The live lab in a browser: {Path(options.notebook).name}", live.live(*live_options(options)))
        except P4Error as error:
            sys.exit(str(error))


def _orthogonal(options: argparse.Namespace) -> None:
    quick, known = options.quick, orthogonal.CONTENDERS
    names = _names("methods", options.methods or "+".join(known), known)
    offered = [str(dim) for dim in orthogonal.LIMITS]
    dims = [int(dim) for dim in _names("dims", options.dims or "+".join(offered[: 1 if quick else None]), offered)]
    _print(
        "Training step of orthogonal layers (forward, backward, Adam, merges), batch 512, as a ratio to nn.Linear",
        orthogonal.steps((64, 256) if quick else orthogonal.STEP_SIZES, 3 if quick else 7, names),
    )
    _print(
        "To a rotation, batch 128, mean squared error 1e-6, each method tuned",
        orthogonal.targets(dims, range(1 if quick else options.seeds), names, options.limit),
    )


def _race(options: argparse.Namespace) -> str:
    quick = options.quick
    return race.race(
        tasks=_names("tasks", options.tasks, TASKS),
        methods=_names("methods", options.methods or "+".join(tuning.RACED), METHODS),
        seeds=range(1 if quick else options.seeds),
        dim=options.dim,
        tuning=options.tuning or (0.05 if quick else tuning.SECONDS),
        limit=options.limit or (0.1 if quick else race.LIMIT),
        backend=options.backend,
        n_jobs=options.jobs,
        save=options.write,
    )


def _names(option: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
    unknown = set(text.split("+")) - set(known)
    if unknown:
        sys.exit(f"--{option} {text}: {', '.join(sorted(unknown))} not known; choose of {', '.join(known)}")
    return tuple(text.split("+"))


def live_options(options: argparse.Namespace) -> tuple[Path, live.Plan]:
    """Return the notebook (as named, or in the repository's folder) and the plan that the options ask for."""
    named = Path(options.notebook)
    plan = live.QUICK if options.quick else live.Plan()
    if options.minutes is not None:
        plan = dataclasses.replace(plan, minutes=options.minutes)
    return named if named.is_file() else live.NOTEBOOKS / named, plan


def _print(title: str, body: str) -> None:
    print(f"\n### {title}\n\n{body}\n", flush=True)


if __name__ == "__main__":
    main()
