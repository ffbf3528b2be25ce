"""Processes that train one model stay equal bit for bit, whatever their seeds, batches and settings are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import replica_program
from replica_program import RESETS, RESUMED, reports

Results = Callable[[int], list[dict[str, str | None]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    """What so many processes report, each for itself; they are started once, and two before three."""

    @cache
    def report(size: int) -> list[dict[str, str | None]]:
        if size > 2:
            report(size - 1)  # which leaves the checkpoints
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        logs = [folder / f"log-{size}-{rank}" for rank in range(size)]
        processes = []
        for rank, log in enumerate(logs):
            command = [sys.executable, replica_program.__file__, str(folder), str(rank), str(size)]
            with log.open("w") as file:
                processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        try:
            codes = [process.wait(timeout=400) for process in processes]
        finally:
            for process in processes:
                process.kill()
        assert codes == [0] * size, "\n".join(log.read_text() for log in logs)
        return [json.loads((folder / f"results-{size}-{rank}.json").read_text())["results"] for rank in range(size)]

    return report


@pytest.mark.parametrize(("size", "name"), [(size, name) for size in (2, 3) for name in reports(size)])
def test_replicas(size: int, name: str, results: Results) -> None:
    problems = [report.get(name, "it did not get that far") for report in results(size)]
    assert problems == [None] * size


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", RESUMED)
def test_one_process_resumes_what_two_have_saved(name: str, reset: str, folder: Path, results: Results) -> None:
    results(2)
    assert replica_program.resume(folder, name, reset) is None
