"""Cost of a training step of every P4 property (forward, backward, Adam, merge every 10), as a ratio to `nn.Linear`."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.bench.steps import EVERY, REFERENCE
from p4lab.bench.timing import exponent, interleaved, median_ratio, table
from p4lab.p4 import (
    MergeSchedule,
    P4Circulant,
    P4Inv,
    P4Lipschitz,
    P4Orthogonal,
    P4Permutation,
    P4PositiveDefinite,
    P4SpecialLinear,
)

SIZES = (16, 32, 64, 128, 256, 512, 1024)
LARGE = 128
RANK = 8
ITEMS = 8
"""Items of a set: a batch of 512 is then 64 sets."""

LAYERS: dict[str, Callable[[int], Any]] = {
    "invertible": lambda dim: P4Inv(dim, rank=RANK, seed=0),
    "orthogonal": lambda dim: P4Orthogonal(dim, rank=RANK, seed=0),
    "special linear": lambda dim: P4SpecialLinear(dim, rank=RANK, seed=0),
    "positive definite": lambda dim: P4PositiveDefinite(dim, rank=RANK, seed=0),
    "Lipschitz": lambda dim: P4Lipschitz(dim, dim, rank=RANK, seed=0),
    "circulant": P4Circulant,
    "permutation": lambda dim: P4Permutation(dim, rank=RANK, seed=0),
}


def properties(
    sizes: Sequence[int] = SIZES, batch: int = 512, rounds: int = 9, names: Sequence[str] = tuple(LAYERS)
) -> str:
    """Measure training steps of each property for each width, plain and with log|det| in the loss.

    Args:
        sizes: widths d.
        batch: samples per step (items, for the permutation-equivariant layer).
        rounds: interleaved rounds; medians are reported.
        names: of `LAYERS`.

    Returns:
        Markdown: step time as a ratio to `nn.Linear`, merges included, and growth exponents for large widths.
    """
    seconds: dict[str, list[float]] = {}
    rows: list[list[object]] = []
    for dim in sizes:
        times = interleaved({REFERENCE: steps(None, dim, batch), **_contenders(dim, batch, names)}, rounds)
        reference = times[REFERENCE]
        for name, values in times.items():
            seconds.setdefault(name, []).append(statistics.median(values))
        microseconds = statistics.median(reference) / EVERY * 1e6
        rows.append([dim, f"{microseconds:.0f}", *(median_ratio(times[n], reference) for n in times if n != REFERENCE)])
        print(f"  d = {dim} done", flush=True)

    header = list(seconds)
    parts = [table(["d", f"{REFERENCE} [us]", *header[1:]], rows)]
    large = [i for i, dim in enumerate(sizes) if dim >= LARGE]
    if len(large) >= 2:
        slopes = [[n, exponent([sizes[i] for i in large], [t[i] for i in large])] for n, t in seconds.items()]
        parts.append(table([f"time ~ d^p, d >= {LARGE}", "p"], slopes))
    return "\n\n".join(parts)


def steps(name: str | None, dim: int, batch: int, with_logabsdet: bool = False) -> Callable[[], None]:
    """Return ten training steps of a property (None: of `nn.Linear`), the tenth with its merge."""
    layer: Any = nn.Linear(dim, dim) if name is None else LAYERS[name](dim)
    items = (ITEMS,) if name == "permutation" else ()
    x = torch.randn(batch, dim, generator=torch.Generator().manual_seed(0))
    x = (x.view(-1, ITEMS, dim) if items else x).requires_grad_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    merges = None if name is None else MergeSchedule(layer, optimizer, every=EVERY, refine_every=50)

    def loss() -> Tensor:
        squares: Tensor = layer(x).square().mean()
        return squares - layer.logabsdet(*items) / dim if with_logabsdet else squares

    def ten_steps() -> None:
        for _ in range(EVERY):
            optimizer.zero_grad()
            x.grad = None
            loss().backward()
            optimizer.step()
            if merges is not None:
                merges.step()

    return ten_steps


def _contenders(dim: int, batch: int, names: Sequence[str]) -> dict[str, Callable[[], object]]:
    contenders: dict[str, Callable[[], object]] = {name: steps(name, dim, batch) for name in names}
    for name in ("positive definite", "circulant", "permutation"):
        if name in names:
            contenders[f"{name} + logdet"] = steps(name, dim, batch, with_logabsdet=True)
    return contenders
