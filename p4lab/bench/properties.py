"""Cost of a training step of every P4 property (forward, backward, Adam, merge every 10), as a ratio to `nn.Linear`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.bench.steps import EVERY, REFERENCE, batch_of, growth, training
from p4lab.p4 import (
    MergeSchedule,
    P4Circulant,
    P4Inv,
    P4Lipschitz,
    P4Orthogonal,
    P4Permutation,
    P4PositiveDefinite,
    P4SpecialLinear,
    P4Spectrum,
    P4Stiefel,
)

SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Widths that are timed."""
LARGE = 128
"""Widths from which the growth of times is fitted."""
RANK = 8
"""Rank of the perturbations, where they have one."""
ITEMS = 8
"""Items of a set: a batch of 512 is then 64 sets."""

LAYERS: dict[str, Callable[[int], Any]] = {
    "invertible": lambda dim: P4Inv(dim, rank=RANK, seed=0),
    "orthogonal": lambda dim: P4Orthogonal(dim, rank=RANK, seed=0),
    "special linear": lambda dim: P4SpecialLinear(dim, rank=RANK, seed=0),
    "positive definite": lambda dim: P4PositiveDefinite(dim, rank=RANK, seed=0),
    "Lipschitz": lambda dim: P4Lipschitz(dim, dim, rank=RANK, seed=0),
    "orthonormal": lambda dim: P4Stiefel(dim, dim, rank=RANK, seed=0),
    "spectrum": lambda dim: P4Spectrum(dim, dim, rank=RANK, seed=0),
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
    return growth(lambda dim: [_contenders(dim, batch, names)], sizes, rounds, LARGE)


def steps(name: str | None, dim: int, batch: int, with_logabsdet: bool = False) -> Callable[[], object]:
    """Return ten training steps of a property (None: of `nn.Linear`), the tenth with its merge."""
    layer: Any = nn.Linear(dim, dim) if name is None else LAYERS[name](dim)
    items = (ITEMS,) if name == "permutation" else ()
    x = batch_of(batch, dim, gradient=False)
    x = (x.view(-1, ITEMS, dim) if items else x).requires_grad_()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    merges = None if name is None else MergeSchedule(layer, optimizer, every=EVERY, refine_every=50)

    def loss() -> Tensor:
        squares: Tensor = layer(x).square().mean()
        return squares - layer.logabsdet(*items) / dim if with_logabsdet else squares

    return training(loss, optimizer, x, merges)


def _contenders(dim: int, batch: int, names: Sequence[str]) -> dict[str, Callable[[], object]]:
    determined = [name for name in ("positive definite", "circulant", "permutation") if name in names]
    return {
        REFERENCE: steps(None, dim, batch),
        **{name: steps(name, dim, batch) for name in names},
        **{f"{name} + logdet": steps(name, dim, batch, with_logabsdet=True) for name in determined},
    }
