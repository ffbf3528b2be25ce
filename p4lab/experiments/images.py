"""Train a small Glow on digits of 28 x 28 pixels, with four kinds of 1 x 1 convolutions and the same time for each.

    python -m p4lab.experiments.images --clock processor                                   # four mixings, 3 seeds
    python -m p4lab.experiments.images --clock processor --methods p4inv --seeds 1 --seconds 480 --save digits_glow.pt

Prints bits per pixel of 1000 test digits as Markdown. With ``--save`` the flow of the first run is kept, folded.
"""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from p4lab.bench.store import Described, Result, perform
from p4lab.bench.tables import machine, median, method_table
from p4lab.command import Names, command, say
from p4lab.errors import ConfigError
from p4lab.experiments.recurrent import CLOCKS
from p4lab.fit import Fit, fit
from p4lab.flows.counting import effective_parameters
from p4lab.flows.glow import MultiScale, glow
from p4lab.p4 import EVERYTHING
from p4lab.p4.contract import p4_modules
from p4lab.problems.images import CLASSES, SHAPE, TEST, Images
from p4lab.problems.trained_glow import save
from p4lab.training.config import half_cosine

METHODS = ("p4inv", "plu", "dense", "permutation")
"""Mixings that are compared, names of `p4lab.flows.MIXINGS`."""
LEARNING_RATE = 5e-3
"""Peak of Adam's rate, the same for all; it falls to 0 by a half cosine over the time."""
CLIP = 1.0
"""Largest norm of a gradient."""
COLUMNS = {
    "test bits/pixel": ("bits", ".4f"),
    "round trip": ("round_trip", ".0e"),
    "of logits": ("logit_round_trip", ".0e"),
}
COST = {"steps": ("steps", ".0f"), "ms/step": ("ms", ".1f"), "condition": ("condition", ".3g")}


@dataclass(frozen=True)
class Run(Described):
    """One training run, described in full.

    Attributes:
        method: the mixing, a name of `p4lab.flows.MIXINGS`.
        seed: of the flow and the batches.
        seconds: of training.
        clock: what tells them, a name of `CLOCKS`.
        batch: digits of a step.
        levels, blocks, hidden: of `p4lab.flows.glow`.
        learning_rate: peak of Adam's rate.
        test: number of test digits.
    """

    method: str
    seed: int
    seconds: float
    clock: str = "wall"
    batch: int = 32
    levels: int = 2
    blocks: int = 4
    hidden: int = 32
    learning_rate: float = LEARNING_RATE
    test: int = TEST


def train(run: Run, problem: Images) -> tuple[MultiScale, Fit]:
    """Return a flow that has learnt the digits, and where its training ended."""
    flow = glow(SHAPE, run.levels, run.blocks, run.method, run.hidden, CLASSES, run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    problem.initialize(flow, generator)
    optimizer = torch.optim.Adam(flow.parameters(), run.learning_rate)
    ended = fit(
        lambda: problem.loss(flow, problem.batch(run.batch, generator)),
        optimizer,
        seconds=run.seconds,
        schedules=[EVERYTHING.schedule(flow, optimizer) if p4_modules(flow) else None],
        rate=lambda now: run.learning_rate * half_cosine(now.progress),
        clip=CLIP,
        not_finite="stop",
        clock=CLOCKS[run.clock],
    )
    return flow, ended


def evaluate(flow: MultiScale, problem: Images) -> dict[str, float]:
    """Return the metrics of a flow on the test digits.

    Returns:
        "bits" per pixel; "round_trip" of pixels and "logit_round_trip", see `Images.round_trip`; "condition", the
        largest condition number of a mixing matrix.
    """
    pixel, logit = problem.round_trip(flow)
    return {
        "bits": problem.bits(flow),
        "round_trip": pixel,
        "logit_round_trip": logit,
        "condition": flow.condition(),
    }


def work(run: Run) -> Result:
    """Train and evaluate."""
    return outcome(run, *_trained(run))


def _trained(run: Run) -> tuple[MultiScale, Fit, Images]:
    torch.set_num_threads(1)
    problem = Images(test=run.test)
    return *train(run, problem), problem


def outcome(run: Run, flow: MultiScale, ended: Fit, problem: Images) -> Result:
    """Return the metrics of a run, and what it cost."""
    return {
        **evaluate(flow, problem),
        "finite": int(ended.taken),
        "parameters": effective_parameters(flow),
        "steps": ended.step,
        "ms": 1000 * ended.elapsed / max(1, ended.step),
        "seconds": ended.elapsed,
    }


def summary(run: Run, result: Result) -> str:
    """Return a finished run in a line."""
    return f"{run.method}, seed {run.seed}: {result['bits']:.4f} bits/pixel after {result['steps']} steps"


def verdict(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return in a sentence by how much the medians differ from that of P4Inv; "" without it."""
    ours = results.get("p4inv")
    if ours is None or len(results) == 1:
        return ""
    middle = median(run["bits"] for run in ours)
    parts = []
    for method, runs in results.items():
        if method != "p4inv":
            lower = sum(a["bits"] < b["bits"] for a, b in zip(ours, runs, strict=True))
            difference = median(run["bits"] for run in runs) - middle
            parts.append(f"{method} {difference:+.4f} (P4Inv is lower with {lower} of {len(ours)} seeds)")
    return f"Median bits/pixel above P4Inv's {middle:.4f}: {'; '.join(parts)}."


def table_of(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return one row for each mixing: median [min, max] over the seeds."""
    return method_table(results, COLUMNS, lambda run: not run["finite"], COST)


@command(
    "p4lab.experiments.images",
    __doc__,
    {"methods": ("p4inv", "permutation"), "seeds": 1, "seconds": 2.0},
    methods=Names(METHODS),
    seeds=3,
    seconds=60.0,
    batch=32,
    clock=Names(CLOCKS, "wall", one=True),
    file=None,
    save=None,
    jobs=1,
)
def main(options: argparse.Namespace) -> None:
    """Train, evaluate and print the table."""
    torch.set_num_threads(1)
    runs = [
        Run(method, seed, options.seconds, options.clock, options.batch)
        for seed in range(options.seeds)
        for method in options.methods
    ]
    if options.save is not None:
        keep(runs, options.save)
        return
    found = perform(runs, work, summary, options.file, options.jobs)
    results = {name: [found[run.key()] for run in runs if run.method == name] for name in options.methods}
    print(f"{machine()}\n")
    print(f"### Digits, {options.seconds:g} s of training each ({options.clock} clock), batch {options.batch}\n")
    print(f"{table_of(results)}\n\n{verdict(results)}", flush=True)


def keep(runs: list[Run], path: Path) -> None:
    """Do a single run and write its flow to a file.

    Raises:
        ConfigError: there are several runs.
        RunFileError: the file cannot be written.
    """
    if len(runs) > 1:
        raise ConfigError(f"--save keeps one flow, and there are {len(runs)} runs: give one of --methods and --seeds 1")
    (run,) = runs
    flow, ended, problem = _trained(run)
    result = outcome(run, flow, ended, problem)
    save(
        path,
        flow,
        {name: getattr(run, name) for name in ("levels", "blocks", "hidden")},
        {**dataclasses.asdict(run), **result},
    )
    say(f"{summary(run, result)}, kept in {path}")


if __name__ == "__main__":
    main()
