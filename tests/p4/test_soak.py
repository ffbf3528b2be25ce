"""A hundred thousand merges in float32: inverse and log|det| are carried along, never recomputed, and stay right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from p4.dense_twin import well_conditioned
from torch import Tensor

from p4lab.p4 import MergeReport, MergeSchedule, P4Inv

DIM = 64
PHASE = 5_000
CHECK = 1_000
LARGEST_RESIDUAL = 1e-4
LARGEST_LOGABSDET_ERROR = 1e-3

Step = Callable[[P4Inv, Tensor], None]


def noisy_descent(layer: P4Inv, target: Tensor) -> None:
    """One gradient step of u on |W - T|^2 / 2 along v, with noise: training that never comes to rest."""
    with torch.no_grad():
        v, square = layer.v, layer.v.square().sum()
        gradient = v @ (layer.frozen_weight - target).T + layer.u * square
        noise = 0.1 * torch.randn_like(layer.u) * (square / DIM).sqrt()
        layer.u.sub_((0.3 * gradient + noise) / square)


def stochastic_descent(layer: P4Inv, target: Tensor) -> None:
    """One step of stochastic gradient descent, through autograd; the next directions come from its gradient."""
    x = torch.randn(32, DIM)
    (gradient,) = torch.autograd.grad((layer(x) - x @ target.T).square().sum() / 64, layer.u)
    with torch.no_grad():
        layer.u.sub_(0.3 * gradient)


def nearly_singular(layer: P4Inv) -> None:
    """Move u to where the first direction's factor is 1e-4: the merge must be refused, and training must find back."""
    with torch.no_grad():
        q = layer.v @ layer.frozen_inverse
        layer.u.zero_()
        layer.u[0] = -(1 - 1e-4) * torch.linalg.lstsq(q, torch.eye(layer.rank)[:, :1]).solution[:, 0]


def errors(layer: P4Inv) -> tuple[float, float, bool]:
    """Residual of the frozen inverse, error of log|det|, and whether the sign is right; references in float64."""
    weight = layer.frozen_weight.double()
    sign, logabsdet = torch.linalg.slogdet(weight)
    residual = (weight @ layer.frozen_inverse.double() - torch.eye(DIM, dtype=torch.float64)).abs().max()
    return float(residual), abs(float(logabsdet - layer.frozen_logabsdet)), bool(sign == layer.frozen_sign)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "reset", "step", "attempts"),
    [
        pytest.param(1, "gaussian", noisy_descent, 20_000, id="rank1-gaussian-20000"),
        pytest.param(1, "gaussian", noisy_descent, 100_000, id="rank1-gaussian-100000", marks=pytest.mark.long),
        pytest.param(8, "gradient", stochastic_descent, 10_000, id="rank8-gradient-10000"),
        pytest.param(8, "gradient", stochastic_descent, 20_000, id="rank8-gradient-20000", marks=pytest.mark.long),
    ],
)
def test_soak(rank: int, reset: str, step: Step, attempts: int, record_property: Callable[[str, object], None]) -> None:
    layer = P4Inv(DIM, rank=rank, bias=False, reset=reset, seed=0)  # type: ignore[arg-type]
    merges = MergeSchedule(layer, every=1, refine_every=50)
    history: list[tuple[float, float, bool]] = []
    accepted = torch.zeros((), dtype=torch.int64)
    crossings, sign = 0, 1
    for attempt in range(1, attempts + 1):
        if attempt % PHASE == 1:
            target = well_conditioned(DIM, torch.float32)
            target[0] *= -layer.frozen_sign * torch.linalg.slogdet(target).sign  # each phase must cross det = 0
        step(layer, target)
        if attempt % 500 == 250:
            nearly_singular(layer)
        report: MergeReport
        (report,) = merges.step()
        accepted += report.accepted
        if attempt % 500 == 250:
            assert not report.merged
        if attempt % CHECK == 0:
            history.append(errors(layer))
            crossings, sign = crossings + (int(layer.frozen_sign) != sign), int(layer.frozen_sign)
    residual, logabsdet = max(f[0] for f in history), max(f[1] for f in history)
    skipped = attempts - int(accepted)
    for name, value in {
        "residual": residual,
        "logabsdet": logabsdet,
        "skipped": skipped,
        "crossings": crossings,
    }.items():
        record_property(name, value)
        print(f"{name} = {value:.3g}", end="  ")
    assert residual <= LARGEST_RESIDUAL
    assert logabsdet <= LARGEST_LOGABSDET_ERROR
    assert all(f[2] for f in history)
    assert attempts // 500 <= skipped < attempts // 50  # the refused ones were tried, and they were the exception
    assert crossings == attempts // PHASE
