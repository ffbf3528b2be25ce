"""Interleaved timing: every round times every contender, so that a slow minute of the machine hits all of them."""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

Timer = Callable[[Callable[[], object], int], float]
"""Returns the seconds that so many calls take, one after the other."""


def by_clock(call: Callable[[], object], number: int) -> float:
    """Return the seconds that calls take by the clock of the host, which is right where they end when they return."""
    start = time.perf_counter()
    for _ in range(number):
        call()
    return time.perf_counter() - start


def timer_of(device: str) -> Timer:
    """Return what times calls on a device: the clock for the CPU, two of the device's own events for others.

    Events are recorded among the work that calls hand to the device, so that they tell when it was done, and nobody
    waits before the last of the calls.
    """
    if device == "cpu":
        return by_clock
    module = torch.get_device_module(device)

    def by_events(call: Callable[[], object], number: int) -> float:
        start, end = (module.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(number):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return by_events


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 9, seconds: float = 0.03, timer: Timer = by_clock
) -> dict[str, list[float]]:
    """Time callables in rounds of random order.

    Args:
        contenders: name to callable; each is called twice beforehand to warm up.
        rounds: number of rounds.
        seconds: least duration of one timing; a callable is repeated to reach it.
        timer: what tells the seconds, see `timer_of`.

    Returns:
        Seconds per call, one value per round, by name.
    """
    repeats = {}
    for name, call in contenders.items():
        timer(call, 1)
        repeats[name] = max(1, math.ceil(seconds / timer(call, 1)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            times[name].append(timer(contenders[name], repeats[name]) / repeats[name])
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
