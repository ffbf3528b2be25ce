"""The race without a browser: ticking methods, choosing tasks, the leaderboard, other seeds."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attentive_page import attend

from p4lab.baselines import METHODS
from p4lab.training import Frame, State
from p4lab.training.race import RaceConfig
from p4lab.widgets import race_lab
from p4lab.widgets.race_lab import RaceLab

SMALL = RaceConfig(methods="plain+p4inv+dense", dim=8, turn=2.0, budget=0.02, measure_every=1)


@pytest.fixture
def lab() -> Iterator[RaceLab]:
    lab = race_lab(SMALL, name="test")
    attend(lab)
    yield lab
    lab.close()


def now(lab: RaceLab) -> Frame:
    return lab.player.frame(timeout=20)


def planned(lab: RaceLab) -> dict[str, Any]:
    return now(lab).planned.to_dict()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def race(lab: RaceLab) -> None:
    lab._touched("start", True)
    wait_until(lambda: now(lab).state is State.PAUSED)


def side(lab: RaceLab) -> dict[str, Any]:
    wait_until(lambda: "values" in lab._side._state)
    return lab._side._state


def board(lab: RaceLab) -> dict[str, Any]:
    wait_until(lambda: "values" in lab._board._state)
    return lab._board._state["values"]["board"]


def test_methods_are_ticked(lab: RaceLab) -> None:
    lab._touched("method:plu", True)
    assert planned(lab)["methods"] == "p4inv+plu+plain+dense"
    lab._touched("method:plain", False)
    assert planned(lab)["methods"] == "p4inv+plu+dense"
    assert set(now(lab).snapshot.lanes) == {"p4inv", "plu", "dense"}  # nothing was trained yet: it acts at once
    wait_until(lambda: side(lab)["values"]["method:plain"] is False)
    assert side(lab)["values"]["method:plu"] is True


def test_the_last_method_cannot_be_unticked(lab: RaceLab) -> None:
    for name in ("plain", "dense", "p4inv"):
        lab._touched(f"method:{name}", False)
    wait_until(lambda: now(lab).message != "")
    assert "different names" in now(lab).message
    assert planned(lab)["methods"] == "p4inv"


def test_a_task_leaves_out_who_cannot_do_it(lab: RaceLab) -> None:
    lab._touched("task", "ica_digits")
    assert planned(lab)["methods"] == "p4inv+dense"
    wait_until(lambda: "method:plain" in side(lab)["disabled"])
    assert "method:realnvp" in side(lab)["disabled"]
    assert lab.error is None


@pytest.mark.parametrize("task", ["spd", "ica_photos", "digits"])
def test_every_kind_of_task_is_drawn(lab: RaceLab, task: str) -> None:
    lab._touched("task", task)
    race(lab)
    wait_until(lambda: len(board(lab)["rows"]) == len(now(lab).snapshot.lanes))
    assert lab.error is None
    eigenvalues, images = (lab._views[number].widget.layout.display for number in (1, 2))
    assert (eigenvalues, images) == ((None, "none") if task == "spd" else ("none", None))


def test_the_race_ends_when_time_is_up_and_the_best_is_first(lab: RaceLab) -> None:
    race(lab)
    frame = now(lab)
    assert frame.snapshot.step == 10
    wait_until(lambda: "Time is up" in lab._head._state["values"]["message"]["text"])
    wait_until(lambda: board(lab)["rows"][0]["active"])
    losses = [float(row["cells"][1]) for row in board(lab)["rows"]]
    assert losses == sorted(losses)
    labels = {row["cells"][0] for row in board(lab)["rows"]}
    assert labels == {METHODS[name].label for name in ("plain", "p4inv", "dense")}


def test_the_next_seed_is_raced_and_counts_into_the_medians(lab: RaceLab) -> None:
    race(lab)
    lab._touched("next_seed", True)
    wait_until(lambda: now(lab).snapshot.config.seed == 1 and now(lab).state is State.PAUSED)
    wait_until(lambda: "medians of 2 seeds" in board(lab)["label"])
    assert all("…" in row["cells"][1] for row in board(lab)["rows"])
    figure = lab.figure()
    thin = [trace for trace in figure.data if trace.opacity == 0.35]
    assert len(thin) == 3


def test_curves_over_steps(lab: RaceLab) -> None:
    race(lab)
    seconds = max(lab.figure().data[0].x)
    lab._touched("axis", "steps")
    assert seconds < 1 < max(lab.figure().data[0].x)
