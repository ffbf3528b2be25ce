"""Cost of a training step of every method, log|det| in the loss, as a ratio to `nn.Linear`."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.baselines import METHODS, Method, Rebase, penalty
from p4lab.bench.timing import interleaved, median_ratio, table
from p4lab.p4 import MergeSchedule

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
REFERENCE = "nn.Linear"
P4 = ("p4inv", "p4inv_paper")
SLOW = 1.5
"""Seconds: a method whose step takes longer is timed once there, and not at all at larger widths."""


@dataclass(frozen=True)
class Contender:
    """A method's training step.

    Attributes:
        steps: does ``unit`` optimizer steps, merges included.
        unit: number of steps between merges, 1 for methods without.
        rare: what happens seldom (a refinement, a new base), or None.
        every: steps between those.
    """

    steps: Callable[[], None]
    unit: int = 1
    rare: Callable[[], object] | None = None
    every: int = 1


@dataclass(frozen=True)
class Cell:
    """One width of one method: its ratio to `nn.Linear`, and whether only one step was timed; None: not measured."""

    ratio: float | None
    once: bool = False

    def __str__(self) -> str:
        if self.ratio is None:
            return f"not measured: > {SLOW} s a step"
        return f"~ {self.ratio:.3g}" if self.once else f"{self.ratio:.3g}"


def contender(method: Method, dim: int, batch: int, seed: int = 0) -> Contender:
    """Return a method's training step: forward, backward (input gradient included), optimizer, merges.

    The loss is the mean square of the outputs, minus log|det| / d for methods that know it, plus a penalized method's
    penalty; Adam wherever the method has it.
    """
    layer = method.build(dim, seed=seed)
    optimizer = method.optimizer(layer, 1e-4, "adam" if "adam" in method.optimizers else next(iter(method.optimizers)))
    schedule = method.schedule(layer, optimizer)
    x = torch.randn(batch, dim, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    merges = schedule if isinstance(schedule, MergeSchedule) else None
    rare: Callable[[], object] | None = None
    every = 1
    if merges is not None:
        rare, every = merges.refine, merges.every * merges.refine_every
        merges.refine_every = 0  # timed on its own
    elif isinstance(schedule, Rebase):
        rare, every = schedule.rebase, schedule.every
    unit = merges.every if merges else 1

    def steps() -> None:
        for _ in range(unit):
            optimizer.zero_grad()
            x.grad = None
            _loss(method, layer, x).backward()
            optimizer.step()
            if merges is not None:
                merges.step()

    return Contender(steps, unit, rare, every)


def _loss(method: Method, layer: Any, x: Tensor) -> Tensor:
    if not method.linear:
        y, logabsdet = layer.with_logabsdet(x)
        return y.square().mean() - logabsdet.mean() / layer.dim
    loss: Tensor = layer(x).square().mean() + penalty(layer)
    return loss - layer.logabsdet() / layer.dim if method.exact_logabsdet else loss


def _reference(dim: int, batch: int) -> Contender:
    layer = nn.Linear(dim, dim)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    x = torch.randn(batch, dim, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        layer(x).square().mean().backward()
        optimizer.step()

    return Contender(step)


def methods(
    sizes: Sequence[int] = SIZES, names: Sequence[str] = tuple(METHODS), batch: int = 512, rounds: int = 5
) -> str:
    """Measure training steps of methods at each width.

    Args:
        sizes: widths d, ascending.
        names: of the methods.
        batch: samples per step.
        rounds: interleaved rounds; medians are reported.

    Returns:
        Markdown: ratios by method and width, and for each width which exact methods are ahead of P4Inv.
    """
    cells: dict[str, list[Cell]] = {name: [] for name in names}
    micros = []
    for dim in sizes:
        alive = [
            name for name in names if not cells[name] or not (cells[name][-1].once or cells[name][-1].ratio is None)
        ]
        reference, measured = measure(dim, alive, batch, rounds)
        micros.append(f"{1e6 * reference:.0f}")
        for name in names:
            cells[name].append(measured.get(name, Cell(None)))
        print(f"  d = {dim} done", flush=True)
    rows = [[label(name), "yes" if is_exact(name) else "no", *row] for name, row in cells.items()]
    header = ["method", "exact", *(f"d = {dim}" for dim in sizes)]
    verdicts = [[dim, *verdict({name: row[i] for name, row in cells.items()})] for i, dim in enumerate(sizes)]
    return "\n\n".join(
        [
            table(header, [[f"{REFERENCE} [us]", "no", *micros], *rows]),
            table(["d", *(label(name) for name in P4), "exact methods ahead of both", "exact methods"], verdicts),
        ]
    )


def measure(dim: int, names: Sequence[str], batch: int, rounds: int) -> tuple[float, dict[str, Cell]]:
    """Return the seconds of a step of `nn.Linear` at a width, and the methods' ratios to it."""
    made = {REFERENCE: _reference(dim, batch)}
    once: dict[str, float] = {}
    for name in names:
        one = contender(METHODS[name], dim, batch)
        seconds = _seconds(one.steps) / one.unit
        if seconds > SLOW:
            seconds = min(seconds, _seconds(one.steps) / one.unit)  # the first one had buffers to allocate
        if seconds > SLOW:
            once[name] = seconds
        else:
            made[name] = one
    rare = {name: one.rare for name, one in made.items() if one.rare is not None}
    seldom = {name: min(_seconds(call) for _ in range(3)) / made[name].every for name, call in rare.items()}
    times = interleaved({name: one.steps for name, one in made.items()}, rounds)
    steps = {name: [t / made[name].unit + seldom.get(name, 0.0) for t in values] for name, values in times.items()}
    reference = steps.pop(REFERENCE)
    middle = statistics.median(reference)
    cells = {name: Cell(median_ratio(values, reference)) for name, values in steps.items()}
    return middle, cells | {name: Cell(seconds / middle, once=True) for name, seconds in once.items()}


def verdict(row: dict[str, Cell]) -> list[object]:
    """Return the ratios of both P4Inv presets at a width, the exact methods ahead of both, and how many there are."""
    ratios = {name: cell.ratio for name, cell in row.items() if cell.ratio is not None}
    own = min((ratios[name] for name in P4 if name in ratios), default=0.0)
    rivals = [name for name in row if is_exact(name) and name not in P4]
    ahead = sorted((ratio, name) for name, ratio in ratios.items() if name in rivals and ratio < own)
    text = ", ".join(f"{label(name)} ({ratio:.3g})" for ratio, name in itertools.islice(ahead, 5))
    more = f" and {len(ahead) - 5} more" * (len(ahead) > 5)
    return [*(ratios.get(name, "-") for name in P4), text + more or "none", len(rivals)]


def label(name: str) -> str:
    """Return what a method is called in a Markdown table."""
    return METHODS[name].label.replace("|", r"\|")


def is_exact(name: str) -> bool:
    """Return whether a method gives inverse and log|det| that are exact to rounding."""
    return METHODS[name].exact_inverse and METHODS[name].exact_logabsdet


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
