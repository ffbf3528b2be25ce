"""Results in a file, one line for each finished run, so that what was interrupted goes on where it was."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import joblib
import torch

from p4lab.bench.lanes import parallel
from p4lab.command import say
from p4lab.errors import RunFileError

START = '{"run": {'
"""How a result begins, so that one that was cut off is told from a file of another kind."""
Result = dict[str, Any]
"""What came of a run, by name."""


@dataclass(frozen=True)
class Described:
    """A training run, described in full by its fields."""

    def key(self) -> str:
        """Return a text that is the same for the same run, and else another."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


R = TypeVar("R", bound=Described)


def perform(
    runs: Sequence[R],
    work: Callable[[R], Result],
    summary: Callable[[R, Result], str],
    file: Path | None,
    jobs: int = 1,
) -> dict[str, Result]:
    """Return the result of every run by its key; those that ``file`` has already are not done again.

    Args:
        runs: what to do.
        work: what a run is done with.
        summary: what is said of a finished run.
        file: JSON lines to read and to append to (None: nothing is kept).
        jobs: runs at a time, each on one torch thread; -1 is one for each core.

    Raises:
        RunFileError: the file is not one of this command.
    """
    before = read(file) if file else {}
    missing = [run for run in runs if run.key() not in before]
    say(f"{len(runs)} runs, {len(runs) - len(missing)} of them known")
    results = parallel((joblib.delayed(_done)(run, work, summary, file) for run in missing), n_jobs=jobs)
    return {**before, **{run.key(): result for run, result in zip(missing, results, strict=True)}}


def _done(run: R, work: Callable[[R], Result], summary: Callable[[R, Result], str], file: Path | None) -> Result:
    torch.set_num_threads(1)
    result = work(run)
    if file:
        append(file, run, result)
    say(summary(run, result))
    return result


def read(path: Path) -> dict[str, Result]:
    """Return the results in a file by the key of their run; a file that is not there has none.

    A line that was cut off is left out: its run will be done anew.

    Raises:
        RunFileError: a line that is not a result.
    """
    if not path.exists():
        return {}
    results = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            results[json.dumps(entry["run"], sort_keys=True)] = entry["result"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if line.startswith(START) or START.startswith(line):
                continue
            raise RunFileError(
                f"{path}, line {number}: not a result of this command ({error}). Choose another file"
            ) from error
    return results


def append(path: Path, run: Described, result: Result) -> None:
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
