"""The P4 layers beyond P4Inv, each with its dense twin: one list that all harnesses run through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from p4.dense_twin import OPERATIONS, WEIGHTS, Tensors
from torch import Tensor, nn

from p4lab.p4 import (
    P4Circulant,
    P4Lipschitz,
    P4Permutation,
    P4PositiveDefinite,
    P4Spectrum,
    P4Stiefel,
    p4_modules,
)

BOUND = 0.7
ITEMS = 3


class Sets(nn.Module):
    """A P4Permutation on sets of ITEMS items that are laid out as one vector."""

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.layer = P4Permutation(channels, bias=False, **options)
        self.dim = ITEMS * channels

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unflatten(-1, (ITEMS, -1))).flatten(-2)

    def inverse(self, y: Tensor) -> Tensor:
        return self.layer.inverse(y.unflatten(-1, (ITEMS, -1))).flatten(-2)

    def logabsdet(self) -> Tensor:
        return self.layer.logabsdet(ITEMS)

    @property
    def weight(self) -> Tensor:
        return self.layer.weight(ITEMS)

    @property
    def weight_inverse(self) -> Tensor:
        return self.layer.weight_inverse(ITEMS)


def spd(dim: int) -> Tensor:
    """A random positive definite matrix with eigenvalues from 1/2 to 2."""
    q = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    a = q * torch.logspace(-1, 1, dim, base=2, dtype=torch.float64) @ q.T
    return (a + a.T) / 2


def short_kernel(dim: int) -> Tensor:
    """A kernel whose Fourier transform stays away from zero."""
    return torch.eye(dim, dtype=torch.float64)[0] + 0.5 * torch.randn(dim, dtype=torch.float64) / dim


@dataclass(frozen=True)
class Case:
    """One property.

    Attributes:
        name: test id.
        make: (width, rank, further options) to a layer with a frozen tensor of no special structure.
        operations: what it can do.
        twin: from its tensors to its weights, by explicit algebra.
        kind: its class.
        resets: whether it has directions to redraw.
    """

    name: str
    make: Callable[..., Any]
    kind: type[nn.Module]
    twin: Callable[[Tensors], Tensor]
    operations: tuple[str, ...] = OPERATIONS
    resets: bool = True

    def perturbed(
        self, dim: int, rank: int = 1, dtype: torch.dtype = torch.float64, size: float = 0.3, **options: Any
    ) -> Any:
        """A layer amid training: non-zero perturbation and bias."""
        layer = self.make(dim, rank, dtype=dtype, **options)
        perturb(layer, size)
        return layer


def perturb(model: nn.Module, size: float = 0.3) -> None:
    with torch.no_grad():
        for layer in p4_modules(model):
            layer.u.copy_(size * torch.randn_like(layer.u) / layer.u.numel() ** 0.5)
            if layer.bias is not None:
                layer.bias.normal_()


def positive_definite_twin(t: Tensors) -> Tensor:
    f = torch.eye(t["u"].shape[1], dtype=torch.float64) + t["u"].T @ t["v"]
    return f.T @ t["frozen_weight"] @ f


def lipschitz_twin(t: Tensors) -> Tensor:
    u = t["u"] / (1 + t["u"].square().sum() / 4).sqrt()
    k = u.T @ t["v"] - t["v"].T @ u
    eye = torch.eye(len(k), dtype=torch.float64)
    frame = t["frozen_frame"]
    return (frame @ torch.linalg.solve(eye - k / 2, eye + k / 2))[:, : len(k) - len(frame)]


def circulant_twin(t: Tensors) -> Tensor:
    kernel = t["frozen_kernel"] + t["u"]
    return torch.stack([kernel.roll(j) for j in range(len(kernel))], 1)


def permutation_twin(t: Tensors) -> Tensor:
    deviation, mean = (
        t[f"layer.{part}.frozen_weight"] + t[f"layer.{part}.u"].T @ t[f"layer.{part}.v"]
        for part in ("deviation", "mean")
    )
    blocks = torch.eye(ITEMS, dtype=torch.float64)[:, :, None, None] * deviation + (mean - deviation) / ITEMS
    return blocks.permute(0, 2, 1, 3).reshape(ITEMS * len(mean), -1)


def cayley(u: Tensor, v: Tensor) -> Tensor:
    s = u.T @ v - v.T @ u
    eye = torch.eye(len(s), dtype=torch.float64)
    return torch.linalg.solve(eye + s / 2, eye - s / 2)


def stiefel_twin(t: Tensors) -> Tensor:
    w = cayley(t["u"], t["v"]) @ t["frozen_frame"]
    return w if len(t["bias"]) == len(w) else w.T


def spectrum_twin(t: Tensors) -> Tensor:
    a = t["frozen_weight"]
    (u_out, u_in), (v_out, v_in) = (t[name].split(a.shape, 1) for name in ("u", "v"))
    return cayley(u_out, v_out) @ a @ cayley(u_in, v_in)


def make_positive_definite(dim: int, rank: int, **options: Any) -> P4PositiveDefinite:
    return P4PositiveDefinite(dim, **({"rank": rank, "init": spd(dim), "seed": 1} | options))


def make_lipschitz(dim: int, rank: int, **options: Any) -> P4Lipschitz:
    return P4Lipschitz(dim, dim, **({"bound": BOUND, "rank": min(rank, 2 * dim), "seed": 1} | options))


def make_oblong(dim: int, rank: int, **options: Any) -> P4Lipschitz:
    return P4Lipschitz(dim, 2 * dim + 1, **({"bound": 3.0, "rank": min(rank, 2 * dim), "seed": 1} | options))


def make_tall(dim: int, rank: int, **options: Any) -> P4Stiefel:
    return P4Stiefel(dim, dim + 2, **({"rank": rank, "seed": 1} | options))


def make_wide(dim: int, rank: int, **options: Any) -> P4Stiefel:
    return P4Stiefel(dim, max(1, dim - 2), **({"rank": rank, "seed": 1} | options))


def make_spectrum(dim: int, rank: int, more: int = 1, **options: Any) -> P4Spectrum:
    """Singular values from 1/2 to 2, the same matrix for all seeds."""
    noise = torch.randn(2, dim + more, dim + more, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    left, right = torch.linalg.qr(noise).Q
    start = left[:, :dim] * torch.logspace(1, -1, dim, base=2, dtype=torch.float64) @ right[:dim, :dim]
    return P4Spectrum(dim, dim + more, **({"rank": rank, "init": start, "seed": 1} | options))


def make_circulant(dim: int, rank: int, **options: Any) -> P4Circulant:
    return P4Circulant(dim, **({"init": short_kernel(dim)} | options))


def make_sets(dim: int, rank: int, **options: Any) -> Sets:
    return Sets(dim, **({"rank": rank, "init": "orthogonal", "seed": 1} | options))


CASES = (
    Case("positive-definite", make_positive_definite, P4PositiveDefinite, positive_definite_twin),
    Case("lipschitz", make_lipschitz, P4Lipschitz, lipschitz_twin, ("forward",)),
    Case("lipschitz-oblong", make_oblong, P4Lipschitz, lipschitz_twin, ("forward",)),
    Case("stiefel-tall", make_tall, P4Stiefel, stiefel_twin, ("forward",)),
    Case("stiefel-wide", make_wide, P4Stiefel, stiefel_twin, ("forward",)),
    Case("spectrum", make_spectrum, P4Spectrum, spectrum_twin, ("forward",)),
    Case("circulant", make_circulant, P4Circulant, circulant_twin, resets=False),
    Case("permutation", make_sets, Sets, permutation_twin),
)
WEIGHTS.update({case.kind: case.twin for case in CASES})
TURNED = (P4Stiefel, P4Spectrum)
"""Their momentum knows more than the span of the directions, for rotations are skew."""
INVERTIBLE = tuple(case for case in CASES if "inverse" in case.operations)


def width_in(layer: nn.Module) -> int:
    """Length of the layer's input."""
    return layer.dim if hasattr(layer, "dim") else layer.dim_in
