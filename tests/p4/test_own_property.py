"""A user's own property on top of the P4 contract, as the documentation shows it, run through the same checks."""

from __future__ import annotations

import inspect

import pytest
import torch
from p4.dense_twin import assert_bitwise, state_of
from torch import Tensor, nn

from p4lab.p4 import MergeSchedule, fold
from p4lab.p4.examples import P4Triangular


def amid_training(dim: int = 5) -> P4Triangular:
    layer = P4Triangular(dim).double()
    layer.merge()  # for directions of its dtype
    nn.init.normal_(layer.u, std=0.3)
    nn.init.normal_(layer.s, std=0.3)
    return layer


def dense(layer: P4Triangular) -> Tensor:
    above = torch.ones(len(layer.u), len(layer.u), dtype=torch.bool).triu(1)
    return (layer.frozen + above * (layer.u[:, None] * layer.v)) @ torch.diag(layer.s.exp())


def test_it_is_short() -> None:
    lines = [line for line in inspect.getsource(P4Triangular).splitlines() if line.strip()]
    assert len(lines) < 40


@pytest.mark.parametrize("dim", [1, 2, 5, 32], ids="d{}".format)
def test_its_values_are_those_of_the_matrix(dim: int) -> None:
    layer = amid_training(dim)
    for _ in range(3):
        x = torch.randn(4, dim, dtype=torch.float64)
        torch.testing.assert_close(layer(x), x @ dense(layer).T)
        torch.testing.assert_close(layer.logabsdet(), torch.linalg.slogdet(dense(layer)).logabsdet)
        before = layer(x)
        assert layer.merge()
        torch.testing.assert_close(layer(x), before)
        nn.init.normal_(layer.u, std=0.3)


def test_its_derivatives() -> None:
    layer = amid_training(3)

    def call(x: Tensor, u: Tensor, s: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"u": u, "s": s}, (x,))

    arguments = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), layer.u, layer.s
    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 100.0], ids=str)
def test_its_refusals_leave_the_frozen_matrix_alone(value: float) -> None:
    layer = amid_training()
    layer.merge()
    before = layer.frozen.clone()
    nn.init.constant_(layer.s, value)
    assert not layer.merge()
    assert torch.equal(layer.frozen, before)
    assert not layer.s.any()


def test_it_trains_and_keeps_its_property() -> None:
    target = torch.randn(3, 3).triu(1) + torch.diag(torch.rand(3) + 0.5)
    model = nn.Sequential(P4Triangular(3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    merges = MergeSchedule(model, optimizer, every=5)
    for _ in range(300):
        x = torch.randn(32, 3)
        optimizer.zero_grad()
        loss = (model(x) - x @ target.T).square().sum(-1).mean()
        loss.backward()
        optimizer.step()
        merges.step()
    assert loss < 1e-2
    assert model[0].violation() <= 0
    assert model[0].merge()
    assert torch.equal(model[0].frozen, model[0].frozen.triu())


def test_it_folds_and_its_state_is_whole() -> None:
    layer = amid_training()
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(fold(nn.Sequential(layer.float()))(x.float()), layer(x.float()))
    twin = P4Triangular(5)
    twin.load_state_dict(layer.state_dict())
    assert_bitwise(state_of(twin), state_of(layer))
