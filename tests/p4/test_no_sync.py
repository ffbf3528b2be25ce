"""A whole training step with merge and refinement waits for no host: run on a fake GPU, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from p4.no_sync_program import cases

PROGRAM = Path(__file__).with_name("no_sync_program.py")
NAMES = [name for name, _, _ in cases()]


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH", "")])
    }
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("caught")])
def test_nothing_waits_for_the_host(name: str, results: dict[str, str | None]) -> None:
    assert results[name] is None


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("caught")])
def test_what_waits_for_the_host_is_caught(name: str, results: dict[str, str | None]) -> None:
    caught = results[name] or "nothing was raised"
    assert "DataDependent" in caught or "DynamicOutputShape" in caught or "copies from" in caught
