"""The lab of properties: the ways to keep each of them, lanes, table, heatmaps, spectra, curves."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import as_number, break_lane, opened, table, train

from p4lab.baselines.properties import MAP_TEXTS, PROPERTIES, START, WAYS
from p4lab.bench.property_tuning import tune
from p4lab.errors import ConfigError
from p4lab.labs.property import (
    BUSY,
    COLORS,
    PROPERTY,
    PropertyConfig,
    best_error,
    labels,
    own_inverse,
    seconds_to,
    side_by_side,
)
from p4lab.plots.gallery import levels
from p4lab.plots.layers import Path, Points
from p4lab.training import Engine

SMALL: dict[str, Any] = {"dim": 8, "batch_size": 32, "measure_every": 5}
EACH = pytest.mark.parametrize("prop", PROPERTIES)
NOT_INVERTIBLE = [prop for prop in PROPERTIES if prop != "invertible"]
EVERY = [(prop, way) for prop in PROPERTIES for way in WAYS]
ALL = pytest.mark.parametrize(("prop", "way"), EVERY, ids=[f"{prop}-{way}" for prop, way in EVERY])


def config(prop: str, way: str = "p4", **changes: Any) -> PropertyConfig:
    settings = {**SMALL, **changes}
    return PropertyConfig(prop=prop, way=way, **{**PROPERTIES[prop].ways[way].settings(settings["dim"]), **settings})


def weight(engine: Engine) -> torch.Tensor:
    matrix: Any = engine.model.weight
    return matrix.detach().clone()


def worst(engine: Engine) -> float:
    return max(engine.records.measures.columns["residual"])


# --- ways -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"prop": "convex"},
        {"way": "best"},
        {"dim": 1},
        {"bound": 0.0},
        {"orthogonal_map": "qr"},
        {"noise": -1.0},
        {"samples": -1},
        {"strength": math.inf},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    name, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        PropertyConfig(**changes)


@ALL
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_way_starts_with_the_property_and_computes_its_weight(prop: str, way: str, dtype: str) -> None:
    chosen = config(prop, way, dtype=dtype)
    engine = Engine(chosen)
    start = START * chosen.bound if PROPERTIES[prop].bounded else 1.0
    if (prop, way) == ("lipschitz", "usual"):
        start = chosen.bound  # torch's spectral_norm scales everything to the bound
    engine.model.eval()
    torch.testing.assert_close(
        weight(engine).double(), start * PROPERTIES[prop].begin(torch.eye(8).double()), atol=1e-6, rtol=1e-6
    )
    engine.model.train()
    engine.run(7)
    engine.model.eval()
    x = torch.randn(5, 8, dtype=getattr(torch, dtype))
    torch.testing.assert_close(engine.model(x), x @ weight(engine).t(), atol=1e-5, rtol=1e-5)


@ALL
def test_a_way_learns(prop: str, way: str) -> None:
    chosen = config(prop, way, noise=0.0, dim=16)
    engine = Engine(chosen)
    engine.run(200)
    first, *_, last = engine.records.measures.columns["test_loss"]
    floor = best_error(prop, 16, 0, chosen.bound)
    assert last - floor < 0.2 * (first - floor)


@pytest.mark.parametrize("name", MAP_TEXTS)
def test_every_map_of_torch_has_its_lane(name: str) -> None:
    chosen = config("orthogonal", "usual", orthogonal_map=name)
    engine = Engine(chosen)
    engine.run(10)
    assert engine.records.measures.columns["residual"][-1] < 1e-5
    assert chosen.label == f"torch, {MAP_TEXTS[name]}"


@EACH
@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-5), ("float64", 1e-12)], ids=["float32", "float64"])
def test_p4_keeps_the_property_amid_a_perturbation_and_after_merges(prop: str, dtype: str, limit: float) -> None:
    engine = Engine(config(prop, dtype=dtype, noise=1.0, measure_every=1))
    engine.run(100)
    assert engine.records.counts["merge"] >= 25
    assert worst(engine) <= limit


@pytest.mark.parametrize("prop", NOT_INVERTIBLE)
@pytest.mark.parametrize("way", ["penalty", "plain"])
def test_asking_is_not_keeping(prop: str, way: str) -> None:
    engine = Engine(config(prop, way, noise=0.3))
    engine.run(100)
    assert engine.records.measures.columns["residual"][-1] > 1e-3


def test_a_stronger_penalty_keeps_more() -> None:
    missed = []
    for strength in (0.0, 0.1, 1.0):
        engine = Engine(config("orthogonal", "penalty", strength=strength))
        engine.run(200)
        missed.append(float(np.mean(engine.records.measures.columns["residual"][-10:])))
    assert missed[0] > missed[1] > missed[2]


def test_plain_weights_know_no_inverse_and_others_do() -> None:
    for way in WAYS:
        inverse = own_inverse(Engine(config("invertible", way)).model)
        assert (inverse is None) == (way == "plain")
        if inverse is not None:
            torch.testing.assert_close(inverse, torch.eye(8), atol=1e-6, rtol=0)


def test_a_geotorch_lane_moves_its_base_and_goes_on_from_its_state() -> None:
    one, two = (Engine(config("orthogonal", "other")) for _ in range(2))
    one.run(99)
    two.load_state(one.state())
    for engine in (one, two):
        engine.run(3)  # the base moves after step 100
    assert torch.equal(weight(one), weight(two))
    states = [engine.state()["model"] for engine in (one, two)]
    assert states[0]["_extra_state"]["steps"] == states[1]["_extra_state"]["steps"] == 102


def test_the_least_error_is_what_the_bound_takes_away() -> None:
    assert best_error("orthogonal", 8, 0, 0.5) == 0
    assert best_error("lipschitz", 8, 0, 1.0) == pytest.approx(0, abs=1e-20)
    engine = Engine(config("lipschitz", "other", noise=0.0, dtype="float64"))
    engine.run(100)
    last = engine.records.measures.columns["test_loss"][-1]
    assert last == pytest.approx(best_error("lipschitz", 8, 0, 0.8), rel=0.03)


def test_tuning_finds_the_better_rate() -> None:
    rows = tune("circulant", "plain", dim=8, steps=30)
    merits = [row["merit"] for row in rows]
    assert merits == sorted(merits)
    assert {row["optimizer"] for row in rows} == {"sgd", "adam"}


# --- lanes ------------------------------------------------------------------------------------------------------------


@EACH
def test_lanes_do_not_depend_on_neighbours_nor_on_being_looked_at(prop: str) -> None:
    lanes = side_by_side(config(prop))
    for _ in range(9):
        lanes.snapshot()
        lanes.run()
    for way in WAYS:
        alone = Engine(config(prop, way, measure_every=100))
        alone.run(9)
        assert alone.records.steps.columns["loss"] == lanes.engines[way].records.steps.columns["loss"]
        assert torch.equal(weight(alone), weight(lanes.engines[way]))


def test_live_settings_reach_what_they_are_for() -> None:
    lanes = side_by_side(config("orthogonal"))
    rates = {way: lane.optimizer.param_groups[0]["lr"] for way, lane in lanes.engines.items()}
    assert rates["p4"] == PROPERTIES["orthogonal"].ways["p4"].rate * 8
    for name, value in {"rate_factor": 0.5, "noise": 0.7, "strength": 3.0, "reset": "gaussian"}.items():
        lanes.set(name, value)
    for way, lane in lanes.engines.items():
        assert lane.optimizer.param_groups[0]["lr"] == 0.5 * rates[way]
        assert (lane.problem.noise, lane.problem.strength) == (0.7, 3.0)
    assert lanes.engines["p4"].model.reset_kind == "gaussian"
    for name, value in {"learning_rate": 0.1, "way": "plain"}.items():
        with pytest.raises(ConfigError, match="the lanes differ in this setting"):
            lanes.set(name, value)


def test_matrices_are_shown_but_their_paths_are_not_recorded() -> None:
    lanes = side_by_side(config("circulant"), ("p4", "usual"))
    lanes.run(3)
    for lane in lanes.snapshot().lanes.values():
        assert lane.pictures["matrix"].shape == (8, 8)
        np.testing.assert_array_equal(lane.pictures["target"], lanes.engines["p4"].problem.target.float())
        assert not len(lane.trail.steps)


# --- what is drawn and told -------------------------------------------------------------------------------------------


def open_lab(**changes: Any) -> Any:
    return opened(PROPERTY, **{**SMALL, "noise": 0.3, **changes})


def drawn(lab: Any, area: str, kind: type) -> list[Any]:
    return [layer for layer in lab.drawings()[area].layers if isinstance(layer, kind)]


@EACH
def test_every_property_is_told_and_drawn(prop: str) -> None:
    with open_lab(prop=prop) as lab:
        train(lab, 60)
        rows, lanes = table(lab), lab.sight().lanes
        assert [row[""] for row in rows] == list(labels(lab.config).values())
        for way, row in zip(WAYS, rows, strict=True):
            assert as_number(row["error"]) == pytest.approx(lanes[way].last("test_loss"), rel=0.06)
            assert (row["merged"] != "–") == (way == "p4")
            assert as_number(row["ms/step"]) > 0
        assert as_number(rows[0]["worst"]) < 1e-5
        if prop == "invertible":
            assert rows[-1]["violation"] == rows[-1]["worst"] == "–"
        else:
            assert as_number(rows[-1]["worst"]) >= as_number(rows[-1]["violation"]) > 1e-3
        assert lab.numbers()["violation_p4"] == rows[0]["violation"]
        assert [tile.note for tile in lab.drawings()["matrices"].tiles] == [*labels(lab.config).values(), ""]
        for area, kind in (("eigenvalues", Points), ("singular-values", Path)):
            colors = [layer.color for layer in drawn(lab, area, kind)]
            assert set(COLORS.values()) <= set(colors)
            assert colors[-1] == COLORS["p4"]  # on top
        disabled = PROPERTY.disabled(lab.config)
        assert ("bound" not in disabled) == (prop == "lipschitz")
        assert ("orthogonal_map" not in disabled) == (prop == "orthogonal")
        assert ("rank" in disabled) == (prop == "circulant")


def test_heatmaps_show_matrices_or_their_errors() -> None:
    with open_lab() as lab:
        train(lab, 20)
        pictures = lab.sight().lanes["p4"].pictures
        for choice in ("matrix", "error"):
            lab.touch("matrix", choice)
            drawing = lab.drawings()["matrices"]
            matrix = pictures["matrix"] - (pictures["target"] if choice == "error" else 0)
            np.testing.assert_array_equal(drawing.tiles[0].images[0], levels(matrix, float(drawing.ends[1])))
            assert drawing.ends[0].startswith("error" if choice == "error" else "entry")


def test_eigenvalues_of_an_orthogonal_matrix_lie_on_the_circle() -> None:
    with open_lab() as lab:
        train(lab, 30)
        points = next(layer.points for layer in drawn(lab, "eigenvalues", Points) if layer.color == COLORS["p4"])
        np.testing.assert_allclose(np.hypot(*points.T), 1, atol=1e-5)


def test_the_bound_is_drawn_and_kept() -> None:
    with open_lab(prop="lipschitz", bound=0.5) as lab:
        train(lab, 30)
        bound, *lanes = drawn(lab, "singular-values", Path)
        assert bound.points[:, 1].tolist() == [0.5, 0.5]
        highest = {lane.color: float(lane.points[:, 1].max()) for lane in lanes}
        assert highest[COLORS["p4"]] <= 0.5 * (1 + 1e-5) < highest[COLORS["plain"]]
        shapes = PROPERTY.curves(lab.sight())["layout"]["shapes"]
        best = float(np.square((np.linspace(0.1, 1.0, 8) - 0.5).clip(0)).sum()) / 8
        assert [shape["y0"] for shape in shapes if shape["line"]["dash"] == "dash"] == pytest.approx([best] * 2)
        assert [row["kept by"] for row in table(lab)][2:4] == ["projection", "penalty"]


def test_wide_matrices_show_the_eigenvalues_of_two_lanes() -> None:
    with open_lab(dim=BUSY + 8, batch_size=8) as lab:
        colors = [layer.color for layer in drawn(lab, "eigenvalues", Points)]
        assert colors == ["orange", COLORS["plain"], COLORS["p4"]]


def test_the_time_to_the_goal_is_that_of_the_first_measurement_below_it() -> None:
    with open_lab() as lab:
        assert np.isnan(seconds_to(lab.sight().lanes["p4"]))
        train(lab, 20)
        lane = lab.sight().lanes["p4"]
        (steps, errors), seconds = lane.curves["test_loss"], lane.curves["seconds"][1]
        assert seconds_to(lane, goal=float(errors[2]) * 1.01) == pytest.approx(seconds[int(steps[2]) - 1])


def test_a_lane_that_stops_says_so() -> None:
    with open_lab() as lab:
        break_lane(lab, "usual")
        assert lab.message().startswith("torch, Householder stopped: step 1")
        assert lab.numbers()["violation_usual"] == "stopped"
        assert table(lab)[1][""] == "torch, Householder (stopped)"
