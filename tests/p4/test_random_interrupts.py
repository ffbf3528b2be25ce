"""A thousand interrupts of plain training loops by real signals: what is left is right, wherever they strike."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from p4.interrupts import Run, Struck, beyond, cancellation, defects, layers, outputs, struck_within, width

EVERY, REFINE_EVERY = 3, 4
CYCLE = EVERY * REFINE_EVERY
TOLERANCE = 1e-8

VARIANTS = [variant for subject in layers(48, 8) for variant in subject.variants()]
INTERRUPTS = -(-1000 // len(VARIANTS))
RANKS = {32: 8, 48: 4, 64: 16}


class Loop:
    """The training loop that a user writes, and what is known of the moment at which it stops."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.run = Run(make(seed=1, dtype=torch.float64), every=EVERY, refine_every=REFINE_EVERY)
        self.x = torch.randn(5, width(self.run.model), dtype=torch.float64)
        self.y = self.x
        self.durations: list[float] = []

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.run.train(1, seed=random.getrandbits(32))
            self.look()
            start = time.perf_counter()
            self.merge()
            self.durations.append(time.perf_counter() - start)

    def train_until_due(self) -> None:
        """Stop before a merge."""
        while not self.run.merges.due:
            self.train(1)
        self.look()

    def look(self) -> None:
        """Note what the layer computes."""
        with torch.no_grad():
            self.y = outputs(self.run.model, self.x)

    def merge(self) -> None:
        self.run.merges.step()

    def struck_while_merging(self, struck: Struck) -> bool:
        """Whether the frame of `merge` is among those that the interrupt went through."""
        frames = traceback.walk_tb(struck.__traceback__)
        return any(frame.f_code is Loop.merge.__code__ for frame, _ in frames)

    def wrong(self, after_merge: bool) -> list[str]:
        """What does not hold; after an interrupted merge, that the function is what it was, too."""
        figures = defects(self.run.model, self.x)
        if after_merge:
            with torch.no_grad():
                figures["function"] = float((outputs(self.run.model, self.x) - self.y).abs().max())
        for i, state in enumerate(self.run.optimizer.state.values()):
            figures[f"momentum {i}"] = float(state["momentum_buffer"].abs().max())
        limits = {name: 1e3 if name.startswith("momentum") else TOLERANCE for name in figures}
        inverses = [name for name in figures if "inverse" in name]
        limits |= dict.fromkeys(inverses, max(TOLERANCE, cancellation(self.run.model)))
        return [text for name in figures for text in beyond({name: figures[name]}, limits[name])]


@pytest.mark.parametrize("index", range(len(VARIANTS)), ids=[name for name, _ in VARIANTS])
def test_interrupts_at_random(index: int, record_property: Callable[[str, object], None]) -> None:
    dim = (32, 48, 64)[index % 3]
    make = [make for subject in layers(dim, RANKS[dim]) for _, make in subject.variants()][index]
    loop = Loop(make)
    loop.train(CYCLE)  # warm: what happens once takes its time
    start = time.perf_counter()
    loop.train(CYCLE)
    cycle, merging = time.perf_counter() - start, sorted(loop.durations[CYCLE:])[-3]  # the longest may be an accident
    struck, inside, wrong = 0, 0, []
    for attempt in range(20 * INTERRUPTS):
        if struck == INTERRUPTS:
            break
        if attempt % 2:  # anywhere
            where = struck_within(1e-6 + random.random() * 2 * cycle, lambda: loop.train(4 * CYCLE))
        else:  # around a merge
            loop.train_until_due()
            where = struck_within(1e-6 + random.random() * 1.2 * merging, loop.merge)
        if where is None:
            continue
        struck += 1
        merged = loop.struck_while_merging(where)
        inside += merged
        wrong += [f"{found_where(where)}: {problem}" for problem in loop.wrong(merged)]
        if wrong:
            break
    record_property("struck", struck)
    record_property("while merging", inside)
    print(f"{struck} struck, {inside} while merging", end="  ")
    assert not wrong, f"after interrupt {struck} ({inside} while merging)\n" + "\n".join(wrong)
    assert struck == INTERRUPTS
    assert inside >= 2, "too few struck a merge for this test to mean anything"


def found_where(struck: Struck) -> str:
    """The innermost lines of p4lab that an interrupt went through."""
    frames = [f"{f.f_code.co_filename}:{line}" for f, line in traceback.walk_tb(struck.__traceback__)]
    return " > ".join(place.rpartition("/")[2] for place in frames if "/p4lab/" in place) or "outside of p4lab"
