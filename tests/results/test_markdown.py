"""Tables from Markdown: titles, notes and numbers."""

from __future__ import annotations

import pytest

from p4lab.bench.tables import table
from p4lab.results import Number, Table, cell, markdown, tables_in


@pytest.mark.parametrize(
    ("printed", "number", "least", "most"),
    [
        ("0.706", 0.706, None, None),
        ("**0.028** [0.026, 0.038]", 0.028, 0.026, 0.038),
        ("-216.982 [-217.1, -216.9]", -216.982, -217.1, -216.9),
        ("−216.982", -216.982, None, None),
        ("1,635", 1635, None, None),
        ("~ 15.5", 15.5, None, None),
        ("8e-05 [6e-05, 1e-04]", 8e-5, 6e-5, 1e-4),
        ("1.216 [1.213, 1.218] (785)", 1.216, 1.213, 1.218),
        ("2.11 ± 0.04 [2.07, 2.24]", 2.11, 2.07, 2.24),
        ("48 ms (27 to 72 ms)", 48, None, None),
        ("9.1 / s", 9.1, None, None),
    ],
)
def test_a_cell_with_a_number(printed: str, number: float, least: float | None, most: float | None) -> None:
    assert cell(printed) == Number(number, printed, least, most)


@pytest.mark.parametrize(
    "printed", ["5/5", "> 20 (loss 2.2e-03)", "10 of 10", "88 to 93", "12.5, 23.5", "nan", "", "-"]
)
def test_a_cell_without(printed: str) -> None:
    assert cell(printed) == printed


PRINTED = f"""2026-11-30, a machine

{table(["ahead of", "any name"], [[1, 2]])}

### Steps, batch 512

{table(["d", "x"], [[2, 0.5], [4, ""]])}

A note behind it.

{table(["d", "merge"], [["", 1.25]])}

### Race

**so**, d = 64

Before the table.

{table(["method"], [["dense"]])}

**ica**, d = 63

{table(["method"], [["plu"]])}
"""


def test_names_and_notes_go_to_their_tables() -> None:
    first, *found = tables_in(PRINTED)
    assert first.title == ""
    assert [one.title for one in found] == ["Steps, batch 512"] * 2 + ["Race: so, d = 64", "Race: ica, d = 63"]
    assert [one.notes for one in found] == [("A note behind it.",), (), ("Before the table.",), ()]
    assert found[0].rows == ((Number(2, "2"), Number(0.5, "0.5")), (Number(4, "4"), ""))
    assert found[1].rows == (("", Number(1.25, "1.25")),)


def test_a_table_is_printed_as_it_was() -> None:
    one = Table("", ("d", "x"), ((Number(2, "2"), Number(0.5, "**0.5**")), ("", "-")))
    assert tables_in(f"### t\n\n{markdown(one)}")[0].rows == one.rows
