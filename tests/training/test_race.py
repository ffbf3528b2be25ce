"""Races: equal clocks, the same numbers for the same steps, lanes that stop alone, coming back, standings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from p4lab.baselines import METHODS
from p4lab.errors import ConfigError, OptionError, TrainingError
from p4lab.problems.rates import Choice
from p4lab.training import Engine
from p4lab.training.race import RaceConfig, race, race_figures, racer, standings, unfit

CONFIG = RaceConfig(task="so", methods="plain+p4inv+exponential_dynamic", dim=8, batch_size=16, turn=5.0, budget=0.05)
STATEFUL = (
    "plain",
    "p4inv",
    "relative",
    "relative_adam",
    "cayley_descent",
    "p4riemannian",
    "rsdm",
    "landing",
    "pogo",
    "cayley_neumann",
    "self_normalizing",
    "geoopt_stiefel",
)
DYNAMIC = [name for name in METHODS if name.endswith("_dynamic")]


def numbers(lane: Engine) -> list[float]:
    return list(lane.records.steps.columns["loss"])


# --- clocks ---


def test_every_lane_has_the_same_time() -> None:
    lanes = race(CONFIG)
    lanes.run(4)
    assert (lanes.step, lanes.clock) == (4, pytest.approx(0.02))
    for lane in lanes.engines.values():
        longest = max(lane.records.steps.columns["step_seconds"])
        assert lanes.clock <= lane.seconds <= lanes.clock + longest + 1e-6


def test_a_slow_lane_waits_until_the_others_have_caught_up() -> None:
    lanes = race(CONFIG)
    lanes.engines["plain"].seconds = 0.012  # as if a step had taken more than two turns
    lanes.run(2)
    assert lanes.engines["plain"].step == 0
    assert lanes.engines["p4inv"].step > 0
    lanes.run(1)
    assert lanes.engines["plain"].step > 0


def test_the_race_is_over_when_the_budget_is_used_up() -> None:
    lanes = race(CONFIG)
    lanes.run(9)
    assert not lanes.finished
    lanes.run(1)
    assert lanes.finished
    lanes.set("budget", 1.0)
    assert not lanes.finished


# --- the same numbers ---


@pytest.mark.parametrize("name", METHODS)
def test_the_same_config_gives_the_same_numbers(name: str) -> None:
    config = CONFIG.replace(methods=name, dtype="float64")
    one, two = racer(config, name), racer(config, name)
    one.run(12)
    two.run(12)
    assert numbers(one) == pytest.approx(numbers(two), rel=1e-9)


@pytest.mark.parametrize("name", ["plain", "p4inv", "relative"])
def test_who_else_races_does_not_matter(name: str) -> None:
    alone, lanes = (
        racer(CONFIG.replace(methods=name, dtype="float64"), name),
        race(CONFIG.replace(methods=f"plu+{name}", dtype="float64")),
    )
    lanes.run(3)
    lane = lanes.engines[name]
    alone.run(lane.step)
    assert numbers(lane) == pytest.approx(numbers(alone), rel=1e-9)


@pytest.mark.parametrize("name", [*STATEFUL, *DYNAMIC])
def test_a_lane_comes_back_and_goes_on_as_it_did(name: str) -> None:
    config = CONFIG.replace(methods=name, dtype="float64")
    lane = racer(config, name)
    lane.run(95)
    state = lane.state()
    lane.run(15)  # over step 100, where dynamic methods take a new base
    other = racer(config, name)
    other.load_state(state)
    assert other.step == 95
    other.run(15)
    assert numbers(other) == pytest.approx(numbers(lane)[95:], rel=1e-5)


def test_the_counter_of_new_bases_comes_back() -> None:
    lane = racer(CONFIG, "exponential_dynamic")
    lane.run(7)
    other = racer(CONFIG, "exponential_dynamic")
    other.load_state(lane.state())
    assert other.state()["rebase"] == lane.state()["rebase"]
    assert lane.state()["rebase"]["steps"] == 7


def test_files_of_lanes_without_new_bases_had_an_empty_state_of_them() -> None:
    lane, other = (racer(CONFIG, "plain") for _ in range(2))
    lane.run(3)
    other.load_state({**lane.state(), "rebase": {}})
    lane.run(3)
    other.run(3)
    assert numbers(other) == numbers(lane)[3:]


def test_a_race_comes_back() -> None:
    lanes = race(CONFIG)
    lanes.run(2)
    state, seconds = lanes.state(), [lane.seconds for lane in lanes.engines.values()]
    lanes.run(2)
    lanes.load_state(state)
    assert lanes.step == 2
    assert [lane.seconds for lane in lanes.engines.values()] == seconds
    lanes.run(1)


# --- lanes that stop ---


def broken(lane: Engine) -> None:
    with torch.no_grad():
        next(lane.model.parameters()).fill_(math.nan)


def test_a_lane_that_breaks_down_stops_alone() -> None:
    lanes = race(CONFIG)
    lanes.run(1)
    broken(lanes.engines["plain"])
    while not lanes.failed and lanes.step < 200:  # on a busy machine a lane that had a slow turn waits for the others
        lanes.run(1)
    assert list(lanes.failed) == ["plain"]
    assert "loss nan" in lanes.failed["plain"]
    steps = lanes.engines["plain"].step
    assert lanes.engines["p4inv"].seconds >= lanes.clock
    lanes.run(1)
    assert lanes.engines["plain"].step == steps


def test_a_race_without_a_lane_left_is_an_error() -> None:
    lanes = race(CONFIG.replace(methods="plain+dense"))
    for lane in lanes.engines.values():
        broken(lane)
    with pytest.raises(TrainingError, match=r"plain: step 1.*; dense: step 1"):
        lanes.run()
    assert (lanes.step, lanes.failed) == (0, {})


@pytest.mark.parametrize("name", METHODS)
def test_a_rate_that_is_far_too_high_breaks_nothing_else(name: str) -> None:
    """Not finite, singular, or refused by a package: each becomes a TrainingError, or the lane goes on."""
    optimizer = next(iter(METHODS[name].optimizers))
    lane = racer(CONFIG.replace(methods=name, measure_every=5), name, Choice(optimizer, 1e5))
    try:
        lane.run(250)
    except TrainingError as error:
        assert str(error).startswith("step ")  # noqa: PT017
    race_figures(lane.model)


def test_figures_of_weights_without_inverse() -> None:
    model = METHODS["dense"].build(3, bias=False)
    with torch.no_grad():
        model.matrix[0] = 0
    assert not race_figures(model)["residual"] < 1
    with torch.no_grad():
        model.matrix.fill_(math.inf)
    assert all(math.isnan(value) for value in race_figures(model).values())


# --- settings ---


def test_p4_lanes_have_their_presets() -> None:
    for name in ("p4inv", "p4inv_paper", "p4inv_all", "p4relative"):
        lane, preset = racer(CONFIG, name), METHODS[name].preset
        assert lane.schedule is not None
        assert (lane.config.merge_every, lane.schedule.every) == (preset.every, preset.every)
        assert lane.layers[0].rank == preset.rank_for(8)
    assert racer(CONFIG, "p4inv_paper").config.rank == 1


def test_the_factor_moves_all_rates() -> None:
    lanes = race(CONFIG)
    before = {name: lane.optimizer.param_groups[0]["lr"] for name, lane in lanes.engines.items()}
    lanes.set("rate_factor", 0.5)
    for name, lane in lanes.engines.items():
        assert lane.optimizer.param_groups[0]["lr"] == pytest.approx(before[name] / 2)


def test_settings_of_ones_own() -> None:
    lane = racer(CONFIG, "plain", Choice("sgd", 0.25, 0.3))
    (group,) = lane.optimizer.param_groups
    assert isinstance(lane.optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"]) == (0.25, 0.3)


@pytest.mark.parametrize("name", ["plain", "p4inv", "relative"])
def test_annealed_rates_follow_half_a_cosine_over_the_budget(name: str) -> None:
    config = CONFIG.replace(methods=name, anneal=True, budget=8.0)
    lane = racer(config, name, Choice("sgd", 0.5))
    seen = []

    def tick(now: list[float]) -> float:
        now[0] += 0.5  # it is asked twice a step: a step takes half a second
        return now[0]

    clock = [0.0]
    lane.clock = lambda: tick(clock)
    for _ in range(18):
        lane.run()
        seen.append(lane.optimizer.param_groups[0]["lr"])
    expected = [0.25 * (1 + math.cos(math.pi * min(1.0, step / 16))) for step in range(18)]
    assert seen == pytest.approx(expected, abs=1e-12)
    assert (seen[0], seen[8], seen[16], seen[17]) == (0.5, pytest.approx(0.25), 0.0, 0.0)
    lane.set("budget", 1000.0)  # there is time again
    lane.run()
    assert lane.optimizer.param_groups[0]["lr"] > 0.49


def test_rates_that_are_annealed_over_steps_do_not_depend_on_the_clock() -> None:
    config = CONFIG.replace(methods="plain", anneal=True, dtype="float64")
    one, two = (racer(config, "plain", Choice("sgd", 0.5), steps=10) for _ in range(2))
    two.clock = lambda: 0.0
    one.run(10)
    two.run(10)
    assert numbers(one) == numbers(two)
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * (1 + math.cos(math.pi * 0.9)))


def test_an_annealed_lane_comes_back_with_its_rate() -> None:
    config = CONFIG.replace(methods="plain", anneal=True, dtype="float64")
    lane = racer(config, "plain", steps=20)
    lane.run(7)
    state = lane.state()
    lane.run(5)
    other = racer(config, "plain", steps=20)
    other.load_state(state)
    other.run(5)
    assert numbers(other) == numbers(lane)[7:]


def test_nothing_is_annealed_if_nobody_asks() -> None:
    lane = racer(CONFIG.replace(budget=1e-9), "plain", Choice("sgd", 0.5))
    lane.run(3)
    assert lane.optimizer.param_groups[0]["lr"] == 0.5
    assert "anneal" not in CONFIG.to_text()


@pytest.mark.parametrize(
    ("task", "name", "why"),
    [
        pytest.param("digits", "plain", "needs log|det|, which it does not know", id="no-determinant"),
        pytest.param("ica_photos", "plain", "needs log|det|, which it does not know", id="no-determinant-ica"),
        pytest.param("digits", "nice", "is for linear layers", id="nonlinear"),
        pytest.param("so_both", "plain", "needs the inverse, which it does not know", id="no-inverse"),
    ],
)
def test_who_cannot_do_a_task_is_told_why(task: str, name: str, why: str) -> None:
    assert why in unfit(task, METHODS[name])
    with pytest.raises(ConfigError, match=f"methods='{name}': ") as caught:
        race(RaceConfig(task=task, methods=name, dim=8))
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"methods": "plain+plain"}, id="twice"),
        pytest.param({"methods": "plain+nobody"}, id="unknown-method"),
        pytest.param({"methods": ""}, id="nobody"),
        pytest.param({"task": "somewhere"}, id="unknown-task"),
        pytest.param({"turn": 0.5}, id="short-turn"),
        pytest.param({"budget": 0.0}, id="no-budget"),
        pytest.param({"dim": 1025}, id="too-wide"),
        pytest.param({"anneal": 1}, id="no-switch"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}="):
        RaceConfig(**settings)


def test_data_that_are_too_narrow_are_a_named_error() -> None:
    with pytest.raises(OptionError, match="dim=1024: these images have at most 1023 components"):
        race(RaceConfig(task="ica_photos", methods="dense", dim=1024))


def test_a_wide_race() -> None:
    lanes = race(RaceConfig(task="spd_both", methods="p4inv+relative", dim=512, turn=1.0))
    lanes.run(1)
    snapshot = lanes.snapshot()
    assert [lane.step > 0 for lane in snapshot.lanes.values()] == [True, True]
    assert all("eigenvalues" not in lane.pictures for lane in snapshot.lanes.values())


# --- standings ---


def test_the_leaderboard() -> None:
    lanes = race(CONFIG.replace(measure_every=2))
    lanes.run(6)
    board = standings(lanes.snapshot())
    assert list(board.columns) == [
        "method",
        "loss",
        "at_step",
        "steps",
        "step_ms",
        "memory_kb",
        "inverse_error",
        "logdet_error",
        "stopped",
    ]
    assert set(board.index) == set(CONFIG.names)
    assert list(board["loss"]) == sorted(board["loss"])
    plain = board.loc["plain"]
    assert math.isnan(plain["inverse_error"])
    assert (board.drop("plain")["inverse_error"] < 1e-3).all()
    assert (board["memory_kb"] > 0).all()
    for name, lane in lanes.engines.items():
        assert board.loc[name, "steps"] == lane.step
        assert board.loc[name, "step_ms"] == pytest.approx(1e3 * lane.seconds / lane.step)


def test_losses_at_the_same_step_are_those_of_the_slowest_lane() -> None:
    lanes = race(CONFIG.replace(methods="plain+dense", measure_every=5))
    lanes.engines["plain"].run(20)
    lanes.engines["dense"].run(10)
    board = standings(lanes.snapshot())
    measures = {name: lane.records.measures.columns for name, lane in lanes.engines.items()}
    assert board.loc["plain", "at_step"] == measures["plain"]["test_loss"][2]
    assert board.loc["dense", "at_step"] == measures["dense"]["test_loss"][-1]
    assert board.loc["plain", "loss"] == measures["plain"]["test_loss"][-1]


def test_who_stopped_comes_last() -> None:
    lanes = race(CONFIG)
    broken(lanes.engines["p4inv"])
    lanes.run(2)
    board = standings(lanes.snapshot())
    assert board.index[-1] == "p4inv"
    assert math.isnan(board.loc["p4inv", "loss"])
    assert board.loc["p4inv", "stopped"].startswith("step 1")
    assert set(board["stopped"].drop("p4inv")) == {""}
