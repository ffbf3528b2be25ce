"""Interleaved timing: every round times every contender, so that a slow minute of the machine hits all of them."""

import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date

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


def machine() -> str:
    """Describe what this ran on, in one line."""
    return (
        f"{date.today()}, {_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format rows as a Markdown table; floats get three significant digits."""
    text = [list(header), *([f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in text) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in text
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux
        return platform.processor() or platform.machine()
