"""The lab of images: what is trained, sampled, and found between two digits."""

from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import as_number, break_lane, opened, table

from p4lab.errors import ConfigError
from p4lab.labs.images import FLOWS, IMAGES, NAMES, SHIPPED, STRIP, ImagesConfig, moved, side_by_side
from p4lab.labs.ways import EACH, SAMPLES, Way, digits, draw_samples, shipped
from p4lab.problems.digits import bits
from p4lab.problems.images import CLASSES, to_levels

SMALL: dict[str, Any] = {"blocks": 1, "hidden": 4, "batch_size": 8, "turn": 2.0, "measure_every": 2, "merge_every": 1}


@pytest.mark.parametrize("changes", [{"mixing": "shuffle"}, {"blocks": 0}, {"hidden": 0}], ids=lambda c: next(iter(c)))
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    name, value = next(iter(changes.items()))
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        ImagesConfig(**changes)


def test_p4inv_of_a_lane_trains_along_all_directions() -> None:
    layers = side_by_side(ImagesConfig(**SMALL)).engines["p4inv"].layers
    assert [(layer.reset_kind, layer.rank) for layer in layers] == [("identity", 4), ("identity", 8)]


def test_the_first_picture_is_there_before_any_training_and_follows_class_and_temperature() -> None:
    with opened(IMAGES, **SMALL) as lab:
        first: Any = lab.drawings()["samples"]
        assert [tile.images.shape for tile in first.tiles] == [(SAMPLES, 28, 28)] * len(FLOWS)
        assert first.tiles[0].note.startswith(f"{shipped()[1]['bits']:.3f} bits/pixel")
        expected = draw_samples(shipped()[0], EACH, 0.7, 0)
        np.testing.assert_array_equal(first.tiles[0].images, expected)
        lab.touch("digit", "7")
        lab.touch("temperature", 0.2)
        tiles: Any = lab.drawings()["samples"].tiles
        np.testing.assert_array_equal(tiles[0].images, draw_samples(shipped()[0], "7", 0.2, 0))
        assert not np.array_equal(tiles[0].images, expected)


def test_lanes_train_for_the_same_time_and_are_told() -> None:
    with opened(IMAGES, **SMALL) as lab:
        before: Any = lab.drawings()["samples"].tiles
        for _ in range(8):
            lab.touch("step")
        sight = lab.sight()
        assert all(lane.last("seconds") >= 0.016 for lane in sight.lanes.values())
        after: Any = lab.drawings()["samples"].tiles
        changed = [not np.array_equal(a.images, b.images) for a, b in zip(before, after, strict=True)]
        assert changed == [False, *[True] * len(NAMES)]
        for (name, label), row in zip(NAMES.items(), table(lab), strict=True):
            lane = sight.lanes[name]
            assert row[""] == label
            assert as_number(row["bits/pixel"]) == pytest.approx(bits(lane.last("test_loss")), abs=6e-4)
            assert lab.numbers()[f"bits_{name}"] == row["bits/pixel"]
            assert as_number(row["condition"]) >= 1
            assert as_number(row["round trip"]) < 1e-4
            assert (row["merged"] != "–") == (name == "p4inv")
        lines = {trace["name"]: trace for trace in IMAGES.curves(sight)["data"] if trace.get("showlegend")}
        assert set(lines) == set(NAMES.values())
        np.testing.assert_allclose(lines["P4Inv"]["y"][-1], bits(sight.lanes["p4inv"].last("test_loss")))


def test_a_way_begins_and_ends_at_its_digits() -> None:
    way = Way.between(shipped()[0], 3, 8)
    x, per_pixel = way.at(np.array([0.0, 0.5, 1.0]))
    known = digits()
    torch.testing.assert_close(x[[0, 2]], known.dequantized.x[[3, 8]], atol=0.05, rtol=0)
    flow, y = shipped()[0], known.to_model(known.dequantized.x[[3, 8]])
    expected = -(flow.log_prob(y[0], known.dequantized.context[[3, 8]]) + y[1]) / 784
    assert per_pixel[[0, 2]] == pytest.approx([bits(value) for value in expected.tolist()], abs=1e-3)
    same = Way.between(shipped()[0], 4, 4).at(np.array([1.0]))[0]
    torch.testing.assert_close(same[0], known.dequantized.x[4 + CLASSES], atol=0.05, rtol=0)


def test_the_ring_is_dragged_along_the_way_of_any_flow() -> None:
    with opened(IMAGES, **SMALL) as lab:
        for flow in (SHIPPED, "plu"):
            lab.touch("flow", flow)
            lab.touch("way", moved(lab.sight(), "way", (0.254, 9.0))["way"])
            assert lab.values()["way"] == 0.25
            drawings: Any = lab.drawings()
            handle = drawings["along"].layers[-1]
            assert handle.point[0] == 0.25
            here, along = (tile.images for tile in drawings["strip"].tiles)
            assert along.shape == (STRIP, 28, 28)
            assert here.shape == (1, 28, 28)
            np.testing.assert_array_equal(along[2], here[0])  # 2 of 8 steps are a quarter of the way
            np.testing.assert_array_equal(along[0], to_levels(digits().test[[lab.view.first]].float())[0])
        assert moved(lab.sight(), "way", (7.0, 0.0)) == {"way": 1.0}


def test_a_lane_that_stops_says_so() -> None:
    with opened(IMAGES, **SMALL) as lab:
        break_lane(lab, "dense")
        assert lab.message().startswith("Dense stopped")
        tiles: Any = lab.drawings()["samples"].tiles
        assert tiles[3].note == "stopped"
