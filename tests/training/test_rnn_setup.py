"""Races of recurrent networks: configs, equal time, the same numbers, pictures, coming back, standings."""

import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from p4lab.errors import ConfigError, OptionError, TrainingError
from p4lab.problems.recurrent import CELLS
from p4lab.problems.sequences import TASKS
from p4lab.training import RunConfig, load_run, save_run
from p4lab.training.rnn_setup import (
    CHOICES,
    INK,
    LANES,
    RIVALS,
    SUMS,
    TARGET,
    Choice,
    RnnConfig,
    RnnLane,
    RnnRace,
    cells_of,
    known,
)
from p4lab.training.rnn_standings import baseline_of, labels_of, leader, standings
from p4lab.training.runs import Runs

SMALL: dict[str, Any] = {"dim": 8, "delay": 4, "batch_size": 4, "rank": 2, "measure_every": 4, "turn": 2.0}
EACH_TASK = pytest.mark.parametrize("task", TASKS)
EVERY_CELL = pytest.mark.parametrize("cell", CELLS)


def config(**changes: Any) -> RnnConfig:
    return RnnConfig(**{**SMALL, **changes})


def losses(lane: RnnLane) -> list[float]:
    return list(lane.records.steps.columns["loss"])


class Ticks:
    """A clock by which every step takes half a millisecond, a quarter of a turn."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0005
        return self.now


def stepped(steps: int = 9, **changes: Any) -> RnnRace:
    """A race whose lanes have done so many steps each, whatever time that took."""
    race = RnnRace(config(**changes))
    for lane in race.engines.values():
        lane.run(steps)
    return race


# --- config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [RnnConfig(), config(task="adding", rival="geotorch", initial="identity", seed=3)])
def test_a_config_survives_text_and_json(chosen: RnnConfig) -> None:
    assert RunConfig.from_text(chosen.to_text()) == chosen
    assert RunConfig.from_json(chosen.to_json()) == chosen


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "parity"},
        {"delay": 1},
        {"dim": 1},
        {"rival": "plain"},
        {"initial": "zero"},
        {"rate_factor": 0.0},
        {"turn": 0.5},
        {"budget": -1.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}="):
        config(**changes)


def test_unknown_cells_are_refused() -> None:
    with pytest.raises(OptionError, match="cell 'lstm' is not known"):
        RnnRace(config(), ["p4orthogonal", "lstm"])


def test_the_lanes_are_p4_the_rival_and_plain_weights() -> None:
    assert cells_of(config(rival="cayley")) == {"p4orthogonal": "p4orthogonal", "rival": "cayley", "plain": "plain"}
    assert all(CELLS[name].orthogonal for name in RIVALS)
    assert set(RIVALS) | {"p4orthogonal", "plain"} == set(CELLS)


def test_tuned_rates_are_those_of_tasks_and_cells_that_exist() -> None:
    assert CHOICES
    for (task, cell), choice in CHOICES.items():
        assert task in TASKS
        assert known(task, cell) is choice
        assert RnnLane(config(task=task), cell).choice is choice


# --- equal time -------------------------------------------------------------------------------------------------------


def test_every_lane_has_the_same_time() -> None:
    race = RnnRace(config())
    race.run(4)
    assert race.clock == pytest.approx(0.008)
    for lane in race.engines.values():
        longest = max(lane.records.steps.columns["step_seconds"])
        assert race.clock <= lane.seconds <= race.clock + longest + 1e-6


def test_a_clock_can_be_given() -> None:
    race = RnnRace(config(), spectra=False, clock=Ticks())
    race.run(3)
    assert [lane.step for lane in race.engines.values()] == [12] * 3
    assert RnnLane(config(), "plain").clock is time.perf_counter


def test_the_race_is_over_when_the_budget_is_used_up() -> None:
    race = RnnRace(config(budget=0.004))
    race.run()
    assert not race.finished
    race.run()
    assert race.finished
    race.set("budget", 1.0)
    assert not race.finished


def test_a_lane_that_breaks_down_stops_alone() -> None:
    race = RnnRace(config(), clock=Ticks())
    with torch.no_grad():
        race.engines["plain"].model.write.fill_(math.nan)
    race.run(2)
    assert list(race.failed) == ["plain"]
    assert race.engines["p4orthogonal"].seconds >= race.clock
    assert standings(race.snapshot())[2].stopped.startswith("step 1: loss nan")
    for lane in race.engines.values():
        lane.model.write.data.fill_(math.nan)
    with pytest.raises(TrainingError, match="rival: step"):
        race.run()


# --- the same numbers -------------------------------------------------------------------------------------------------


@EACH_TASK
@EVERY_CELL
def test_the_same_config_gives_the_same_numbers_in_any_company(task: str, cell: str) -> None:
    one, same = RnnLane(config(task=task), cell), RnnRace(config(task=task), {"a": "plain", "b": cell}).engines["b"]
    for lane in (one, same):
        lane.run(9)
    assert losses(one) == losses(same)
    other = RnnLane(config(task=task, seed=1), cell)
    other.run(9)
    assert losses(other) != losses(one)


@EACH_TASK
def test_lanes_start_as_one_function_and_get_the_same_batches(task: str) -> None:
    race = stepped(1, task=task, dtype="float64")
    first, *others = (losses(lane)[0] for lane in race.engines.values())
    assert others == pytest.approx([first] * 2, rel=1e-6)
    assert len({id(lane.problem) for lane in race.engines.values()}) == 1


@EACH_TASK
def test_looking_does_not_change_a_run(task: str) -> None:
    looked, other = RnnRace(config(task=task)), RnnRace(config(task=task))
    for _ in range(5):
        for name in LANES:
            looked.engines[name].run(2)
            looked.snapshot()
            other.engines[name].run(2)
    for name in LANES:
        assert losses(looked.engines[name]) == losses(other.engines[name])


def test_p4_stays_orthogonal_and_merges_while_plain_weights_drift() -> None:
    race = stepped(40)
    now = {name: lane.snapshot() for name, lane in race.engines.items()}
    for name in ("p4orthogonal", "rival"):
        assert now[name].last("residual") < 3e-6
        np.testing.assert_allclose(np.abs(now[name].spectrum.values[-1]), 1, atol=1e-5)
    assert now["plain"].last("residual") > 1e-4
    assert now["p4orthogonal"].counts["merge"] == 40 // config().merge_every
    assert now["rival"].counts["merge"] == 0


def test_rates_are_those_chosen_times_the_factor() -> None:
    lane = RnnLane(config(), "p4orthogonal", Choice(1e-2, 0.1))
    rates = [group["lr"] for group in lane.optimizer.param_groups]
    assert rates == pytest.approx([1e-3, 1e-2])
    lane.set("rate_factor", 2.0)
    lane.set("reset", "gaussian")
    lane.set("merge_every", 7)
    assert [group["lr"] for group in lane.optimizer.param_groups] == pytest.approx([2e-3, 2e-2])
    assert lane.schedule is not None
    assert (lane.schedule.every, lane.model.layer.reset_kind) == (7, "gaussian")
    with pytest.raises(ConfigError, match="applies at reset"):
        lane.set("delay", 9)


# --- pictures, coming back --------------------------------------------------------------------------------------------


@EACH_TASK
def test_every_moment_has_its_pictures(task: str) -> None:
    runs = Runs(lambda config: RnnRace(config), config(task=task))  # type: ignore[arg-type]
    for _ in range(6):
        runs.active.advance()
    steps = 24 if task == "copy" else 4
    moments = runs.active.history.moments
    assert len(moments) >= 2
    for moment in moments:
        for name in LANES:
            pictures = moment.lanes[name].pictures
            assert pictures["through_time"].shape == (steps,)
            if task == "copy":
                shapes = {key: (10 if key == "inputs" else 9, steps) for key in ("inputs", "targets", "answers")}
                assert {key: pictures[key].shape for key in shapes} == shapes
                assert all(pictures[key].dtype == np.uint8 for key in shapes)
                assert (pictures["targets"].max(0) == INK).all()
            else:
                assert pictures["sums"].shape == (SUMS, 2)
    key = "answers" if task == "copy" else "sums"
    first, last = (moment.lanes["plain"].pictures[key] for moment in (moments[0], moments[-1]))
    assert not np.array_equal(first, last)


@EVERY_CELL
def test_a_lane_comes_back_and_goes_on_as_it_did(cell: str) -> None:
    lane, other = (RnnLane(config(dtype="float64"), cell) for _ in range(2))
    lane.run(6)
    other.load_state(lane.state())
    for one in (lane, other):
        one.run(6)
    assert losses(other) == pytest.approx(losses(lane)[6:], rel=1e-12)


def test_a_race_goes_on_from_its_file_and_from_a_branch(tmp_path: Any) -> None:
    def factory(config: RunConfig) -> RnnRace:
        assert isinstance(config, RnnConfig)
        return RnnRace(config)

    runs = Runs(factory, config())
    for _ in range(6):
        runs.active.advance()
    save_run(runs.active, tmp_path / "a.p4run")
    loaded = load_run(tmp_path / "a.p4run", factory)
    assert loaded.engine.step == 6
    runs.branch(config(rate_factor=3.0))
    assert runs.active.engine.config.to_dict()["rate_factor"] == 3.0
    for name in LANES:
        saved, again, branched = (
            engine.engines[name] for engine in (runs.runs[0].engine, loaded.engine, runs.active.engine)
        )
        assert losses(again) == losses(saved) == losses(branched)
        for lane in (saved, again):
            lane.run(3)
        assert losses(again) == losses(saved)
        assert again.seconds >= 0.012
    runs.scrub(0)
    assert runs.shown is not None
    assert runs.shown.step == 0


# --- standings --------------------------------------------------------------------------------------------------------


@EACH_TASK
def test_standings_tell_losses_as_shares_of_what_chance_gets(task: str) -> None:
    race = stepped(12, task=task)
    race.engines["p4orthogonal"].run(8)
    rows = standings(race.snapshot())
    baseline = baseline_of(config(task=task))
    assert [row.label for row in rows] == list(labels_of(config()).values())
    for row, lane in zip(rows, race.engines.values(), strict=True):
        tests = np.array(lane.records.measures.columns["test_loss"]) / baseline
        assert row.share == pytest.approx(tests[-1])
        assert row.at_step == pytest.approx(tests[3])
        assert (row.steps, row.stopped) == (lane.step, "")
        assert row.step_ms == pytest.approx(1e3 * lane.seconds / lane.step)
        assert row.worst >= row.violation
    assert rows[0].merged == 20 // 4
    assert leader(rows) is min(rows, key=lambda row: row.share)


def test_nobody_is_ahead_before_the_first_measurement() -> None:
    rows = standings(RnnRace(config(rival="cayley", dtype="float64", initial="identity")).snapshot())
    assert leader(rows) is None
    assert all(math.isnan(row.step_ms) and math.isnan(row.solved) for row in rows)


def test_solved_is_the_time_of_the_first_measurement_below_the_target() -> None:
    lane = RnnLane(config(task="adding", delay=2, dim=16, batch_size=64), "plain", Choice(1e-2, 1.0))
    lane.run(200)
    tests, steps = (np.array(lane.records.measures.columns[key]) for key in ("test_loss", "step"))
    first = int(steps[tests < TARGET * lane.problem.baseline][0])
    seconds = lane.records.steps.columns["seconds"][first - 1]
    assert lane.snapshot().seconds_below(TARGET * lane.problem.baseline) == pytest.approx(seconds)
    assert math.isnan(lane.snapshot().seconds_below(0.0))
