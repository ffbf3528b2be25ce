"""Layers that came near to a singular matrix get away from there by themselves, and long runs do not drift."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from p4lab.p4 import MergeSchedule, P4Circulant, P4Inv, P4Linear, P4Orthogonal, P4PositiveDefinite, P4SpecialLinear

DIM = 16


def nearly_singular(smallest: float, symmetric: bool = False) -> Tensor:
    left, right = torch.linalg.qr(torch.randn(2, DIM, DIM, dtype=torch.float64)).Q
    values = torch.ones(DIM, dtype=torch.float64)
    values[-1] = smallest
    return left * values @ (left if symmetric else right).T


def descend(layer: P4Linear, loss: Callable[[], Tensor], steps: int, lr: float = 0.05, **options: int) -> MergeSchedule:
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    merges = MergeSchedule(layer, optimizer, **{"every": 2, "refine_every": 10, **options})
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        merges.step()
    return merges


@pytest.mark.parametrize("smallest", [1e-6, 1e-7, 1e-8], ids="s{:g}".format)
def test_p4inv_gets_away_from_a_singular_matrix(smallest: float) -> None:
    """Its merges are refused, for float32 cannot hold such an inverse; then it factorizes itself anew, once."""
    layer = P4Inv(DIM, rank=4, reset="gradient", seed=0)
    layer.frozen_weight.copy_(nearly_singular(smallest))
    layer.recompute()
    descend(layer, lambda: ((x := torch.randn(64, DIM)) - layer(x)).square().sum(-1).mean(), 400)
    torch.testing.assert_close(layer.weight.detach(), torch.eye(DIM), rtol=0, atol=1e-4)
    assert layer.rescues == 1
    assert layer.merge()
    assert layer.violation() < 1e-5
    assert abs(layer.logabsdet()) < 1e-3


@pytest.mark.parametrize("smallest", [1e-6, 1e-8, 0.0], ids="s{:g}".format)
def test_a_positive_definite_matrix_stays_one_with_an_inverse(smallest: float) -> None:
    """Its small eigenvalue grows slowly, if at all; meanwhile inverse and determinant are as good as float32 allows."""
    layer = P4PositiveDefinite(DIM, rank=4, reset="gradient", seed=0)
    layer.frozen_weight.copy_(nearly_singular(smallest, symmetric=True))
    layer.recompute()
    descend(layer, lambda: ((x := torch.randn(64, DIM)) - layer(x)).square().sum(-1).mean(), 400)
    assert layer.rescues > 1
    weight = layer.weight.detach().double()
    assert torch.linalg.eigvalsh(weight)[0] > 0
    assert layer.violation() < 0.2
    assert abs(layer.logabsdet() - torch.linalg.slogdet(weight).logabsdet) < 0.2


def test_a_merge_that_is_refused_for_its_factor_is_made_in_the_end() -> None:
    """Nothing is lost between: u trains on, and the whole of it is well-conditioned."""
    layer = P4Inv(4, rank=1, dtype=torch.float64, seed=0)
    with torch.no_grad():
        layer.u.copy_(-(1 - 1e-4) * layer.v / layer.v.square().sum())
    weight = layer.weight.detach()
    reports = [layer.merge() for _ in range(33)]
    assert [bool(r) for r in reports] == [False] * 16 + [True] * 17
    assert layer.rescues == 1
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=1e-12)
    assert layer.violation() < 1e-11


def test_it_is_refused_for_good_where_the_dtype_ends() -> None:
    layer = P4Inv(4, rank=1, seed=0)
    with torch.no_grad():
        layer.u.copy_(-layer.v / layer.v.square().sum())  # exactly singular
    before = layer.frozen_weight.clone()
    assert not any(bool(layer.merge()) for _ in range(100))
    assert torch.equal(layer.frozen_weight, before)
    assert layer.rescues == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: P4Orthogonal(6, rank=2, seed=0),
        lambda: P4SpecialLinear(6, rank=2, seed=0),
        lambda: P4Circulant(6, min_factor=0.5),
    ],
    ids=["orthogonal", "special-linear", "circulant"],
)
def test_other_layers_take_in_what_they_had_refused(make: Callable[[], P4Linear]) -> None:
    layer = make()
    with torch.no_grad():
        if isinstance(layer, P4Circulant):
            layer.u[0] = -0.7  # takes more away from every frequency than one merge may
        else:
            layer.u.normal_().mul_(3e3 if isinstance(layer, P4Orthogonal) else 300.0)
    assert not layer.merge()
    weight = layer.weight.detach()
    reports = [layer.merge() for _ in range(64)]
    merged = next(i for i, report in enumerate(reports) if report)
    assert layer.rescues >= 1
    assert merged <= 32
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-2, atol=1e-2 * float(weight.abs().max()))
    assert layer.violation() < 1e-2


@pytest.mark.long
def test_a_random_walk_never_gets_stuck() -> None:
    """80,000 merges of a random walk of 64 x 64 matrices in float32: it comes near to singular ones again and again."""
    layer = P4Inv(64, rank=1, bias=False, seed=0)
    merges, refused, longest, accepted = MergeSchedule(layer), 0, 0, 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(80_000):
        with torch.no_grad():
            layer.u.add_(0.05 * torch.randn(1, 64, generator=generator))
        (report,) = merges.merge()
        refused = 0 if report else refused + 1
        accepted += bool(report)
        longest = max(longest, refused)
    assert longest <= 200
    assert accepted > 40_000
    exact = torch.linalg.slogdet(layer.weight.detach().double())
    assert abs(layer.logabsdet() - exact.logabsdet) < 0.1


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_million_merges_do_not_drift() -> None:
    """A moving target, float32, d = 64: inverse and log|det| stay right throughout (nine minutes)."""
    dim = 64
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    skew = torch.randn(dim, dim, generator=generator)
    step = torch.linalg.matrix_exp(1e-3 * (skew - skew.T))
    scales = torch.linspace(-0.7, 0.7, dim)
    layer = P4Inv(dim, rank=4, bias=False, reset="gradient", init="orthogonal", seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2, momentum=0.3)
    merges = MergeSchedule(layer, optimizer, every=1)
    worst_residual = worst_logabsdet = 0.0
    target = turn
    for i in range(1_000_000):
        if i % 100 == 0:
            turn = torch.linalg.qr(turn @ step).Q
            target = turn * (scales * math.sin(2e-5 * i)).exp()
        x = torch.randn(16, dim, generator=generator)
        optimizer.zero_grad()
        (layer(x) - x @ target.T).square().sum(-1).mean().backward()
        optimizer.step()
        merges.step()
        if i % 1000 == 499:
            exact = torch.linalg.slogdet(layer.frozen_weight.double()).logabsdet
            worst_residual = max(worst_residual, float(layer.violation()))
            worst_logabsdet = max(worst_logabsdet, abs(float(layer.frozen_logabsdet - exact)))
    assert worst_residual <= 1e-4
    assert worst_logabsdet <= 1e-3
    assert merges.attempts == 1_000_000
    x = torch.randn(256, dim, generator=generator)
    assert (layer(x) - x @ target.T).square().mean() < 0.3 * (x @ target.T).square().mean()  # it follows
