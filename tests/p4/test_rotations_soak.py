"""Ten thousand merges: the property and the inverse stay at the level of rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from p4.rotations import KINDS, ORTHOGONAL, WITH_DIRECTIONS, orthogonal

from p4lab.p4 import MergeSchedule, P4Givens, P4Linear, P4SpecialLinear

DIM = 24
MERGES = 10_000
PHASE = 1_000
EVERY = dict.fromkeys(KINDS, 50) | {P4Givens: 20}
"""Merges between corrections; a merge of P4Givens rounds every entry of Q."""
NOISE = dict.fromkeys(KINDS, 0.1) | {P4SpecialLinear: 0.02}
"""SL(d) is not compact: stronger noise is a random walk to ever larger condition numbers."""
LARGEST = {torch.float32: 1e-6, torch.float64: 1e-14}
"""Of |Q^T Q - I|."""
LARGEST_DETERMINANT = {torch.float32: 1e-5, torch.float64: 1e-13}
LARGEST_INVERSE = {torch.float32: 1e-4, torch.float64: 1e-12}


def violations(layer: P4Linear) -> tuple[float, float]:
    """Error of the property and of the inverse; references in float64."""
    weight, eye = layer.frozen_weight.double(), torch.eye(DIM, dtype=torch.float64)
    if type(layer) in ORTHOGONAL:
        return float((weight.T @ weight - eye).abs().max()), 0.0
    determinant = abs(float(torch.linalg.det(weight) / layer.sign() - 1))
    return determinant, float((weight @ layer.frozen_inverse.double() - eye).abs().max())


def near_identity() -> torch.Tensor:
    """A matrix of determinant 1; on the way between two of these no singular value has to pass through 0."""
    noise = torch.randn(DIM, DIM, dtype=torch.float64) / DIM**0.5
    return torch.linalg.matrix_exp(0.4 * (noise - noise.trace() / DIM * torch.eye(DIM)))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("kind", "rank", "reset"),
    [
        pytest.param(kind, rank, reset, id=f"{kind.__name__}-k{rank}-{reset}")
        for kind in KINDS
        for rank, reset in ((1, "gaussian"), (4, "gradient"))
        if kind in WITH_DIRECTIONS or reset == "gaussian"
    ],
)
def test_soak(
    kind: type[P4Linear], rank: int, reset: str, dtype: torch.dtype, record_property: Callable[[str, object], None]
) -> None:
    options = {"reset": reset} if kind in WITH_DIRECTIONS else {}
    layer = kind(DIM, rank=rank, bias=False, seed=0, dtype=dtype, **options)
    merges = MergeSchedule(layer, every=1, refine_every=EVERY[kind])
    history, accepted = [], torch.zeros((), dtype=torch.int64)
    for merge in range(1, MERGES + 1):
        if merge % PHASE == 1:
            target = (near_identity() if kind is P4SpecialLinear else orthogonal(DIM)).to(dtype)
        x = torch.randn(16, DIM, dtype=dtype)
        (gradient,) = torch.autograd.grad((layer(x) - x @ target.T).square().sum() / 32, layer.u)
        with torch.no_grad():  # noise: training that never comes to rest
            rate = 0.3 / torch.linalg.matrix_norm(layer.frozen_weight, 2) ** 2
            layer.u.sub_(rate * gradient + NOISE[kind] * torch.randn_like(layer.u) / DIM**0.5)
        (report,) = merges.step()
        accepted += report.accepted
        if merge % EVERY[kind] == EVERY[kind] - 1:  # the worst moment: right before a correction
            history.append(violations(layer))
    worst, inverse = (max(values) for values in zip(*history, strict=True))
    for name, value in {"violation": worst, "inverse": inverse, "merged": int(accepted)}.items():
        record_property(name, value)
        print(f"{name} = {value:.3g}", end="  ")
    assert worst <= (LARGEST if kind in ORTHOGONAL else LARGEST_DETERMINANT)[dtype]
    assert inverse <= LARGEST_INVERSE[dtype]
    assert int(accepted) == MERGES
