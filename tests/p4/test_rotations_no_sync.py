"""A whole training step of a rotation or shear waits for no host: on a fake GPU, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from p4.rotations_no_sync_program import CASES

PROGRAM = Path(__file__).with_name("rotations_no_sync_program.py")


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    paths = [str(PROGRAM.parents[2]), str(PROGRAM.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_nothing_waits_for_the_host(name: str, results: dict[str, str | None]) -> None:
    if name.endswith("caught"):
        assert "DataDependent" in (results[name] or "nothing was raised")
    else:
        assert results[name] is None
