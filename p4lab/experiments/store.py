"""Results in a file, one line for each finished run, so that what was interrupted goes on where it was."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from p4lab.errors import RunFileError
from p4lab.experiments.settings import Run

START = '{"run": {'
"""How a result begins, so that one that was cut off is told from a file of another kind."""


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the results in a file by the `Run.key` of their run; a file that is not there has none.

    A line that was cut off is left out: its run will be done anew.

    Raises:
        RunFileError: a line that is not a result.
    """
    if not path.exists():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            found[json.dumps(entry["run"], sort_keys=True)] = entry["result"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if line.startswith(START) or START.startswith(line):
                continue
            raise RunFileError(
                f"{path}, line {number}: not a result of this command ({error}). Choose another file"
            ) from error
    return found


def append(path: Path, run: Run, result: dict[str, Any]) -> None:
    """Add a result to a file, in one write: several processes may append at the same time."""
    line = json.dumps({"run": dataclasses.asdict(run), "result": result}) + "\n"
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        line = "\n" + line
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
