"""The linear problems: targets, ways to learn them, lanes that differ in several settings, and findings."""

import math

import numpy as np
import pytest
import torch

from p4lab.errors import ConfigError
from p4lab.p4 import PAPER, RECOMMENDED, P4Inv
from p4lab.problems.matrix import ThroughInverse
from p4lab.training import Lanes, MatrixConfig, RunConfig
from p4lab.training.linear_findings import Finding, _about, _below, experiment, spd_findings, table
from p4lab.training.linear_setup import CASES, LinearConfig, side_by_side, train_until

SMALL = LinearConfig(dim=6, target="spd_near_one", learning_rate=0.1)


# --- problems ---------------------------------------------------------------------------------------------------------


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


def test_pictures_are_the_eigenvalues_of_the_target() -> None:
    problem, model = LinearConfig(dim=3, target="0 -2 0; 2 0 0; 0 0 5").parts()
    (picture,) = problem.pictures(model, torch.zeros(0)).values()
    found = sorted(map(tuple, picture.round(decimals=6).tolist()))
    assert found == [(0, -2), (0, 2), (5, 0)]


def test_round_trip_and_refusals() -> None:
    config = LinearConfig(target="rotation", dim=128, penalty=True)
    assert config.to_text() == "linear?penalty=true&dim=128&target=rotation"
    assert RunConfig.from_text(config.to_text()) == config
    with pytest.raises(ConfigError, match="start='shear'"):
        LinearConfig(start="shear")


# --- ways -------------------------------------------------------------------------------------------------------------


def test_lanes_start_alike_and_are_what_their_names_say() -> None:
    lanes = side_by_side(SMALL)
    models = {name: engine.model for name, engine in lanes.engines.items()}
    assert list(models) == ["plain", "n1", "n10", "n50", "recommended", "through_inverse"]
    for model in models.values():
        torch.testing.assert_close(model.weight.detach(), torch.eye(6), rtol=0, atol=1e-7)
    assert [lanes.engines[f"n{n}"].config.merge_every for n in (1, 10, 50)] == [1, 10, 50]
    assert isinstance(models["n10"], P4Inv)
    assert (models["n10"].rank, models["n10"].reset_kind, models["n10"].train_v) == (1, "gaussian", PAPER.train_v)
    assert (models["recommended"].rank, models["recommended"].reset_kind) == (RECOMMENDED.rank_for(6), "gradient")
    assert isinstance(models["through_inverse"], ThroughInverse)


def test_merges_come_at_each_lanes_own_interval() -> None:
    lanes = side_by_side(SMALL)
    lanes.run(50)
    merges = {name: engine.records.counts["merge"] for name, engine in lanes.engines.items()}
    assert merges == {"plain": 0, "n1": 50, "n10": 5, "n50": 1, "recommended": 12, "through_inverse": 5}


@pytest.mark.parametrize("name", ["route", "merge_every", "rank", "way"])
def test_what_differs_between_lanes_cannot_be_set(name: str) -> None:
    lanes = Lanes(MatrixConfig(), "way", {"a": {"route": "plain"}, "b": {"merge_every": 3, "rank": 2}})
    expected = "there is no such setting" if name == "way" else "the lanes differ in this setting"
    with pytest.raises(ConfigError, match=expected):
        lanes.set(name, 5)
    lanes.set("learning_rate", 0.3)
    assert {engine.config.learning_rate for engine in lanes.engines.values()} == {0.3}


def test_named_lanes_go_on_as_before_from_a_saved_state() -> None:
    one, other = side_by_side(SMALL), side_by_side(SMALL)
    one.run(15)
    other.load_state(one.state())
    one.run(15)
    other.run(15)
    for name, engine in one.engines.items():
        torch.testing.assert_close(other.engines[name].model.weight, engine.model.weight, rtol=0, atol=0)
    assert other.engines["n50"].config.merge_every == 50


# --- outcomes and findings --------------------------------------------------------------------------------------------


def test_training_stops_where_the_loss_has_fallen() -> None:
    run = train_until(SMALL, "plain", 0.1, 500)
    assert run.steps == run.engine.step - 1
    assert run.losses[-1] < 0.1 * run.start <= run.losses[-2]
    # Gradient descent on |W - T|^2 / d: the error shrinks by 1 - 2 eta / d in each step.
    assert run.steps == math.ceil(math.log(0.1) / (2 * math.log(1 - 0.2 / 6)))


def test_training_that_does_not_arrive_or_runs_away_says_so() -> None:
    slow = train_until(SMALL, "n50", 1e-6, 20)
    assert (slow.steps, slow.stopped, slow.engine.step) == (None, "", 20)
    wild = train_until(SMALL.replace(learning_rate=50.0), "n1", 1e-6, 500)
    assert wild.steps is None
    assert "loss" in wild.stopped


def test_one_step_merges_follow_the_plain_matrix_and_long_strokes_do_not() -> None:
    findings = spd_findings(experiment("spd"))
    assert [finding.agrees for finding in findings[:4]] == ["yes"] * 4
    assert findings[2].measured.startswith("4,2")


def test_the_determinant_of_minus_the_identity_ends_right() -> None:
    run = train_until(LinearConfig(), "n1", 1e-3, 1500)
    assert run.steps is not None
    assert run.measured("sign")[[0, -1]].tolist() == [1, -1]
    assert run.measured("logabsdet_error")[-1] < 1e-3
    assert run.measured("residual")[-1] < 1e-5 < np.nanmax(run.measured("residual"))


def test_the_penalty_keeps_it_from_there() -> None:
    assert train_until(LinearConfig(penalty=True), "n1", 1e-3, 1500).steps is None


@pytest.mark.parametrize(("steps", "text"), [(7, "7"), (99, "99"), (1234, "1,200"), (1855, "1,900")])
def test_steps_are_rounded_to_two_digits(steps: int, text: str) -> None:
    assert _about(steps) == text


@pytest.mark.parametrize(("value", "text"), [(3e-5, "< 1e−4"), (2e-7, "< 1e−6"), (0.5, "< 1e0"), (0.0, "0")])
def test_bounds_are_powers_of_ten(value: float, text: str) -> None:
    assert _below(value) == text


def test_the_table_has_a_line_for_each_finding() -> None:
    lines = table([Finding("a", "claim", "5", "yes"), Finding("b", "ours: x", "6", "")]).splitlines()
    assert [line.split()[-1] for line in lines] == ["agrees?", lines[1], "yes", "–"]
