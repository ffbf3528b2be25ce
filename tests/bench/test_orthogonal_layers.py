"""The benchmark of orthogonal layers: what it runs and chooses (no timing is asserted)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from p4lab.baselines import METHODS, ORTHOGONAL_GROUPS
from p4lab.bench import orthogonal_layers as orthogonal
from p4lab.p4 import ORTHOGONAL, MergeSchedule, P4Orthogonal
from p4lab.problems.rates import Choice


def test_every_orthogonal_method_takes_part() -> None:
    assert {name for name, method in METHODS.items() if method.group in ORTHOGONAL_GROUPS} <= set(orthogonal.CONTENDERS)
    assert set(orthogonal.STATIC) < set(orthogonal.PACKAGED) < set(orthogonal.CONTENDERS)


@pytest.mark.parametrize("name", orthogonal.CONTENDERS)
def test_each_starts_at_the_identity_and_learns(name: str) -> None:
    choice = orthogonal.grid(orthogonal.CONTENDERS[name], 8)[0]
    idle = orthogonal.solve(name, 8, dataclasses.replace(choice, rate=1e-9), seed=0, limit=0.01)
    outcome = orthogonal.solve(name, 8, choice, seed=0, limit=2.0)
    assert outcome.steps > 1
    assert outcome.loss < 0.7 * idle.loss
    # Some are next to O(n) only, and say so.
    assert outcome.violation < (1e-3 if orthogonal.CONTENDERS[name].group == "orthogonal" else 0.5)


def test_the_same_rates_and_intervals_for_all_that_have_them() -> None:
    grids = {name: orthogonal.grid(method, 64) for name, method in orthogonal.CONTENDERS.items()}
    for grid in grids.values():
        assert {(choice.optimizer, choice.rate) for choice in grid} <= {
            (choice.optimizer, choice.rate) for choice in grids[orthogonal.OWN]
        }
    for name in (orthogonal.OWN, "torch_cayley_dynamic", "geotorch_so_dynamic"):
        assert {choice.every for choice in grids[name]} == set(orthogonal.INTERVALS)
    assert {choice.every for choice in grids["torch_cayley"]} == {0}
    assert {choice.every for choice in grids["p4riemannian"]} == {1}  # it has room for the samples of one batch


def test_the_interval_of_a_choice_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(MergeSchedule, "step", lambda self: seen.append(self.every))
    for every in (3, 0):
        orthogonal.solve(orthogonal.OWN, 8, Choice("sgd", 0.0, every=every), seed=0, limit=0.1)
    assert set(seen) == {3, ORTHOGONAL.every}


def test_the_preset_reaches_a_rotation_in_few_steps() -> None:
    outcome = orthogonal.solve(orthogonal.OWN, 16, Choice("sgd", 2.0), seed=0, limit=60.0)
    assert outcome.reached
    assert outcome.steps < 100
    assert outcome.violation < 1e-6


def test_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (orthogonal.OWN, "cayley_descent", "torch_cayley", "geotorch_so_dynamic")
    body = orthogonal.targets((4,), (0,), names, limit=0.1)
    assert all(orthogonal.CONTENDERS[name].label in body for name in names)
    assert "best of torch as it comes: Cayley (torch)" in body
    monkeypatch.setattr(orthogonal, "STEP_BATCH", 8)
    assert "nn.Linear [us]" in orthogonal.steps((4,), rounds=1, names=names)


@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (3, 1), (40, 20), (512, 32)])
def test_the_preset_makes_a_layer(dim: int, rank: int) -> None:
    layer = ORTHOGONAL.layer(dim, seed=0)
    assert type(layer) is P4Orthogonal
    assert (layer.rank, layer.reset_kind) == (rank, "gradient")
    schedule = ORTHOGONAL.schedule(layer, torch.optim.SGD(layer.parameters(), lr=0.1))
    assert (schedule.every, schedule.refine_every) == (ORTHOGONAL.every, ORTHOGONAL.refine_every)
