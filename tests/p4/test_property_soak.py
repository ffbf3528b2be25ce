"""Ten thousand merges of every property, in both precisions: the invariants hold amid training, and nothing drifts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from p4.property_zoo import BOUND, make_spectrum, short_kernel, spd
from torch import Tensor

from p4lab.p4 import MergeSchedule, P4Circulant, P4Lipschitz, P4Permutation, P4PositiveDefinite, P4Spectrum, P4Stiefel

DIM, ITEMS, MERGES, PHASE, CHECK = 12, 4, 10_000, 1_000, 50
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


def positive_definite(layer: P4PositiveDefinite, unit: float) -> dict[str, tuple[float, float]]:
    """Each invariant with its limit; references are computed in float64."""
    weight, frozen = layer.weight.detach().double(), layer.frozen_weight.double()
    eigenvalues = torch.linalg.eigvalsh(weight)
    drift = torch.linalg.slogdet(frozen).logabsdet - layer.frozen_logabsdet
    return {
        "asymmetry": (float((weight - weight.T).abs().max() / eigenvalues[-1]), unit),
        "indefinite": (float(-eigenvalues[0]), 0.0),
        "inverse": (float(layer.violation()), 100 * unit),
        "logdet": (float(drift.abs()), 100 * unit),
    }


def lipschitz(layer: P4Lipschitz, unit: float) -> dict[str, tuple[float, float]]:
    norm = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    return {"norm": (norm / BOUND - 1, unit), "frame": (float(layer.violation()), unit)}


def orthonormal(layer: P4Stiefel, unit: float) -> dict[str, tuple[float, float]]:
    weight = layer.weight.detach().double()
    defect = weight.T @ weight - torch.eye(DIM, dtype=torch.float64)
    return {"columns": (float(defect.abs().max()), unit)}


def spectrum(layer: P4Spectrum, unit: float) -> dict[str, tuple[float, float]]:
    values = torch.linalg.svdvals(layer.weight.detach().double())
    return {"spectrum": (float((values - layer.singular_values).abs().max() / layer.singular_values[0]), unit)}


def circulant(layer: P4Circulant, unit: float) -> dict[str, tuple[float, float]]:
    x = torch.randn(4, DIM, dtype=layer.u.dtype)
    y, back = layer(x).detach(), layer.inverse(layer(x)).detach()
    sign, logabsdet = torch.linalg.slogdet(layer.weight.double())
    shifted = (layer(x.roll(1, -1)) - y.roll(1, -1)).detach()
    return {
        "equivariance": (float(shifted.abs().max()), unit),
        "inverse": (float((back - x).abs().max()), 100 * unit),
        "logdet": (float((layer.logabsdet() - logabsdet).abs().detach()), 10 * unit),
        "sign": (float(sign != layer.sign()), 0.0),
    }


def permutation(layer: P4Permutation, unit: float) -> dict[str, tuple[float, float]]:
    x = torch.randn(2, ITEMS, DIM, dtype=layer.mean.u.dtype)
    y, order = layer(x).detach(), torch.randperm(ITEMS)
    logabsdet = torch.linalg.slogdet(layer.weight(ITEMS).detach().double()).logabsdet
    back = layer.inverse(y).detach()
    return {
        "equivariance": (float((layer(x[:, order]) - y[:, order]).detach().abs().max()), unit),
        "inverse": (float((back - x).abs().max()), 1000 * unit),
        "logdet": (float((layer.logabsdet(ITEMS) - logabsdet).detach().abs()), 100 * unit),
    }


LAYERS: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[int, ...], Callable[[], Tensor]]] = {
    "positive-definite": (P4PositiveDefinite, positive_definite, (DIM,), lambda: spd(DIM)),
    "lipschitz": (
        lambda dim, **kind: P4Lipschitz(dim, dim, bound=BOUND, **kind),
        lipschitz,
        (DIM,),
        lambda: torch.randn(DIM, DIM) / DIM**0.5,  # norm 2: the bound is active
    ),
    "stiefel": (
        lambda dim, **kind: P4Stiefel(dim, 2 * dim, **kind),
        orthonormal,
        (DIM,),
        lambda: torch.linalg.qr(torch.randn(2 * DIM, DIM)).Q,
    ),
    "spectrum": (
        lambda dim, **kind: make_spectrum(dim, more=0, **kind),
        spectrum,
        (DIM,),
        lambda: torch.randn(DIM, DIM) / DIM**0.5,
    ),
    "circulant": (
        lambda dim, dtype, **_: P4Circulant(dim, dtype=dtype),
        circulant,
        (DIM,),
        lambda: torch.stack([short_kernel(DIM).roll(j) for j in range(DIM)], 1),
    ),
    "permutation": (
        P4Permutation,
        permutation,
        (ITEMS, DIM),
        lambda: torch.linalg.qr(torch.randn(DIM, DIM)).Q,
    ),
}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", ROUNDING, ids=["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_soak(name: str, dtype: torch.dtype, record_property: Callable[[str, object], None]) -> None:
    make, invariants, shape, draw = LAYERS[name]
    layer = make(DIM, **({} if name == "circulant" else {"rank": 2, "reset": "gradient", "seed": 0}), dtype=dtype)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    merges = MergeSchedule(layer, optimizer, every=1, refine_every=50)
    worst: dict[str, float] = {}
    merged = torch.zeros((), dtype=torch.int64)
    for attempt in range(MERGES):
        if attempt % PHASE == 0:
            target = draw().to(dtype)
        x = torch.randn(8, *shape, dtype=dtype)
        optimizer.zero_grad()
        (layer(x) - x @ target.T).square().mean().backward()
        optimizer.step()
        if attempt % CHECK == 0:  # amid training: the perturbation is not merged yet
            for figure, (value, limit) in invariants(layer, ROUNDING[dtype]).items():
                worst[figure] = max(worst.get(figure, 0.0), value)
                assert value <= limit, f"{figure} = {value:.3g} after {attempt} merges, limit {limit:.3g}"
        merged += torch.stack([report.accepted for report in merges.step()]).all()
    for figure, value in worst.items():
        record_property(figure, value)
        print(f"{figure} = {value:.2g}", end="  ")
    assert merged >= 0.99 * MERGES
