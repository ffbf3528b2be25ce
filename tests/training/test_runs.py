"""Going back, branching, keeping and comparing runs."""

import math

import numpy as np
import pytest
import torch

from p4lab.errors import ConfigError
from p4lab.training import DigitsConfig, Engine, Lanes, MatrixConfig, RunConfig
from p4lab.training.records import Thinned
from p4lab.training.runs import MAX_MOMENTS, MAX_RUNS, Runs

# In float64 so that what a kernel's rounding depends on (alignment of memory) cannot be seen.
DIGITS = DigitsConfig(blocks=1, rank=2, batch_size=16, dtype="float64", merge_every=3, refine_every=2)
MATRIX = MatrixConfig(target="-1 0.2; 0.1 1", dtype="float64", optimizer="adam", merge_every=7)


def lanes(config: RunConfig) -> Lanes:
    return Lanes(config, "route", ("p4inv", "plain", "through_inverse"))


FACTORIES = {"engine": (Engine, DIGITS), "lanes": (lanes, MATRIX)}


def losses(engine: Engine | Lanes) -> np.ndarray:
    return np.array(engine.records.steps.columns["loss"])


def runs_after(kind: str, steps: int) -> Runs:
    factory, config = FACTORIES[kind]
    runs = Runs(factory, config)
    for _ in range(steps):
        runs.advance()
    return runs


@pytest.mark.parametrize("kind", FACTORIES)
def test_a_branch_without_changes_repeats_what_happened(kind: str) -> None:
    runs = runs_after(kind, 23)
    first = runs.active.engine
    runs.scrub(11)
    assert runs.shown is not None
    assert runs.shown.step == 10
    runs.branch(first.config)
    branch = runs.active.engine
    assert branch is not first
    assert (branch.step, first.step, len(losses(branch))) == (10, 23, 10)
    assert runs.active.origin == "run 1, step 10"
    for _ in range(13):
        runs.advance()
    np.testing.assert_allclose(losses(branch), losses(first), rtol=1e-9)
    assert branch.records.counts == first.records.counts
    assert [event.step for event in branch.records.all_events()] == [e.step for e in first.records.all_events()]


@pytest.mark.parametrize("kind", FACTORIES)
def test_a_branch_takes_other_live_settings_and_leaves_its_parent_alone(kind: str) -> None:
    runs = runs_after(kind, 20)
    parent = runs.active.engine
    before = losses(parent)
    runs.scrub(10)
    runs.branch(parent.config.replace(learning_rate=1e-5, rank=1), name="slow")
    for _ in range(10):
        runs.advance()
    branch = runs.active.engine
    assert (runs.active.name, branch.config.learning_rate, branch.config.rank) == ("slow", 1e-5, parent.config.rank)
    assert [event.text for event in branch.records.all_events() if event.kind == "set"] == ["learning_rate = 1e-05"]
    assert not np.allclose(losses(branch)[10:], before[10:])
    np.testing.assert_array_equal(losses(parent), before)
    assert parent.config.learning_rate != 1e-5


def test_a_branch_of_the_present_goes_on_from_it() -> None:
    runs = runs_after("engine", 7)
    runs.branch(DIGITS)
    assert (runs.active.engine.step, len(runs.runs)) == (7, 2)


@pytest.mark.parametrize("kind", FACTORIES)
def test_the_past_is_shown_as_it_was(kind: str) -> None:
    factory, config = FACTORIES[kind]
    runs = runs_after(kind, 40)
    then = factory(config)
    then.run(20)
    runs.scrub(20)
    past, expected = runs.active.engine.snapshot().at(runs.shown), then.snapshot()
    assert (past.step, past.counts) == (20, expected.counts)
    assert past.last("loss") == pytest.approx(expected.last("loss"), rel=1e-9)
    assert past.pictures.keys() == expected.pictures.keys()
    for name, picture in past.pictures.items():
        np.testing.assert_allclose(picture, expected.pictures[name], atol=1)
    np.testing.assert_array_equal(past.trail.steps, expected.trail.steps)
    np.testing.assert_allclose(past.trail.values, expected.trail.values, atol=1e-9)
    assert len(past.curves["loss"][0]) == 40
    assert all(lane.step == 20 for lane in past.lanes.values())
    runs.advance()
    assert runs.shown is None


def test_history_is_bounded_and_even() -> None:
    runs = runs_after("lanes", 1500)
    steps = np.array([moment.step for moment in runs.active.history.moments])
    assert len(steps) <= MAX_MOMENTS
    assert steps[0] == 0
    assert len(set(np.diff(steps))) == 1
    assert steps[-1] > 1500 - 2 * np.diff(steps)[0]


def test_restart_begins_anew() -> None:
    runs = runs_after("engine", 9)
    runs.restart(DIGITS.replace(rank=1))
    assert (runs.active.engine.step, runs.active.engine.config.rank, len(runs.active.history.moments)) == (0, 1, 1)


def test_keep_select_rename_remove() -> None:
    runs = runs_after("engine", 3)
    first = runs.active
    runs.keep(DIGITS.replace(seed=5))
    second = runs.active
    assert ([run.name for run in runs.runs], second.engine.step) == (["run 1", "run 2"], 0)
    runs.rename(first.number, "  reference ")
    runs.rename(second.number, "reference")
    assert [run.name for run in runs.runs] == ["reference", "reference (2)"]
    table = runs.table()
    assert list(table["step"]) == [3, 0]
    assert list(table["seed"]) == [0, 5]
    assert "rank" not in table
    with pytest.raises(ConfigError, match="this one is active"):
        runs.remove(second.number)
    runs.select(first.number)
    runs.remove(second.number)
    assert runs.runs == [first]
    for wrong in (second.number, 99):
        with pytest.raises(ConfigError, match=f"run={wrong}: there is no such run"):
            runs.select(wrong)
    with pytest.raises(ConfigError, match="expected some text"):
        runs.rename(first.number, " ")


def test_there_is_a_limit_and_nothing_is_lost_at_it() -> None:
    runs = Runs(Engine, DIGITS)
    for _ in range(MAX_RUNS - 1):
        runs.keep(DIGITS)
    active = runs.active
    for refused in (runs.keep, runs.branch):
        with pytest.raises(ConfigError, match="remove one first"):
            refused(DIGITS)
    assert (runs.active, len(runs.runs)) == (active, MAX_RUNS)


def test_kept_runs_are_looked_at_once() -> None:
    runs = runs_after("engine", 3)
    runs.keep(DIGITS)
    first, again = (runs.views(runs.active.engine.snapshot())[0] for _ in range(2))
    assert first.snapshot is again.snapshot
    assert [view.active for view in runs.views(runs.active.engine.snapshot())] == [False, True]


# --- lanes ---


def test_lanes_train_as_if_alone() -> None:
    together = lanes(MATRIX)
    together.run(30)
    for name, engine in together.engines.items():
        alone = Engine(MATRIX.replace(route=name))
        alone.run(30)
        np.testing.assert_array_equal(losses(engine), losses(alone))
    assert together.frame().index.names == ["lane", "step"]


def test_a_lane_that_fails_says_so_and_the_others_go_on() -> None:
    together = lanes(MATRIX)
    with torch.no_grad():
        together.engines["plain"].model.weight.fill_(math.nan)
    together.run(5)
    snapshot = together.snapshot()
    assert "loss nan" in snapshot.lanes["plain"].message
    assert {name: lane.step for name, lane in snapshot.lanes.items()} == {"p4inv": 5, "plain": 0, "through_inverse": 5}
    assert together.step == snapshot.step == 5


def test_live_settings_reach_every_lane() -> None:
    together = lanes(MATRIX)
    together.set("target", "0 1; 1 0")
    for engine in together.engines.values():
        assert engine.problem.target.tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ConfigError, match="the lanes differ in this setting"):
        together.set("route", "plain")
    with pytest.raises(ConfigError, match="with lanes none: expected p4inv"):
        together.load_state({})


# --- thinning ---


def test_thinned_things_stay_where_they_are() -> None:
    things: Thinned[int] = Thinned(8)
    seen: set[int] = set()
    for step in range(100):
        things.add(step, step)
        kept = [item for _, item in things.items()]
        assert kept == sorted(kept)
        assert (kept[0], kept[-1]) == (0, step)
        assert len(kept) <= 8
        seen |= set(kept)
    assert things.count == 100
    assert [item for _, item in things.until(33).items()] == [item for item in kept if item <= 33]
