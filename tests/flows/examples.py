"""Flows of every architecture in the midst of training: nothing is at its start any more."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from p4lab.flows import (
    MIXINGS,
    ActNorm,
    BentIdentity,
    Flow,
    Permutation,
    Standardize,
    Whitening,
    p4inv_bent,
    realnvp,
    spline_flow,
)
from p4lab.p4 import P4Inv

Maker = Callable[..., Flow]


def mixed(dim: int, dtype: torch.dtype = torch.float64) -> Flow:
    """Every other kind of layer in one flow."""
    data = 2 * torch.randn(50, dim, generator=torch.Generator().manual_seed(1), dtype=dtype) + 1
    return Flow(
        [
            Standardize.fit(data),
            Whitening.fit(data),
            P4Inv(dim, seed=0, dtype=dtype),
            ActNorm(dim, dtype=dtype),
            BentIdentity(),
            Permutation.reverse(dim),
            BentIdentity(inverted=True),
            P4Inv(dim, rank=dim, train_v=True, reset="gradient", seed=1, dtype=dtype),
        ]
    )


ARCHITECTURES: dict[str, Maker] = {
    "p4inv_bent": lambda dim, dtype=torch.float64: p4inv_bent(dim, 3, seed=3, dtype=dtype),
    "mixed": mixed,
    **{
        f"realnvp-{name}": lambda dim, dtype=torch.float64, name=name: realnvp(
            dim, 3, name, hidden=8, seed=3, dtype=dtype
        )
        for name in MIXINGS
    },
    "spline-swap": lambda dim, dtype=torch.float64: spline_flow(dim, 2, bins=5, hidden=8, seed=3, dtype=dtype),
    "spline-p4inv": lambda dim, dtype=torch.float64: spline_flow(
        dim, 2, "p4inv", bins=5, hidden=8, seed=3, dtype=dtype
    ),
}


def disturb(flow: nn.Module, size: float = 0.1, seed: int = 5) -> None:
    """Move every parameter at random, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter.dtype))


def amid_training(name: str, dim: int, dtype: torch.dtype = torch.float64, size: float = 0.1) -> Flow:
    """Return a flow of `ARCHITECTURES` with disturbed parameters."""
    flow = ARCHITECTURES[name](dim, dtype=dtype)
    disturb(flow, size)
    return flow
