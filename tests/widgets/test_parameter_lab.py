"""The lab of the space of matrices without a browser: commands in, layers out."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attentive_page import drawn, layers

from p4lab.plots.layers import Dots, Grip, Heatmap, Line, Path, Points, Surface
from p4lab.problems.matrix import matrix
from p4lab.training import Frame
from p4lab.widgets.parameter_lab import PAIRS, ParameterLab, parameter_lab


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[ParameterLab]:
    lab = parameter_lab(name="space", **getattr(request, "param", {}))
    yield lab
    lab.close()


def train(lab: ParameterLab, steps: int) -> Frame:
    for _ in range(steps):
        lab.player.step()
    return drawn(lab)


def shown(lab: ParameterLab, name: str) -> Any:
    value = next(readout for readout in lab._readouts if readout.item.name == name).value(drawn(lab))
    return value


def test_paths_begin_at_the_start_and_lead_to_the_target(lab: ParameterLab) -> None:
    frame = train(lab, 300)
    start, target = (grip.point for grip in layers(lab, 0, Grip))
    np.testing.assert_allclose([start, target], [[1, 0, 0], [-0.5, 0.75**0.5, 0]], atol=1e-6)
    p4inv, plain, inverse = (line.points for line in layers(lab, 0, Line))
    for path in (p4inv, plain, inverse):
        np.testing.assert_allclose(path[0], start, atol=1e-6)
    np.testing.assert_allclose([p4inv[-1], plain[-1]], [target, target], atol=1e-3)
    # The plain weight goes straight.
    np.testing.assert_allclose(np.cross(plain - start, target - start), 0, atol=1e-5)
    assert frame.snapshot.counts["merge"] == 30
    assert len(layers(lab, 0, Dots)[1].points) == 30


def test_between_merges_p4inv_goes_straight(lab: ParameterLab) -> None:
    train(lab, 50)
    path = layers(lab, 0, Line)[0].points.astype(float)
    assert len(path) == 51
    for first in range(0, 50, 10):
        stroke = path[first : first + 11] - path[first]
        np.testing.assert_allclose(np.cross(stroke, stroke[-1]), 0, atol=1e-6)
    assert np.abs(np.cross(path[10] - path[0], path[20] - path[10])).max() > 1e-2


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != "rotation"])
def test_every_pair_has_a_surface_that_fits_its_slice(lab: ParameterLab, pair: str) -> None:
    lab._touched("pair", pair)
    frame = train(lab, 20)
    assert (frame.planned.start, frame.planned.target) == PAIRS[pair][1:]
    (surface,) = layers(lab, 0, Surface)
    np.testing.assert_allclose(np.linalg.det(lab._space.slice.lift(surface.vertices)), 0, atol=1e-5)
    low, high = lab._space.widget._bounds[:2]
    assert low == -high
    assert np.abs(surface.vertices).max() <= high * 1.000001
    assert lab._side._state["values"]["pair"] == pair


def test_a_dragged_target_acts_live_and_a_dragged_start_at_reset(lab: ParameterLab) -> None:
    train(lab, 20)
    before = lab._space.slice
    lab._space.widget._heard({"moved": "target", "point": [0.25, 1.0, 0.5]})
    lab._space.widget._heard({"moved": "start", "point": [1.0, 0.5, 0.0]})
    frame = train(lab, 1)
    assert lab._space.slice is before
    np.testing.assert_allclose([grip.point for grip in layers(lab, 0, Grip)], [[1, 0.5, 0], [0.25, 1, 0.5]], atol=1e-4)
    assert frame.pending == ("start",)
    held = matrix(frame.snapshot.config.target, 2).numpy()
    np.testing.assert_allclose(held, before.lift(np.array([0.25, 1.0, 0.5])), atol=1e-4)
    np.testing.assert_allclose(frame.snapshot.pictures["target"], held)
    lab.player.reset()
    frame = drawn(lab)
    assert frame.pending == ()
    np.testing.assert_allclose(layers(lab, 0, Line)[0].points[0], [1, 0.5, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("target", "1 0; 0", "rows such as"),
        ("target", "1 0 0; 0 1 0; 0 0 1", "expected .*2 rows of 2 numbers"),
        ("target", "turn left", "target='turn left': expected"),
        ("from", "1 1; 1 1", "the start matrix is singular"),
    ],
    ids=["ragged", "3x3", "words", "singular_start"],
)
def test_a_bad_matrix_is_refused_with_a_message(lab: ParameterLab, name: str, text: str, message: str) -> None:
    lab._touched(name, text)
    frame = lab.player.frame(20)
    assert frame.state == "idle"
    field = {"from": "start"}.get(name, name)
    assert getattr(frame.planned, field) == getattr(frame.snapshot.config, field) != text
    told = lab._message(frame)
    assert told["level"] == "error"
    assert re.search(message, told["text"])
    lab._touched("target", "0 -1; 1 0")
    assert lab._message(lab.player.frame(20))["level"] == "info"


@pytest.mark.parametrize("dim", [8, 32])
def test_larger_matrices_are_seen_in_their_main_plane(lab: ParameterLab, dim: int) -> None:
    train(lab, 5)
    lab._touched("dim", dim)
    lab.player.reset()
    frame = train(lab, 60)
    assert frame.snapshot.config.dim == dim
    assert lab._space.widget.layout.display == "none"
    assert lab._paths.widget.layout.display is None
    paths = layers(lab, 1, Path)
    assert [path.label for path in paths[1::2]] == ["log|det| (nats)", "", ""]
    start = paths[0].points[0]
    np.testing.assert_allclose(np.linalg.norm(paths[2].points, axis=1)[-1] < np.linalg.norm(start), True)
    assert "%" in layers(lab, 1, Points)[-1].label
    assert float(shown(lab, "off")) < np.linalg.norm(start)
    lab._touched("dim", 2)
    lab.player.reset()
    drawn(lab)
    assert lab._space.widget.layout.display is None


def test_a_typed_matrix_gives_way_to_another_width(lab: ParameterLab) -> None:
    lab._touched("target", "0 -1; 1 0")
    lab._touched("dim", 8)
    frame = drawn(lab)
    assert (frame.snapshot.config.dim, frame.snapshot.config.target) == (8, "rotation")
    lab._touched("pair", "singular")
    frame = drawn(lab)
    assert (frame.snapshot.config.dim, frame.snapshot.config.target) == (2, "1 1; 1 1")


def test_the_map_is_that_of_the_chosen_lane(lab: ParameterLab) -> None:
    train(lab, 15)
    (first,) = layers(lab, 2, Heatmap)
    present = layers(lab, 2, Points)[-1]
    assert present.points.tolist() != [[0, 0]]
    lab._touched("map", "through_inverse")
    drawn(lab)
    (second,) = layers(lab, 2, Heatmap)
    assert not first.same(second)
    assert layers(lab, 2, Points)[-1].color != present.color


@pytest.mark.parametrize("lab", [{"learning_rate": 2.0}], ids=["runaway"], indirect=True)
def test_a_lane_that_runs_away_says_so_and_the_pictures_stay(lab: ParameterLab) -> None:
    frame = train(lab, 120)
    assert frame.snapshot.lanes["p4inv"].message
    assert shown(lab, "loss_p4inv") == "stopped"
    assert lab._message(frame)["text"].startswith("P4Inv stopped: step ")
    assert lab._space.widget._bounds[1] <= 10


@pytest.mark.parametrize("lab", [{"target": "1 1; 1 1"}], ids=["singular"], indirect=True)
def test_refused_merges_are_red_and_say_why(lab: ParameterLab) -> None:
    train(lab, 420)
    skips = [dots for dots in layers(lab, 0, Dots) if dots.color == "red"]
    assert skips
    assert skips[0].labels[0].startswith("step ")
    assert "skipped" in skips[0].labels[0].replace("\n", " ").split(": ", 1)[1]


def test_time_travel_shows_the_past_in_every_picture(lab: ParameterLab) -> None:
    train(lab, 200)
    lab.player.scrub(100)
    frame = drawn(lab)
    assert 0 < frame.shown < 200
    assert len(layers(lab, 0, Line)[0].points) == frame.shown + 1
    past = float(shown(lab, "loss_plain"))
    lab.player.scrub(None)
    assert float(shown(lab, "loss_plain")) < past
