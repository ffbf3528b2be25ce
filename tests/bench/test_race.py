"""Tuning, time to target and sweeps: what is counted, chosen and said."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from p4lab.baselines import METHODS
from p4lab.bench.__main__ import main
from p4lab.bench.lanes import CHECK_EVERY, Trace, train
from p4lab.bench.race import race, seconds_to, spread, sweep, verdict
from p4lab.bench.tuning import NO_FAMILY, RACED, Tuned, config_of, grid, merit, racers, tune
from p4lab.errors import ConfigError, OptionError
from p4lab.problems import rates
from p4lab.problems.rates import Choice
from p4lab.problems.tasks import TASKS
from p4lab.training.race import RaceConfig

CONFIG = RaceConfig(task="so", dim=8, batch_size=16, methods="plain+p4inv+exponential_dynamic")
COLUMNS = ["loss", "steps", "memory_kb", "inverse_error", "logdet_error", "stopped"]


def trace(name: str, *checks: tuple[int, float, float], stopped: str = "") -> Trace:
    return Trace(name, 0, ((0, 0.0, 1.0), *checks), 1e-6, 1e-7, 1000, stopped)


# --- one run ---


def test_a_run_looks_every_few_steps_and_ends_at_the_number_of_steps() -> None:
    found = train(CONFIG, "plain", math.inf, steps=2 * CHECK_EVERY + 2, settings=Choice("adam", 1e-3))
    assert [step for step, _, _ in found.checks] == [0, CHECK_EVERY, 2 * CHECK_EVERY, 2 * CHECK_EVERY + 2]
    assert not found.stopped


def test_a_run_ends_at_the_target() -> None:
    found = train(CONFIG, "plain", math.inf, target=0.1, settings=Choice("sgd", 1.0))
    *before, last = [loss for _, _, loss in found.checks]
    assert last <= 0.1 < min(before)
    assert found.reached(0.1) == found.checks[-1][:2]
    assert found.reached(last / 2) is None


def test_looks_have_a_pause() -> None:
    often, seldom = (train(CONFIG, "plain", 0.1, settings=Choice("adam", 1e-3), pause=pause) for pause in (0.0, 0.03))
    times = [seconds for _, seconds, _ in seldom.checks]
    assert all(after - before >= 0.03 for before, after in itertools.pairwise(times[:-1]))
    assert times[-1] >= 0.1
    assert len(often.checks) > len(times)


def test_an_annealed_run_of_some_steps_repeats_itself() -> None:
    config = CONFIG.replace(anneal=True, dtype="float64")
    one, two = (train(config, "plain", math.inf, steps=12, settings=Choice("sgd", 1.0)) for _ in range(2))
    other = train(config.replace(anneal=False), "plain", math.inf, steps=12, settings=Choice("sgd", 1.0))
    assert one.loss == two.loss != other.loss
    assert one.checks[0] == other.checks[0]


def test_annealing_over_no_finite_time_is_an_error() -> None:
    with pytest.raises(ConfigError, match="budget=inf: expected a number above 0"):
        train(CONFIG.replace(anneal=True), "plain", math.inf)


@pytest.mark.parametrize(
    "name", ["plain", "dense", "exponential_dynamic", "geotorch_gl_dynamic", "torch_cayley_dynamic"]
)
def test_a_run_that_breaks_down_says_why(name: str) -> None:
    found = train(CONFIG, name, math.inf, steps=400, settings=Choice("sgd", 1e6))
    assert found.loss == math.inf or found.loss > 1
    assert not found.stopped or "step" in found.stopped or "not finite" in found.stopped
    assert all(math.isfinite(loss) for _, _, loss in found.checks)


# --- tuning ---


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_gets_eight_choices(task: str, name: str) -> None:
    choices = grid(task, METHODS[name], 64)
    assert len(set(choices)) == 8
    assert all(choice.rate > 0 and choice.optimizer in METHODS[name].optimizers for choice in choices)
    assert {choice.optimizer for choice in choices} == set(METHODS[name].optimizers)


def test_rates_of_a_grid_can_be_chosen() -> None:
    both, one = (grid("so", METHODS[name], 100, sgd=(0.01, 0.02), adam=(0.1,)) for name in ("dense", "relative"))
    assert [(choice.optimizer, choice.rate) for choice in both] == [("sgd", 1.0), ("sgd", 2.0), ("adam", 0.1)]
    assert [choice.rate for choice in one] == [0.625, 1.0, 1.25, 2.0]


@pytest.mark.parametrize(
    ("task", "name", "races"),
    [
        pytest.param("so", "plain", True, id="plain-on-a-map"),
        pytest.param("digits", "plain", False, id="plain-knows-no-determinant"),
        pytest.param("ica_photos", "nice", False, id="nonlinear-in-a-linear-task"),
        pytest.param("so", "nice", True, id="nonlinear-on-a-map"),
        pytest.param("so", "householder", True, id="orthogonal-on-a-rotation"),
        pytest.param(NO_FAMILY[0], "householder", False, id="orthogonal-far-from-its-family"),
        pytest.param(NO_FAMILY[0], "landing", False, id="nearly-orthogonal-far-from-its-family"),
        pytest.param("ica_photos", "landing", True, id="exact-where-it-is-evaluated"),
    ],
)
def test_who_races(task: str, name: str, races: bool) -> None:
    assert (name in racers(task, RACED)) is races


@pytest.mark.parametrize("task", TASKS)
def test_tasks_have_the_width_that_their_data_have(task: str) -> None:
    config = config_of(task, 100, 0)
    assert config.width <= 100
    config.replace(methods="dense").parts()


def test_merit_is_time_to_target_then_loss() -> None:
    fast, slow = trace("plain", (5, 0.1, 0.01)), trace("plain", (5, 0.2, 0.001))
    near, broken = trace("plain", (5, 0.1, 0.5)), trace("plain", (5, 0.1, 0.2), stopped="step 6: loss nan")
    ranked = sorted([broken, near, slow, fast], key=lambda one: merit(one, 0.05))
    assert ranked == [fast, slow, near, broken]


def test_tuning_finds_a_rate_that_works_for_each() -> None:
    found = tune("so", ("plain", "relative", "cayley_descent"), dim=4, seconds=0.03, n_jobs=1)
    assert set(found.choices) == {"plain", "relative", "cayley_descent"}
    assert all(choice.dim == 4 for choice in found.choices.values())
    assert 0 < found.target < 1e-3


def test_the_target_of_a_likelihood_comes_from_what_was_seen() -> None:
    found = tune("ica_digits", ("dense",), dim=4, seconds=0.03, n_jobs=1)
    config = config_of("ica_digits", 4, 1000)
    start = train(config, "dense", 0.0).checks[0][2]
    best = train(config, "dense", 0.5, target=found.target, settings=found.choices["dense"])
    assert found.target < start
    assert best.reached(found.target) is not None


def test_an_unknown_task_is_a_named_error() -> None:
    with pytest.raises(OptionError, match="task 'somewhere' is not known"):
        tune("somewhere", ("plain",))


def test_tuning_without_anybody_is_an_error() -> None:
    with pytest.raises(ConfigError, match="none of them can do the task 'digits'"):
        tune("digits", ("plain", "nice"))


# --- rates ---


def test_rates_survive_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    first = {"so": {"plain": Choice("sgd", 2.0, 0.3, 64), "plu": Choice("adam", 0.01, dim=64)}}
    rates.write(first, path)
    rates.write({"so": {"plu": Choice("adam", 0.03, dim=64)}, "spd": {}}, path)
    assert rates.read(path) == {"so": first["so"] | {"plu": Choice("adam", 0.03, dim=64)}, "spd": {}}


@pytest.mark.parametrize(
    ("choice", "rate"),
    [
        pytest.param(Choice("sgd", 4.0, 0.3, 64), 1.0, id="descent-grows-with-the-width"),
        pytest.param(Choice("adam", 0.01, dim=64), 0.01, id="adam-does-not"),
        pytest.param(Choice("sgd", 4.0), 4.0, id="of-no-width"),
    ],
)
def test_rates_at_another_width(choice: Choice, rate: float) -> None:
    assert choice.at(16).rate == rate


def test_the_stored_rates_fit_their_methods() -> None:
    for task, methods in rates.BEST.items():
        assert task in TASKS
        for name, choice in methods.items():
            assert choice.optimizer in METHODS[name].optimizers
            assert not choice.momentum or len(METHODS[name].optimizers) == 2


# --- sweeps ---


def test_a_sweep_repeats_itself_whatever_the_number_of_jobs() -> None:
    one = sweep(CONFIG, seeds=(3, 4), steps=12, n_jobs=1)
    two = sweep(CONFIG, seeds=(3, 4), steps=12, n_jobs=2, backend="loky")
    assert list(one["method"]) == list(CONFIG.names) * 2
    assert list(one["seed"]) == [3, 3, 3, 4, 4, 4]
    for column in COLUMNS:
        np.testing.assert_array_equal(one[column], two[column], err_msg=column)
    assert one["loss"].nunique() == 6


def test_the_seconds_of_a_sweep_are_the_budget() -> None:
    frame = sweep(CONFIG.replace(budget=0.02), seeds=(0,), n_jobs=1)
    assert (frame["seconds"] >= 0.02).all()
    assert (frame["steps"] % CHECK_EVERY == 0).all()


def test_an_unknown_backend_is_a_named_error() -> None:
    with pytest.raises(ConfigError, match="backend='nowhere'"):
        sweep(CONFIG, seeds=(0,), steps=1, backend="nowhere")


def test_a_method_that_cannot_do_the_task_is_a_named_error() -> None:
    with pytest.raises(ConfigError, match=r"methods='plain'.*log"):
        sweep(RaceConfig(task="digits", methods="plain"), seeds=(0,), steps=1, n_jobs=1)


def test_the_spread_has_medians_and_ranges() -> None:
    frame = sweep(CONFIG, seeds=(0, 1, 2), steps=3, n_jobs=1)
    found = spread(frame)
    for name in CONFIG.names:
        values = frame.loc[frame["method"] == name, "loss"]
        row = found.loc[name]
        assert (row["loss_min"], row["loss"], row["loss_max"]) == (values.min(), values.median(), values.max())
        assert (row["runs"], row["broke_down"]) == (3, 0)
    assert list(found["loss"]) == sorted(found["loss"])


# --- time to target ---


def test_runs_that_miss_the_target_count_as_infinite() -> None:
    there, not_there = trace("plain", (5, 0.1, 0.01)), trace("plain", (5, 0.1, 0.5))
    assert seconds_to([there, there, not_there], 0.05) == 0.1
    assert seconds_to([there, not_there], 0.05) == math.inf


def test_the_verdict_names_who_is_ahead() -> None:
    tuned = Tuned("so", 0.05, {})
    runs = {
        "p4inv": [trace("p4inv", (5, 0.3, 0.01))],
        "p4inv_paper": [trace("p4inv_paper", (5, 0.9, 0.01))],
        "plain": [trace("plain", (5, 0.1, 0.01))],
        "dense": [trace("dense", (5, 0.2, 0.01))],
        "plu": [trace("plu", (5, 0.1, 0.5))],
    }
    assert verdict(tuned, runs) == ("0.3 s", "dense, slogdet + solve (0.2 s)", 2)
    del runs["dense"]
    assert verdict(tuned, runs) == ("0.3 s", "none", 1)


def test_a_race_prints_a_table_for_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr("p4lab.bench.race.write", written.append)
    parts = race(("so", "ica_digits"), ("plain", "dense", "p4inv"), (0,), 4, 0.02, 0.05, n_jobs=1, save=True)
    text = "\n\n".join(parts)
    assert [list(choices) for choices in written] == [["so"], ["ica_digits"]]
    assert "**so**, d = 4" in text
    assert "**ica_digits**, d = 4" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert sum(line.startswith("| dense") for line in lines) == 2
    assert sum(line.startswith("| plain") for line in lines) == 1


def test_an_unknown_name_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["p4lab.bench"])
    with pytest.raises(SystemExit, match="--tasks somewhere: somewhere not known; choose of spd, so"):
        main(["race", "--tasks", "somewhere"])
