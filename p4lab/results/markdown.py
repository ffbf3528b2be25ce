"""Tables from Markdown, and to it: what commands print is what their result files hold.

A heading (``### ...``) or a paragraph that begins in bold names the tables behind it. Paragraphs between a name and
the next one are notes of the table before them, or, ahead of the first table, of that one. What stands before the
first name, such as the machine, belongs to no table.
"""

import re
from dataclasses import replace

from p4lab.results.record import Cell, Number, Table

_DIGITS = r"[+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[+-]?\d+)?"
_NUMBER = re.compile(
    rf"(?:~ )?(?P<number>{_DIGITS})"
    r"(?: ?(?:%|/ ?s|[A-Za-zµ]+))?"  # a unit
    rf"(?: ± {_DIGITS})?(?: \[(?P<least>{_DIGITS}), (?P<most>{_DIGITS})\])?(?: \(.*\))?"
)


def cell(printed: str) -> Cell:
    """Return a printed cell: a `Number` if it begins with one, perhaps with a unit, an error, [least, most], (more).

    Example:
        >>> cell("**0.028** [0.026, 0.038]").least
        0.026
        >>> cell("5/5"), cell("> 20 (loss 2.2e-03)")
        ('5/5', '> 20 (loss 2.2e-03)')
    """
    found = _NUMBER.fullmatch(printed.replace("**", ""))
    if found is None:
        return printed
    least, most = (None if text is None else _amount(text) for text in found.group("least", "most"))
    return Number(_amount(found["number"]), printed, least, most)


def bare(one: Cell) -> str:
    """Return what a cell says in the first place: its number as it was printed, or its text; no bold."""
    text = (one.printed if isinstance(one, Number) else one).replace("**", "")
    found = _NUMBER.fullmatch(text)
    return found["number"] if found else text


def _amount(text: str) -> float:
    plain = text.replace(",", "").replace("−", "-")
    return int(plain) if plain.lstrip("+-").isdecimal() else float(plain)


def tables_in(text: str) -> tuple[Table, ...]:
    """Return the tables in a text, in their order."""
    tables: list[Table] = []
    heading, name, behind = "", "", False
    notes: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = block.splitlines()
        if len(lines) > 1 and lines[0].startswith("|") and not set(lines[1]) - set("|-: "):
            columns, *rows = map(_cells, (lines[0], *lines[2:]))
            title = ": ".join(filter(None, (heading, name)))
            cells = tuple(tuple(cell(one) for one in row) for row in rows)
            tables.append(Table(title, columns, cells, tuple(notes)))
            notes, behind = [], True
        elif block.startswith("#") or block.startswith("**"):
            if block.startswith("#"):
                heading, name = block.lstrip("# "), ""
            else:
                name = block.replace("**", "")
            notes, behind = [], False
        elif behind:
            tables[-1] = replace(tables[-1], notes=(*tables[-1].notes, block))
        elif heading or name:
            notes.append(block)
    return tuple(tables)


def _cells(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.strip().removeprefix("|").removesuffix("|").split("|"))


def markdown(table: Table) -> str:
    """Return the rows as a Markdown table."""
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    texts = ([one.printed if isinstance(one, Number) else one for one in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in texts)
