"""The contract carries other properties: one made up here works with the schedule, the penalty and folding."""

from __future__ import annotations

import pytest
import torch
from p4.dense_twin import assert_bitwise, state_of
from torch import Tensor, nn

from p4lab.p4 import (
    Changes,
    Check,
    MergeReport,
    MergeSchedule,
    MergeStatus,
    P4Inv,
    P4Module,
    Total,
    alone,
    fold,
    p4_modules,
    penalty,
)

CHECKS = (
    Check(MergeStatus.DISCARDED_NOT_FINITE, "not finite"),
    Check(MergeStatus.SKIPPED_SINGULAR, "too large a step"),
)


class PositiveScale(P4Module):
    """Positive factors on a diagonal: S = positive vectors, R_b(a) = a exp(b), B0 = 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(dim))
        self.b = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * self.b.exp()

    def perturbation(self) -> tuple[nn.Parameter, ...]:
        return (self.b,)

    def propose(self, total: Total = alone) -> Changes:
        largest = self.b.abs().max()
        changes = Changes(MergeReport(CHECKS, torch.stack([largest, largest]), torch.tensor([torch.finfo().max, 5.0])))
        changes.absorb(self.scale, self.scale * self.b.exp())
        changes.clear(self.b)
        return changes

    def violation(self) -> Tensor:
        return (-self.scale).relu().max()

    def correct(self) -> Tensor:
        return self.violation()

    def penalty(self, strength: float = 1.0) -> Tensor:
        return strength * self.b.square().sum()

    def fold(self) -> nn.Linear:
        linear = nn.Linear(len(self.b), len(self.b), bias=False)
        linear.weight = nn.Parameter(torch.diag(self.scale * self.b.exp()).detach())
        return linear


def trained(steps: int = 200) -> tuple[nn.Sequential, Tensor]:
    model = nn.Sequential(PositiveScale(4), P4Inv(4, rank=2, seed=0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    merges = MergeSchedule(model, optimizer, every=7, refine_every=3)
    target = torch.diag(torch.tensor([0.2, 5.0, 1.0, 2.0]))
    for _ in range(steps):
        x = torch.randn(32, 4)
        optimizer.zero_grad()
        loss = (model(x) - x @ target).square().mean()
        loss.backward()
        optimizer.step()
        merges.step()
    return model, loss.detach()


def test_it_trains_under_the_schedule() -> None:
    model, loss = trained()
    assert loss < 0.1 * trained(steps=1)[1]
    assert (model[0].scale - 1).abs().max() > 0.1
    assert model[0].violation() == 0


def test_it_is_found_beside_others() -> None:
    model = nn.Sequential(PositiveScale(4), nn.Sequential(P4Inv(4, seed=0)))
    assert [type(m) for m in p4_modules(model)] == [PositiveScale, P4Inv]


def test_its_merge_is_invisible() -> None:
    layer, x = PositiveScale(4), torch.randn(3, 4)
    nn.init.constant_(layer.b, 0.3)
    before = layer(x)
    assert layer.merge().merged
    torch.testing.assert_close(layer(x), before)
    assert not layer.b.any()


@pytest.mark.parametrize(
    ("value", "status"),
    [(6.0, MergeStatus.SKIPPED_SINGULAR), (torch.nan, MergeStatus.DISCARDED_NOT_FINITE)],
    ids=["skip", "discard"],
)
def test_its_refusals_leave_the_frozen_tensor_alone(value: float, status: MergeStatus) -> None:
    layer = PositiveScale(4)
    nn.init.constant_(layer.b, value)
    report = layer.merge()
    assert report.status is status
    assert torch.equal(layer.scale, torch.ones(4))
    assert bool(layer.b.any()) == (status is MergeStatus.SKIPPED_SINGULAR)


def test_penalties_add_up() -> None:
    model = nn.Sequential(PositiveScale(4), PositiveScale(4), nn.Linear(4, 4))
    for layer in (model[0], model[1]):
        nn.init.constant_(layer.b, 0.5)
    assert penalty(model, strength=3.0).detach() == 3 * (1 + 1)
    assert penalty(nn.Linear(2, 2)) == 0


def test_it_folds_beside_others() -> None:
    model, _ = trained(steps=5)
    before, x = state_of(model), torch.randn(3, 4)
    folded = fold(model)
    assert [type(m) for m in folded] == [nn.Linear, nn.Linear]
    torch.testing.assert_close(folded(x), model(x), rtol=1e-5, atol=1e-6)
    assert_bitwise(state_of(model), before)
    assert type(fold(model[0])) is nn.Linear


def test_an_incomplete_property_cannot_be_made() -> None:
    class Incomplete(P4Module):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Incomplete()
