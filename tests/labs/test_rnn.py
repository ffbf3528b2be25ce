"""The lab of recurrent networks: table, answers, gradients, eigenvalues, curves."""

import math
from typing import Any

import numpy as np
import pytest
from lab_tools import as_number, break_lane, opened, table, train, wait_until

from p4lab.labs.rnn import COLORS, LOSS_TEXTS, RNN, SMALL, STRIPS, baseline, decades, leader, share, solved
from p4lab.plots.layers import Path, Points
from p4lab.problems.sequences import TASKS
from p4lab.training import State
from p4lab.training.rnn import LANES, WIDEST

SETTINGS: dict[str, Any] = {"dim": 8, "delay": 4, "batch_size": 4, "rank": 2, "measure_every": 4, "turn": 2.0}
EACH = pytest.mark.parametrize("task", TASKS)


def open_lab(**changes: Any) -> Any:
    return opened(RNN, **{**SETTINGS, **changes})


def step(lab: Any, steps: int, lanes: tuple[str, ...] = LANES) -> None:
    """Do so many steps in some lanes, whatever time they take."""

    def advance(runs: Any) -> None:
        for name in lanes:
            runs.active.engine.engines[name].run(steps)

    lab.player.ask(advance, 60)


def drawn(lab: Any, area: str, kind: type) -> list[Any]:
    return [layer for layer in lab.drawings()[area].layers if isinstance(layer, kind)]


# --- what is told -----------------------------------------------------------------------------------------------------


@EACH
def test_losses_are_shares_of_what_chance_gets(task: str) -> None:
    with open_lab(task=task) as lab:
        step(lab, 40)
        step(lab, 8, ("p4orthogonal",))
        rows, head, lanes = table(lab), lab.numbers(), lab.sight().lanes
        chance = baseline(lab.config)
        for (name, lane), row in zip(lanes.items(), rows, strict=True):
            steps, tests = lane.curves["test_loss"]
            assert share(lane) == pytest.approx(tests[-1] / chance)
            assert as_number(row["loss"]) == pytest.approx(tests[-1] / chance, rel=0.01)
            assert as_number(row["at equal steps"]) == pytest.approx(tests[steps == 40][0] / chance, rel=0.01)
            assert as_number(row["steps"]) == lane.step == (48 if name == "p4orthogonal" else 40)
            assert as_number(row["ms/step"]) == pytest.approx(1e3 * lane.last("seconds") / lane.step, abs=0.06)
            assert as_number(row["worst"]) == pytest.approx(lane.curves["residual"][1].max(), rel=0.5)
        assert [row[""] for row in rows] == ["P4Orthogonal", "matrix_exp (torch)", "Unconstrained"]
        assert as_number(rows[0]["violation"]) < 1e-5 < as_number(rows[2]["violation"])
        assert as_number(rows[0]["merged"]) == 48 // 4
        assert rows[1]["merged"] == "–"
        for key, row in zip(("share_p4", "share_rival", "share_plain"), rows, strict=True):
            assert as_number(head[key]) == pytest.approx(as_number(row["loss"]), rel=0.06)
        best = min(lanes, key=lambda name: share(lanes[name]))
        assert [row.active for row in lab.drawings()["board"].rows] == [name == best for name in LANES]
        assert head["leader"] == rows[LANES.index(best)][""]


def test_nobody_is_ahead_before_the_first_measurement() -> None:
    with open_lab(rival="cayley", dtype="float64", initial="identity") as lab:
        assert leader(lab.sight()) is None
        assert lab.numbers()["leader"] == "–"
        assert all(row["ms/step"] == row["solved after"] == "–" for row in table(lab))


def test_solved_is_told_in_seconds() -> None:
    with open_lab(task="adding", delay=2, dim=16, batch_size=64) as lab:
        assert math.isnan(solved(lab.sight().lanes["plain"]))
        step(lab, 600, ("plain",))
        text = table(lab)[2]["solved after"]
        assert text.endswith(" s")
        assert as_number(text) == pytest.approx(solved(lab.sight().lanes["plain"]), abs=0.006)


def test_the_race_ends_when_time_is_up() -> None:
    with open_lab(budget=0.006) as lab:
        lab.touch("start")
        wait_until(lambda: lab.player.frame(20).state is State.PAUSED)
        assert lab.sight().snapshot.step == 3
        assert lab.message().startswith("Time is up: 0.006 s")
        assert lab.numbers()["clock"] == "0.0 of 0.006"


def test_a_lane_that_stops_says_so() -> None:
    with open_lab() as lab:
        break_lane(lab, "rival")
        assert lab.message().startswith("matrix_exp (torch) stopped: step 1")
        assert lab.numbers()["share_rival"] == {"value": "stopped", "unit": ""}
        assert table(lab)[1][""] == "matrix_exp (torch) (stopped)"


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_strips_show_question_answer_and_what_each_lane_says() -> None:
    with open_lab() as lab:
        train(lab, 1)
        tiles, lanes = lab.drawings()["answers"].tiles, lab.sight().lanes
        np.testing.assert_array_equal(tiles[0].images[0], lanes[LANES[0]].pictures["inputs"])
        np.testing.assert_array_equal(tiles[1].images[0], lanes[LANES[0]].pictures["targets"])
        for tile, lane in zip(tiles[len(STRIPS) :], lanes.values(), strict=True):
            np.testing.assert_array_equal(tile.images[0], lane.pictures["answers"])
        assert tiles[0].note == "10 symbols, 3 blanks, a sign to answer"
        assert tiles[2].note.startswith("P4Orthogonal: ")
        assert tiles[2].note.endswith(" of 10 right")


@EACH
def test_each_task_has_its_picture_of_answers_and_p4_is_on_top(task: str) -> None:
    with open_lab(task=task) as lab:
        step(lab, 4)
        drawings = lab.drawings()
        assert (drawings["answers"] is None) == (drawings["sums"] is not None) == (task == "adding")
        areas = {"eigenvalues": Points, "gradients": Path, **({"sums": Points} if task == "adding" else {})}
        for area, kind in areas.items():
            colors = [layer.color for layer in drawn(lab, area, kind)]
            assert set(COLORS.values()) <= set(colors)
            assert colors[-1] == COLORS["p4orthogonal"]


def test_eigenvalues_of_orthogonal_weights_lie_on_the_circle() -> None:
    with open_lab() as lab:
        step(lab, 40)
        radii = {layer.color: np.hypot(*layer.points.T) for layer in drawn(lab, "eigenvalues", Points)}
        for lane in ("p4orthogonal", "rival"):
            np.testing.assert_allclose(radii[COLORS[lane]], 1, atol=1e-4)
        assert np.nanmax(np.abs(radii[COLORS["plain"]] - 1)) > 1e-3


def test_wide_weights_have_no_picture_of_eigenvalues() -> None:
    with open_lab(dim=WIDEST + 2, batch_size=1) as lab:
        assert lab.drawings()["eigenvalues"] is None


def test_gradients_are_shares_of_one_of_them() -> None:
    np.testing.assert_allclose(decades(np.array([1e-3, 0.1, 7.0]), at=-2), [-2, 0, np.log10(70)])
    np.testing.assert_allclose(decades(np.array([1e-3, 0.1, 0.1])), [-2, 0, 0])
    assert decades(np.array([1e30, 0.0, 1.0])).tolist() == [8.0, -12.0, 0.0]
    assert np.isnan(decades(np.zeros(3))).all()
    assert np.isnan(decades(np.array([1.0, np.nan]))).all()


@EACH
def test_curves_show_what_chance_gets_the_target_changes_and_the_moment(task: str) -> None:
    with open_lab(task=task) as lab:
        train(lab, 3)
        lab.touch("step")
        lab.touch("rate_factor", 0.5)
        figure = RNN.curves(lab.sight())
        shapes = figure["layout"]["shapes"]
        assert [shape["line"]["dash"] for shape in shapes] == ["dash", "dash", "dot", "dot"]
        assert shapes[1]["y0"] == pytest.approx(0.1 * shapes[0]["y0"])
        titles = [note["text"] for note in figure["layout"]["annotations"]]
        assert titles == [*(title for _, title in SMALL), "best without memory", "solved"]
        assert figure["layout"]["yaxis"]["title"]["text"] == LOSS_TEXTS[task]
        lab.touch("scrub", 0)
        solid = [s for s in RNN.curves(lab.sight())["layout"]["shapes"] if s["line"]["dash"] == "solid"]
        assert [shape["x0"] for shape in solid] == [0, 0]
        lab.touch("axis", "steps")
        assert RNN.curves(lab.sight())["layout"]["xaxis"]["title"]["text"] == "optimizer steps"
