"""The lab of linear problems: targets, ways to learn them, what is drawn and told; and the paper's findings."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import as_number, opened, train

from p4lab.errors import ConfigError
from p4lab.labs.linear import (
    CASES,
    EXTENTS,
    LINEAR,
    RUNAWAY,
    TAIL,
    WAYS,
    Followed,
    LinearConfig,
    side_by_side,
)
from p4lab.labs.linear_findings import Finding, experiment, spd_findings, table, train_until
from p4lab.p4 import PAPER, RECOMMENDED, P4Inv
from p4lab.plots.layers import Path, Points
from p4lab.problems.matrix import ThroughInverse
from p4lab.training import Lanes, MatrixConfig, RunConfig, Trail

SMALL: dict[str, Any] = {"dim": 5, "learning_rate": 0.1, "measure_every": 5}
CONFIG = LinearConfig(dim=6, target="spd_near_one", learning_rate=0.1)


# --- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_spd_near_one_is_symmetric_with_eigenvalues_around_one(seed: int) -> None:
    target = LinearConfig(seed=seed, **CASES["spd"].settings).matrix("target")
    torch.testing.assert_close(target, target.t(), rtol=0, atol=0)
    values = torch.linalg.eigvalsh(target)
    assert 0.4 < values[0] < 0.7 < 1.3 < values[-1] < 1.6


def test_the_hard_targets_have_the_determinants_that_make_them_hard() -> None:
    rotation, minus = (LinearConfig(**CASES[name].settings).matrix("target") for name in ("rotation", "minus_identity"))
    torch.testing.assert_close(rotation @ rotation.t(), torch.eye(128, dtype=torch.float64))
    assert torch.linalg.slogdet(rotation).sign == 1
    assert torch.linalg.slogdet(minus).sign == -1


def test_a_text_says_the_problem_and_the_start_is_the_identity() -> None:
    config = LinearConfig(target="rotation", dim=128, penalty=True)
    assert config.to_text() == "linear?penalty=true&dim=128&target=rotation"
    assert RunConfig.from_text(config.to_text()) == config
    assert "target" not in LinearConfig.live
    with pytest.raises(ConfigError, match="start='shear'"):
        LinearConfig(start="shear")


def test_lanes_start_alike_and_are_what_their_names_say() -> None:
    lanes = side_by_side(CONFIG)
    models = {name: engine.model for name, engine in lanes.engines.items()}
    assert list(models) == list(WAYS)
    for model in models.values():
        torch.testing.assert_close(model.weight.detach(), torch.eye(6), rtol=0, atol=1e-7)
    assert [lanes.engines[f"n{n}"].config.merge_every for n in (1, 10, 50)] == [1, 10, 50]
    assert isinstance(models["n10"], P4Inv)
    assert (models["n10"].rank, models["n10"].reset_kind, models["n10"].train_v) == (1, "gaussian", PAPER.train_v)
    assert (models["recommended"].rank, models["recommended"].reset_kind) == (RECOMMENDED.rank_for(6), "gradient")
    assert isinstance(models["through_inverse"], ThroughInverse)


def test_merges_come_at_each_lanes_own_interval_also_after_a_saved_state() -> None:
    lanes, other = side_by_side(CONFIG), side_by_side(CONFIG)
    lanes.run(15)
    other.load_state(lanes.state())
    lanes.run(35)
    other.run(35)
    merges = {name: engine.records.counts["merge"] for name, engine in lanes.engines.items()}
    assert merges == {"plain": 0, "n1": 50, "n10": 5, "n50": 1, "recommended": 12, "through_inverse": 5}
    for name, engine in lanes.engines.items():
        torch.testing.assert_close(other.engines[name].model.weight, engine.model.weight, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["route", "merge_every", "rank", "way"])
def test_what_differs_between_lanes_cannot_be_set(name: str) -> None:
    lanes = Lanes(MatrixConfig(), "way", {"a": {"route": "plain"}, "b": {"merge_every": 3, "rank": 2}})
    expected = "there is no such setting" if name == "way" else "the lanes differ in this setting"
    with pytest.raises(ConfigError, match=expected):
        lanes.set(name, 5)
    lanes.set("learning_rate", 0.3)
    assert {engine.config.learning_rate for engine in lanes.engines.values()} == {0.3}


@pytest.mark.parametrize("case", CASES)
def test_a_problem_sets_width_target_and_rate_and_waits_for_reset(case: str) -> None:
    with opened(LINEAR, **SMALL) as lab:
        assert lab.values()["case"] is None
        train(lab, 1)
        lab.player.step()
        lab.touch("case", case)
        assert lab.values()["case"] == case
        frame = lab.sight().frame
        assert set(frame.pending) == {"dim"} | ({"target"} if case != "minus_identity" else set())
        assert "case" in LINEAR.waiting(frame.snapshot.config, frame.planned)
        lab.touch("restart")
        rate = CASES[case].rate
        assert lab.config == LinearConfig(learning_rate=rate, measure_every=5, **CASES[case].settings)
        assert rate in LinearConfig.settings["learning_rate"].offered(lab.config, rate)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def trail(values: Any) -> Trail:
    rows = np.array(values, np.complex128)
    return Trail(np.arange(len(rows)), rows)


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


def test_pictures_hold_tails_target_and_present_of_now_and_then() -> None:
    with opened(LINEAR, **SMALL, target="0 -2 0 0 0; 2 0 0 0 0; 0 0 1 0 0; 0 0 0 1 0; 0 0 0 0 9") as lab:
        train(lab, 40)
        for step in (None, 0):
            lab.touch("scrub", step)
            for area, way in (("plain", "plain"), ("shown", "n10")):
                lab.touch("way", "n10")
                plot: Any = lab.drawings()[area]
                circle, *tails = (layer for layer in plot.layers if isinstance(layer, Path))
                assert len(tails) == (0 if step == 0 else 3)
                assert all(np.nanmax(np.abs(line.points)) <= EXTENTS[-1] for line in (circle, *tails))
                marks = {layer.label: layer.points for layer in plot.layers if isinstance(layer, Points)}
                target = marks["target"][np.isfinite(marks["target"]).all(1)]  # 9 lies outside
                assert sorted(map(tuple, target.round(5).tolist())) == [(0, -2), (0, 2), (1, 0), (1, 0)]
                now = marks[f"{WAYS[way]}, step {40 if step is None else 0}"]
                values = lab.sight().lanes[way].spectrum.values[-1]
                near = sorted(value for value in values.real if value <= EXTENTS[-1])
                np.testing.assert_allclose(sorted(now[:, 0])[: len(near)], near, atol=1e-6)
                assert (np.abs(values - 1).max() > 0.1) == (step is None)
                assert plot.bounds[1] == EXTENTS[-1]


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_header_tells_each_lanes_loss_and_the_shown_lanes_determinant() -> None:
    with opened(LINEAR, **SMALL) as lab:
        train(lab, 20)
        texts, lanes = lab.numbers(), lab.sight().lanes
        for way in WAYS:
            assert as_number(texts[f"loss_{way}"]) == pytest.approx(lanes[way].last("test_loss"), rel=0.5)
        for way in ("n1", "n50"):
            lab.touch("way", way)
            assert as_number(lab.numbers()["logabsdet"]) == pytest.approx(lanes[way].last("logabsdet"), abs=0.006)
        lab.touch("way", "plain")
        assert lab.numbers()["residual"] == "–"


@pytest.mark.parametrize("sampled", [False, True])
def test_the_lane_shown_is_drawn_in_full_and_all_in_their_own_colours(sampled: bool) -> None:
    with opened(LINEAR, **SMALL, sampled=sampled) as lab:
        train(lab, 20)
        colors = {}
        for way in ("n10", "plain"):
            lab.touch("way", way)
            lines = [trace for trace in LINEAR.curves(lab.sight())["data"] if trace.get("showlegend")]
            assert lines[-1]["name"].startswith(WAYS[way])
            assert ("mean" in lines[-1]["name"]) == sampled
            colors[way] = {trace["name"].split(":")[0]: trace["line"]["color"] for trace in lines}
        assert colors["n10"] == colors["plain"]
        assert set(colors["plain"]) == set(WAYS.values())
        assert len(set(colors["plain"].values())) == len(WAYS)


def test_a_lane_that_runs_away_is_reported_and_does_not_flatten_the_others() -> None:
    with opened(LINEAR, **SMALL) as lab:
        lab.touch("learning_rate", 3.0)
        train(lab, 400)
        assert lab.numbers()["loss_n1"] == "stopped"
        assert lab.message().startswith("N = 1 stopped: step")
        losses = [trace["y"] for trace in LINEAR.curves(lab.sight())["data"] if trace.get("showlegend")]
        assert np.nanmax(np.concatenate(losses)) < RUNAWAY


# --- outcomes and findings --------------------------------------------------------------------------------------------


def test_training_stops_where_the_loss_has_fallen() -> None:
    run = train_until(CONFIG, "plain", 0.1, 500)
    assert run.steps == run.engine.step - 1
    assert run.losses[-1] < 0.1 * run.start <= run.losses[-2]
    # Gradient descent on |W - T|^2 / d: the error shrinks by 1 - 2 eta / d in each step.
    assert run.steps == math.ceil(math.log(0.1) / (2 * math.log(1 - 0.2 / 6)))


def test_training_that_does_not_arrive_or_runs_away_says_so() -> None:
    slow = train_until(CONFIG, "n50", 1e-6, 20)
    assert (slow.steps, slow.stopped, slow.engine.step) == (None, "", 20)
    wild = train_until(CONFIG.replace(learning_rate=50.0), "n1", 1e-6, 500)
    assert wild.steps is None
    assert "loss" in wild.stopped


def test_one_step_merges_follow_the_plain_matrix_and_long_strokes_do_not() -> None:
    findings = spd_findings(experiment("spd", dim=8))
    assert [finding.agrees for finding in findings[:4]] == ["yes"] * 4


def test_the_determinant_of_minus_the_identity_ends_right_and_the_penalty_keeps_it_from_there() -> None:
    run = train_until(LinearConfig(), "n1", 1e-3, 1500)
    assert run.steps is not None
    assert run.measured("sign")[[0, -1]].tolist() == [1, -1]
    assert run.measured("logabsdet_error")[-1] < 1e-3
    assert run.measured("residual")[-1] < 1e-5 < np.nanmax(run.measured("residual"))
    assert train_until(LinearConfig(penalty=True), "n1", 1e-3, 1500).steps is None


def test_the_table_has_a_line_for_each_finding() -> None:
    lines = table([Finding("a", "claim", "5", "yes"), Finding("b", "ours: x", "6", "")]).splitlines()
    assert [line.split()[-1] for line in lines] == ["agrees?", lines[1], "yes", "–"]
