"""The lab of properties: lanes, table, heatmaps, spectra, curves, settings, without a browser."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from attentive_page import drawn, items, layers, train_watched
from p4lab.widgets.swaps_pictures import levels

from p4lab.errors import ConfigError
from p4lab.plots.layers import Path, Points
from p4lab.problems.property_targets import PROPERTIES
from p4lab.training.property_setup import PropertyConfig
from p4lab.training.property_ways import LANES, WAYS
from p4lab.widgets.property_board import COLORS, COLUMNS, label, seconds_to
from p4lab.widgets.property_lab import TEXTS, PropertyLab, property_lab
from p4lab.widgets.property_pictures import BUSY, ROLES

SMALL: dict[str, Any] = {"dim": 8, "batch_size": 32, "measure_every": 5, "noise": 0.3}
EACH = pytest.mark.parametrize("lab", [{"prop": prop} for prop in PROPERTIES], indirect=True, ids=PROPERTIES)
EIGENVALUES, SINGULAR_VALUES = 1, 2


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[PropertyLab]:
    lab = property_lab(name="properties", **{**SMALL, **getattr(request, "param", {})})
    yield lab
    error = lab.error
    lab.close()
    assert error is None


def train(lab: PropertyLab, steps: int) -> None:
    def advance(runs: Any) -> None:
        for _ in range(steps):
            runs.active.advance()

    lab.player.ask(advance, 60)
    lab.player.poke()


def board(lab: PropertyLab) -> list[dict[str, str]]:
    value = lab._board.widget._state["values"]["board"]
    return [dict(zip(COLUMNS, row["cells"], strict=True)) for row in value["rows"]]


def heatmaps(lab: PropertyLab) -> dict[str, Any]:
    names = [*WAYS, "target"]
    return dict(zip(names, (panel.images[0] for panel in lab._matrices.widget._panels), strict=True))


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


@EACH
def test_the_table_tells_who_keeps_the_property(lab: PropertyLab) -> None:
    train(lab, 60)
    frame = drawn(lab)
    prop = frame.snapshot.config.to_dict()["prop"]
    rows = board(lab)
    for way, row in zip(WAYS, rows, strict=True):
        lane = frame.snapshot.lanes[way]
        assert row[""] == label(lane.config, way)  # type: ignore[arg-type]
        assert number(row["error"]) == pytest.approx(lane.last("test_loss"), rel=0.06)
        assert (row["merged"] != "–") == (way == "p4")
        assert number(row["ms/step"]) > 0
    assert number(rows[0]["worst"]) < 1e-5
    if prop == "invertible":
        assert rows[-1]["violation"] == rows[-1]["worst"] == "–"
    else:
        assert number(rows[-1]["worst"]) >= number(rows[-1]["violation"]) > 1e-3
    assert lab._head._state["values"]["violation_p4"] == rows[0]["violation"]


@EACH
def test_every_picture_is_drawn(lab: PropertyLab) -> None:
    train(lab, 10)
    frame = drawn(lab)
    config = frame.snapshot.config
    assert [panel.note for panel in lab._matrices.widget._panels[:-1]] == [label(config, way) for way in WAYS]  # type: ignore[arg-type]
    for index, kind in ((EIGENVALUES, Points), (SINGULAR_VALUES, Path)):
        colors = [layer.color for layer in layers(lab, index, kind)]
        assert set(COLORS.values()) <= set(colors)
        assert colors[-1] == COLORS["p4"]  # on top
    go.Figure(**lab._curves(frame))


def test_heatmaps_follow_training_and_time_travel_brings_them_back(lab: PropertyLab) -> None:
    drawn(lab)
    start = heatmaps(lab)
    train(lab, 20)
    frame = drawn(lab)
    now = heatmaps(lab)
    for way in WAYS:
        assert not np.array_equal(start[way], now[way])
    np.testing.assert_array_equal(start["target"], now["target"])
    lab._touched("matrix", "error")
    drawn(lab)
    pictures = frame.snapshot.lanes["p4"].pictures
    span = number(lab._matrices.widget._ends[1])
    np.testing.assert_array_equal(heatmaps(lab)["p4"], levels(pictures["matrix"] - pictures["target"], span))
    lab._touched("matrix", "matrix")
    lab.player.scrub(0)
    assert drawn(lab).shown == 0
    for way in WAYS:
        np.testing.assert_array_equal(heatmaps(lab)[way], start[way])


def test_eigenvalues_of_an_orthogonal_matrix_lie_on_the_circle(lab: PropertyLab) -> None:
    train(lab, 30)
    drawn(lab)
    points = next(layer for layer in layers(lab, EIGENVALUES, Points) if layer.color == COLORS["p4"]).points
    np.testing.assert_allclose(np.hypot(*np.asarray(points).T), 1, atol=1e-5)


@pytest.mark.parametrize("lab", [{"prop": "lipschitz", "bound": 0.5}], indirect=True, ids=["bound"])
def test_the_bound_is_drawn_and_kept(lab: PropertyLab) -> None:
    train(lab, 30)
    frame = drawn(lab)
    bound, *lanes = layers(lab, SINGULAR_VALUES, Path)
    assert np.asarray(bound.points)[:, 1].tolist() == [0.5, 0.5]
    highest = {lane.color: float(np.asarray(lane.points)[:, 1].max()) for lane in lanes}
    assert highest[COLORS["p4"]] <= 0.5 * (1 + 1e-5) < highest[COLORS["plain"]]
    shapes = lab._curves(frame)["layout"]["shapes"]
    best = float((np.linspace(0.1, 1.0, 8) - 0.5).clip(0) @ (np.linspace(0.1, 1.0, 8) - 0.5).clip(0)) / 8
    assert [shape["y0"] for shape in shapes if shape["line"]["dash"] == "dash"] == pytest.approx([best] * 2)


@pytest.mark.parametrize("lab", [{"dim": BUSY + 8, "batch_size": 8}], indirect=True, ids=["wide"])
def test_wide_matrices_show_the_eigenvalues_of_two_lanes(lab: PropertyLab) -> None:
    drawn(lab)
    colors = [layer.color for layer in layers(lab, EIGENVALUES, Points)]
    assert colors == ["orange", COLORS["plain"], COLORS["p4"]]


def test_the_time_to_the_goal_is_that_of_the_first_measurement_below_it(lab: PropertyLab) -> None:
    lane = lab.player.frame(30).snapshot.lanes["p4"]
    assert np.isnan(seconds_to(lane))
    train(lab, 20)
    lane = lab.player.frame(30).snapshot.lanes["p4"]
    (steps, errors), seconds = lane.curves["test_loss"], lane.curves["seconds"][1]
    assert seconds_to(lane, goal=float(errors[2]) * 1.01) == pytest.approx(seconds[int(steps[2]) - 1])


def test_a_lane_that_stops_says_so(lab: PropertyLab) -> None:
    def breaks(runs: Any) -> None:
        next(runs.active.engine.engines["usual"].model.parameters()).data.fill_(np.nan)
        runs.active.advance()

    lab.player.ask(breaks, 10)
    frame = drawn(lab)
    assert lab._message(frame)["text"].startswith("torch, Householder stopped: step 1")
    assert lab._head._state["values"]["violation_usual"] == "stopped"
    assert board(lab)[1][""] == "torch, Householder (stopped)"


def test_another_property_waits_for_reset_and_is_then_shown(lab: PropertyLab) -> None:
    lab.player.step()
    for prop in PROPERTIES[1:]:
        lab._touched("prop", prop)
        assert drawn(lab).pending == ("prop",)
        lab._touched("restart", True)
        drawn(lab)
        assert board(lab)[0][""] == LANES[prop]["p4"].label
        lab.player.step()


def test_live_settings_act_and_are_marked(lab: PropertyLab) -> None:
    lab.player.step()
    for name, value in {"noise": 1.0, "rate_factor": 0.5, "strength": 3.0, "merge_every": 10}.items():
        lab._touched(name, value)
        assert drawn(lab).snapshot.lanes["plain"].config.to_dict()[name] == value
    shapes = lab._curves(lab.player.frame(30))["layout"]["shapes"]
    assert {shape["line"]["dash"] for shape in shapes} == {"dot"}


@EACH
def test_settings_without_a_meaning_are_disabled(lab: PropertyLab) -> None:
    prop = lab.config.to_dict()["prop"]
    drawn(lab)
    disabled = set(lab._side._state["disabled"])
    assert ("bound" not in disabled) == (prop == "lipschitz")
    assert ("orthogonal_map" not in disabled) == (prop == "orthogonal")
    assert ("rank" in disabled) == (prop == "circulant")


def test_every_setting_holds_the_value_of_the_config(lab: PropertyLab) -> None:
    drawn(lab)
    values, fields = lab._side._state["values"], PropertyConfig(**SMALL).to_dict()
    for item in items(lab):
        assert item["name"] in values
        if item["name"] in fields:
            assert values[item["name"]] == fields[item["name"]]
            assert not item["choices"] or fields[item["name"]] in item["choices"]
    assert tuple(TEXTS) == PROPERTIES
    assert tuple(ROLES) == tuple(COLORS) == WAYS


def test_runs_can_be_kept_saved_and_loaded(lab: PropertyLab, tmp_path: Any) -> None:
    train(lab, 10)
    before = lab.player.frame(30).snapshot.lanes["p4"].pictures["matrix"]
    lab.save(tmp_path / "a.p4run")
    lab._touched("prop", "circulant")
    lab._touched("restart", True)
    lab.load(tmp_path / "a.p4run")
    frame = drawn(lab)
    np.testing.assert_array_equal(frame.snapshot.lanes["p4"].pictures["matrix"], before)
    assert len(frame.runs) == 2
    assert len(lab.table()) == 2


def test_a_page_that_looks_sees_it_train(lab: PropertyLab) -> None:
    train_watched(lab)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"prop": "x"}, "prop='x'"), ({"push": 1}, "push=1: there is no such setting")],
    ids=["value", "name"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        property_lab(name="properties", **changes)
