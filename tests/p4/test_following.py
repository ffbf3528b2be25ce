"""What holds of every layer that follows the whole gradient of a batch."""

from __future__ import annotations

import math

import pytest
import torch

from p4lab.p4 import P4Linear, P4Relative, P4Riemannian

KINDS = (P4Relative, P4Riemannian)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
ranks = pytest.mark.parametrize("rank", [16, 24], ids=["rows", "dense"])


@kinds
@ranks
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_leaves_the_frozen_tensors_alone(
    kind: type[P4Linear], rank: int, value: float
) -> None:
    layer = kind(24, rank=rank, init="orthogonal", seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    x = torch.randn(8, 24)
    x[3, 0] = value
    layer(x).square().mean().backward()
    optimizer.step()
    report = layer.merge()
    assert bool(report.discarded)
    assert torch.equal(layer.weight, before)
    optimizer.zero_grad()
    layer(torch.randn(8, 24)).square().mean().backward()
    optimizer.step()
    assert layer.merge()
    assert bool(layer.weight.isfinite().all())


@kinds
@ranks
def test_steps_that_are_dropped_are_no_refusals_that_pile_up(kind: type[P4Linear], rank: int) -> None:
    layer = kind(24, rank=rank, seed=0)
    for _ in range(40):
        layer.zero_grad()
        layer(torch.randn(8, 24)).square().mean().backward()
        torch.optim.SGD(layer.parameters(), lr=math.inf).step()
        assert layer.merge().discarded
    assert layer.rescues == 0


@kinds
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_of_a_batch_that_was_skipped_do_not_reach_the_next_one(kind: type[P4Linear], value: float) -> None:
    """Whoever sees a NaN loss and skips that batch may go on with a smaller one, and look before the merge."""
    layer = kind(24, rank=16, init="orthogonal", seed=0, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(8, 24, dtype=torch.float64)
    bad = x.clone()
    bad[7, 0] = value
    layer(bad).square().mean().backward()
    optimizer.zero_grad()
    (layer(x[:4]) - x[:4].roll(1, -1)).square().mean().backward()
    optimizer.step()
    for _ in range(2):
        with torch.no_grad():
            y = layer(x)
            assert torch.allclose(y, torch.nn.functional.linear(x, layer.weight, layer.bias), atol=1e-12)
            assert torch.allclose(layer.inverse(y), x, atol=1e-12)
        assert layer.merge()
