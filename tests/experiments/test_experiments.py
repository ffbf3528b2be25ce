"""The experiments command: what is run, kept and said."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from p4lab.bench.store import append, perform, read
from p4lab.bench.tables import spread
from p4lab.errors import RunFileError
from p4lab.experiments import __main__ as command
from p4lab.experiments.settings import DIGITS, MIXED, PROBLEMS, TOY, TUNING_SEED, Recipe, Run
from p4lab.experiments.table import digits_verdict, problem_table, toy_verdict
from p4lab.experiments.train import build, parameters, rate, runs_of, train
from p4lab.flows import effective_parameters

SMALL = Recipe("p4inv_bent", blocks=4, rank=2, merge_every=2)


def run_of(**changes: Any) -> Run:
    return dataclasses.replace(Run("two_moons", "p4inv_bent", 0, SMALL, steps=5, batch=16), **changes)


def result(nll: float, bridges: float = 0.1, finite: int = 1) -> dict[str, Any]:
    numbers = dict.fromkeys(("kl", "mode_coverage", "sliced_wasserstein", "mmd", "round_trip", "bits_per_dim"), 0.5)
    return {
        **numbers,
        "test_nll": nll,
        "train_nll": nll,
        "bridge_mass": bridges,
        "finite": finite,
        "parameters": 1390,
        "steps": 5,
        "seconds": 1.0,
    }


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_default_is_eight_densities_and_digits_with_five_seeds() -> None:
    runs = command.runs_for(command.densities.read([]))
    assert len(PROBLEMS) == 9
    assert len(runs) == 8 * 2 * 5 + 5 * 5
    assert {run.method for run in runs if run.problem == DIGITS} == {
        "swap",
        "permutation",
        "plu",
        "p4inv",
        "orthogonal",
    }
    assert TUNING_SEED not in {run.seed for run in runs}
    assert len({run.key() for run in runs}) == len(runs)


def test_couplings_are_matched_to_the_stack_in_parameters() -> None:
    ours, other = (next(r for r in runs_of("rings", (name,))) for name in ("p4inv_bent", "realnvp"))
    counts = [effective_parameters(build("rings", run.recipe, 0, run.matched_to)) for run in (ours, other)]
    assert other.matched_to == counts[0] == parameters("rings", TOY.recipes["p4inv_bent"])
    assert abs(counts[1] / counts[0] - 1) < 0.1


def test_digits_methods_differ_in_the_mixing_only() -> None:
    recipes = [dataclasses.replace(recipe, mixing="", learning_rate=0.0) for recipe in MIXED.recipes.values()]
    assert len(set(recipes)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--problems", "moons"], "--problems moons: moons not known", id="problem"),
        pytest.param(["--methods", "glow"], "glow not known; choose of", id="method"),
        pytest.param(
            ["--methods", "realnvp+plu", "--problems", "rings"],
            "--methods plu: not for any of --problems rings",
            id="method-of-another-problem",
        ),
        pytest.param(["--seeds", "0"], "--seeds 0", id="seeds"),
        pytest.param(["--steps", "0"], "--steps 0", id="steps"),
    ],
)
def test_bad_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command.main(arguments)


# --- one run ----------------------------------------------------------------------------------------------------------


def test_the_rate_rises_then_falls_to_zero() -> None:
    values = [rate(i / 100) for i in range(101)]
    assert values[0] == 0
    assert max(values) == values[2] > 0.99
    assert values[2:] == sorted(values[2:], reverse=True)
    assert values[-1] == pytest.approx(0)


def test_a_run_repeats_exactly_and_depends_on_the_seed() -> None:
    first, again, other = train(run_of()), train(run_of()), train(run_of(seed=1))
    timeless = [{key: value for key, value in one.items() if key != "seconds"} for one in (first, again)]
    assert timeless[0] == timeless[1]
    assert first["test_nll"] != other["test_nll"]
    assert (first["steps"], first["finite"]) == (5, 1)


@pytest.mark.parametrize("recipe", [SMALL, Recipe("realnvp", blocks=4, hidden=8)], ids=["p4inv_bent", "realnvp"])
def test_training_learns(recipe: Recipe) -> None:
    start, end = train(run_of(recipe=recipe, steps=0)), train(run_of(recipe=recipe, steps=150, batch=64))
    assert end["test_nll"] < start["test_nll"] - 0.3


def test_a_run_can_end_by_time() -> None:
    found = train(run_of(steps=1_000_000, seconds=0.2))
    assert 0 < found["steps"] < 1_000_000
    assert 0.2 <= found["seconds"] < 5


def test_a_run_that_breaks_down_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = iter([torch.zeros(4, 2), torch.full((4, 2), math.nan)])
    monkeypatch.setattr("p4lab.problems.DensityProblem.batch", lambda *_: next(batches))
    found = train(run_of())
    assert (found["finite"], found["steps"]) == (0, 1)
    assert math.isfinite(found["test_nll"])


@pytest.mark.parametrize("mixing", list(MIXED.recipes))
def test_every_mixing_trains_on_digits(mixing: str) -> None:
    recipe = dataclasses.replace(MIXED.recipes[mixing], blocks=2, hidden=8)
    found = train(Run(DIGITS, mixing, 0, recipe, steps=2, batch=8))
    assert found["finite"]
    assert found["bits_per_dim"] == pytest.approx(found["test_nll"] / math.log(2))


# --- results on disk --------------------------------------------------------------------------------------------------


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    done: list[Run] = []

    def work(run: Run) -> dict[str, Any]:
        done.append(run)
        return result(1.0)

    file, runs = tmp_path / "sub" / "runs.jsonl", [run_of(seed=seed) for seed in range(3)]
    perform(runs[:2], work, command.summary, file)
    found = perform(runs, work, command.summary, file)
    assert done == runs
    assert set(found) == {run.key() for run in runs}
    assert perform([run_of(steps=6)], work, command.summary, file)
    assert done[-1].steps == 6


def test_an_interrupted_line_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    append(file, run_of(), result(1.0))
    whole = file.read_text()
    file.write_text(whole + whole[:40])
    assert set(read(file)) == {run_of().key()}


def test_appending_after_an_interrupted_line_keeps_the_rest_readable(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    append(file, run_of(), result(1.0))
    file.write_text(file.read_text() + '{"run": {"pro')
    append(file, run_of(seed=1), result(2.0))
    append(file, run_of(seed=2), result(3.0))
    assert set(read(file)) == {run_of(seed=seed).key() for seed in range(3)}


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello\n")
    with pytest.raises(RunFileError, match="line 1: not a result of this command"):
        read(file)
    assert file.read_text() == "hello\n"


# --- tables -----------------------------------------------------------------------------------------------------------


def test_spread_is_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.0], ".1f") == "2.0 [1.0, 3.0]"
    assert spread([0.5, math.nan, 0.25], ".0%") == "50 [25, inf]"


def test_the_table_has_a_row_for_each_method() -> None:
    table = problem_table("rings", {"realnvp": [result(2.0), result(3.0)], "p4inv_bent": [result(1.0, finite=0)]})
    assert "| realnvp    | 1,390      | 2.500 [2.000, 3.000]" in table
    assert "1, 1 stopped early" in table
    assert len(table.splitlines()) == 4


def test_the_verdict_counts_densities_and_seeds() -> None:
    found = {
        "rings": {"p4inv_bent": [result(1.0, 0.1), result(2.0, 0.1)], "realnvp": [result(1.5, 0.3), result(1.9, 0.3)]},
        "swiss_roll": {"p4inv_bent": [result(2.0, 0.1)], "realnvp": [result(1.0, 0.2)]},
        "spirals": {"p4inv_bent": [result(2.0, 0.1)]},
    }
    said = toy_verdict(found)
    assert "lower median test NLL on 1 of 2 densities" in said
    assert "bridge mass on 1 of the 1 that have several pieces" in said
    assert "| 1/2 " in said
    assert toy_verdict({"spirals": found["spirals"]}) == ""


def test_the_verdict_on_digits() -> None:
    said = digits_verdict({"swap": [result(2.0), result(2.0)], "p4inv": [result(1.0), result(2.5)]})
    assert "p4inv 1.7500, swap 2.0000" in said
    assert "lower with 1 of 2 seeds" in said


def test_the_command_prints_tables_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.jsonl"
    arguments = ["--problems", "two_moons", "--seeds", "1", "--steps", "2", "--jobs", "1", "--file", str(file)]
    command.main(arguments)
    first = capsys.readouterr()
    assert "### two_moons" in first.out
    assert "### P4Inv + Bent against RealNVP" in first.out
    assert "2 runs, 0 of them known" in first.err
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 2
    command.main(arguments)
    again = capsys.readouterr()
    assert "2 runs, 2 of them known" in again.err
    assert again.out.split("\n", 1)[1] == first.out.split("\n", 1)[1]
