"""The lab of the race: ticking methods, choosing tasks, the leaderboard, other seeds."""

from typing import Any

import pytest
from lab_tools import as_number, break_lane, opened, table, train, wait_until

from p4lab.baselines import METHODS
from p4lab.errors import ConfigError
from p4lab.labs.race import RACE
from p4lab.training import State

SMALL: dict[str, Any] = {"methods": "plain+p4inv+dense", "dim": 8, "turn": 2.0, "budget": 0.02, "measure_every": 1}


def open_lab(**changes: Any) -> Any:
    return opened(RACE, **{**SMALL, **changes})


def planned(lab: Any) -> Any:
    return lab.player.frame(20).planned


def race(lab: Any) -> None:
    """Start, and wait until time is up."""
    lab.touch("start")
    wait_until(lambda: lab.player.frame(20).state is State.PAUSED)


def test_methods_are_ticked_and_apply_at_reset() -> None:
    with open_lab() as lab:
        lab.touch("method:plu", True)
        assert planned(lab).methods == "p4inv+plu+plain+dense"
        lab.touch("method:plain", False)
        assert list(lab.sight().lanes) == ["p4inv", "plu", "dense"]  # nothing was trained yet: it acts at once
        assert (lab.values()["method:plain"], lab.values()["method:plu"]) == (False, True)
        lab.touch("step")
        lab.touch("method:plu", False)
        assert RACE.waiting(lab.config, planned(lab)) == ["methods", "method:plu"]


def test_curves_mark_the_moment_that_is_shown() -> None:
    with open_lab() as lab:
        train(lab, 12)
        lab.touch("scrub", 10)
        marks = [shape["x0"] for shape in RACE.curves(lab.sight())["layout"]["shapes"]]
        assert set(marks) == {10 * 2.0 / 1000}
        lab.touch("axis", "steps")
        assert not RACE.curves(lab.sight())["layout"]["shapes"]


def test_the_last_method_cannot_be_unticked() -> None:
    with open_lab(methods="p4inv") as lab:
        with pytest.raises(ConfigError, match="methods='': expected different names"):
            lab.touch("method:p4inv", False)
        assert planned(lab).methods == "p4inv"
        lab.touch("method:plain", True)


def test_a_task_leaves_out_who_cannot_do_it_and_has_its_width() -> None:
    with open_lab(dim=64) as lab:
        lab.touch("task", "ica_digits")
        assert (planned(lab).methods, planned(lab).dim) == ("p4inv+dense", 48)
        assert {"method:plain", "method:realnvp"} <= set(RACE.disabled(planned(lab)))
        assert "dim" not in RACE.disabled(planned(lab))
        assert "dim" in RACE.disabled(planned(lab).replace(task="digits"))


@pytest.mark.parametrize(
    ("task", "dim", "becomes"),
    [
        ("ica_photos", 1024, 512),
        ("ica_photos", 575, 575),
        ("patches", 8, 8),
        ("digits", 1024, 1024),
        ("so", 1000, 1000),
    ],
)
def test_a_task_keeps_the_width_if_its_data_have_it(task: str, dim: int, becomes: int) -> None:
    config = RACE.config.replace(dim=dim)
    assert RACE.controls["task"].write(config, task)["dim"] == becomes


def test_annealing_is_switched_on_for_the_next_run() -> None:
    with open_lab() as lab:
        lab.touch("step")
        lab.touch("anneal", True)
        assert (lab.config.anneal, planned(lab).anneal) == (False, True)
        lab.touch("restart")
        wait_until(lambda: lab.config.anneal)
        race(lab)
        assert lab.message().startswith("Time is up")


@pytest.mark.parametrize("task", ["spd", "ica_photos", "digits", "ica_sources_both", "patches"])
def test_every_kind_of_task_is_drawn(task: str) -> None:
    with open_lab() as lab:
        lab.touch("task", task)
        train(lab, 2)
        assert len(table(lab)) == len(lab.sight().lanes)
        drawings = lab.drawings()
        assert (drawings["eigenvalues"] is None) == (drawings["images"] is not None) == (task != "spd")


def test_the_race_ends_when_time_is_up_and_the_best_is_first() -> None:
    with open_lab() as lab:
        race(lab)
        assert lab.sight().snapshot.step == 10
        assert lab.message().startswith("Time is up: 0.02 s")
        assert lab.numbers()["clock"] == "0.0 of 0.02"
        rows = table(lab)
        losses = [as_number(row["loss"]) for row in rows]
        assert losses == sorted(losses)
        assert {row["method"] for row in rows} == {METHODS[name].label for name in ("plain", "p4inv", "dense")}
        assert [row.active for row in lab.drawings()["board"].rows] == [True, False, False]
        assert lab.numbers()["leader"] == rows[0]["method"]


def test_the_next_seed_is_raced_and_counts_into_the_medians() -> None:
    with open_lab() as lab:
        race(lab)
        lab.touch("next_seed")
        wait_until(lambda: lab.config.seed == 1 and lab.player.frame(20).state is State.PAUSED)
        assert lab.drawings()["board"].label == "Leaderboard, medians of 2 seeds"
        assert all("…" in row["loss"] for row in table(lab))
        assert len([trace for trace in lab.figure().data if trace.opacity == 0.35]) == 3


def test_curves_over_steps() -> None:
    with open_lab() as lab:
        train(lab, 10)
        seconds = max(lab.figure().data[0].x)
        lab.touch("axis", "steps")
        assert seconds < 1 < max(lab.figure().data[0].x)


def test_a_method_that_stops_says_so() -> None:
    with open_lab() as lab:
        break_lane(lab, "plain")
        assert lab.message().startswith(f"{METHODS['plain'].label} stopped: step 1")
        assert table(lab)[-1]["loss"] == "stopped"


def test_methods_that_cannot_do_the_task_are_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="methods='plain': "), open_lab(task="digits"):
        pass
