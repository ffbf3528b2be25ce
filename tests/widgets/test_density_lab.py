"""The lab of densities: lanes, pictures, table, drawing, settings, without a browser."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attentive_page import drawn, items, layers

from p4lab.errors import ConfigError
from p4lab.problems.densities import DENSITIES
from p4lab.training import State
from p4lab.training.density_setup import DRAWING, FLOWS, LEVELS, SIDE, DensityConfig, encode_drawing, entropy
from p4lab.training.runs import Runs
from p4lab.widgets.density_board import COLUMNS
from p4lab.widgets.density_lab import ENTROPY, NAMES, ORDER, DensityLab, density_lab
from p4lab.widgets.density_pictures import COARSE, EXTENTS, FINE, SECTORS, extent_of, quadrants, visible
from p4lab.widgets.plane import Heatmap, Path, Points

SMALL: dict[str, Any] = {"blocks": 2, "couplings": 2, "batch_size": 32, "measure_every": 5}


@pytest.fixture
def lab() -> Iterator[DensityLab]:
    lab = density_lab(name="density", **SMALL)
    yield lab
    error = lab.error
    lab.close()
    assert error is None


def train(lab: DensityLab, steps: int) -> None:
    def advance(runs: Runs) -> None:
        for _ in range(steps):
            runs.active.advance()

    lab.player.ask(advance, 60)
    lab.player.poke()


TRUTH, LEFT, RIGHT, BAR, SKETCH, ROUTE, ROUTE_2, BOARD = range(8)


def blob() -> np.ndarray[Any, np.dtype[np.uint8]]:
    ink = np.zeros((SIDE, SIDE), np.uint8)
    ink[8:12, 8:12] = LEVELS
    return ink


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_truth_and_lanes_share_one_scale(lab: DensityLab) -> None:
    for log in (True, False):
        lab._touched("log", log)
        drawn(lab)
        maps = [layers(lab, index, Heatmap)[0] for index in (TRUTH, LEFT, RIGHT)]
        assert len({(layer.low, layer.high, layer.extent) for layer in maps}) == 1
        assert maps[0].label == ("log p (nats)" if log else "density p")
        assert maps[0].low <= np.min(maps[0].values) < np.max(maps[0].values) <= maps[0].high


def test_pictures_are_coarser_while_training(lab: DensityLab) -> None:
    train(lab, 1)
    for state, side in ((State.RUNNING, COARSE), (State.PAUSED, FINE)):
        drawn(lab, state)
        assert layers(lab, LEFT, Heatmap)[0].values.shape == (side, side)


def test_training_changes_both_lanes_and_not_the_truth(lab: DensityLab) -> None:
    drawn(lab)
    before = [layers(lab, index, Heatmap)[0].values for index in (TRUTH, LEFT, RIGHT)]
    train(lab, 5)
    drawn(lab)
    after = [layers(lab, index, Heatmap)[0].values for index in (TRUTH, LEFT, RIGHT)]
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, False]


@pytest.mark.parametrize(("name", "kind", "index"), [("samples", Points, LEFT), ("lattice", Path, ROUTE)])
def test_samples_and_grid_can_be_hidden(lab: DensityLab, name: str, kind: type, index: int) -> None:
    drawn(lab)
    assert layers(lab, index, kind)
    lab._touched(name, False)
    drawn(lab)
    assert not layers(lab, index, kind)


def test_the_depth_slider_moves_samples_and_grid(lab: DensityLab) -> None:
    train(lab, 20)
    seen = []
    for depth in (0.0, 0.5, 1.0):
        lab._touched("depth", depth)
        drawn(lab)
        assert lab._bar._state["values"]["depth"] == depth
        (path,), dots = layers(lab, ROUTE, Path), layers(lab, ROUTE, Points)
        assert len(dots) == len(SECTORS)
        seen.append(path.points)
    assert path.label == "grid of z after 2 of 2 layers"
    assert np.nanmax(np.abs(seen[1] - seen[0])) > 0.01
    assert np.nanmax(np.abs(seen[2] - seen[1])) > 0.01


def test_time_travel_shows_the_flows_of_then(lab: DensityLab) -> None:
    drawn(lab)
    first = [layers(lab, index, Points)[0].points for index in (ROUTE, ROUTE_2)]
    train(lab, 20)
    drawn(lab)
    now = [layers(lab, index, Points)[0].points for index in (ROUTE, ROUTE_2)]
    lab.player.scrub(0)
    assert drawn(lab).shown == 0
    then = [layers(lab, index, Points)[0].points for index in (ROUTE, ROUTE_2)]
    for a, b, c in zip(first, now, then, strict=True):
        np.testing.assert_array_equal(a, c)
        assert not np.array_equal(a, b, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "value", "layers_passed"),
    [("blocks", 4, 9), ("dtype", "float64", 5), ("train_v", True, 5), ("rank", 1, 5), ("reset", "gaussian", 5)],
)
def test_another_architecture_can_be_drawn(lab: DensityLab, name: str, value: Any, layers_passed: int) -> None:
    drawn(lab)
    lab._touched(name, value)
    drawn(lab)
    label = f"grid of z after {layers_passed} of {layers_passed} layers"
    assert layers(lab, ROUTE_2, Path)[0].label == label


def test_quadrants_go_counterclockwise() -> None:
    assert quadrants(np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("far", "extent"), [(1.0, EXTENTS[0]), (4.5, EXTENTS[1]), (1e9, EXTENTS[-1]), (np.nan, EXTENTS[0])]
)
def test_the_frame_moves_in_steps(far: float, extent: float) -> None:
    assert extent_of(np.array([[0.0, far], [far, 0.0]])) == extent


def test_what_is_far_away_is_left_out() -> None:
    shown = visible(np.array([[0.0, 1.0], [3.0, 0.0], [np.inf, 0.0]]), 2.0)
    assert np.isnan(shown).tolist() == [[False, False], [True, True], [True, True]]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_table_tells_what_each_flow_is_worth(lab: DensityLab) -> None:
    train(lab, 5)
    frame = drawn(lab)
    board = lab._board.widget._state["values"]["board"]
    assert board["columns"] == list(COLUMNS)
    truth, *rows = (row["cells"] for row in board["rows"])
    assert truth[:1] + truth[5:6] == ["Eight Gaussians", "8 of 8"]
    for lane, cells in zip(ORDER, rows, strict=True):
        loss = frame.snapshot.lanes[lane].last("test_loss")
        assert cells[0] == NAMES[lane]
        assert cells[2:4] == [f"{loss:.3f}", f"{loss - entropy(DensityConfig()):.3f}"]
        assert 50 < float(cells[4].removesuffix(" %")) < 100
        assert float(cells[6].replace("−", "-")) < 1e-4


def test_the_curves_stand_above_the_entropy(lab: DensityLab) -> None:
    train(lab, 20)
    figure = lab._curves(drawn(lab))
    named = [trace["name"] for trace in figure["data"] if trace.get("showlegend")]
    assert named == ["RealNVP", "P4Inv + Bent", "P4Inv + Bent, test"]
    layout = figure["layout"]
    floor = entropy(DensityConfig())
    assert layout["annotations"][-1]["text"] == f"{ENTROPY}, {floor:.3f}"
    assert layout["shapes"][-1]["y0"] == floor
    assert layout["yaxis"]["range"][0] < floor


def test_a_lane_that_stops_says_so(lab: DensityLab) -> None:
    def breaks(runs: Any) -> None:
        next(runs.active.engine.engines["realnvp"].model.parameters()).data.fill_(np.nan)
        runs.active.advance()

    lab.player.ask(breaks, 10)
    frame = drawn(lab)
    assert lab._message(frame)["text"].startswith("RealNVP stopped: step 1")
    assert lab._head._state["values"]["kl_realnvp"] == "stopped"
    assert lab._board.widget._state["values"]["board"]["rows"][1]["cells"][0] == "RealNVP (stopped)"


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_train_on_this_starts_over_with_the_drawing(lab: DensityLab) -> None:
    train(lab, 5)
    lab._use(blob())
    lab.player.pause()
    frame = lab.player.frame(30)
    config = frame.snapshot.config
    assert isinstance(config, DensityConfig)
    assert (config.density, config.drawing) == (DRAWING, encode_drawing(blob()))
    assert frame.pending == ()
    drawn(lab)
    assert lab._board.widget._state["values"]["board"]["rows"][0]["cells"][0] == "Your own drawing"


def test_a_drawing_that_comes_with_a_config_is_put_on_the_canvas(lab: DensityLab) -> None:
    text = DensityConfig(density=DRAWING, drawing=encode_drawing(blob()), **SMALL).to_text()
    lab._touched("config", text)
    drawn(lab)
    np.testing.assert_array_equal(lab._sketch.ink, blob())


def test_what_is_on_the_canvas_stays_while_the_config_does(lab: DensityLab) -> None:
    drawn(lab)
    lab._sketch.show(blob())
    train(lab, 1)
    drawn(lab)
    np.testing.assert_array_equal(lab._sketch.ink, blob())


def test_your_drawing_can_be_chosen_once_there_is_one(lab: DensityLab) -> None:
    lab._touched("density", DRAWING)
    assert "there is no drawing yet" in drawn(lab, fails=True).message
    lab._sketch.show(blob())
    lab._touched("density", DRAWING)
    frame = drawn(lab)
    assert frame.message == ""
    assert frame.planned.to_dict()["drawing"] == encode_drawing(blob())


def test_the_truth_can_be_copied_to_the_canvas(lab: DensityLab) -> None:
    lab._copy()
    assert lab._sketch.ink.max() == LEVELS


def test_a_long_drawing_does_not_fill_the_table_of_runs(lab: DensityLab) -> None:
    train(lab, 1)
    lab._touched("keep", True)
    lab._touched("config", DensityConfig(density=DRAWING, drawing=encode_drawing(blob()), **SMALL).to_text())
    drawn(lab)
    first = lab._runs._state["values"]["runs"]["rows"][0]
    assert first["cells"][-1] == "density eight_gaussians, no drawing"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_another_density_waits_for_reset(lab: DensityLab) -> None:
    train(lab, 1)
    lab.player.step()
    lab._touched("density", "rings")
    frame = drawn(lab)
    assert frame.pending == ("density",)
    assert list(lab._side._state["pending"]) == ["density"]
    lab._touched("restart", True)
    assert drawn(lab).snapshot.config.to_dict()["density"] == "rings"


def test_every_setting_holds_the_value_of_the_config(lab: DensityLab) -> None:
    drawn(lab)
    values, fields = lab._side._state["values"], DensityConfig(**SMALL).to_dict()
    for item in items(lab):
        if item["name"] in fields:
            assert values[item["name"]] == fields[item["name"]]
            assert not item["choices"] or fields[item["name"]] in item["choices"]
    assert set(NAMES) == set(FLOWS)


def test_all_densities_are_on_offer(lab: DensityLab) -> None:
    (item,) = (item for item in items(lab) if item["name"] == "density")
    assert item["choices"] == (*DENSITIES, DRAWING)
    assert item["texts"][-1] == "Your drawing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"density": "x"}, "density='x'"), ({"push": 1}, "push=1: there is no such setting")],
    ids=["value", "name"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        density_lab(name="density", **changes)
