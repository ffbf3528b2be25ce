"""A user's own property on top of the P4 contract, as the documentation shows it, run through the same checks."""

from __future__ import annotations

import inspect

import pytest
import torch
from p4.dense_twin import assert_bitwise, state_of
from torch import Tensor, nn

from p4lab.p4 import NOT_FINITE, MergeReport, MergeSchedule, P4Module, fold


class P4Triangular(P4Module):
    """Upper-triangular weights with a positive diagonal: ``A <- (A + strict_triu(u^T v)) diag(exp(s))``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.eye(dim))
        self.register_buffer("v", torch.randn(dim))
        self.u, self.s = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.s.exp()
        above = (self.v * x).flip(-1).cumsum(-1).flip(-1) - self.v * x  # sum over j > i, in O(d)
        return nn.functional.linear(x, self.frozen) + self.u * above

    @property
    def weight(self) -> Tensor:
        return (self.frozen + torch.outer(self.u, self.v).triu(1)) * self.s.exp()

    def logabsdet(self) -> Tensor:
        return self.frozen.diagonal().log().sum() + self.s.sum()

    def perturbation(self) -> tuple[nn.Parameter, ...]:
        return self.u, self.s

    def propose(self) -> tuple[MergeReport, dict[str, Tensor]]:
        largest = torch.cat(self.perturbation()).abs().max().view(1)
        report = MergeReport((NOT_FINITE,), largest, torch.full_like(largest, 80.0))
        return report, {"frozen": torch.where(report.accepted, self.weight, self.frozen)}

    def absorb(self, report: MergeReport, update: dict[str, Tensor]) -> None:
        self.frozen.copy_(update["frozen"])

    @torch.no_grad()
    def reset(self, where: Tensor | None = None, undo: Tensor | None = None) -> None:
        where = torch.tensor(True) if where is None else where
        for parameter in self.perturbation():
            parameter.masked_fill_(where, 0)
        self.v.copy_(torch.where(where, torch.randn_like(self.v), self.v))

    def violation(self) -> Tensor:
        return torch.maximum(self.frozen.tril(-1).abs().max(), -self.frozen.diagonal().min())

    correct = violation

    def fold(self) -> nn.Linear:
        linear = nn.Linear(len(self.u), len(self.u), bias=False)
        linear.weight = nn.Parameter(self.weight.detach())
        return linear


def amid_training(dim: int = 5) -> P4Triangular:
    layer = P4Triangular(dim).double()
    layer.reset()
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
