"""Results in a file, one line for each finished run, so that what was interrupted goes on where it was."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from p4lab.bench.workers import parallel
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
    summary: Callable[[R, Result], str] | None,
    file: Path | str | None,
    jobs: int = 1,
    backend: str | None = None,
) -> dict[str, Result]:
    """Return the result of every run by its key; those that ``file`` has already are not done again.

    Of each run that ends a line says how many there are, and its summary.

    Args:
        runs: what to do.
        work: what a run is done with.
        summary: what is said of a finished run (None: nothing is said at all).
        file: JSON lines to read and to append to (None: nothing is kept). Only this process writes to it, as soon as
            a run ends, wherever that was done.
        jobs, backend: see `p4lab.bench.workers.parallel`.

    Raises:
        RunFileError: the file is not one of this command, or cannot be read or written.
        ConfigError, MissingPackageError: as `p4lab.bench.workers.parallel`.
    """
    path = None if file is None else Path(file)
    results = read(path) if path else {}
    if path:
        _open(path).close()  # what cannot be written must be known before hours of work
    missing = [run for key, run in {run.key(): run for run in runs}.items() if key not in results]
    if summary:
        say(f"{len(runs)} runs, {len(runs) - len(missing)} of them known")
    count = itertools.count(1)

    def done(index: int, result: Result) -> None:
        if path:
            append(path, missing[index], result)
        if summary:
            say(f"{next(count)}/{len(missing)} {summary(missing[index], result)}")

    found = parallel(((work, (run,), {}) for run in missing), backend, jobs, done)
    return {**results, **{run.key(): result for run, result in zip(missing, found, strict=True)}}


def read(path: Path) -> dict[str, Result]:
    """Return the results in a file by the key of their run; a file that is not there has none.

    A line that was cut off is left out, and said: its run will be done anew.

    Raises:
        RunFileError: a line that is not a result, or a file that cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise RunFileError(f"{path} cannot be read ({error}). Choose another file") from error
    results = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            results[json.dumps(entry["run"], sort_keys=True)] = entry["result"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            if line.startswith(START) or START.startswith(line):
                say(f"{path}, line {number}: was cut off, so that its run is done again")
                continue
            raise RunFileError(
                f"{path}, line {number}: not a result of this command ({error}). Choose another file"
            ) from error
    return results


def append(path: Path, run: Described, result: Result) -> None:
    """Add a result to a file, in one write: several processes may append at the same time.

    Raises:
        RunFileError: the file cannot be written.
    """
    line = json.dumps({"run": dataclasses.asdict(run), "result": result}) + "\n"
    with _open(path) as file:
        if file.tell() and not path.read_bytes().endswith(b"\n"):
            line = "\n" + line
        file.write(line.encode())


def _open(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileIO(path, "a")
    except OSError as error:
        raise RunFileError(f"{path} cannot be written ({error}). Choose another file") from error
