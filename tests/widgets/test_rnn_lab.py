"""The lab of recurrent networks: lanes, table, answers, gradients, eigenvalues, curves, settings, without a browser."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from attentive_page import attend, drawn, items, layers

from p4lab.errors import ConfigError
from p4lab.plots.layers import Path, Points
from p4lab.problems.sequences import TASKS
from p4lab.training import State
from p4lab.training.rnn_setup import LANES, WIDEST, RnnConfig
from p4lab.training.rnn_standings import standings
from p4lab.widgets.rnn_lab import LOSS_TEXTS, SMALL, START_TEXTS, TASK_TEXTS, RnnLab, rnn_lab
from p4lab.widgets.rnn_pictures import COLORS, COLUMNS, STRIPS, decades

SETTINGS: dict[str, Any] = {"dim": 8, "delay": 4, "batch_size": 4, "rank": 2, "measure_every": 4, "turn": 2.0}
EACH = pytest.mark.parametrize("lab", [{"task": task} for task in TASKS], indirect=True, ids=TASKS)
ANSWERS, SUMS, EIGENVALUES, GRADIENTS = range(4)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[RnnLab]:
    lab = rnn_lab(name="rnn", **{**SETTINGS, **getattr(request, "param", {})})
    yield lab
    error = lab.error
    lab.close()
    assert error is None


def train(lab: RnnLab, turns: int, steps: int = 0) -> None:
    """Give every lane so many turns, and then so many steps more."""

    def advance(runs: Any) -> None:
        for _ in range(turns):
            runs.active.advance()
        for lane in runs.active.engine.engines.values():
            lane.run(steps)

    lab.player.ask(advance, 60)
    lab.player.poke()


def board(lab: RnnLab) -> list[dict[str, str]]:
    value = lab._board.widget._state["values"]["board"]
    return [dict(zip(COLUMNS, row["cells"], strict=True)) for row in value["rows"]]


def strips(lab: RnnLab) -> list[Any]:
    return [panel.images[0] for panel in lab._answers.widget._panels]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


@EACH
def test_the_table_and_the_header_tell_the_same(lab: RnnLab) -> None:
    train(lab, 1, steps=40)
    frame = drawn(lab)
    rows, head = board(lab), lab._head._state["values"]
    for lane, row in zip(LANES, rows, strict=True):
        snapshot = frame.snapshot.lanes[lane]
        assert number(row["steps"]) == snapshot.step >= 40
        assert number(row["ms/step"]) > 0
        assert number(row["worst"]) == pytest.approx(snapshot.curves["residual"][1].max(), rel=0.5)
    assert [row[""] for row in rows] == ["P4Orthogonal", "matrix_exp (torch)", "Unconstrained"]
    assert number(rows[0]["violation"]) < 1e-5 < number(rows[2]["violation"])
    assert number(rows[0]["merged"]) >= 10
    assert rows[1]["merged"] == "–"
    for key, row in zip(("share_p4", "share_rival", "share_plain"), rows, strict=True):
        assert number(head[key]) == pytest.approx(number(row["loss"]), rel=0.06)
    best = rows[LANES.index(min(standings(frame.snapshot), key=lambda row: row.share).lane)]
    assert head["leader"] == best[""]
    active = [row["active"] for row in lab._board.widget._state["values"]["board"]["rows"]]
    assert active == [row is best for row in rows]


def test_strips_show_question_answer_and_what_each_lane_says(lab: RnnLab) -> None:
    train(lab, 1)
    frame = drawn(lab)
    first = frame.snapshot.lanes[LANES[0]].pictures
    shown = strips(lab)
    np.testing.assert_array_equal(shown[0], first["inputs"])
    np.testing.assert_array_equal(shown[1], first["targets"])
    for place, lane in enumerate(LANES):
        np.testing.assert_array_equal(shown[len(STRIPS) + place], frame.snapshot.lanes[lane].pictures["answers"])
    notes = [panel.note for panel in lab._answers.widget._panels]
    assert notes[0] == "10 symbols, 3 blanks, a sign to answer"
    assert notes[2].startswith("P4Orthogonal: ")
    assert notes[2].endswith(" of 10 right")


@EACH
def test_each_task_has_its_picture_of_answers(lab: RnnLab) -> None:
    drawn(lab)
    copies = lab.config.to_dict()["task"] == "copy"
    shown = [lab._views[index].widget.layout.display for index in (ANSWERS, SUMS)]
    assert shown == ([None, "none"] if copies else ["none", None])
    assert len(layers(lab, SUMS, Points)) == (0 if copies else len(LANES))


@EACH
def test_every_picture_is_drawn_with_p4_on_top(lab: RnnLab) -> None:
    train(lab, 1, steps=4)
    frame = drawn(lab)
    for index, kind in ((EIGENVALUES, Points), (GRADIENTS, Path)):
        colors = [layer.color for layer in layers(lab, index, kind)]
        assert set(COLORS.values()) <= set(colors)
        assert colors[-1] == COLORS["p4orthogonal"]
    go.Figure(**lab._curves(frame))


def test_eigenvalues_of_orthogonal_weights_lie_on_the_circle(lab: RnnLab) -> None:
    train(lab, 1, steps=40)
    drawn(lab)
    radii = {layer.color: np.hypot(*np.asarray(layer.points, float).T) for layer in layers(lab, EIGENVALUES, Points)}
    for lane in ("p4orthogonal", "rival"):
        np.testing.assert_allclose(radii[COLORS[lane]], 1, atol=1e-4)
    assert np.nanmax(np.abs(radii[COLORS["plain"]] - 1)) > 1e-3


@pytest.mark.parametrize("lab", [{"dim": WIDEST + 2, "batch_size": 1}], indirect=True, ids=["wide"])
def test_wide_weights_have_no_picture_of_eigenvalues(lab: RnnLab) -> None:
    drawn(lab)
    assert lab._eigenvalues.widget.layout.display == "none"


def test_gradients_are_shares_of_one_of_them() -> None:
    np.testing.assert_allclose(decades(np.array([1e-3, 0.1, 7.0]), at=-2), [-2, 0, np.log10(70)])
    np.testing.assert_allclose(decades(np.array([1e-3, 0.1, 0.1])), [-2, 0, 0])
    assert decades(np.array([1e30, 0.0, 1.0])).tolist() == [8.0, -12.0, 0.0]
    assert np.isnan(decades(np.zeros(3))).all()
    assert np.isnan(decades(np.array([1.0, np.nan]))).all()


@EACH
def test_time_travel_brings_pictures_back_and_marks_the_moment(lab: RnnLab) -> None:
    drawn(lab)
    start = [np.asarray(layer.points) for layer in layers(lab, EIGENVALUES, Points)]
    train(lab, 6, steps=8)
    drawn(lab)
    now = [np.asarray(layer.points) for layer in layers(lab, EIGENVALUES, Points)]
    assert not any(np.array_equal(one, other) for one, other in zip(start, now, strict=True))
    lab.player.scrub(0)
    frame = drawn(lab)
    assert frame.shown == 0
    for one, layer in zip(start, layers(lab, EIGENVALUES, Points), strict=True):
        np.testing.assert_array_equal(layer.points, one)
    solid = [shape for shape in lab._curves(frame)["layout"]["shapes"] if shape["line"]["dash"] == "solid"]
    assert [shape["x0"] for shape in solid] == [0, 0]
    assert board(lab)[0]["steps"] == "0"


@EACH
def test_curves_show_what_chance_gets_and_the_target(lab: RnnLab) -> None:
    train(lab, 2, steps=8)
    figure = lab._curves(lab.player.frame(30))
    levels = [shape["y0"] for shape in figure["layout"]["shapes"] if shape["line"]["dash"] == "dash"]
    assert levels[1] == pytest.approx(0.1 * levels[0])
    titles = [note["text"] for note in figure["layout"]["annotations"]]
    assert titles == [*(title for _, title in SMALL), "best without memory", "solved"]
    assert figure["layout"]["yaxis"]["title"]["text"] == LOSS_TEXTS[lab.config.to_dict()["task"]]
    lab._touched("axis", "steps")
    steps = lab._curves(lab.player.frame(30))
    assert steps["layout"]["xaxis"]["title"]["text"] == "optimizer steps"
    assert steps["data"][0]["x"][-1] >= 1


def test_live_settings_act_on_every_lane_and_are_marked(lab: RnnLab) -> None:
    lab.player.step()
    for name, value in {"rate_factor": 0.5, "merge_every": 10, "reset": "gaussian", "budget": 20.0}.items():
        lab._touched(name, value)
        frame = drawn(lab)
        assert {lane.config.to_dict()[name] for lane in frame.snapshot.lanes.values()} == {value}
    shapes = lab._curves(lab.player.frame(30))["layout"]["shapes"]
    assert [shape["line"]["dash"] for shape in shapes] == ["dash", "dash", "dot", "dot"]


def test_another_task_and_rival_wait_for_reset(lab: RnnLab) -> None:
    lab.player.step()
    lab._touched("task", "adding")
    lab._touched("rival", "cayley")
    assert drawn(lab).pending == ("task", "rival")
    lab._touched("restart", True)
    drawn(lab)
    assert board(lab)[1][""] == "Cayley (torch)"


@pytest.mark.parametrize("lab", [{"budget": 0.006}], indirect=True, ids=["short"])
def test_the_race_ends_when_time_is_up(lab: RnnLab) -> None:
    attend(lab)
    lab.player.start()
    for _ in range(400):
        frame = lab.player.frame(30)
        if frame.state is State.PAUSED:
            break
    assert frame.snapshot.step == 3
    frame = drawn(lab, State.PAUSED)
    assert lab._message(frame)["text"].startswith("Time is up: 0.006 s")
    assert lab._head._state["values"]["clock"] == "0.0 of 0.006"


def test_a_lane_that_stops_says_so(lab: RnnLab) -> None:
    def breaks(runs: Any) -> None:
        with torch.no_grad():
            runs.active.engine.engines["rival"].model.write.fill_(np.nan)
        runs.active.advance()

    lab.player.ask(breaks, 10)
    frame = drawn(lab)
    assert lab._message(frame)["text"].startswith("matrix_exp (torch) stopped: step 1")
    assert lab._head._state["values"]["share_rival"] == "stopped"
    assert board(lab)[1][""] == "matrix_exp (torch) (stopped)"


def test_runs_are_kept_saved_loaded_and_laid_over(lab: RnnLab, tmp_path: Any) -> None:
    train(lab, 4)
    drawn(lab)
    before = strips(lab)
    lab.save(tmp_path / "a.p4run")
    lab._touched("restart", True)
    lab.load(tmp_path / "a.p4run")
    frame = drawn(lab)
    assert len(frame.runs) == 2
    for one, other in zip(before, strips(lab), strict=True):
        np.testing.assert_array_equal(one, other)
    thin = [trace for trace in lab._curves(frame)["data"] if trace["opacity"] < 1]
    assert len(thin) == len(LANES)


def test_every_setting_holds_the_value_of_the_config(lab: RnnLab) -> None:
    drawn(lab)
    values, fields = lab._side._state["values"], RnnConfig(**SETTINGS).to_dict()
    for item in items(lab):
        assert item["name"] in values
        if item["name"] in fields:
            assert values[item["name"]] == fields[item["name"]]
            assert not item["choices"] or fields[item["name"]] in item["choices"]
    spec: Any = lab._head._spec
    buttons = {item["name"] for group in spec["groups"] for item in group["items"]}
    assert not buttons & {item["name"] for item in items(lab)}  # one name, one command
    assert tuple(TASK_TEXTS) == tuple(LOSS_TEXTS) == TASKS
    assert set(START_TEXTS) == {"rotations", "orthogonal", "identity"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"task": "x"}, "task='x'"), ({"push": 1}, "push=1: there is no such setting")],
    ids=["value", "name"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rnn_lab(name="rnn", **changes)
