"""Sweeps and tuning on a Dask cluster: two worker processes on loopback, one of which is killed on the way."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import joblib
import pandas as pd
import pytest
import torch

from p4lab.bench.race import sweep
from p4lab.bench.tuning import tune
from p4lab.bench.workers import parallel
from p4lab.errors import ConfigError, MissingPackageError
from p4lab.training.race import RaceConfig

CONFIG = RaceConfig(task="so", dim=8, batch_size=16, methods="plain+p4inv")
TIMES = ["seconds", "step_ms"]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """The client of two workers with a process and a thread each; a worker that is killed is started anew."""
    options = {"host": "127.0.0.1", "dashboard_address": None, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),  # a call may lose two workers, not four
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def lose_worker(client: Any) -> int:
    """Kill the process of one of the workers, and return its number."""
    pid = min(client.run(os.getpid).values())
    os.kill(pid, signal.SIGKILL)
    return pid


def test_a_sweep_survives_a_worker_that_is_killed(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    killed: list[int] = []

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("3/12"):
            killed.append(lose_worker(client))

    monkeypatch.setattr("p4lab.bench.store.say", say)
    local = sweep(CONFIG, seeds=range(6), steps=40, n_jobs=1)
    said.clear()
    killed.clear()
    file = tmp_path / "runs.jsonl"
    found = sweep(CONFIG, seeds=range(6), steps=40, backend="dask", file=file)
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), local.drop(columns=TIMES))
    assert len(killed) == 1
    assert killed[0] not in client.run(os.getpid).values()
    assert said[0] == "12 runs, 0 of them known"
    assert [text.split()[0] for text in said[1:]] == [f"{n}/12" for n in range(1, 13)]
    assert len(file.read_text().splitlines()) == 12

    said.clear()
    pd.testing.assert_frame_equal(sweep(CONFIG, seeds=range(6), steps=40, backend="dask", file=file), found)
    assert said == ["12 runs, 12 of them known"]


def test_tuning_on_a_cluster_finds_a_rate_for_each(client: Any) -> None:
    found = tune("so", ("plain", "relative"), dim=4, seconds=0.03, backend="dask")
    assert set(found.choices) == {"plain", "relative"}
    assert all(choice.dim == 4 for choice in found.choices.values())


# --- how calls are done ---


def test_only_so_many_calls_are_under_way(client: Any) -> None:
    pids = parallel([joblib.delayed(os.getpid)()] * 6, "dask", n_jobs=1)
    assert len(pids) == 6
    assert set(pids) <= set(client.run(os.getpid).values())


def on_each_worker(client: Any, function: Callable[..., Any], *arguments: Any) -> set[Any]:
    """What a function returns where calls are done, on every worker."""
    workers = client.scheduler_info()["workers"]
    return {client.submit(function, *arguments, workers=[one], pure=False).result() for one in workers}


def test_each_call_has_one_torch_thread(client: Any) -> None:
    on_each_worker(client, torch.set_num_threads, 2)
    assert parallel([joblib.delayed(torch.get_num_threads)()] * 4, "dask") == [1] * 4
    assert on_each_worker(client, torch.get_num_threads) == {2}


def test_what_a_call_raises_arrives(client: Any) -> None:
    with pytest.raises(ConfigError, match=r"methods='plain'.*log"):
        sweep(RaceConfig(task="digits", methods="plain"), seeds=(0,), steps=1, backend="dask")


def test_a_call_that_kills_its_workers_ends_with_an_error(client: Any) -> None:
    with pytest.raises(distributed.KilledWorker):
        parallel([joblib.delayed(os._exit)(1)], "dask")


def test_a_worker_that_cannot_read_a_call_ends_with_an_error(client: Any) -> None:
    with pytest.raises(RuntimeError, match="different environments"):
        parallel([joblib.delayed(print)(Unknown())], "dask")


class Unknown:
    """What only this process can make."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("no_such_module",)


def test_a_command_finds_the_cluster_that_the_environment_names(client: Any) -> None:
    options = ["--tasks=so", "--methods=plain", "--dim=4", "--tuning=0.02", "--limit=0.05", "--seeds=1"]
    environment = os.environ | {"DASK_SCHEDULER_ADDRESS": client.scheduler.address}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "p4lab.bench", "race", *options, "--backend=dask"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "8/8 so, plain" in done.stderr
    assert "| plain" in done.stdout


# --- what is wrong ---


def no_client(*_: Any, **__: Any) -> None:
    raise ValueError("no client")


def test_no_cluster_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed.Client.current", no_client)
    with pytest.raises(ConfigError, match=r"there is no cluster\. Make its client first"):
        sweep(CONFIG, seeds=(0,), steps=1, backend="dask")


def test_a_cluster_that_is_not_there_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed.Client.current", no_client)
    settings = {"scheduler-address": "tcp://127.0.0.1:1", "distributed.comm.timeouts.connect": "1s"}
    with dask.config.set(settings), pytest.raises(ConfigError, match=r"no cluster at tcp://127\.0\.0\.1:1"):
        sweep(CONFIG, seeds=(0,), steps=1, backend="dask")


def test_dask_that_is_not_installed_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingPackageError, match=r"distributed is not installed.*p4lab\[cluster\]"):
        sweep(CONFIG, seeds=(0,), steps=1, backend="dask")
