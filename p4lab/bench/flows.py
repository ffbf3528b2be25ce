"""What flows cost: a small live flow, the digits' flow, sampling, and zuko's interface around the same layers."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Adam

from p4lab.bench.steps import batch_of, training
from p4lab.bench.tables import table
from p4lab.bench.timing import interleaved, median_ratio
from p4lab.flows import p4inv_bent, to_zuko
from p4lab.p4 import RECOMMENDED
from p4lab.training import DigitsConfig, Engine

BLOCKS = 8
"""Blocks of the 2D flow."""
BATCH = 256
"""Points of its training step."""
SAMPLES = 100_000
"""Points that are drawn from it at a time."""
ROUNDS = 9
"""Rounds in which everything is timed once."""


def flows(rounds: int = ROUNDS) -> str:
    """Time each part and return a Markdown table with the targets beside the figures.

    Everything is timed in rounds of random order, so that a slow minute of the machine hits all alike: medians over
    the rounds. Training steps are forward, backward, Adam and the merges of the recommended preset.

    Args:
        rounds: number of rounds.
    """
    digits = Engine(DigitsConfig(threads=torch.get_num_threads()))
    direct, zuko = p4inv_bent(2, BLOCKS), to_zuko(p4inv_bent(2, BLOCKS))
    folded = p4inv_bent(2, BLOCKS).fold()
    contenders = {
        "direct": training_step(direct, direct.log_prob),
        "zuko": training_step(zuko, lambda x: zuko().log_prob(x)),
        "digits": lambda: digits.run(1),
        "sample": lambda: folded.sample(SAMPLES),
    }
    times = interleaved(contenders, rounds=rounds, seconds=0.3)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratio = median_ratio(times["zuko"], times["direct"])
    return table(
        ("what", "figure", "target"),
        [
            (f"2D, P4Inv + Bent, {BLOCKS} blocks, batch {BATCH}: steps/s", _rate(seconds["direct"]), ">= 200"),
            ("the same layers as a zuko flow: steps/s", _rate(seconds["zuko"]), ""),
            ("time of a step, zuko / direct", f"{ratio:.2f}", "<= 1.5"),
            ("digits (DigitsConfig, run by the engine): steps/s", _rate(seconds["digits"]), ">= 60"),
            (f"{SAMPLES:,} samples of the folded 2D flow: s", f"{seconds['sample']:.3f}", "<= 1"),
        ],
    )


def training_step(model: nn.Module, log_prob: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """Return a function that trains a 2D flow with P4Inv layers by one step, merges included.

    Args:
        model: the flow.
        log_prob: its log-density, shape (B,), for points (B, 2).
    """
    optimizer = Adam(model.parameters(), lr=1e-3)
    x = batch_of(BATCH, 2, gradient=False)
    return training(lambda: -log_prob(x).mean(), optimizer, x, RECOMMENDED.schedule(model, optimizer), steps=1)


def _rate(seconds: float) -> str:
    return f"{1 / seconds:.0f}"
