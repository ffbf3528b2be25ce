"""Train a transformer of characters with plain weights, by P4 with a property, and by POET, for the same time."""

import argparse
import math
import time
from dataclasses import dataclass

import torch

from p4lab.baselines.poet import PoetSchedule
from p4lab.bench.tables import machine, median, spread, table
from p4lab.command import Names, command, say
from p4lab.fit import Fit, fit
from p4lab.p4 import p4_modules
from p4lab.problems import bits
from p4lab.problems.character_ways import RANK, WARM_UP, WAYS, build, optimizer_of
from p4lab.problems.characters import Characters
from p4lab.training.config import half_cosine

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
"""The grid, the same for all: AdamW's rate for what turns, or for all that is plain."""
CLIP = 1.0
SEED = 1000
"""The seed of tuning; the reported runs have others."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: test loss (nats per character), steps, seconds of a step, and how far the spectrum drifted."""

    loss: float
    steps: int
    seconds: float
    drift: float


def train(way: str, options: argparse.Namespace, seed: int, rate: float, seconds: float) -> Outcome:
    """Train one model for some seconds of the processor's time, with a cosine of learning rates."""
    problem = Characters(options.length)
    model = build(way, options.dim, options.blocks, options.length, RANK, seed)
    optimizer = optimizer_of(way, model)
    optimizer.param_groups[0]["lr"] = rate
    rates = [group["lr"] for group in optimizer.param_groups]
    merges = WAYS[way].schedule
    schedule = None if merges is None else merges(model, optimizer)
    generator = torch.Generator().manual_seed(seed)

    def follow(now: Fit) -> None:
        factor = min(1.0, (now.step + 1) / WARM_UP) * half_cosine(now.progress)
        for group, own in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = factor * own

    end = fit(
        lambda: problem.loss(model, problem.batch(options.batch, generator)),
        optimizer,
        seconds=seconds,
        schedules=[schedule],
        clip=schedule.limit if isinstance(schedule, PoetSchedule) else CLIP,
        not_finite="stop",
        after=follow,
        clock=time.process_time,
    )
    loss = float(problem.test_loss(model)) if end.taken else math.inf
    drifts = [float(layer.violation()) for layer in p4_modules(model)]
    return Outcome(loss, end.step, end.elapsed / max(1, end.step), max(drifts, default=math.nan))


def compare(options: argparse.Namespace) -> str:
    """Tune and train every way, and return a Markdown table; the last column compares steps side by side."""
    rows = []
    runs: dict[str, list[Outcome]] = {}
    rates = {}
    for way in options.methods:
        trials = (
            {rate: train(way, options, SEED, rate, options.tuning).loss for rate in RATES} if options.tuning else {}
        )
        rates[way] = min(trials, key=lambda rate: trials[rate]) if trials else WAYS[way].rate
        say(f"{way}: rate {rates[way]:g} of {trials}")
    for seed in range(options.seeds):
        for way in options.methods:
            runs.setdefault(way, []).append(train(way, options, seed, rates[way], options.seconds))
            say(f"seed {seed}, {way}: {runs[way][-1]}")
    plain = median(run.seconds for run in runs[options.methods[0]])
    for way, outcomes in runs.items():
        step = median(run.seconds for run in outcomes)
        rows.append(
            [
                WAYS[way].label,
                f"{rates[way]:g}",
                spread([run.loss for run in outcomes], ".3f", "–"),
                f"{bits(median(run.loss for run in outcomes)):.3f}",
                spread([run.steps for run in outcomes], ".0f", "–"),
                f"{1e3 * step:.1f}",
                f"{step / plain:.2f}",
                f"{max(run.drift for run in outcomes):.0e}",
            ]
        )
    return table(("weights", "rate", "test loss", "bits", "steps", "ms/step", "× first", "violation"), rows)


@command(
    "p4lab.experiments.characters",
    __doc__,
    {"seconds": 2.0, "tuning": 0.0, "seeds": 1, "dim": 64},
    methods=Names(WAYS),
    dim=128,
    blocks=2,
    length=64,
    batch=16,
    seconds=60.0,
    tuning=20.0,
    seeds=3,
)
def main(options: argparse.Namespace) -> None:
    """Tune, train, and print a table."""
    torch.set_num_threads(1)  # as in the lab
    print(machine())
    print(
        f"\n### Characters of Python's library: width {options.dim}, {options.blocks} blocks, windows of "
        f"{options.length}, batch {options.batch}, {options.seconds:g} s each (processor time, one thread)\n"
    )
    print(compare(options), flush=True)


if __name__ == "__main__":
    main()
