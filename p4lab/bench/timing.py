"""Interleaved timing: every round times every contender, so that a slow minute of the machine hits all of them."""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 9, seconds: float = 0.03
) -> dict[str, list[float]]:
    """Time callables in rounds of random order.

    Args:
        contenders: name to callable; each is called twice beforehand to warm up.
        rounds: number of rounds.
        seconds: least duration of one timing; a callable is repeated to reach it.

    Returns:
        Seconds per call, one value per round, by name.
    """
    repeats = {}
    for name, call in contenders.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, math.ceil(seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            call, n = contenders[name], repeats[name]
            start = time.perf_counter()
            for _ in range(n):
                call()
            times[name].append((time.perf_counter() - start) / n)
    return times


def median_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median over rounds of the ratio to a reference timed in the same round."""
    return statistics.median(t / r for t, r in zip(times, reference, strict=True))


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Return the slope p of a least-squares fit ``seconds ~ size^p``."""
    x, y = [math.log(s) for s in sizes], [math.log(t) for t in seconds]
    return statistics.linear_regression(x, y).slope


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one torch thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
