"""The result files of the repository, and what is told of them: valid, up to date, and no number without a source."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from p4lab.results import FOLDER, VALUE, cell, pages, read, read_all
from p4lab.results.markdown import bare
from p4lab.results.record import BY_COMMAND, MIGRATED, Number

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / FOLDER).glob("*.json"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [path.relative_to(ROOT).as_posix() for path, _ in pages(ROOT)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_result_file_is_whole(path: Path) -> None:
    result = read(path)
    assert result.complete
    assert result.tables
    assert result.written in (BY_COMMAND, MIGRATED)
    for one in result.tables:
        assert len(set(one.columns)) == len(one.columns)
        for row in one.rows:
            for found in row:
                assert cell(found.printed if isinstance(found, Number) else found) == found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_commands_are_some(path: Path) -> None:
    """Those of p4lab are read by the real parsers in `test_commands`."""
    for line in read(path).commands:
        words = shlex.split(line)
        if words[0] == "pytest":
            assert (ROOT / words[1]).is_file()
        else:
            assert line.startswith(("python -m p4lab.bench ", "python -m p4lab.experiments"))


def test_every_file_is_told_on_a_page() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES if page.startswith("docs/results/"))
    told = {name.partition(".")[0] for name in re.findall(r"<!-- table: ([\w.]+) -->", text)}
    assert told == set(read_all(ROOT))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_the_files_say(page: str) -> None:
    """`make pages` brings it up to date; then its sentences have to be read again."""
    (text,) = (text for path, text in pages(ROOT) if path == ROOT / page)
    assert (ROOT / page).read_text(encoding="utf-8") == text


def test_no_number_of_the_readme_is_without_a_source() -> None:
    """In the section of numbers each is taken from a file, or names the place in it, as in d = 512."""
    section = README.partition("## Numbers\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("- ")]
    assert len(lines) == 6
    for line in lines:
        sources = [mark["place"] for mark in VALUE.finditer(line)]
        assert sources
        text = re.sub(r"\]\([^)]*\)", "", VALUE.sub("", line))
        named = re.findall(r"\d+(?:\.\d+)?", " ".join(sources))
        assert set(re.findall(r"\d+(?:\.\d+)?", text)) <= set(named)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_a_changed_number_is_noticed() -> None:
    results = read_all(ROOT)
    table = results["steps"].tables[0]
    (row,) = (row for row in table.rows if bare(row[0]) == "512")
    column = table.columns.index("P4Inv")
    assert f"-->{bare(row[column])}<!-- --> × the time of a plain `nn.Linear` at d = 512" in README
