"""Pages take tables and numbers from result files, and what is not there is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from p4lab.errors import DataFileError
from p4lab.results import MIGRATED, Machine, Result, Table, Versions, cell, fill, find
from p4lab.results.__main__ import main

ROWS = (("so", "SGD", "**0.12** [0.1, 0.2]"), ("so", "Adam", "1"), ("spd", "SGD", "not reached"))
TIMES = Table("Times", ("target", "by", "s"), tuple(tuple(map(cell, row)) for row in ROWS), ("A note.",))
MORE = Table("Times", ("d", "steps"), ((cell("512"), cell("1,000")),))
RESULTS = {
    "linear": Result(
        ("python -m p4lab.bench linear",),
        "2026-11-30",
        Machine("a processor", 2, 1, "none"),
        Versions("3.11", "2.13.0", None),
        MIGRATED,
        True,
        (TIMES, MORE),
    )
}


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("linear | so | SGD | s", "0.12"),
        ("linear.1 | spd | s", "not reached"),
        ("linear | 512 | steps", "1,000"),
        ("linear.2 | 512 | steps", "1,000"),
    ],
)
def test_a_number_is_found(place: str, text: str) -> None:
    assert find(place, RESULTS) == text
    assert fill(f"It takes <!-- {place} -->old<!-- --> s.", RESULTS) == f"It takes <!-- {place} -->{text}<!-- --> s."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <!-- linear | so | s -->1<!-- -->", "page.md: linear | so | s: expected one cell, found 2"),
        ("a <!-- linear | so | SGD | ms -->1<!-- -->", "found 0"),
        ("a <!-- race | so | s -->1<!-- -->", "no result file race.json: there are linear"),
        ("a <!-- linear.3 | so | s -->1<!-- -->", "linear.json has tables 1 to 2"),
        ("<!-- table: race -->\n<!-- end -->", "no result file race.json"),
        ("- <!-- linear | so | SGD | s -->1<!-- -->", "page.md: a line begins with"),
        ("a <!-- linear | so | SGD | s -->1", "page.md: <!-- linear | so | SGD | s -->1 is no mark, or is not closed"),
        ("a <!-- linear | so | SGD | s -->1<!-- - -->", "is no mark"),
        ("a <!-- lin-ear | so | SGD | s -->1<!-- -->", "<!-- lin-ear .* is no mark"),
        ("a <!-- linear | so | SGD | s", "is no mark"),
        ("<!-- table: linear -->\nx", "<!-- table: linear --> is no mark"),
        ("<!-- table: linear -->\n<!-- table: linear.1 -->\n<!-- end -->", "<!-- table: linear --> is no mark"),
        ("<!-- table linear -->\n<!-- end -->", "<!-- table linear --> is no mark"),
        ("<!-- table: lin-ear -->\n<!-- end -->", "is no mark"),
        ("a <!-- -->", "<!-- --> is no mark"),
    ],
)
def test_what_is_not_there_is_named(text: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message.replace("|", r"\|")):
        fill(text, RESULTS, "page.md")


def test_a_table_stands_with_its_command_day_machine_and_notes() -> None:
    page = fill("# A\n\n<!-- table: linear -->\nbefore\n<!-- end -->\n\nB", RESULTS)
    for part in (
        "```sh\npython -m p4lab.bench linear\n```",
        "| so | SGD | **0.12** [0.1, 0.2] |",
        "\n\nA note.\n\n| d | steps |",
        f"*Measured: 2026-11-30, a processor, 2 cores, 1 torch thread, torch 2.13.0, Python 3.11; {MIGRATED}.*",
    ):
        assert part in page
    assert page.count("**Times**") == 1
    assert "before" not in page
    assert fill(page, RESULTS) == page
    assert "| d | steps |" not in fill("<!-- table: linear.1 -->\n<!-- end -->", RESULTS)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "has no folder 'results': run this in a checkout"),
        (("results/",), "README.md cannot be read .*: run this in a checkout"),
        (("results/", "README.md"), "limits.md cannot be read"),
    ],
)
def test_outside_of_a_checkout_one_sentence_says_so(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for name in files:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("# A page")
    with pytest.raises(SystemExit, match=message):
        main(tmp_path)
