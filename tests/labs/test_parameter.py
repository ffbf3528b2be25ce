"""The lab of the space of matrices: start and target, what is drawn, and what is told."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from lab_tools import as_number, opened, train

from p4lab.errors import ConfigError, OptionError, SingularMatrixError
from p4lab.labs.parameter import BIGGEST, DIMS, PAIRS, PARAMETER, ROOM, ROUTES, slice_of
from p4lab.plots.layers import Dots, Grip, Heatmap, Line, Path, Points, Surface
from p4lab.problems.matrix import matrix

SPACE = PARAMETER.pictures[0]


def layers(lab: Any, area: str, kind: type) -> list[Any]:
    return [layer for layer in lab.drawings()[area].layers if isinstance(layer, kind)]


# --- start and target -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair != "rotation"])
def test_every_pair_has_a_surface_that_fits_its_slice(pair: str) -> None:
    with opened(PARAMETER) as lab:
        lab.touch("pair", pair)
        train(lab, 20)
        assert (lab.config.to_dict()["start"], lab.config.to_dict()["target"]) == PAIRS[pair][1:]
        assert lab.values()["pair"] == pair
        (surface,) = layers(lab, "space", Surface)
        vertices = surface.vertices.astype(np.float64)
        np.testing.assert_allclose(np.linalg.det(slice_of(lab.sight()).lift(vertices)), 0, atol=1e-5)
        low, high = lab.drawings()["space"].bounds[:2]
        assert low == -high
        assert np.abs(vertices).max() <= high * 1.000001


def test_a_dragged_target_acts_live_and_a_dragged_start_at_reset() -> None:
    with opened(PARAMETER) as lab:
        lab.player.step()
        train(lab, 20)
        before = slice_of(lab.sight())
        assert SPACE.moved is not None
        for name, point in (("target", (0.25, 1.0, 0.5)), ("start", (1.0, 0.5, 0.0))):
            lab.player.set(**SPACE.moved(lab.sight(), name, point))
        frame = lab.sight().frame
        assert frame.pending == ("start",)
        assert lab.values()["pair"] is None
        target = matrix(lab.config.to_dict()["target"], 2).numpy()
        np.testing.assert_allclose(target, before.lift(np.array([0.25, 1.0, 0.5])), atol=1e-4)
        np.testing.assert_allclose(frame.snapshot.pictures["target"], target)
        grips = [grip.point for grip in layers(lab, "space", Grip)]
        np.testing.assert_allclose(grips, [[1, 0.5, 0], [0.25, 1, 0.5]], atol=1e-4)
        lab.touch("restart")
        np.testing.assert_allclose(layers(lab, "space", Line)[0].points[0], [1, 0.5, 0], atol=1e-4)


def test_a_slice_stays_while_start_and_target_lie_in_it() -> None:
    with opened(PARAMETER, target="2 0; 0 0.5") as lab:
        sight = lab.sight()
        before = slice_of(sight)
        lab.touch("target", "1.5 -1; 1 0.5")
        after = dataclasses.replace(sight, frame=lab.sight().frame)
        assert slice_of(after) is before
        lab.touch("target", "1 1; 1 2")
        assert slice_of(dataclasses.replace(sight, frame=lab.sight().frame)) is not before


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("target", "1 0; 0", ConfigError, "rows such as"),
        ("target", "1 0 0; 0 1 0; 0 0 1", OptionError, "expected .*2 rows of 2 numbers"),
        ("target", "turn left", ConfigError, "target='turn left': expected"),
        ("from", "1 1; 1 1", SingularMatrixError, "the start matrix is singular"),
    ],
    ids=["ragged", "3x3", "words", "singular_start"],
)
def test_a_bad_matrix_is_refused_with_a_message(name: str, text: str, error: type[Exception], message: str) -> None:
    with opened(PARAMETER) as lab:
        before = lab.config
        with pytest.raises(error, match=message):
            lab.touch(name, text)
        assert lab.sight().frame.planned == lab.config == before
        assert re.search(message, lab.message())
        lab.touch("target", "0 -1; 1 0")
        assert lab.message().startswith("Press Start")


def test_a_typed_matrix_gives_way_to_another_width_and_each_has_its_rate() -> None:
    with opened(PARAMETER) as lab:
        lab.touch("target", "0 -1; 1 0")
        for dim in (8, 32):
            lab.touch("dim", dim)
            config = lab.config.to_dict()
            assert (config["dim"], config["target"], config["learning_rate"]) == (dim, "rotation", DIMS[dim])
        lab.touch("pair", "singular")
        config = lab.config.to_dict()
        assert (config["dim"], config["target"], config["learning_rate"]) == (2, "1 1; 1 1", DIMS[2])


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_paths_begin_at_the_start_and_lead_to_the_target() -> None:
    with opened(PARAMETER) as lab:
        train(lab, 300)
        start, target = (grip.point for grip in layers(lab, "space", Grip))
        np.testing.assert_allclose([start, target], [[1, 0, 0], [-0.5, 0.75**0.5, 0]], atol=1e-6)
        p4inv, plain, inverse = (line.points for line in layers(lab, "space", Line))
        for path in (p4inv, plain, inverse):
            np.testing.assert_allclose(path[0], start, atol=1e-6)
        np.testing.assert_allclose([p4inv[-1], plain[-1]], [target, target], atol=1e-3)
        # The plain weight goes straight, and P4Inv does between merges.
        np.testing.assert_allclose(np.cross(plain - start, target - start), 0, atol=1e-5)
        path = p4inv.astype(float)
        for first in range(0, 50, 10):
            stroke = path[first : first + 11] - path[first]
            np.testing.assert_allclose(np.cross(stroke, stroke[-1]), 0, atol=1e-6)
        assert np.abs(np.cross(path[10] - path[0], path[20] - path[10])).max() > 1e-2
        assert lab.numbers()["merges"] == "30"
        assert len(layers(lab, "space", Dots)[1].points) == 30
        now = as_number(lab.numbers()["loss_plain"])
        lab.touch("scrub", 100)
        assert len(layers(lab, "space", Line)[0].points) == lab.sight().frame.shown + 1 < 200
        assert as_number(lab.numbers()["loss_plain"]) > now


@pytest.mark.parametrize("dim", [8, 32])
def test_larger_matrices_are_seen_in_their_main_plane(dim: int) -> None:
    with opened(PARAMETER) as lab:
        lab.touch("dim", dim)
        train(lab, 60)
        assert lab.drawings()["space"] is None
        paths = layers(lab, "paths", Path)
        assert [path.label for path in paths[1::2]] == ["log|det| (nats)", "", ""]
        start = np.linalg.norm(paths[0].points[0])
        assert np.linalg.norm(paths[2].points[-1]) < start
        assert "%" in layers(lab, "paths", Points)[-1].label
        # The distances in the plane and from it make up that of the matrix.
        snapshot = lab.sight().snapshot
        away = np.linalg.norm(snapshot.pictures["weight"] - snapshot.pictures["target"])
        assert np.hypot(np.linalg.norm(paths[0].points[-1]), as_number(lab.numbers()["off"])) == pytest.approx(
            away, abs=0.01
        )
        lab.touch("restart")
        lab.touch("dim", 2)
        assert lab.drawings()["paths"] is None
        assert lab.drawings()["space"] is not None


def test_the_map_is_that_of_the_chosen_lane() -> None:
    with opened(PARAMETER) as lab:
        train(lab, 15)
        (first,) = layers(lab, "map", Heatmap)
        present = layers(lab, "map", Points)[-1]
        assert present.points.tolist() != [[0, 0]]
        lab.touch("map", "through_inverse")
        (second,) = layers(lab, "map", Heatmap)
        assert not first.same(second)
        assert layers(lab, "map", Points)[-1].color != present.color


def test_eigenvalues_move_from_the_start_to_the_target() -> None:
    with opened(PARAMETER) as lab:
        train(lab, 200)
        _, *ways = layers(lab, "eigenvalues", Path)
        *_, target = layers(lab, "eigenvalues", Points)
        assert len(ways) == len(ROUTES)
        for way in ways[:2]:  # through the inverse it takes longer
            for path in np.split(way.points, 2):  # a row of NaN ends each
                np.testing.assert_allclose(path[0], [1, 0], atol=1e-5)
                assert np.isnan(path[-1, 0])
                assert np.linalg.norm(target.points - path[-2], axis=1).min() < 0.1


def test_a_lane_that_runs_away_says_so_and_the_pictures_stay() -> None:
    with opened(PARAMETER, learning_rate=2.0) as lab:
        train(lab, 120)
        assert lab.numbers()["loss_p4inv"] == "stopped"
        assert lab.message().startswith("P4Inv stopped: step ")
        assert lab.drawings()["space"].bounds[1] <= 1.25 * ROOM * BIGGEST * 1.0
        assert lab.drawings()["eigenvalues"].bounds[1] <= 2


def test_refused_merges_are_red_and_say_why() -> None:
    with opened(PARAMETER, target="1 1; 1 1") as lab:
        train(lab, 420)
        skips = [dots for dots in layers(lab, "space", Dots) if dots.color == "red"]
        assert len(skips[0].points) == as_number(lab.numbers()["skips"]) > 0
        assert skips[0].labels[0].startswith("step ")
        assert "skipped" in skips[0].labels[0].replace("\n", " ").split(": ", 1)[1]
