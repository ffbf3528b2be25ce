"""Command line of the benchmarks."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from p4lab.bench import linear, live, steps, timing
from p4lab.bench.browser import BrowserSetupError


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(prog="python -m p4lab.bench", description=__doc__)
    arguments.add_argument(
        "what", nargs="?", choices=("all", "steps", "linear", "live"), default="all", help="all: steps and linear"
    )
    arguments.add_argument("--quick", action="store_true", help="few sizes, rounds and seeds: a look, no measurement")
    arguments.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    arguments.add_argument("--notebook", default=live.DEFAULT.name, help="live: file name in notebooks/, or a path")
    arguments.add_argument("--minutes", type=float, help="live: how long to watch the memory (default 10)")
    return arguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen benchmarks and print Markdown tables."""
    options = parser().parse_args(arguments)
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
    if options.what == "live":
        try:
            _print(f"The live lab in a browser: {Path(options.notebook).name}", live.live(*live_options(options)))
        except BrowserSetupError as error:
            sys.exit(str(error))


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
