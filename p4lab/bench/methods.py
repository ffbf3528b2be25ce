"""Cost of a training step of every method, log|det| in the loss, as a ratio to `nn.Linear`."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p4lab.baselines import METHODS, Method, Rebase, penalty
from p4lab.bench.steps import REFERENCE, batch_of, training
from p4lab.bench.tables import table
from p4lab.bench.timing import Timer, by_clock, interleaved, median_ratio, timer_of
from p4lab.command import say
from p4lab.p4 import MergeSchedule

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Widths that are timed."""
P4 = tuple(name for name, method in METHODS.items() if method.preset is not None and method.group == "invertible")
"""P4's own methods on GL(n)."""
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

    steps: Callable[[], object]
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


def contender(method: Method | None, dim: int, batch: int, seed: int = 0) -> Contender:
    """Return a method's training step (None: that of `nn.Linear`): forward, backward, optimizer, merges.

    The loss is the mean square of the outputs, minus log|det| / d for methods that know it, plus a penalized method's
    penalty; Adam wherever the method has it. The input has a gradient.
    """
    x = batch_of(batch, dim, seed)
    if method is None:
        linear = nn.Linear(dim, dim)
        optimizer: Optimizer = torch.optim.Adam(linear.parameters(), lr=1e-4)
        return Contender(training(lambda: linear(x).square().mean(), optimizer, x, steps=1))
    layer = method.build(dim, seed=seed)
    optimizer = method.optimizer(layer, 1e-4, "adam" if "adam" in method.optimizers else next(iter(method.optimizers)))
    schedule = method.schedule(layer, optimizer)
    loss = partial(_loss, method, layer, x)
    if isinstance(schedule, MergeSchedule):
        every = schedule.every * schedule.refine_every
        schedule.refine_every = 0  # timed on its own
        return Contender(training(loss, optimizer, x, schedule, schedule.every), schedule.every, schedule.refine, every)
    one = training(loss, optimizer, x, steps=1)
    return Contender(one, 1, schedule.rebase, schedule.every) if isinstance(schedule, Rebase) else Contender(one)


def _loss(method: Method, layer: Any, x: Tensor) -> Tensor:
    if not method.linear:
        y, logabsdet = layer.with_logabsdet(x)
        return y.square().mean() - logabsdet.mean() / layer.dim
    loss: Tensor = layer(x).square().mean() + penalty(layer)
    return loss - layer.logabsdet() / layer.dim if method.has_likelihood else loss


def seconds_of_steps(
    contenders: Mapping[str, Contender], rounds: int, timer: Timer = by_clock
) -> dict[str, list[float]]:
    """Return the seconds of a step of each contender, with its share of what happens seldom, one for each round."""
    rare = {name: min(timer(one.rare, 1) for _ in range(3)) / one.every for name, one in contenders.items() if one.rare}
    times = interleaved({name: one.steps for name, one in contenders.items()}, rounds, timer=timer)
    return {name: [t / contenders[name].unit + rare.get(name, 0.0) for t in values] for name, values in times.items()}


def methods(
    sizes: Sequence[int] = SIZES,
    names: Sequence[str] = tuple(METHODS),
    batch: int = 512,
    rounds: int = 5,
    device: str = "cpu",
) -> str:
    """Measure training steps of methods at each width.

    Args:
        sizes: widths d, ascending.
        names: of the methods.
        batch: samples per step.
        rounds: interleaved rounds; medians are reported.
        device: where all of it happens.

    Returns:
        Markdown: ratios by method and width, and for each width which exact methods are ahead of P4Inv.
    """
    cells: dict[str, list[Cell]] = {name: [] for name in names}
    micros = []
    for dim in sizes:
        alive = [
            name for name in names if not cells[name] or not (cells[name][-1].once or cells[name][-1].ratio is None)
        ]
        reference, measured = measure(dim, alive, batch, rounds, device)
        micros.append(f"{1e6 * reference:.0f}")
        for name in names:
            cells[name].append(measured.get(name, Cell(None)))
        say(f"d = {dim} done")
    rows = [[label(name), "yes" if is_exact(name) else "no", *row] for name, row in cells.items()]
    header = ["method", "exact", *(f"d = {dim}" for dim in sizes)]
    verdicts = [[dim, *verdict({name: row[i] for name, row in cells.items()})] for i, dim in enumerate(sizes)]
    return "\n\n".join(
        [
            table(header, [[f"{REFERENCE} [us]", "no", *micros], *rows]),
            table(["d", *(label(name) for name in P4), "exact methods ahead of these", "exact methods"], verdicts),
        ]
    )


def measure(
    dim: int, names: Sequence[str], batch: int, rounds: int, device: str = "cpu"
) -> tuple[float, dict[str, Cell]]:
    """Return the seconds of a step of `nn.Linear` at a width, and the methods' ratios to it."""
    timer = timer_of(device)
    with torch.device(device):
        contenders = {REFERENCE: contender(None, dim, batch)}
    once: dict[str, float] = {}
    for name in names:
        with torch.device(device):
            one = contender(METHODS[name], dim, batch)
        seconds = timer(one.steps, 1) / one.unit
        if seconds > SLOW:
            seconds = min(seconds, timer(one.steps, 1) / one.unit)  # the first one had buffers to allocate
        if seconds > SLOW:
            once[name] = seconds
        else:
            contenders[name] = one
    steps = seconds_of_steps(contenders, rounds, timer)
    reference = steps.pop(REFERENCE)
    middle = statistics.median(reference)
    cells = {name: Cell(median_ratio(values, reference)) for name, values in steps.items()}
    return middle, cells | {name: Cell(seconds / middle, once=True) for name, seconds in once.items()}


def verdict(row: dict[str, Cell]) -> list[object]:
    """Return the ratios of P4 methods at a width, the exact methods ahead of all of these, and how many there are."""
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
