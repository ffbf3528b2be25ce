"""The lab of swaps: lanes, heatmaps, table, settings, without a browser."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attentive_page import drawn, train_watched

from p4lab.errors import ConfigError, OptionError
from p4lab.training.swaps_setup import DIGITS, LANES, SwapsConfig
from p4lab.widgets import ImageGrid, Panel
from p4lab.widgets.swaps_lab import NAMES, SwapsLab, swaps_lab
from p4lab.widgets.swaps_pictures import COLUMNS, LEVELS, SPANS, levels, span_of

SMALL: dict[str, Any] = {"data": "two_moons", "blocks": 3, "hidden": 8, "batch_size": 32, "measure_every": 5}


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[SwapsLab]:
    lab = swaps_lab(name="swaps", **{**SMALL, **getattr(request, "param", {})})
    yield lab
    error = lab.error
    lab.close()
    assert error is None


def train(lab: SwapsLab, steps: int) -> None:
    def advance(runs: Any) -> None:
        for _ in range(steps):
            runs.active.advance()

    lab.player.ask(advance, 60)
    lab.player.poke()


def heatmaps(lab: SwapsLab) -> dict[str, Any]:
    return dict(zip(LANES, (panel.images[0] for panel in lab._matrices.widget._panels), strict=True))


def notes(lab: SwapsLab) -> list[str]:
    return [panel.note for panel in lab._matrices.widget._panels]


def board(lab: SwapsLab) -> list[list[str]]:
    return [row["cells"] for row in lab._board.widget._state["values"]["board"]["rows"]]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


# --- heatmaps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lab", [{}, {"data": DIGITS}], indirect=True, ids=["plane", "digits"])
def test_the_swap_is_seen_as_the_swap(lab: SwapsLab) -> None:
    drawn(lab)
    d = lab.config.width
    expected = np.where(np.eye(d)[::-1] == 1, LEVELS, LEVELS // 2)
    for name, shown in heatmaps(lab).items():
        if name != "permutation":
            np.testing.assert_array_equal(shown, expected)
    assert notes(lab)[0] == "0.000 from the swap"


def test_learned_heatmaps_move_and_time_travel_brings_them_back(lab: SwapsLab) -> None:
    drawn(lab)
    start = heatmaps(lab)
    train(lab, 40)
    drawn(lab)
    now = heatmaps(lab)
    moved = [name for name in LANES if not np.array_equal(start[name], now[name])]
    assert moved == ["plu", "p4inv", "p4orthogonal"]
    lab.player.scrub(0)
    assert drawn(lab).shown == 0
    for name, shown in heatmaps(lab).items():
        np.testing.assert_array_equal(shown, start[name])


def test_the_change_since_the_start_has_its_own_scale(lab: SwapsLab) -> None:
    train(lab, 20)
    drawn(lab)
    assert lab._matrices.widget._ends == ("entry −1", "1")
    lab._touched("matrix", "change")
    drawn(lab)
    for name in ("swap", "permutation"):
        np.testing.assert_array_equal(heatmaps(lab)[name], LEVELS // 2)
    assert np.ptp(heatmaps(lab)["p4inv"].astype(int)) > 10
    assert number(lab._matrices.widget._ends[1]) in SPANS


def test_another_block_can_be_shown_also_of_the_past(lab: SwapsLab) -> None:
    train(lab, 20)
    frame = drawn(lab)
    for past in (None, 10):
        lab.player.scrub(past)
        for block in (1, 2):
            lab._touched("block", block)
            frame = drawn(lab)
            matrix = frame.snapshot.lanes["p4inv"].pictures["matrices"][block - 1]
            np.testing.assert_array_equal(heatmaps(lab)["p4inv"], levels(matrix, 1.0))
    lab._touched("block", 7)
    drawn(lab)
    assert lab._side._state["values"]["block"] == 2


def test_levels_leave_out_what_is_not_finite() -> None:
    assert levels(np.array([[np.nan, np.inf], [-np.inf, 0.0]]), 2.0).tolist() == [[127, 254], [0, 127]]


@pytest.mark.parametrize(("size", "span"), [(0.0, SPANS[0]), (0.15, 0.2), (1e9, SPANS[-1]), (np.nan, SPANS[0])])
def test_the_scale_moves_in_steps(size: float, span: float) -> None:
    assert span_of([np.full((3, 3), size)]) == span


def test_a_grid_knows_two_sets_of_colours() -> None:
    with pytest.raises(OptionError, match="colors='rainbow'"):
        ImageGrid([Panel("a", "", 1)], 16, colors="rainbow")


# --- what the flows make ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lab", "note", "shape"),
    [({}, "log-density", (1, 32, 32)), ({"data": DIGITS}, "samples", (9, 8, 8))],
    indirect=["lab"],
    ids=["plane", "digits"],
)
def test_what_the_flows_make(lab: SwapsLab, note: str, shape: tuple[int, ...]) -> None:
    drawn(lab)
    for panel in lab._images.widget._panels:
        assert (panel.note, panel.images.shape) == (note, shape)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lab", [{}, {"data": DIGITS}], indirect=True, ids=["plane", "digits"])
def test_the_table_tells_what_each_mixing_is_worth(lab: SwapsLab) -> None:
    train(lab, 10)
    frame = drawn(lab)
    digits = lab.config.to_dict()["data"] == DIGITS
    assert lab._board.widget._state["values"]["board"]["columns"] == list(COLUMNS)
    for name, cells in zip(LANES, board(lab), strict=True):
        row = dict(zip(COLUMNS, cells, strict=True))
        loss = frame.snapshot.lanes[name].last("test_loss")
        assert row[""] == NAMES[name]
        assert number(row["test NLL"]) == pytest.approx(loss, abs=6e-4)
        assert (row["KL to truth"] == "–", row["bits/pixel"] == "–") == (digits, not digits)
        assert (number(row["from the swap"]) > 0) == (name != "swap" and row["from the swap"] != "0.000")
        assert (row["merged"] != "–") == name.startswith("p4")
        assert number(row["ms/step"]) > 0
        assert (number(row["condition"]) > 1) == (name in ("plu", "p4inv"))
        assert lab._head._state["values"][f"nll_{name}"] == f"{loss:.3f}"
    assert lab._head._state["values"]["merges"] == "8"


def test_all_lanes_are_among_the_losses(lab: SwapsLab) -> None:
    train(lab, 10)
    frame = drawn(lab)
    for curve in ("test", "train"):
        lab._touched("curve", curve)
        figure = lab._curves(frame)
        named = {trace["name"]: trace for trace in figure["data"] if trace.get("showlegend")}
        assert set(named) == set(NAMES.values())
        for lane, name in NAMES.items():
            steps, values = frame.snapshot.lanes[lane].curves["test_loss" if curve == "test" else "smooth_loss"]
            np.testing.assert_array_equal(named[name]["x"], steps)
            np.testing.assert_allclose(named[name]["y"], values)
        low, high = figure["layout"]["yaxis"]["range"]
        assert low < min(named["P4Inv"]["y"]) < high


def test_a_lane_that_stops_says_so(lab: SwapsLab) -> None:
    def breaks(runs: Any) -> None:
        next(runs.active.engine.engines["plu"].model.parameters()).data.fill_(np.nan)
        runs.active.advance()

    lab.player.ask(breaks, 10)
    frame = drawn(lab)
    assert lab._message(frame)["text"].startswith("PLU (Glow) stopped: step 1")
    assert lab._head._state["values"]["nll_plu"] == "stopped"
    assert board(lab)[2][0] == "PLU (Glow) (stopped)"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_another_problem_waits_for_reset_and_is_then_shown(lab: SwapsLab) -> None:
    train(lab, 1)
    lab.player.step()
    lab._touched("data", DIGITS)
    assert drawn(lab).pending == ("data",)
    assert list(lab._side._state["pending"]) == ["data"]
    lab._touched("restart", True)
    drawn(lab)
    assert heatmaps(lab)["p4inv"].shape == (64, 64)


def test_the_mixing_belongs_to_the_lanes(lab: SwapsLab) -> None:
    train(lab, 1)
    lab.player.step()
    lab._touched("learning_rate", 1e-2)
    assert drawn(lab).snapshot.lanes["plu"].config.learning_rate == 1e-2


def test_every_setting_holds_the_value_of_the_config(lab: SwapsLab) -> None:
    drawn(lab)
    groups: Any = lab._side._spec["groups"]
    values, fields = lab._side._state["values"], SwapsConfig(**SMALL).to_dict()
    for item in (item for group in groups for item in group["items"]):
        assert item["name"] in values
        if item["name"] in fields:
            assert values[item["name"]] == fields[item["name"]]
            assert not item["choices"] or fields[item["name"]] in item["choices"]
    assert tuple(NAMES) == LANES


def test_a_page_that_looks_sees_it_train(lab: SwapsLab) -> None:
    train_watched(lab)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"data": "x"}, "data='x'"), ({"push": 1}, "push=1: there is no such setting")],
    ids=["value", "name"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        swaps_lab(name="swaps", **changes)
