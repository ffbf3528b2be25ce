"""The lab of mixing layers: what is trained, drawn and told."""

from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import as_number, break_lane, opened, table, train

from p4lab.errors import ConfigError
from p4lab.flows import MIXINGS
from p4lab.labs.swaps import (
    DIGITS,
    NAMES,
    SIDE,
    SWAPS,
    SwapsConfig,
    distance_from_swap,
    entropy,
    mixing_matrices,
    side_by_side,
)
from p4lab.plots.gallery import LEVELS, SPANS, levels
from p4lab.training import run

SMALL: dict[str, Any] = {"data": "two_moons", "blocks": 3, "hidden": 8, "batch_size": 32, "measure_every": 5}
PROBLEMS = pytest.mark.parametrize("data", ["two_moons", DIGITS])


def matrices(lanes: Any, name: str) -> torch.Tensor:
    return mixing_matrices(lanes.engines[name].model).detach()


def heatmaps(lab: Any) -> dict[str, Any]:
    return dict(zip(NAMES, (tile.images[0] for tile in lab.drawings()["matrices"].tiles), strict=True))


# --- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"data": "cats"}, {"mixing": "shuffle"}, {"blocks": 1}, {"hidden": 0}], ids=lambda c: next(iter(c))
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    name, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        SwapsConfig(**changes)


def test_every_lane_is_a_mixing_and_lanes_can_be_chosen() -> None:
    assert set(NAMES) <= set(MIXINGS)
    assert list(side_by_side(SwapsConfig(**SMALL), ("plu", "orthogonal")).engines) == ["plu", "orthogonal"]


@PROBLEMS
def test_lanes_start_as_one_function_but_for_the_permutation(data: str) -> None:
    config = SwapsConfig(data=data, blocks=3, hidden=8)
    x = torch.randn(20, config.width, generator=torch.Generator().manual_seed(0))
    first, *others = (config.replace(mixing=name).model()(x)[0] for name in NAMES if name != "permutation")
    for other in others:
        torch.testing.assert_close(other, first, atol=1e-5, rtol=1e-5)


@PROBLEMS
def test_lanes_do_not_depend_on_neighbours_nor_on_being_looked_at_and_learned_mixings_move(data: str) -> None:
    config = SwapsConfig(**{**SMALL, "data": data})
    lanes = side_by_side(config)
    before = {name: matrices(lanes, name).clone() for name in NAMES}
    for _ in range(10):
        lanes.snapshot()
        lanes.run()
    for name in NAMES:
        alone = run(config.replace(mixing=name), 10)
        assert alone.records.steps.columns["loss"] == lanes.engines[name].records.steps.columns["loss"]
        assert torch.equal(matrices(lanes, name), before[name]) == (name in ("swap", "permutation"))
    q = matrices(lanes, "p4orthogonal").double()
    torch.testing.assert_close(q @ q.mT, torch.eye(config.width).double().expand_as(q), atol=1e-5, rtol=0)
    assert lanes.engines["p4inv"].records.counts["merge"] == 2 * 2


@pytest.mark.parametrize("d", [2, 5])
def test_the_distance_from_the_swap(d: int) -> None:
    swap = torch.eye(d, dtype=torch.float64).flip(-1)
    shifted = torch.stack([swap, swap + 0.3 * torch.eye(d), -swap])
    assert distance_from_swap(shifted).tolist() == pytest.approx([0.0, 0.3, 2.0])
    assert distance_from_swap(shifted.numpy()).tolist() == pytest.approx([0.0, 0.3, 2.0])


def test_the_entropy_is_known_for_densities_only() -> None:
    assert entropy(SwapsConfig()) is None
    assert entropy(SwapsConfig(data="eight_gaussians")) == pytest.approx(1.72, abs=0.05)


# --- what is drawn ----------------------------------------------------------------------------------------------------


@PROBLEMS
def test_the_swap_is_seen_as_the_swap_and_each_flow_shows_what_it_makes(data: str) -> None:
    with opened(SWAPS, **{**SMALL, "data": data}) as lab:
        expected = np.where(np.eye(lab.config.width)[::-1] == 1, LEVELS, LEVELS // 2)
        for name, image in heatmaps(lab).items():
            if name != "permutation":
                np.testing.assert_array_equal(image, expected)
        drawings: Any = lab.drawings()
        assert drawings["matrices"].tiles[0].note == "0.000 from the swap"
        note, shape = ("samples", (9, 8, 8)) if data == DIGITS else ("log-density", (1, SIDE, SIDE))
        assert {(tile.note, tile.images.shape) for tile in drawings["images"].tiles} == {(note, shape)}


def test_learned_heatmaps_move_and_time_travel_brings_them_back() -> None:
    with opened(SWAPS, **SMALL) as lab:
        start = heatmaps(lab)
        train(lab, 40)
        now = heatmaps(lab)
        assert [name for name in NAMES if not np.array_equal(start[name], now[name])] == [
            "plu",
            "p4inv",
            "p4orthogonal",
        ]
        lab.touch("matrix", "change")
        low, high = lab.drawings()["matrices"].ends
        assert low == f"change −{high}"
        assert float(high) in SPANS
        assert np.ptp(heatmaps(lab)["p4inv"].astype(int)) > 10
        np.testing.assert_array_equal(heatmaps(lab)["swap"], LEVELS // 2)
        lab.touch("matrix", "matrix")
        lab.touch("scrub", 0)
        for name, image in heatmaps(lab).items():
            np.testing.assert_array_equal(image, start[name])


def test_another_block_can_be_shown_also_of_the_past() -> None:
    with opened(SWAPS, **SMALL) as lab:
        train(lab, 20)
        for past in (None, 10):
            lab.touch("scrub", past)
            for block in (1, 2, 7):  # there are two; beyond them the last one is shown
                lab.touch("block", block)
                matrix = lab.sight().lanes["p4inv"].pictures["matrices"][min(block, 2) - 1]
                np.testing.assert_array_equal(heatmaps(lab)["p4inv"], levels(matrix, 1.0))


# --- what is told -----------------------------------------------------------------------------------------------------


@PROBLEMS
def test_the_table_tells_what_each_mixing_is_worth(data: str) -> None:
    with opened(SWAPS, **{**SMALL, "data": data}) as lab:
        train(lab, 10)
        numbers, digits = lab.numbers(), data == DIGITS
        for (name, label), row in zip(NAMES.items(), table(lab), strict=True):
            loss = lab.sight().lanes[name].last("test_loss")
            assert row[""] == label
            assert as_number(row["test NLL"]) == pytest.approx(loss, abs=6e-4)
            assert (row["KL to truth"] == "–", row["bits/pixel"] == "–") == (digits, not digits)
            assert (as_number(row["from the swap"]) > 0) == (name != "swap" and row["from the swap"] != "0.000")
            assert (row["merged"] != "–") == name.startswith("p4")
            assert as_number(row["ms/step"]) > 0
            assert (as_number(row["condition"]) > 1) == (name in ("plu", "p4inv"))
            assert numbers[f"nll_{name}"] == f"{loss:.3f}"
        assert numbers["merges"] == "8"


def test_all_lanes_are_among_the_losses() -> None:
    with opened(SWAPS, **SMALL) as lab:
        train(lab, 10)
        for curve, key in (("test", "test_loss"), ("train", "smooth_loss")):
            lab.touch("curve", curve)
            figure = SWAPS.curves(lab.sight())
            lines = {trace["name"]: trace for trace in figure["data"] if trace.get("showlegend")}
            assert set(lines) == set(NAMES.values())
            for lane, name in NAMES.items():
                steps, values = lab.sight().lanes[lane].curves[key]
                np.testing.assert_array_equal(lines[name]["x"], steps)
                np.testing.assert_allclose(lines[name]["y"], values)
            low, high = figure["layout"]["yaxis"]["range"]
            assert low < min(lines["P4Inv"]["y"]) < high


@pytest.mark.parametrize(("data", "unit"), [("two_moons", "nats"), (DIGITS, "nats/dim")])
def test_the_loss_has_its_unit(data: str, unit: str) -> None:
    with opened(SWAPS, **SMALL | {"data": data}) as lab:
        assert SWAPS.curves(lab.sight())["layout"]["yaxis"]["title"]["text"] == f"−log q ({unit})"


def test_a_lane_that_stops_says_so() -> None:
    with opened(SWAPS, **SMALL) as lab:
        break_lane(lab, "plu")
        assert lab.message().startswith("PLU (Glow) stopped: step 1")
        assert lab.numbers()["nll_plu"] == "stopped"
        assert table(lab)[2][""] == "PLU (Glow) (stopped)"
