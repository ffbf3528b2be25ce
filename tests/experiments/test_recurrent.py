"""The command that tunes and races recurrent networks: what it finds, says and refuses."""

import math
from typing import Any

import numpy as np
import pytest

from p4lab.experiments import recurrent
from p4lab.experiments.recurrent import FACTORS, RATES, Outcome, compare, main, outcome, trial, tune, verdict
from p4lab.training.rnn import TARGET, Choice, RnnConfig, rnn_lane

EASY = RnnConfig(task="adding", delay=2, dim=16, batch_size=32, turn=20.0, budget=0.06, measure_every=5)
"""Two numbers, both marked: any network adds them in a few steps."""


def ended(reached: float, best: float = 0.05, **changes: Any) -> Outcome:
    curve = np.array([0.0, 10.0, 20.0]), np.array([3.0, 1.0, best])
    values = {"reached_steps": 20.0, "steps": 20, "seconds": 0.4, "violation": 1e-6}
    return Outcome(**{"reached": reached, "best": best, "curve": curve, **values, **changes})


def test_an_outcome_is_that_of_the_records() -> None:
    lane = rnn_lane(EASY, "plain", Choice(1e-2, 1.0))
    lane.run(120)
    found = outcome(lane)
    steps, losses = found.curve
    assert steps.tolist() == list(range(0, 121, 5))
    assert found.best == losses.min() < TARGET
    first = int(steps[losses < TARGET][0])
    assert found.reached_steps == first
    assert found.reached == lane.records.steps.columns["seconds"][first - 1]
    assert (found.steps, found.seconds) == (120, lane.seconds)
    assert found.violation == max(lane.records.measures.columns["residual"])
    assert found.at(0) == losses[0]
    assert found.at(1e9) == found.best


def test_what_does_not_get_there_says_so() -> None:
    found = outcome(rnn_lane(EASY, "plain"))
    assert math.isinf(found.reached)
    assert math.isinf(found.reached_steps)


def test_a_trial_ends_at_the_target_or_when_time_is_over_or_when_it_diverges() -> None:
    missed, seconds = trial(EASY, "plain", Choice(1e-2, 1.0), 60.0, "processor")
    assert not missed
    assert 0 < seconds < 60
    missed, loss = trial(EASY, "plain", Choice(1e-9, 1.0), 0.01, "processor")
    assert missed
    assert loss > TARGET * (1 / 6)
    missed, _ = trial(EASY.replace(delay=300), "plain", Choice(1e5, 1.0), 60.0, "processor")
    assert missed


def test_tuning_takes_the_choice_of_least_merit(monkeypatch: pytest.MonkeyPatch) -> None:
    best = Choice(RATES[1], FACTORS[1])

    def merit(config: Any, cell: str, choice: Choice, seconds: float, clock: str) -> tuple[bool, float]:
        return (choice.rate != best.rate, -1.0 if choice.factor == best.factor else 0.0)

    monkeypatch.setattr(recurrent, "trial", merit)
    assert tune(EASY, "plain", 1.0, "wall") == best


def test_the_table_has_a_row_for_each_cell_and_a_verdict() -> None:
    table, said = compare(EASY, ["p4orthogonal", "plain"], [0, 1], 0.0, "processor").split("\n\n")
    assert len(table.splitlines()) == 4
    assert "P4Orthogonal" in table.splitlines()[2]
    assert "Unconstrained" in table.splitlines()[3]
    assert said.startswith(("First at the target", "None reached"))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"p4orthogonal": [ended(1.0)], "cayley": [ended(2.0)]},
            "P4Orthogonal, 1.00 s (median over seeds). Best other",
        ),
        ({"p4orthogonal": [ended(1.0)], "cayley": [ended(2.0)]}, "Cayley (torch), 2.00 × the time of P4Orthogonal"),
        ({"p4orthogonal": [ended(3.0)], "cayley": [ended(1.5)]}, "0.50 × the time of P4Orthogonal"),
        ({"p4orthogonal": [ended(math.inf)], "cayley": [ended(1.5)]}, "P4Orthogonal did not get there in time"),
        ({"p4orthogonal": [ended(1.0)], "cayley": [ended(math.inf)]}, "Cayley (torch), not in time"),
        ({"p4orthogonal": [ended(math.inf)], "plain": [ended(math.inf)]}, "None reached the target in time"),
        ({"p4orthogonal": [ended(2.0)], "plain": [ended(1.0)]}, "First at the target: Unconstrained, 1.00 s"),
    ],
)
def test_the_verdict_says_who_was_first_good_or_bad(found: dict[str, list[Outcome]], said: str) -> None:
    assert said in verdict(found)


@pytest.mark.parametrize("task", ["copy", "adding"])
def test_a_quick_look(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--quick --cells p4orthogonal+matrix_exp --dim 8 --delay 2 --batch 4 --seconds 0.05 --clock processor"
    main([*options.split(), "--tasks", task])
    shown = capsys.readouterr()
    assert f"### {task}, T = 2, d = 8, batch 4, 0.05 s of training each (processor time, one thread)" in shown.out
    assert "matrix_exp (torch)" in shown.out
    assert f"{task}: seed 0 done" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "lstm"], "--cells lstm: lstm not known"),
        (["--tasks", "parity"], "--tasks parity: parity not known"),
        (["--seeds", "0"], "--seeds 0"),
        (["--tuning", "-1"], "--tuning -1"),
        (["--dim", "1"], "dim=1"),
        (["--seconds", "0"], "budget=0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(arguments)
