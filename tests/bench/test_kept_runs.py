"""Sweeps and tuning that keep what they have done: what is known again, what was torn, what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
import pytest
import torch

from p4lab.bench.__main__ import main
from p4lab.bench.lanes import Trial, traces_of, train
from p4lab.bench.race import sweep
from p4lab.bench.tuning import tune
from p4lab.bench.workers import parallel
from p4lab.errors import ConfigError, RunFileError
from p4lab.problems import rates
from p4lab.problems.rates import Choice
from p4lab.training.race import RaceConfig

CONFIG = RaceConfig(task="so", dim=8, batch_size=16, methods="plain+p4inv")
SEEDS = (3, 4)
TIMES = ["seconds", "step_ms"]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said on the way."""
    lines: list[str] = []
    monkeypatch.setattr("p4lab.bench.store.say", lines.append)
    return lines


def kept(file: Path, config: RaceConfig = CONFIG, **options: Any) -> pd.DataFrame:
    """A sweep with a file."""
    return sweep(config, **({"seeds": SEEDS, "steps": 7, "n_jobs": 1, "file": file} | options))


# --- what is known ---


def test_a_sweep_is_not_done_twice(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "new" / "runs.jsonl"
    first = kept(file)
    lines = file.read_text()
    assert [line.split()[0] for line in said] == ["4", "1/4", "2/4", "3/4", "4/4"]
    assert "so, p4inv, seed 3, sgd" in said[2]
    said.clear()
    pd.testing.assert_frame_equal(kept(file), first)  # the seconds, too
    assert said == ["4 runs, 4 of them known"]
    assert file.read_text() == lines


def test_a_sweep_with_more_seeds_and_methods_does_what_is_missing(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "runs.jsonl"
    kept(file, seeds=(3,))
    said.clear()
    more = CONFIG.replace(methods="dense+p4inv+plain")
    found = kept(file, more, n_jobs=2, backend="threading")
    assert said[0] == "6 runs, 2 of them known"
    assert len(file.read_text().splitlines()) == 6
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), kept(None, more).drop(columns=TIMES))


@pytest.mark.parametrize(
    ("config", "options"),
    [
        pytest.param(CONFIG.replace(dim=9), {}, id="width"),
        pytest.param(CONFIG.replace(rate_factor=0.5), {}, id="rates"),
        pytest.param(CONFIG, {"steps": 8}, id="steps"),
        pytest.param(CONFIG, {"seconds": 3.0}, id="seconds"),
        pytest.param(CONFIG, {"seeds": (5, 6)}, id="seeds"),
    ],
)
def test_other_settings_are_other_runs(
    config: RaceConfig, options: dict[str, Any], tmp_path: Path, said: list[str]
) -> None:
    file = tmp_path / "runs.jsonl"
    kept(file)
    said.clear()
    kept(file, config, **options)
    assert said[0] == "4 runs, 0 of them known"


def test_rates_that_were_tuned_anew_make_other_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Trial.of(CONFIG, "plain", 1.0)
    assert before == Trial.of(CONFIG, "plain", 1, settings=before.settings)
    monkeypatch.setitem(rates.BEST, "so", {"plain": Choice("sgd", before.settings.rate / 2)})
    assert before.key() != Trial.of(CONFIG, "plain", 1.0).key()


def test_a_trial_is_what_training_takes(said: list[str]) -> None:
    settings = Choice("sgd", 1.0)
    (found,) = traces_of([Trial.of(CONFIG, "plain", 9.0, 50, 0.1, settings)], n_jobs=1)
    alone = train(CONFIG, "plain", 9.0, 50, 0.1, settings)
    assert [check[::2] for check in found.checks] == [check[::2] for check in alone.checks]
    assert (found.method, found.seed, found.memory) == (alone.method, alone.seed, alone.memory)


def test_tuning_is_not_done_twice(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "runs.jsonl"
    first = tune("ica_digits", ("dense", "p4inv"), dim=4, seconds=0.03, n_jobs=1, file=file)
    assert said[0] == "16 runs, 0 of them known"
    said.clear()
    # A likelihood's target depends on what was seen: the same only if every trace is.
    assert tune("ica_digits", ("dense", "p4inv"), dim=4, seconds=0.03, n_jobs=1, file=file) == first
    assert said == ["16 runs, 16 of them known"]


def test_a_race_is_not_done_twice(tmp_path: Path, said: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--tasks=so",
        "--methods=plain+dense",
        "--dim=4",
        "--tuning=0.02",
        "--limit=0.05",
        "--seeds=1",
        "--jobs=1",
    ]
    tables = []
    for _ in range(2):
        main(["race", *options, f"--file={tmp_path / 'runs.jsonl'}"])
        tables.append(capsys.readouterr().out.partition("###")[2])
    assert tables[0] == tables[1]
    assert said[-2:] == ["16 runs, 16 of them known", "2 runs, 2 of them known"]


# --- what was interrupted ---


def test_a_sweep_that_was_killed_goes_on_where_it_was(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "runs.jsonl"
    config, seeds, steps = CONFIG.replace(methods="plain"), range(12), 300
    program = (
        "from p4lab.bench.race import sweep; from p4lab.training.race import RaceConfig; "
        f"sweep(RaceConfig.from_text({config.to_text()!r}), range(12), steps={steps}, n_jobs=1, file={str(file)!r})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and not (file.exists() and file.stat().st_size):
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    lines = file.read_text().splitlines()
    assert 1 <= len(lines) < 12
    found = sweep(config, seeds, steps=steps, n_jobs=1, file=file)
    assert said[0].startswith("12 runs, ")
    assert said[0] != "12 runs, 0 of them known"
    assert file.read_text().splitlines()[: len(lines) - 1] == lines[:-1]
    fresh = sweep(config, seeds, steps=steps, n_jobs=1)
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), fresh.drop(columns=TIMES))


def test_a_torn_last_line_is_said_and_done_again(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "runs.jsonl"
    first = kept(file)
    file.write_text(file.read_text()[:-30])
    said.clear()
    found = kept(file)
    assert said[:2] == [f"{file}, line 4: was cut off, so that its run is done again", "4 runs, 3 of them known"]
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), first.drop(columns=TIMES))
    said.clear()
    pd.testing.assert_frame_equal(kept(file), found)


def test_a_run_that_breaks_down_is_kept_like_any_other(tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "runs.jsonl"
    trial = Trial.of(CONFIG, "plain", 9.0, 400, settings=Choice("sgd", 1e6))
    first, again = (traces_of([trial], n_jobs=1, file=file) for _ in range(2))
    assert first[0].stopped
    assert repr(first) == repr(again)  # NaN is not equal to itself
    assert first[0].stopped in said[1]


# --- what is refused ---


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello\n")
    with pytest.raises(RunFileError, match=r"notes.txt, line 1: not a result of this command"):
        kept(file)
    assert file.read_text() == "hello\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot be read", id="a-folder"),
        pytest.param(b"\xff\xfe\x00", "cannot be read", id="no-text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(RunFileError, match=f"runs.jsonl {message}"):
        kept(file)


def test_a_file_that_cannot_be_written_is_named_before_any_work(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFileError, match="cannot be written"):
        kept(tmp_path / "file" / "runs.jsonl")
    assert not said


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    kept(file)
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    del entries[1]["result"]["checks"]
    file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(RunFileError, match="a result is damaged"):
        kept(file)


def test_no_jobs_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_jobs=0"):
        kept(None, n_jobs=0)


# --- how calls are done here ---


@pytest.mark.parametrize(("backend", "n_jobs"), [(None, 1), (None, 2), ("threading", 2)])
def test_each_call_has_one_torch_thread(backend: str | None, n_jobs: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert parallel([joblib.delayed(torch.get_num_threads)()] * 4, backend, n_jobs) == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_of_a_process_do_not_share_random_numbers(said: list[str]) -> None:
    one, two = kept(None), kept(None, n_jobs=2, backend="threading")
    pd.testing.assert_frame_equal(two.drop(columns=TIMES), one.drop(columns=TIMES))


def test_what_ends_is_told_at_once_with_its_place() -> None:
    told: list[tuple[int, int]] = []
    calls = [joblib.delayed(abs)(-n) for n in range(5)]
    assert parallel(calls, n_jobs=2, done=lambda index, result: told.append((index, result))) == list(range(5))
    assert sorted(told) == [(n, n) for n in range(5)]
