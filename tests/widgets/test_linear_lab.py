"""The lab of linear problems: lanes, pictures, settings, without a browser."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attentive_page import drawn, items

from p4lab.errors import ConfigError
from p4lab.plots.layers import Layer, Path, Points
from p4lab.training import Trail
from p4lab.training.linear_setup import CASES, LinearConfig
from p4lab.widgets.linear_lab import GRID, RATES, WAYS, LinearLab, linear_lab
from p4lab.widgets.linear_pictures import EXTENTS, TAIL, Followed, extent_of, picture

SMALL: dict[str, Any] = {"dim": 5, "learning_rate": 0.1}


@pytest.fixture
def lab() -> Iterator[LinearLab]:
    lab = linear_lab(name="linear", measure_every=5, **SMALL)
    yield lab
    error = lab.error
    lab.close()
    assert error is None


def train(lab: LinearLab, steps: int) -> None:
    lab.player.ask(lambda runs: runs.active.engine.run(steps), 30)
    lab.player.poke()


def numbers(lab: LinearLab) -> dict[str, Any]:
    drawn(lab)
    return dict(lab._head._state["values"])


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_header_tells_each_lanes_loss_and_the_shown_lanes_determinant(lab: LinearLab) -> None:
    train(lab, 20)
    shown, frame = numbers(lab), drawn(lab)
    for name in WAYS:
        assert float(shown[f"loss_{name}"].replace("−", "-")) == pytest.approx(
            frame.snapshot.lanes[name].last("test_loss"), rel=0.5
        )
    first = shown["logabsdet"]
    lab._touched("way", "n50")
    assert numbers(lab)["logabsdet"] != first
    lab._touched("way", "plain")
    assert numbers(lab)["residual"] == "–"


def test_the_chosen_lane_is_drawn_in_full_and_in_its_own_colour(lab: LinearLab) -> None:
    train(lab, 20)
    colors = {}
    for way in ("n10", "plain"):
        lab._touched("way", way)
        figure = lab._curves(drawn(lab))
        lines = [trace for trace in figure["data"] if trace.get("showlegend")]
        assert lines[-1]["name"] == WAYS[way]
        assert {trace["name"] for trace in lines} == set(WAYS.values())
        colors[way] = {trace["name"]: trace["line"]["color"] for trace in lines}
    assert colors["n10"] == colors["plain"]
    assert len(set(colors["plain"].values())) == len(WAYS)


def test_a_lane_that_runs_away_is_reported_and_does_not_flatten_the_others(lab: LinearLab) -> None:
    lab._touched("learning_rate", 3.0)
    train(lab, 400)
    frame = drawn(lab)
    assert numbers(lab)["loss_n1"] == "stopped"
    assert lab._message(frame)["text"].startswith("N = 1 stopped: step")
    losses = [trace["y"] for trace in lab._curves(frame)["data"] if trace.get("showlegend")]
    assert np.nanmax(np.concatenate(losses)) < 100


def test_time_travel_shows_the_eigenvalues_of_then(lab: LinearLab) -> None:
    train(lab, 40)
    now = drawn(lab).snapshot.lanes["n1"].spectrum.values[-1]
    lab.player.scrub(0)
    frame = drawn(lab)
    assert frame.shown == 0
    then = frame.snapshot.lanes["n1"].spectrum.values[-1]
    np.testing.assert_allclose(then, np.ones(5), atol=1e-6)
    assert np.abs(now - 1).max() > 0.1


# --- pictures ---------------------------------------------------------------------------------------------------------


def trail(values: Any, first: int = 0) -> Trail:
    rows = np.array(values, np.complex128)
    return Trail(np.arange(first, first + len(rows)), rows)


def test_tails_follow_each_eigenvalue_whatever_the_order() -> None:
    paths = Followed().paths(trail([[1, -1], [-1.1, 0.9], [0.8, -1.2]]))
    np.testing.assert_allclose(paths, [[1, -1], [0.9, -1.1], [0.8, -1.2]])


def test_what_was_followed_keeps_its_order_as_the_window_moves() -> None:
    turn = np.exp(1j * np.linspace(0, 6, 3 * TAIL))
    values = np.stack([turn, -turn], 1)
    shuffled = np.where(np.arange(len(turn))[:, None] % 2 == 0, values, values[:, ::-1])
    followed = Followed()
    for end in range(1, len(turn) + 1):
        paths = followed.paths(trail(shuffled[:end]))
    assert paths.shape == (TAIL + 1, 2)
    np.testing.assert_allclose(paths, values[-TAIL - 1 :])


def test_another_run_of_the_same_steps_is_followed_anew() -> None:
    followed = Followed()
    followed.paths(trail([[1, -1], [2, -2]]))
    np.testing.assert_allclose(followed.paths(trail([[1, -1], [-3, 3]])), [[1, -1], [3, -3]])


@pytest.mark.parametrize(
    ("far", "extent"), [(1.0, EXTENTS[0]), (1.5, EXTENTS[1]), (1e9, EXTENTS[-1]), (np.nan, EXTENTS[0])]
)
def test_the_frame_moves_in_steps(far: float, extent: float) -> None:
    assert extent_of(np.array([[0.5, far]], np.complex128), np.array([[1.0, 0.0]])) == extent


def test_layers_hold_tails_target_and_present() -> None:
    paths = np.linspace(1, -1, 13)[:, None] * np.array([[1, 1j, 4]])
    layers: list[Layer] = picture(paths, np.array([[-1.0, 0.0]]), 2.0, "#123456", "N = 1, step 3")
    tails = [layer for layer in layers if isinstance(layer, Path)][1:]
    assert [tail.color for tail in tails] == ["#12345622", "#12345655", "#123456aa"]
    assert all(np.nanmax(np.abs(tail.points)) <= 2 for tail in tails)
    marks = {layer.label: np.asarray(layer.points) for layer in layers if isinstance(layer, Points) and layer.label}
    np.testing.assert_allclose(marks["target"], [[-1, 0]])
    np.testing.assert_allclose(marks["N = 1, step 3"], [[-1, 0], [0, -1], [np.nan, np.nan]], atol=1e-7)


def test_a_run_without_a_step_can_be_drawn() -> None:
    layers = picture(np.zeros((1, 2), np.complex128), np.zeros((2, 2)), 1.0, "#123456", "x")
    assert len([layer for layer in layers if isinstance(layer, Path)]) == 1


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_problem_sets_width_target_and_rate(lab: LinearLab, case: str) -> None:
    lab._touched("case", case)
    planned = drawn(lab).planned
    assert planned.replace(measure_every=25) == LinearConfig(learning_rate=RATES[case], **CASES[case].settings)
    assert RATES[case] in GRID
    assert lab._side._state["values"]["case"] == case


def test_another_problem_waits_for_reset(lab: LinearLab) -> None:
    train(lab, 2)
    lab.player.step()
    lab.player.frame(10)
    lab._touched("case", "spd")
    frame = drawn(lab)
    assert set(frame.pending) == {"dim", "target"}
    assert "case" in lab._side._state["pending"]


def test_every_setting_holds_the_value_of_the_config(lab: LinearLab) -> None:
    drawn(lab)
    values, fields = lab._side._state["values"], LinearConfig(**SMALL).to_dict()
    for item in items(lab):
        if item["name"] in fields:
            assert values[item["name"]] == fields[item["name"]]
            assert not item["choices"] or fields[item["name"]] in item["choices"]
    assert (values["way"], values["speed"], values["case"]) == ("n1", 100, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"target": "nonsense"}, "target='nonsense'"), ({"push": 1}, "push=1: there is no such setting")],
    ids=["value", "name"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        linear_lab(name="linear", **changes)
