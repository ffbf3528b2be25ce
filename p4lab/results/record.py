"""A result file: tables, with the command that printed them, the day, the machine and the versions."""

import dataclasses
import json
import os
import platform
import types
import typing
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from p4lab.errors import DataFileError
from p4lab.files import write_whole

BY_COMMAND = "by the command"
MIGRATED = "from the README of 2026-11-30, measured as told"
"""How a file came to be: what is `MIGRATED` holds the numbers that the README had before there were result files."""


@dataclass(frozen=True)
class Number:
    """A cell with a number.

    Attributes:
        number: as it was printed: no more digits than that.
        printed: the whole cell, as Markdown.
        least, most: over the seeds, where they are told.
    """

    number: float
    printed: str
    least: float | None = None
    most: float | None = None


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it tells; may be empty.
        columns: headings, with units.
        rows: their cells.
        notes: sentences that belong to it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What was measured on; what is not told is None.

    Attributes:
        processor: its model.
        cores: their number.
        threads: of torch.
        accelerator: its model, or "none".
        remarks: what else is to be known, such as that others used it.
    """

    processor: str | None
    cores: int | None
    threads: int | None
    accelerator: str
    remarks: str = ""

    @classmethod
    def here(cls) -> "Machine":
        """Return what this runs on."""
        return cls(_processor(), os.cpu_count(), torch.get_num_threads(), _accelerator())

    def __str__(self) -> str:
        parts = [
            self.processor,
            self.cores and f"{self.cores} cores",
            self.threads and f"{self.threads} torch thread{'s' * (self.threads > 1)}",
            "" if self.accelerator == "none" else self.accelerator,
            self.remarks,
        ]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Versions:
    """Versions; what is not told is None."""

    python: str | None
    torch: str | None
    p4lab: str | None

    @classmethod
    def here(cls) -> "Versions":
        """Return those that run."""
        return cls(platform.python_version(), torch.__version__, metadata.version("p4lab"))

    def __str__(self) -> str:
        names = {"torch": self.torch, "Python": self.python, "p4lab": self.p4lab}
        return ", ".join(f"{name} {version}" for name, version in names.items() if version)


@dataclass(frozen=True)
class Result:
    """What a command printed.

    Attributes:
        commands: the command lines; those that a command wrote itself have one.
        date: the day, as in 2026-11-30; None if it is not told.
        machine, versions: where.
        written: by the command, or `MIGRATED`.
        complete: whether the command came to its end.
        tables: what it found.
    """

    commands: tuple[str, ...]
    date: str | None
    machine: Machine
    versions: Versions
    written: str
    complete: bool
    tables: tuple[Table, ...]

    @classmethod
    def now(cls, command: str, tables: tuple[Table, ...], complete: bool) -> "Result":
        """Return what a command has found here and now."""
        day = date.today().isoformat()
        return cls((command,), day, Machine.here(), Versions.here(), BY_COMMAND, complete, tables)

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.date, str(self.machine), str(self.versions))))


def write(result: Result, path: Path) -> None:
    """Write a result file, in one go: whoever reads meanwhile finds the old one or the new one.

    Raises:
        FileError: it cannot be written.
    """
    plain = dataclasses.asdict(result)
    lines: list[str] = []
    for table in plain["tables"]:
        for i, row in enumerate(table["rows"]):  # each row in a line
            lines.append(json.dumps([_short(one) for one in row], ensure_ascii=False))
            table["rows"] = (*table["rows"][:i], f"\0{len(lines) - 1}", *table["rows"][i + 1 :])
    text = json.dumps(plain, indent=1, ensure_ascii=False)
    for i, line in enumerate(lines):
        text = text.replace(f'"\\u0000{i}"', line, 1)
    write_whole(path, f"{text}\n".encode(), folders=True)


def _short(one: Any) -> Any:
    return {name: value for name, value in one.items() if value is not None} if isinstance(one, dict) else one


def read(path: Path) -> Result:
    """Return what a result file holds.

    Raises:
        DataFileError: it cannot be read, or is no result file.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataFileError(f"{path} cannot be read as JSON ({error}). Write it anew with --results") from error
    result: Result = _read(plain, Result, str(path))
    for table in result.tables:
        if any(len(row) != len(table.columns) for row in table.rows):
            raise DataFileError(f"{path}: a row of {table.title!r} has another number of cells than there are columns")
    return result


def _read(plain: Any, kind: Any, where: str) -> Any:
    """Return what the fields of dataclasses say that there is."""
    problem = DataFileError(f"{where}: expected {kind}, found {plain!r:.80}. Write the file anew with --results")
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(plain, dict):
            raise problem
        hints = typing.get_type_hints(kind)
        needed = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
        if not needed <= set(plain) <= set(hints):
            raise problem
        return kind(**{name: _read(one, hints[name], f"{where}, {name}") for name, one in plain.items()})
    if typing.get_origin(kind) is tuple:
        if not isinstance(plain, list):
            raise problem
        inner = typing.get_args(kind)[0]
        return tuple(_read(one, inner, f"{where}, {i}") for i, one in enumerate(plain))
    choices = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for choice in choices:
        if dataclasses.is_dataclass(choice) and isinstance(plain, dict):
            return _read(plain, choice, where)
        if type(plain) is choice or (choice is float and type(plain) is int):
            return plain
    raise problem


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux
        return platform.processor() or platform.machine()


def _accelerator() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "none" if found is None else found.type
