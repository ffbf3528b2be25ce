"""The setup of the swaps: configs, flows that differ in their mixing only, lanes, pictures."""

from typing import Any

import numpy as np
import pytest
import torch

from p4lab.errors import ConfigError
from p4lab.flows import MIXINGS
from p4lab.training import RunConfig, load_run, run, save_run
from p4lab.training.runs import Runs
from p4lab.training.swaps_setup import (
    DIGITS,
    LANES,
    SIDE,
    TOP,
    SwapsConfig,
    distance_from_swap,
    entropy,
    mixing_matrices,
    side_by_side,
)

SMALL: dict[str, Any] = {"data": "two_moons", "blocks": 3, "hidden": 8, "batch_size": 32, "measure_every": 5}
PROBLEMS = pytest.mark.parametrize("data", ["two_moons", DIGITS])


def matrices(lanes: Any, name: str) -> torch.Tensor:
    return mixing_matrices(lanes.engines[name].model).detach()


@pytest.mark.parametrize(
    "config", [SwapsConfig(), SwapsConfig(data="rings", mixing="p4orthogonal", blocks=5, hidden=7, seed=3)]
)
def test_a_config_survives_text_and_json(config: SwapsConfig) -> None:
    assert RunConfig.from_text(config.to_text()) == config
    assert RunConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "cats"}, "data='cats'"),
        ({"mixing": "shuffle"}, "mixing='shuffle'"),
        ({"blocks": 1}, "blocks=1"),
        ({"hidden": 0}, "hidden=0"),
    ],
    ids=["data", "mixing", "blocks", "hidden"],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SwapsConfig(**changes)


def test_every_lane_is_a_mixing() -> None:
    assert set(LANES) <= set(MIXINGS)


@PROBLEMS
def test_lanes_start_as_one_function_but_for_the_permutation(data: str) -> None:
    config = SwapsConfig(data=data, blocks=3, hidden=8)
    x = torch.randn(20, config.width, generator=torch.Generator().manual_seed(0))
    first, *others = (config.replace(mixing=name).model()(x)[0] for name in LANES if name != "permutation")
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-5, rtol=1e-5)


@PROBLEMS
def test_lanes_are_deterministic_and_do_not_depend_on_their_neighbours(data: str) -> None:
    config = SwapsConfig(**{**SMALL, "data": data})
    lanes = side_by_side(config)
    lanes.run(9)
    for name in LANES:
        alone = run(config.replace(mixing=name), 9)
        assert alone.records.steps.columns["loss"] == lanes.engines[name].records.steps.columns["loss"]
        assert torch.equal(mixing_matrices(alone.model), mixing_matrices(lanes.engines[name].model))


@PROBLEMS
def test_learned_mixings_move_and_fixed_ones_do_not(data: str) -> None:
    config = SwapsConfig(**{**SMALL, "data": data})
    lanes = side_by_side(config)
    before = {name: matrices(lanes, name).clone() for name in LANES}
    lanes.run(10)
    for name in LANES:
        assert torch.equal(matrices(lanes, name), before[name]) == (name in ("swap", "permutation"))
    q = matrices(lanes, "p4orthogonal").double()
    torch.testing.assert_close(q @ q.mT, torch.eye(config.width).double().expand_as(q), atol=1e-5, rtol=0)
    assert lanes.engines["p4inv"].records.counts["merge"] == 2 * 2


@PROBLEMS
def test_every_moment_has_its_pictures(data: str) -> None:
    config = SwapsConfig(**{**SMALL, "data": data})
    runs = Runs(side_by_side, config)
    for _ in range(6):
        runs.active.advance()
    moments = runs.active.history.moments
    assert len(moments) >= 2
    shape = (9, 8, 8) if data == DIGITS else (1, SIDE, SIDE)
    for moment in moments:
        for name in LANES:
            pictures = moment.lanes[name].pictures
            assert pictures["matrices"].shape == (2, config.width, config.width)
            assert pictures["matrices"].dtype == np.float32
            assert (pictures["images"].shape, pictures["images"].dtype) == (shape, np.uint8)
            assert 0 < pictures["images"].max() <= TOP
    first, last = (moment.lanes["p4inv"].pictures["matrices"] for moment in (moments[0], moments[-1]))
    assert not np.array_equal(first, last)


def test_looking_does_not_change_a_run() -> None:
    config = SwapsConfig(**SMALL)
    looked, other = side_by_side(config), side_by_side(config)
    for _ in range(5):
        looked.snapshot()
        looked.run()
        other.run()
    for name in LANES:
        one, two = (lanes.engines[name].records.steps.columns["loss"] for lanes in (looked, other))
        assert one == two


def test_a_run_goes_on_from_its_file(tmp_path: Any) -> None:
    runs = Runs(side_by_side, SwapsConfig(**SMALL))
    runs.active.engine.run(6)
    save_run(runs.active, tmp_path / "a.p4run")
    loaded = load_run(tmp_path / "a.p4run", side_by_side)
    engines: list[Any] = [runs.active.engine, loaded.engine]
    for engine in engines:
        engine.run(3)
    for name in LANES:
        one, two = (engine.engines[name].records.steps.columns["loss"] for engine in engines)
        assert one == two


def test_only_chosen_mixings_train() -> None:
    assert list(side_by_side(SwapsConfig(**SMALL), ("plu", "orthogonal")).engines) == ["plu", "orthogonal"]


@pytest.mark.parametrize("d", [2, 5])
def test_the_distance_from_the_swap(d: int) -> None:
    swap = torch.eye(d, dtype=torch.float64).flip(-1)
    shifted = torch.stack([swap, swap + 0.3 * torch.eye(d), -swap])
    expected = [0.0, 0.3, 2.0]
    assert distance_from_swap(shifted).tolist() == pytest.approx(expected)
    assert distance_from_swap(shifted.numpy()).tolist() == pytest.approx(expected)


def test_the_entropy_is_known_for_densities_only() -> None:
    assert entropy(SwapsConfig()) is None
    assert entropy(SwapsConfig(data="eight_gaussians")) == pytest.approx(1.72, abs=0.05)
