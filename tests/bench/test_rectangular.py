"""Layers that are not square: every contender trains, and keeps what it says."""

from __future__ import annotations

import pytest
import torch

from p4lab.bench import rectangular

ORTHONORMAL = [name for name in rectangular.CONTENDERS if name not in ("p4spectrum", "poet")]


@pytest.mark.parametrize("name", rectangular.CONTENDERS)
def test_each_learns_and_keeps_its_property(name: str) -> None:
    torch.manual_seed(0)
    layer, optimizer, schedule = rectangular.CONTENDERS[name](64)
    x, target = torch.randn(32, 64), torch.randn(32, 256)
    before = torch.linalg.svdvals(layer.weight.detach())
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    goal = torch.ones(64) if name in ORTHONORMAL else before
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach()), goal, rtol=0, atol=1e-3)


def test_the_table_has_a_column_for_each() -> None:
    text = rectangular.rectangular((64,), batch=16, rounds=1, names=("p4stiefel", "pogo"))
    cells = [cell.strip() for cell in text.splitlines()[0].split("|")[1:-1]]
    assert cells == ["d", "nn.Linear [us]", "p4stiefel", "pogo"]
