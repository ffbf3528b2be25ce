"""Steps and merges of this checkout beside those of another one, in one process: what a change costs.

``git worktree add ../before COMMIT``, then ``python -m p4lab.bench against --checkout ../before``.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from p4lab.bench.steps import EVERY, training
from p4lab.bench.tables import table
from p4lab.bench.timing import interleaved, median_ratio
from p4lab.errors import ConfigError

SIZES = (8, 64, 256, 512)
"""Widths that are timed."""
BATCH = 512
"""Samples of a step."""
LAYERS: dict[str, Callable[[Any, int], Any]] = {
    "P4Inv": lambda p4, d: p4.P4Inv(d, seed=0),
    "P4Inv paper": lambda p4, d: p4.PAPER.layer(d, seed=0),
    "P4Inv recommended": lambda p4, d: p4.RECOMMENDED.layer(d, seed=0),
    "P4Orthogonal": lambda p4, d: p4.ORTHOGONAL.layer(d, seed=0),
    "P4Reflections": lambda p4, d: p4.P4Reflections(d, rank=8, reset="gradient", seed=0),
    "P4Givens": lambda p4, d: p4.P4Givens(d, rank=4, seed=0),
    "P4SpecialLinear": lambda p4, d: p4.P4SpecialLinear(d, rank=8, reset="gradient", seed=0),
    "P4PositiveDefinite": lambda p4, d: p4.P4PositiveDefinite(d, rank=8, reset="gradient", seed=0),
    "P4Lipschitz": lambda p4, d: p4.P4Lipschitz(d, d, rank=8, reset="gradient", seed=0),
    "P4Circulant": lambda p4, d: p4.P4Circulant(d),
}


def other(checkout: Path) -> ModuleType:
    """Return ``p4lab.p4`` of another checkout; this one's modules stay as they are.

    Raises:
        ConfigError: no package there.
    """
    if not (checkout / "p4lab" / "__init__.py").is_file():
        raise ConfigError(f"{checkout} holds no package p4lab: name the folder of another checkout")
    ours = _take_out()
    sys.path.insert(0, str(checkout.resolve()))
    try:
        return importlib.import_module("p4lab.p4")
    finally:
        sys.path.pop(0)
        _take_out()
        sys.modules.update(ours)


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] == "p4lab"]
    return {name: sys.modules.pop(name) for name in names}


def ten_steps(p4: Any, name: str, dim: int) -> Callable[[], object]:
    """Return ten training steps (forward, backward with input gradient, Adam) with a merge at the end."""
    layer, optimizer, merges, x = _parts(p4, name, dim)
    return training(lambda: layer(x).square().mean(), optimizer, x, merges)


def merge(p4: Any, name: str, dim: int) -> Callable[[], object]:
    """Return a merge, timed together with the backward pass of four samples that it remembers."""
    layer, _, merges, x = _parts(p4, name, dim)
    x = x[:4].detach()

    def run() -> None:
        layer(x).square().mean().backward()
        merges.merge()

    return run


def against(
    checkout: Path | None, sizes: Sequence[int] = SIZES, rounds: int = 15, names: Sequence[str] = tuple(LAYERS)
) -> str:
    """Return a table of times here as a ratio to times there, medians over interleaved rounds.

    Raises:
        ConfigError: no checkout, or no package in it.
    """
    if checkout is None:
        raise ConfigError("against: name the folder of another checkout with --checkout")
    there, here = other(checkout), importlib.import_module("p4lab.p4")
    rows = []
    for name in names:
        row: list[object] = [name]
        for work in (ten_steps, merge):
            for dim in sizes:
                times = interleaved({"there": work(there, name, dim), "here": work(here, name, dim)}, rounds)
                row.append(median_ratio(times["here"], times["there"]))
        rows.append(row)
    return table(["layer", *(f"step, d = {d}" for d in sizes), *(f"merge, d = {d}" for d in sizes)], rows)


def _parts(p4: Any, name: str, dim: int) -> tuple[Any, torch.optim.Optimizer, Any, torch.Tensor]:
    torch.manual_seed(0)
    layer = LAYERS[name](p4, dim)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    merges = p4.MergeSchedule(layer, optimizer, every=EVERY, refine_every=0)
    return layer, optimizer, merges, torch.randn(BATCH, dim).requires_grad_()
