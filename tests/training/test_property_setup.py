"""The setup of the properties: configs, ways to keep a property, lanes, what is recorded."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from p4lab.errors import ConfigError
from p4lab.problems.property_targets import PROPERTIES, violation
from p4lab.training import RunConfig, load_run, save_run
from p4lab.training.property_maps import averaged, clipped, penalty_of, unit_volume
from p4lab.training.property_setup import (
    PropertyConfig,
    PropertyEngine,
    PropertyLanes,
    best_error,
    own_inverse,
    side_by_side,
)
from p4lab.training.property_tuning import tune
from p4lab.training.property_ways import LANES, MAP_TEXTS, START, WAYS
from p4lab.training.runs import Runs

SMALL: dict[str, Any] = {"dim": 8, "batch_size": 32, "measure_every": 5}
EACH = pytest.mark.parametrize("prop", PROPERTIES)
EVERY = [(prop, way) for prop in PROPERTIES for way in WAYS]
ALL = pytest.mark.parametrize(("prop", "way"), EVERY, ids=[f"{prop}-{way}" for prop, way in EVERY])


def config(prop: str, way: str = "p4", **changes: Any) -> PropertyConfig:
    settings = {**SMALL, **changes}
    return PropertyConfig(prop=prop, way=way, **{**LANES[prop][way].settings(settings["dim"]), **settings})


def weight(engine: Any) -> torch.Tensor:
    return engine.model.weight.detach().clone()


# --- config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [PropertyConfig(), config("lipschitz", "other", bound=1.25, noise=0.0, samples=32)])
def test_a_config_survives_text_and_json(chosen: PropertyConfig) -> None:
    assert RunConfig.from_text(chosen.to_text()) == chosen
    assert RunConfig.from_json(chosen.to_json()) == chosen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prop": "convex"}, "prop='convex'"),
        ({"way": "best"}, "way='best'"),
        ({"dim": 1}, "dim=1"),
        ({"bound": 0.0}, "bound=0.0"),
        ({"orthogonal_map": "qr"}, "orthogonal_map='qr'"),
        ({"noise": -1.0}, "noise=-1.0"),
        ({"samples": -1}, "samples=-1"),
        ({"strength": math.inf}, "strength=inf"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PropertyConfig(**changes)


# --- ways -------------------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_way_starts_with_the_property_and_computes_its_weight(prop: str, way: str, dtype: str) -> None:
    chosen = config(prop, way, dtype=dtype)
    engine = PropertyEngine(chosen)
    start = START * chosen.bound if prop == "lipschitz" else 1.0
    if (prop, way) == ("lipschitz", "usual"):
        start = chosen.bound  # torch's spectral_norm scales everything to the bound
    engine.model.eval()
    torch.testing.assert_close(weight(engine).double(), start * torch.eye(8).double(), atol=1e-6, rtol=1e-6)
    engine.model.train()
    engine.run(7)
    engine.model.eval()
    x = torch.randn(5, 8, dtype=getattr(torch, dtype))
    torch.testing.assert_close(engine.model(x), x @ weight(engine).t(), atol=1e-5, rtol=1e-5)


@ALL
def test_a_way_learns(prop: str, way: str) -> None:
    engine = PropertyEngine(config(prop, way, noise=0.0, dim=16))
    engine.run(200)
    first, *_, last = engine.records.measures.columns["test_loss"]
    floor = best_error(prop, 16, 0, engine.config.bound)  # type: ignore[attr-defined]
    assert last - floor < 0.2 * (first - floor)


@pytest.mark.parametrize("name", MAP_TEXTS)
def test_every_map_of_torch_has_its_lane(name: str) -> None:
    engine = PropertyEngine(config("orthogonal", "usual", orthogonal_map=name))
    engine.run(10)
    assert engine.records.measures.columns["residual"][-1] < 1e-5
    assert engine.config.label == f"torch, {MAP_TEXTS[name]}"  # type: ignore[attr-defined]


@EACH
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float64", 1e-12)], ids=["float32", "float64"])
def test_p4_keeps_the_property_amid_a_perturbation_and_after_merges(prop: str, dtype: str, limit: float) -> None:
    engine = PropertyEngine(config(prop, dtype=dtype, noise=1.0, measure_every=1))
    engine.run(100)
    assert engine.records.counts["merge"] >= 25
    assert max(engine.records.measures.columns["residual"]) <= limit


@pytest.mark.parametrize("prop", [prop for prop in PROPERTIES if prop != "invertible"])
@pytest.mark.parametrize("way", ["penalty", "plain"])
def test_asking_is_not_keeping(prop: str, way: str) -> None:
    engine = PropertyEngine(config(prop, way, noise=0.3))
    engine.run(100)
    assert engine.records.measures.columns["residual"][-1] > 1e-3


def test_a_stronger_penalty_keeps_more() -> None:
    found = []
    for strength in (0.0, 0.1, 1.0):
        engine = PropertyEngine(config("orthogonal", "penalty", strength=strength))
        engine.run(200)
        found.append(float(np.mean(engine.records.measures.columns["residual"][-10:])))
    assert found[0] > found[1] > found[2]


def test_plain_weights_know_no_inverse_and_others_do() -> None:
    for way in WAYS:
        inverse = own_inverse(PropertyEngine(config("invertible", way)).model)
        assert (inverse is None) == (way == "plain")
        if inverse is not None:
            torch.testing.assert_close(inverse, torch.eye(8), atol=1e-6, rtol=0)


def test_a_geotorch_lane_moves_its_base_and_goes_on_from_its_state() -> None:
    one, two = (PropertyEngine(config("orthogonal", "other")) for _ in range(2))
    one.run(99)
    two.load_state(one.state())
    for engine in (one, two):
        engine.run(3)  # the base moves after step 100
    assert torch.equal(weight(one), weight(two))
    assert one.model._rebase.steps == two.model._rebase.steps == 102  # type: ignore[union-attr]


# --- functions of matrices --------------------------------------------------------------------------------------------


def test_the_group_average_is_the_nearest_that_commutes() -> None:
    raw = torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean = averaged(raw, 4)
    assert violation("permutation", mean) < 1e-14
    torch.testing.assert_close(averaged(mean, 4), mean)
    assert float(((raw - mean) * mean).sum()) == pytest.approx(0, abs=1e-12)


def test_clipping_is_the_nearest_within_the_bound() -> None:
    raw = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = clipped(raw, 0.7)
    assert violation("lipschitz", inside, 0.7) < 1e-14
    expected = (torch.linalg.svdvals(raw) - 0.7).relu().square().sum()
    assert float((raw - inside).square().sum()) == pytest.approx(float(expected))
    assert violation("volume", unit_volume(torch.diag(torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)))) < 1e-14


@pytest.mark.parametrize("prop", [prop for prop in PROPERTIES if prop != "invertible"])
def test_a_penalty_is_zero_where_the_property_holds_and_differentiable_elsewhere(prop: str) -> None:
    wish = penalty_of(prop, 8, bound=1.0)
    assert float(wish(torch.eye(8, dtype=torch.float64))) == pytest.approx(0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    bad = 2 * torch.eye(8, dtype=torch.float64) + 0.1 * torch.randn(8, 8, dtype=torch.float64, generator=generator)
    assert float(wish(bad)) > 0.01
    assert torch.autograd.gradcheck(wish, bad.requires_grad_())


# --- lanes ------------------------------------------------------------------------------------------------------------


@EACH
def test_lanes_are_deterministic_and_do_not_depend_on_their_neighbours(prop: str) -> None:
    lanes = side_by_side(config(prop))
    lanes.run(9)
    for way in WAYS:
        alone = PropertyEngine(config(prop, way))
        alone.run(9)
        assert alone.records.steps.columns["loss"] == lanes.engines[way].records.steps.columns["loss"]
        assert torch.equal(weight(alone), weight(lanes.engines[way]))


@EACH
def test_looking_does_not_change_a_run(prop: str) -> None:
    looked, other = side_by_side(config(prop, measure_every=1)), side_by_side(config(prop, measure_every=100))
    for _ in range(6):
        looked.snapshot()
        looked.run()
        other.run()
    for way in WAYS:
        one, two = (lanes.engines[way].records.steps.columns["loss"] for lanes in (looked, other))
        assert one == two


@EACH
def test_a_run_goes_on_from_its_file(prop: str, tmp_path: Any) -> None:
    runs = Runs(side_by_side, config(prop))
    runs.active.engine.run(6)
    save_run(runs.active, tmp_path / "a.p4run")
    loaded = load_run(tmp_path / "a.p4run", side_by_side)
    engines: list[Any] = [runs.active.engine, loaded.engine]
    for engine in engines:
        engine.run(5)
    for way in WAYS:
        one, two = (engine.engines[way].records.steps.columns["loss"] for engine in engines)
        assert one == two


def test_each_lane_has_its_turn_to_be_the_first() -> None:
    lanes = side_by_side(config("orthogonal"))
    first = []
    for _ in range(6):
        first.append(lanes._alive()[0])
        lanes.run()
    assert first == [*WAYS, WAYS[0]]


def test_live_settings_reach_what_they_are_for() -> None:
    lanes = side_by_side(config("orthogonal"))
    rates = {way: lane.optimizer.param_groups[0]["lr"] for way, lane in lanes.engines.items()}
    assert rates["p4"] == LANES["orthogonal"]["p4"].rate * 8
    for name, value in {"rate_factor": 0.5, "noise": 0.7, "strength": 3.0, "reset": "gaussian"}.items():
        lanes.set(name, value)
    for way, lane in lanes.engines.items():
        assert lane.optimizer.param_groups[0]["lr"] == 0.5 * rates[way]
        assert (lane.problem.noise, lane.problem.strength) == (0.7, 3.0)
    assert lanes.engines["p4"].model.reset_kind == "gaussian"
    for name, value in {"learning_rate": 0.1, "way": "plain"}.items():
        with pytest.raises(ConfigError, match="the lanes differ in this setting"):
            lanes.set(name, value)


def test_pictures_are_those_of_every_lane() -> None:
    lanes = PropertyLanes(config("circulant"), ("p4", "usual"))
    lanes.run(3)
    for lane in lanes.snapshot().lanes.values():
        assert lane.pictures["matrix"].shape == (8, 8)
        np.testing.assert_array_equal(lane.pictures["target"], lanes.engines["p4"].problem.target.float())
        assert not len(lane.trail.steps)


def test_the_least_error_is_what_the_bound_takes_away() -> None:
    assert best_error("orthogonal", 8, 0, 0.5) == 0
    assert best_error("lipschitz", 8, 0, 1.0) == pytest.approx(0, abs=1e-20)
    engine = PropertyEngine(config("lipschitz", "other", noise=0.0, dtype="float64"))
    engine.run(100)
    assert engine.records.measures.columns["test_loss"][-1] == pytest.approx(
        best_error("lipschitz", 8, 0, 0.8), rel=0.03
    )


def test_tuning_finds_the_better_rate() -> None:
    rows = tune("circulant", "plain", dim=8, steps=30)
    merits = [row["merit"] for row in rows]
    assert merits == sorted(merits)
    assert {row["optimizer"] for row in rows} == {"sgd", "adam"}
