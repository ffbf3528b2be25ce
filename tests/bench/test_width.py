"""The benchmark of wide tasks: what is tuned, kept, found again and said."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p4lab.baselines import METHODS
from p4lab.bench import lanes
from p4lab.bench.__main__ import main
from p4lab.bench.lanes import Trace, Trial, traces_of
from p4lab.bench.store import read
from p4lab.bench.tuning import SEED, config_of, grid
from p4lab.bench.width import (
    ADAM,
    LOOKS,
    MARGIN,
    MOST,
    SGD,
    STEP,
    beyond,
    tune_wide,
    wide_table,
    wide_target,
    wide_trial,
    width,
)
from p4lab.errors import ConfigError, RunFileError
from p4lab.problems.rates import Choice
from p4lab.training.race import RaceConfig

CONFIG = config_of("so", 8, 3).replace(batch_size=16, anneal=True)
OPTIONS: dict[str, Any] = {
    "methods": ("dense", "relative"),
    "dims": (8,),
    "seeds": (0, 1),
    "seconds": 0.02,
    "batch": 16,
}


def trace(loss: float, start: float = 1.0, stopped: str = "") -> Trace:
    return Trace("dense", 0, ((0, 0.0, start), (5, 0.5, (start + loss) / 2), (10, 1.0, loss)), 0.0, 0.0, 1, stopped)


def seed_of(line: str) -> int:
    return json.loads(line)["run"]["config"]["seed"]


# --- runs ---


def test_a_run_is_annealed_and_keeps_the_course_of_its_loss(tmp_path: Path) -> None:
    file = tmp_path / "width.jsonl"
    trial = wide_trial(CONFIG, "dense", Choice("sgd", 1.0, 0.3), 0.05)
    assert trial.config.anneal
    (found,) = traces_of([trial], n_jobs=1, file=file)
    assert traces_of([trial], n_jobs=1, file=file) == [found]
    steps, seconds, losses = zip(*found.checks, strict=True)
    assert (steps[0], seconds[0]) == (0, 0.0)
    assert seconds[-1] >= 0.05
    assert 2 < len(steps) <= LOOKS + 2
    assert losses[-1] < losses[0]
    assert (found.method, found.seed, found.stopped) == ("dense", 3, "")


def test_a_finished_run_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "width.jsonl"
    first = [*width(("so",), **OPTIONS, file=file)]
    lines = file.read_text().splitlines()
    assert len({json.dumps(json.loads(line)["run"]) for line in lines}) == len(lines)
    assert {seed_of(line) for line in lines} == {SEED, 0, 1}

    def refuse(config: RaceConfig, *_: Any) -> Any:
        raise AssertionError(f"seed={config.seed}")

    monkeypatch.setattr(lanes, "train", refuse)
    assert [*width(("so",), **OPTIONS, file=file)] == first
    with pytest.raises(AssertionError, match="seed=2"):
        list(width(("so",), **{**OPTIONS, "seeds": (0, 1, 2)}, file=file))


def test_what_was_cut_off_is_done_again(tmp_path: Path) -> None:
    file = tmp_path / "width.jsonl"
    list(width(("so",), **OPTIONS, file=file))
    whole = file.read_text()
    file.write_text(whole[:-20])
    list(width(("so",), **OPTIONS, file=file))
    assert set(read(file)) == {json.dumps(json.loads(line)["run"], sort_keys=True) for line in whole.splitlines()}


def test_a_file_of_another_kind_is_a_named_error(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("something else\n")
    with pytest.raises(RunFileError, match=r"notes.txt, line 1"):
        list(width(("so",), **OPTIONS, file=file))


def test_nobody_to_race_is_a_named_error() -> None:
    with pytest.raises(ConfigError, match="methods='plain': none of them can do the task 'so_both'"):
        next(width(("so_both",), methods=("plain",), dims=(8,)))


# --- tuning ---


def tuned(losses: dict[float, float], name: str = "relative", dim: int = 100) -> tuple[Choice, list[float]]:
    """Tune with losses by rate over d (missing: broken down); return the choice and what was tried, in order."""
    tried: list[float] = []

    def work(trials: Sequence[Trial]) -> list[Trace]:
        assert {(trial.config.seed, trial.config.anneal, trial.seconds) for trial in trials} == {(3, True, 2.0)}
        tried.extend(trial.settings.rate for trial in trials)
        return [trace(loss_at(trial.settings.rate / dim)) for trial in trials]

    def loss_at(fraction: float) -> float:
        near = [loss for rate, loss in losses.items() if math.isclose(rate, fraction, rel_tol=0.02)]
        return near[0] if near else math.inf

    return tune_wide(CONFIG.replace(dim=dim), (name,), 2.0, work)[name], tried


def test_the_grid_grows_where_its_best_is_at_an_end() -> None:
    start = [choice.rate for choice in grid("so", METHODS["relative"], 100, sgd=SGD, adam=ADAM)]
    rates = [rate / 100 for rate in start]
    inside, tried = tuned({rate: abs(rate - rates[2]) for rate in rates})
    assert (inside.rate, tried) == (start[2], start)
    low = rates[0] / STEP
    outside, tried = tuned({**{rate: 1 + rate for rate in rates}, low: 0.5, low / STEP: 0.7})
    assert outside.rate == pytest.approx(100 * low, rel=0.01)
    assert len(tried) == len(start) + 2
    upwards, tried = tuned({**{rate: 1 - rate for rate in rates}, rates[-1] * STEP: 0.5, rates[-1] * STEP**2: 0.7})
    assert upwards.rate == pytest.approx(100 * rates[-1] * STEP, rel=0.01)


def test_rates_that_all_break_down_are_lowered_until_there_were_enough() -> None:
    found, tried = tuned({})
    assert len(tried) == MOST
    assert tried[6:] == sorted(tried[6:], reverse=True)
    assert found.rate in tried


def test_each_optimizer_has_its_own_ends() -> None:
    trials = {Choice("sgd", rate): trace(rate) for rate in (1.0, 2.5)}
    trials |= {Choice("adam", rate): trace(loss) for rate, loss in ((0.1, 0.3), (0.25, 0.2), (0.6, 0.4))}
    assert beyond(trials) == [Choice("sgd", 0.4)]


def test_a_loss_that_is_finite_and_huge_is_no_best_one() -> None:
    trials = {Choice("sgd", rate): trace(loss) for rate, loss in ((1.0, math.inf), (2.5, 1e20), (6.25, math.inf))}
    assert beyond(trials) == [Choice("sgd", 0.4)]


# --- what is said ---


def test_the_target_is_just_above_what_the_best_exact_method_reaches() -> None:
    traces = {"plain": [trace(0.1)], "dense": [trace(0.4), trace(0.2), trace(0.3)], "p4inv": [trace(0.5)]}
    first, target = wide_target(traces)
    assert (first, target) == ("dense", pytest.approx(0.3 + MARGIN * 0.7))
    assert wide_target({"plain": [trace(0.1)]})[0] == "plain"


def test_the_table_has_the_lowest_loss_first() -> None:
    traces = {
        "p4inv": [trace(0.5), trace(0.6, stopped="step 11: loss nan")],
        "dense": [trace(0.30), trace(0.302)],
        "plain": [trace(0.1), trace(0.1)],
    }
    lines = wide_table({name: Choice("sgd", 1.0) for name in traces}, traces).splitlines()
    assert lines[0].startswith("Target: 0.30799, which is 1 %")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][1:]
    assert [row[1] for row in rows] == ["no", "yes", "yes"]
    assert [row[5] for row in rows] == ["2/2", "2/2", "0/2, 1 broke down"]
    assert rows[1][3:5] == ["0.301 [0.3, 0.302]", "10 [10, 10]"]
    assert rows[2][6:] == ["-", "-"]


def test_tasks_that_are_narrower_are_raced_once(tmp_path: Path) -> None:
    file = tmp_path / "width.jsonl"
    options = {**OPTIONS, "methods": ("dense",), "seeds": (0,), "tuning": 0.0}
    (text,) = width(("ica_digits",), **{**options, "dims": (63, 64)}, file=file)
    assert text.count("**ica_digits**, d = 60") == 1
    assert [seed_of(line) for line in file.read_text().splitlines()] == [0]  # nothing was tuned


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "width.jsonl"
    arguments = ["--tasks", "so_coloured", "--methods", "dense", "--dims", "16", "--seeds", "1"]
    main(["width", *arguments, "--seconds", "0.02", "--tuning", "0.01", "--jobs", "1", "--file", str(file)])
    text = capsys.readouterr().out
    assert "### Test loss after 0.02 s of training each, annealed, batch 64, 1 seeds" in text
    assert "**so_coloured**, d = 16" in text
    runs = [json.loads(line)["run"] for line in file.read_text().splitlines()]
    assert {(run["config"]["seed"], run["seconds"]) for run in runs} == {(SEED, 0.01), (0, 0.02)}
    with pytest.raises(SystemExit, match=r"--dims 17: 17 not known"):
        main(["width", "--dims", "17"])
