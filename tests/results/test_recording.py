"""With --results a command's tables go to a file, each as soon as it is there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from p4lab.bench.__main__ import main as bench
from p4lab.bench.tables import table
from p4lab.command import Command, command
from p4lab.errors import ConfigError
from p4lab.results import read, tables_in


def example(work: Callable[[], object]) -> Command:
    """A command of one option that prints a table, does something, and prints another."""

    @command("p4lab.bench example", "An example.", seeds=1, file=None)
    def main(options: argparse.Namespace) -> None:
        print(f"### First\n\n{table(['seeds'], [[options.seeds]])}\n")
        work()
        print(f"### Second\n\n{table(['x'], [[0.25]])}\n\nThe end.")

    return main


def test_the_file_has_what_was_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "folder" / "out.json"
    example(lambda: None)(["--results", str(path), "--seeds", "3", f"--file={tmp_path / 'kept.jsonl'}"])
    result = read(path)
    assert result.tables == tables_in(capsys.readouterr().out)
    assert [one.title for one in result.tables] == ["First", "Second"]
    assert result.tables[1].notes == ("The end.",)
    assert result.commands == ("python -m p4lab.bench example --seeds 3 --file=kept.jsonl",)
    assert (result.complete, result.written) == (True, "by the command")
    assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ConfigError("it ends")])
def test_what_ends_early_has_left_its_tables(tmp_path: Path, error: BaseException) -> None:
    path, out = tmp_path / "out.json", sys.stdout

    def strike() -> None:
        assert [one.title for one in read(path).tables] == ["First"]
        raise error

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        example(strike)(["--results", str(path)])
    assert [one.title for one in read(path).tables] == ["First"]
    assert not read(path).complete
    assert sys.stdout is out


def test_an_older_file_stays_until_there_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    example(lambda: None)(["--results", str(path)])
    before = path.read_text()

    @command("p4lab.bench example", "An example.")
    def silent(options: argparse.Namespace) -> None:
        print("no table")

    with pytest.raises(SystemExit, match=r"example printed no table, so that there is no out\.json"):
        silent(["--results", str(path)])
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/out.json", "cannot be written"),
        ("", "is a folder"),
        (".", "is a folder"),
        ("folder", "is a folder"),
        ("file", "file is there, and is no result file"),
    ],
)
def test_what_cannot_be_written_is_known_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        example(pytest.fail)(["--results", name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "precious"


def test_a_quick_benchmark_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "race.json"
    arguments = "race --quick --tasks so+ica_digits --methods plain+dense --dim 4 --jobs 1 --tuning 0.01 --seconds 0.02"
    bench([*arguments.split(), "--results", str(path)])
    result = read(path)
    assert result.commands == (f"python -m p4lab.bench {arguments}",)
    assert result.tables == tables_in(capsys.readouterr().out)
    title = "Time to target, batch 64, training time only, 1 seeds"
    assert [one.title.split(", d =")[0] for one in result.tables] == [
        f"{title}: so",
        f"{title}: ica_digits",
        f"{title}: P4Inv and the exact methods",
    ]
