"""Races of recurrent networks: configs, equal time, the same numbers, pictures, coming back."""

import math
import time
from typing import Any

import numpy as np
import pytest

from p4lab.errors import ConfigError, OptionError, TrainingError
from p4lab.problems.recurrent import CELLS
from p4lab.problems.sequences import TASKS
from p4lab.training import Engine, Lanes
from p4lab.training.rnn import (
    CHOICES,
    INK,
    LANES,
    RIVALS,
    SUMS,
    TARGET,
    Choice,
    RnnConfig,
    cells_of,
    known,
    rnn_lane,
    rnn_race,
)
from p4lab.training.runs import Runs

SMALL: dict[str, Any] = {"dim": 8, "delay": 4, "batch_size": 4, "rank": 2, "measure_every": 4, "turn": 2.0}
EACH_TASK = pytest.mark.parametrize("task", TASKS)
EVERY_CELL = pytest.mark.parametrize("cell", CELLS)


def config(**changes: Any) -> RnnConfig:
    return RnnConfig(**{**SMALL, **changes})


def losses(lane: Engine) -> list[float]:
    return list(lane.records.steps.columns["loss"])


class Ticks:
    """A clock by which every step takes half a millisecond, a quarter of a turn."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0005
        return self.now


def stepped(steps: int = 9, **changes: Any) -> Lanes:
    """A race whose lanes have done so many steps each, whatever time that took."""
    race = rnn_race(config(**changes))
    for lane in race.engines.values():
        lane.run(steps)
    return race


# --- config -----------------------------------------------------------------------------------------------------------


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
        rnn_race(config(), ["p4orthogonal", "lstm"])


def test_the_lanes_are_p4_the_rival_and_plain_weights() -> None:
    assert cells_of(config(rival="cayley")) == {"p4orthogonal": "p4orthogonal", "rival": "cayley", "plain": "plain"}
    assert all(CELLS[name].orthogonal for name in RIVALS)
    assert set(RIVALS) | {"p4orthogonal", "plain"} == set(CELLS)


def test_tuned_rates_are_those_of_tasks_and_cells_that_exist_and_are_taken() -> None:
    assert CHOICES
    for (task, cell), choice in CHOICES.items():
        assert task in TASKS
        assert known(task, cell) is choice
        rates = [group["lr"] for group in rnn_lane(config(task=task), cell).optimizer.param_groups]
        assert rates == pytest.approx([choice.factor * choice.rate, choice.rate])


# --- equal time -------------------------------------------------------------------------------------------------------


def test_every_lane_has_the_same_time_by_any_clock() -> None:
    race = rnn_race(config())
    race.run(4)
    for lane in race.engines.values():
        longest = max(lane.records.steps.columns["step_seconds"])
        assert race.clock <= lane.seconds <= race.clock + longest + 1e-6
        assert lane.clock is time.perf_counter
    race = rnn_race(config(), clock=Ticks())
    race.run(3)
    assert [lane.step for lane in race.engines.values()] == [12] * 3


def test_a_lane_that_breaks_down_stops_alone() -> None:
    race = rnn_race(config(), clock=Ticks())
    race.engines["plain"].model.write.data.fill_(math.nan)  # type: ignore[union-attr]
    race.run(2)
    assert list(race.failed) == ["plain"]
    assert race.failed["plain"].startswith("step 1: loss nan")
    assert race.engines["p4orthogonal"].seconds >= race.clock
    for lane in race.engines.values():
        lane.model.write.data.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match="rival: step"):
        race.run()


# --- the same numbers -------------------------------------------------------------------------------------------------


@EACH_TASK
@EVERY_CELL
def test_the_same_config_gives_the_same_numbers_in_any_company(task: str, cell: str) -> None:
    one, same = rnn_lane(config(task=task), cell), rnn_race(config(task=task), {"a": "plain", "b": cell}).engines["b"]
    for lane in (one, same):
        lane.run(9)
    assert losses(one) == losses(same)
    other = rnn_lane(config(task=task, seed=1), cell)
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
    looked, other = rnn_race(config(task=task)), rnn_race(config(task=task))
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
    lane = rnn_lane(config(), "p4orthogonal", Choice(1e-2, 0.1))
    rates = [group["lr"] for group in lane.optimizer.param_groups]
    assert rates == pytest.approx([1e-3, 1e-2])
    lane.set("rate_factor", 2.0)
    lane.set("reset", "gaussian")
    lane.set("merge_every", 7)
    assert [group["lr"] for group in lane.optimizer.param_groups] == pytest.approx([2e-3, 2e-2])
    assert lane.schedule is not None
    assert (lane.schedule.every, lane.layers[0].reset_kind) == (7, "gaussian")  # type: ignore[attr-defined]
    for name, value in {"delay": 9, "learning_rate": 1.0}.items():
        with pytest.raises(ConfigError, match="applies at reset"):
            lane.set(name, value)


# --- pictures, coming back --------------------------------------------------------------------------------------------


@EACH_TASK
def test_every_moment_has_its_pictures(task: str) -> None:
    runs = Runs(rnn_race, config(task=task))  # type: ignore[arg-type]
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
    lane, other = (rnn_lane(config(dtype="float64"), cell) for _ in range(2))
    lane.run(6)
    other.load_state(lane.state())
    for one in (lane, other):
        one.run(6)
    assert losses(other) == pytest.approx(losses(lane)[6:], rel=1e-12)


def test_solved_is_the_time_of_the_first_measurement_below_the_target() -> None:
    lane = rnn_lane(config(task="adding", delay=2, dim=16, batch_size=64), "plain", Choice(1e-2, 1.0))
    lane.run(200)
    tests, steps = (np.array(lane.records.measures.columns[key]) for key in ("test_loss", "step"))
    first = int(steps[tests < TARGET * lane.problem.baseline][0])
    seconds = lane.records.steps.columns["seconds"][first - 1]
    assert lane.snapshot().seconds_below(TARGET * lane.problem.baseline) == pytest.approx(seconds)
    assert math.isnan(lane.snapshot().seconds_below(0.0))
