"""P4Inv against its dense twin: values, and gradients in both directions."""

from __future__ import annotations

import pytest
import torch
from p4.dense_twin import (
    BATCHES,
    DIMS,
    OPERATIONS,
    RANKS,
    amid_training,
    assert_like_twin,
    p4inv_weight,
    perturb,
    twin_tensors,
    well_conditioned,
)

from p4lab.p4 import P4Inv

dims = pytest.mark.parametrize("dim", DIMS, ids="d{}".format)
ranks = pytest.mark.parametrize("rank", RANKS, ids="k{}".format)
train_v = pytest.mark.parametrize("train_v", [False, True], ids=["v-fixed", "v-trained"])
batches = pytest.mark.parametrize("batch", BATCHES, ids=lambda b: "batch" + "x".join(map(str, b)) if b else "no-batch")
operations = pytest.mark.parametrize("operation", OPERATIONS)
resets = pytest.mark.parametrize("reset", ["gaussian", "gradient"])


@operations
@batches
@train_v
@ranks
@dims
def test_value_and_gradients_in_float64(
    dim: int, rank: int, train_v: bool, batch: tuple[int, ...], operation: str
) -> None:
    layer = amid_training(dim, rank, train_v=train_v)
    assert_like_twin(layer, operation, batch, dim, tolerance=1e-9)


@operations
@resets
@train_v
@ranks
@dims
def test_value_and_gradients_in_float32(dim: int, rank: int, train_v: bool, reset: str, operation: str) -> None:
    layer = amid_training(dim, rank, dtype=torch.float32, train_v=train_v, reset=reset)
    assert_like_twin(layer, operation, (5,), dim, tolerance=1e-3)


@operations
def test_value_and_gradients_without_a_bias(operation: str) -> None:
    assert_like_twin(amid_training(7, 2, bias=False), operation, (5,), 7, tolerance=1e-10)


@operations
@pytest.mark.parametrize("merges", [1, 5])
@train_v
def test_value_and_gradients_after_merges(train_v: bool, merges: int, operation: str) -> None:
    layer = amid_training(7, 2, train_v=train_v)
    for _ in range(merges):
        assert layer.merge()
        perturb(layer, 0.05 * torch.randn(2, 7, dtype=torch.float64))
    assert_like_twin(layer, operation, (5,), 7, tolerance=1e-9)


@ranks
@dims
def test_weight_is_the_twins(dim: int, rank: int) -> None:
    layer = amid_training(dim, rank)
    torch.testing.assert_close(
        layer.weight, p4inv_weight(twin_tensors(layer)), rtol=1e-12, atol=1e-12, check_stride=False
    )


@ranks
@dims
def test_weight_inverse_is_the_twins(dim: int, rank: int) -> None:
    layer = amid_training(dim, rank)
    expected = torch.linalg.inv(p4inv_weight(twin_tensors(layer)))
    torch.testing.assert_close(layer.weight_inverse, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("flip", [False, True], ids=["as-is", "row-negated"])
@ranks
@dims
def test_sign_is_the_twins(dim: int, rank: int, flip: bool) -> None:
    init = well_conditioned(dim)
    init[0] *= -1 if flip else 1
    layer = P4Inv(dim, rank=rank, init=init, dtype=torch.float64, seed=0)
    perturb(layer, 0.5 * torch.randn_like(layer.u))
    assert layer.sign() == torch.linalg.slogdet(p4inv_weight(twin_tensors(layer))).sign


def test_sign_changes_where_the_perturbation_crosses_zero() -> None:
    layer = P4Inv(3, seed=0, dtype=torch.float64)
    e1 = torch.eye(3)[:1]
    signs = [int(perturb(layer, -s * e1, e1).sign()) for s in (0.5, 1.0, 1.5)]
    assert signs == [1, 0, -1]


@train_v
@ranks
@pytest.mark.parametrize("dim", [1, 3, 32], ids="d{}".format)
def test_penalty_and_its_gradients(dim: int, rank: int, train_v: bool) -> None:
    layer, strength, floor, ceiling = amid_training(dim, rank, train_v=train_v), 0.3, 3.0, -3.0  # all four terms act
    t = twin_tensors(layer)
    c = torch.eye(layer.rank, dtype=torch.float64) + t["v"] @ torch.linalg.solve(t["frozen_weight"], t["u"].T)
    levels = torch.stack(
        [-torch.linalg.inv(c).square().sum().sqrt().log(), torch.linalg.slogdet(p4inv_weight(t)).logabsdet / dim]
    )
    expected = strength * ((floor - levels).relu() ** 2 + (levels - ceiling).relu() ** 2).sum()
    actual = layer.penalty(strength, floor, ceiling)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    for parameter, reference in zip(layer.perturbation(), (t["u"], t["v"]), strict=False):
        pair = (
            torch.autograd.grad(loss, p, retain_graph=True)[0]
            for loss, p in ((actual, parameter), (expected, reference))
        )
        torch.testing.assert_close(*pair, rtol=1e-8, atol=1e-10)


def test_penalty_of_a_fresh_layer_is_zero_without_being_constant() -> None:
    layer = P4Inv(400, rank=8, seed=0)
    with torch.no_grad():
        assert float(layer.penalty()) == 0.0
    near = perturb(P4Inv(4, seed=0), -0.99 * torch.eye(4)[:1], torch.eye(4)[:1])
    (gradient,) = torch.autograd.grad(near.penalty(), near.u)
    assert gradient[0, 0] < 0  # descending pushes u back from the singular -e1
