"""P4Stiefel and P4Spectrum: what holds for them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.linalg import moved_momentum
from p4lab.p4 import MergeSchedule, P4Spectrum, P4Stiefel, fold

F64 = torch.float64


def stiefel(dim_in: int, dim_out: int) -> Callable[..., Any]:
    return lambda **options: P4Stiefel(dim_in, dim_out, **options)


def spectrum(dim_in: int, dim_out: int) -> Callable[..., Any]:
    return lambda **options: P4Spectrum(dim_in, dim_out, **options)


SHAPES = {
    "stiefel-tall": (stiefel(3, 9), 9),
    "stiefel-wide": (stiefel(9, 3), 9),
    "spectrum-tall": (spectrum(5, 9), 5),
    "spectrum-wide": (spectrum(9, 5), 5),
}
layers = pytest.mark.parametrize("make", [make for make, _ in SHAPES.values()], ids=SHAPES)


def fit(layer: Any, target: Tensor, steps: int, rate: float) -> float:
    """Fit weights of the layer's kind by descent with a merge after every second step; return the last loss."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate)
    merges = MergeSchedule(layer, optimizer, every=2)
    for _ in range(steps):
        x = torch.randn(32, layer.dim_in, dtype=target.dtype)
        optimizer.zero_grad()
        loss = (layer(x) - x @ target.T).square().mean()
        loss.backward()
        optimizer.step()
        merges.step()
    return float(loss.detach())


@layers
def test_every_member_of_the_family_can_be_reached(make: Callable[..., Any]) -> None:
    layer = make(rank=2, reset="gradient", dtype=F64, seed=0, bias=False)
    goal = (
        make(rank=3, dtype=F64, seed=5) if isinstance(layer, P4Stiefel) else make(init=layer.weight.detach(), dtype=F64)
    )
    torch.nn.init.normal_(goal.u, std=0.5)
    target = goal.weight.detach()
    before = float((layer.weight.detach() - target).square().mean())
    fit(layer, target, 400, 1.0 if isinstance(layer, P4Stiefel) else 3.0)
    assert float((layer.weight.detach() - target).square().mean()) < 1e-3 * before


@layers
def test_directions_from_the_gradient_see_more_of_it(make: Callable[..., Any]) -> None:
    def share(reset: str) -> float:
        """Return the size of u's gradient after a merge, for a gradient of rank one."""
        layer = make(rank=2, reset=reset, dtype=F64, seed=0)
        x = torch.ones(4, layer.dim_in, dtype=F64)
        layer(x)[..., 0].square().sum().backward()
        layer.merge()
        layer.zero_grad()
        layer(x)[..., 0].square().sum().backward()
        return float(torch.linalg.vector_norm(layer.u.grad))

    assert share("gradient") > 1.2 * share("gaussian")


@layers
def test_momentum_is_that_of_each_side(make: Callable[..., Any]) -> None:
    layer = make(rank=2, reset="gradient", dtype=F64, seed=0)
    momentum, old = torch.randn_like(layer.u), layer.v.clone()
    changes = layer.plan()
    carried = layer.carry_momentum(layer.u, momentum, changes)
    changes.commit()
    sides = [layer.dim_out, layer.dim_in] if isinstance(layer, P4Spectrum) else [layer.v.shape[1]]
    parts = zip(*(rows.split(sides, 1) for rows in (momentum, old, layer.v)), strict=True)
    torch.testing.assert_close(carried, torch.cat([moved_momentum(*part) for part in parts], 1))
    assert layer.carry_momentum(layer.bias, momentum, changes) is momentum


@layers
def test_enormous_perturbations_leave_the_property(make: Callable[..., Any]) -> None:
    layer = make(rank=2, seed=0)
    goal = torch.linalg.svdvals(layer.weight.detach())
    for size in (1e3, 1e6, 1e12):
        with torch.no_grad():
            layer.u.normal_(std=size)
        for _ in range(40):  # refused again and again, it is factorized anew
            layer.merge()
        torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach()), goal, rtol=0, atol=1e-4)


@layers
def test_a_cast_up_brings_back_all_digits(make: Callable[..., Any]) -> None:
    layer = make(rank=2, seed=0)
    torch.nn.init.normal_(layer.u)
    layer.double()
    now = torch.linalg.svdvals(layer.weight.detach())
    goal = layer.singular_values if isinstance(layer, P4Spectrum) else torch.ones_like(now)
    torch.testing.assert_close(now, goal, rtol=0, atol=1e-12)


@layers
def test_fold_and_bias(make: Callable[..., Any]) -> None:
    layer = make(rank=2, seed=0, dtype=F64)
    torch.nn.init.normal_(layer.u)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, layer.dim_in, dtype=F64)
    torch.testing.assert_close(fold(layer)(x), layer(x))


def test_a_spectrum_survives_many_merges_without_correction() -> None:
    layer = P4Spectrum(24, 16, rank=4, reset="gradient", seed=0)
    start = torch.linalg.svdvals(layer.weight.detach().double())
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    merges = MergeSchedule(layer, optimizer, every=1, refine_every=0)
    for _ in range(1000):
        optimizer.zero_grad()
        layer(torch.randn(8, 24)).sin().mean().backward()
        optimizer.step()
        assert all(report.merged for report in merges.step())
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach().double()), start, rtol=0, atol=1e-5)
    assert 0 < float(layer.violation()) < 1e-5
    assert float(layer.correct()) < 2e-7


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: P4Stiefel(2, 3, init=torch.ones(3, 3)), ShapeError, r"expected \(3, 2\)"),
        (lambda: P4Stiefel(2, 3, init=2 * torch.eye(3, 2)), OptionError, "no orthonormal columns"),
        (lambda: P4Stiefel(3, 2, init=2 * torch.eye(2, 3)), OptionError, "no orthonormal rows"),
        (lambda: P4Stiefel(2, 3, init=torch.ones(3, 2)), SingularMatrixError, "no orthogonal matrix is nearest"),
        (lambda: P4Stiefel(2, 3, init=torch.full((3, 2), torch.nan)), SingularMatrixError, "nan"),
        (lambda: P4Stiefel(2, 3, init="linear"), OptionError, "init='linear'"),
        (lambda: P4Spectrum(2, 3, init=torch.zeros(3, 2)), OptionError, "init is zero"),
        (lambda: P4Spectrum(2, 3, init=torch.full((3, 2), torch.inf)), SingularMatrixError, "infinite"),
        (lambda: P4Spectrum(2, 3, init=torch.ones(2, 3)), ShapeError, r"expected \(3, 2\)"),
        (lambda: P4Spectrum(2, 2, init="no"), OptionError, "init='no'"),
        (lambda: P4Spectrum(2, 2).start_at(3 * torch.eye(2)), OptionError, "singular values differ"),
    ],
)
def test_errors(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


@layers
def test_the_nearest_member_is_a_start(make: Callable[..., Any]) -> None:
    layer = make(rank=2, seed=0, dtype=F64)
    near = layer.nearest(layer.weight + 0.1 * torch.randn_like(layer.weight))
    layer.start_at(near)
    torch.testing.assert_close(layer.weight.detach(), near)
