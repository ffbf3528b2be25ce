"""POET: a merge leaves the function, the blocks are nearly orthogonal, and the optimizer forgets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from p4lab.baselines.poet import PoetLinear, PoetSchedule
from p4lab.errors import OptionError


def turned(dim_in: int = 8, dim_out: int = 12) -> PoetLinear:
    layer = PoetLinear(dim_in, dim_out, block=4, seed=0)
    for skew in layer.rotations():
        nn.init.normal_(skew, std=0.1)
    nn.init.normal_(layer.bias)
    return layer


def test_it_starts_at_its_weights() -> None:
    weight = torch.randn(8, 4)
    torch.testing.assert_close(PoetLinear(4, 8, block=4, init=weight).weight, weight)
    rows = torch.linalg.vector_norm(PoetLinear(8, 4, block=2).frozen_weight, dim=1)
    torch.testing.assert_close(rows, torch.ones(4))


def test_forward_is_the_weights_on_the_input() -> None:
    layer, x = turned(), torch.randn(2, 3, 8)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_singular_values_stay_nearly() -> None:
    layer = turned()
    before = torch.linalg.svdvals(layer.frozen_weight)
    after = torch.linalg.svdvals(layer.weight.detach())
    assert 0 < float((after - before).abs().max()) < 0.05  # the series is cut after three terms


def test_a_merge_leaves_the_function_and_forgets_the_momentum() -> None:
    layer = turned()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    schedule = PoetSchedule(layer, optimizer, every=3)
    x = torch.randn(5, 8)
    limits = []
    for _ in range(2):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
        schedule.step()
        limits.append(schedule.limit())
    before = layer(x).detach()
    schedule.step()
    torch.testing.assert_close(layer(x), before)
    assert not any(skew.any() for skew in layer.rotations())
    assert set(optimizer.state) == {layer.bias}
    assert limits == [1.0, 1.0]
    assert schedule.limit() == pytest.approx(0.1)


def test_errors() -> None:
    with pytest.raises(OptionError, match="block=5"):
        PoetLinear(8, 12, block=5)
    with pytest.raises(OptionError, match="no PoetLinear"):
        PoetSchedule(nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))
