"""Result files: what is written is read again, and what is none is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p4lab.errors import DataFileError
from p4lab.results import MIGRATED, Machine, Number, Result, Table, Versions, read, write

RESULT = Result(
    ("python -m p4lab.bench steps", "python -m p4lab.bench methods"),
    "2026-11-30",
    Machine("a processor", 2, 1, "none", "busy"),
    Versions("3.11", "2.13.0", None),
    MIGRATED,
    True,
    (
        Table("times", ("d", "row 1"), (("sum", Number(1.5, "**1.50** [1, 2]", 1, 2)), ("row 0", "-")), ("A note.",)),
        Table("", ("x",), ()),
    ),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write(RESULT, path)
    assert read(path) == RESULT
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]
    lines = path.read_text().splitlines()
    assert '    ["sum", {"number": 1.5, "printed": "**1.50** [1, 2]", "least": 1, "most": 2}],' in lines


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        pytest.param(("machine", "cores"), "two", "machine, cores: expected int | None, found 'two'", id="kind"),
        pytest.param(("machine", "host"), "name", "expected .*Machine", id="unknown-field"),
        pytest.param(("complete",), 1, "complete: expected .*bool", id="number-for-bool"),
        pytest.param(("tables", 0, "rows", 0), ["sum"], "'times' has another number of cells", id="short-row"),
        pytest.param(("tables", 0, "rows", 0, 1), {"number": 1}, "expected .*Number", id="missing-field"),
    ],
)
def test_what_is_no_result_is_named(tmp_path: Path, path: tuple[str | int, ...], value: object, message: str) -> None:
    file = tmp_path / "result.json"
    write(RESULT, file)
    plain = json.loads(file.read_text())
    inner = plain
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    file.write_text(json.dumps(plain))
    with pytest.raises(DataFileError, match=message):
        read(file)


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataFileError, match=r"x\.json cannot be read as JSON"):
        read(tmp_path / "x.json")
    with pytest.raises(DataFileError, match=r"none\.json cannot be read"):
        read(tmp_path / "none.json")


def test_here_has_no_name_of_the_host() -> None:
    result = Result.now("python -m p4lab.bench steps", (), True)
    assert result.machine.processor
    assert result.versions.torch is not None
    assert "torch thread" in str(result)
    assert "/" not in str(result.machine)
