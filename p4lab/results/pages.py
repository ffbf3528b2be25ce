"""Pages with numbers of result files: the README, the pages of results, the limits.

A page is Markdown that reads well as it stands. What comes from a file stands between two comments, and is brought up
to date there (``make pages``):

    takes <!-- steps | 512 | P4Inv -->0.706<!-- --> of the time     results/steps.json: the row with the cell "512", the
                                                                    column "P4Inv"
    <!-- linear.1 | so | nn.Linear, SGD | seconds -->0.0101<!-- --> of the first table, the row with both cells
    <!-- table: steps -->...<!-- end -->                            all tables, with commands, day, machine and notes
    <!-- table: steps.2 -->...<!-- end -->                          the second one

A number in prose has no place of its own: so it is renewed with the file, and the sentence around it can be read again.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from p4lab.errors import DataFileError
from p4lab.results.markdown import bare, markdown
from p4lab.results.record import BY_COMMAND, Result, Table, read

TABLE = re.compile(r"<!-- table: ([\w.]+) -->(?:(?!<!-- table).)*?<!-- end -->", re.DOTALL)
VALUE = re.compile(r"<!-- (?P<place>[\w.]+ \|(?:(?!-->).)+?) -->(?P<text>[^<\n]*)<!-- -->")
WIDTH = 90
"""Characters of a line of a command, about."""
FOLDER = "results"
"""Where result files are."""


def read_all(root: Path) -> dict[str, Result]:
    """Return the results of a checkout by the names of their files.

    Raises:
        DataFileError: one of them is no result file, or there are none here.
    """
    if not (root / FOLDER).is_dir():
        raise DataFileError(f"{root} has no folder {FOLDER!r}: run this in a checkout of p4lab")
    return {path.stem: read(path) for path in sorted((root / FOLDER).glob("*.json"))}


def pages(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield each page of a checkout that takes something from result files, and its Markdown as it should be.

    Raises:
        DataFileError: a comment does not say what is there; or this is no checkout, or a page cannot be read.
    """
    results, docs = read_all(root), root / "docs"
    for path in (root / "README.md", *sorted((docs / "results").glob("*.md")), docs / "limits.md"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataFileError(f"{path} cannot be read ({error}): run this in a checkout of p4lab") from error
        yield path, fill(text, results, path.name)


def fill(text: str, results: Mapping[str, Result], name: str = "the page") -> str:
    """Return a page with the tables and numbers of now between its comments.

    Args:
        text: Markdown.
        results: by name, as of `read_all`.
        name: what messages call the page.

    Raises:
        DataFileError: a comment does not say what is there, is no mark at all or not closed, or opens a line, which
            Markdown would take for HTML.
    """
    # What is left without the marks has no comment: one that is mistyped would never be brought up to date.
    if odd := re.search(r"<!--.*", VALUE.sub("", TABLE.sub("", text))):
        raise DataFileError(
            f"{name}: {odd[0]:.60} is no mark, or is not closed: expected <!-- file | row | column -->?<!-- -->, or "
            "<!-- table: file --> and <!-- end -->"
        )
    if opens := re.search(r"^\s*(?:[-*] +)?<!-- [\w.]+ \|.*", text, re.MULTILINE):
        raise DataFileError(f"{name}: a line begins with {opens[0]:.40}...: put a word before it")
    try:
        filled = VALUE.sub(lambda mark: f"<!-- {mark['place']} -->{find(mark['place'], results)}<!-- -->", text)
        return TABLE.sub(
            lambda mark: f"<!-- table: {mark[1]} -->\n\n{_shown(mark[1], results)}\n\n<!-- end -->", filled
        )
    except DataFileError as error:
        raise DataFileError(f"{name}: {error}") from error


def find(place: str, results: Mapping[str, Result]) -> str:
    """Return a number as it was printed, or a text.

    Args:
        place: file, cells of the row and column, as in ``"steps | 512 | P4Inv"``.
        results: by name.

    Raises:
        DataFileError: there is none, or several.
    """
    file, *cells, column = (part.strip() for part in place.split("|"))
    _, tables = _named(file, results)
    found = [
        bare(row[table.columns.index(column)])
        for table in tables
        if column in table.columns
        for row in table.rows
        if set(cells) <= set(map(bare, row))
    ]
    if len(found) != 1:
        raise DataFileError(f"{place}: expected one cell, found {len(found)}: name row and column as the file does")
    return found[0]


def _named(name: str, results: Mapping[str, Result]) -> tuple[Result, tuple[Table, ...]]:
    """Return a file, and its tables or the one that ``name.2`` names."""
    file, _, number = name.partition(".")
    if file not in results:
        raise DataFileError(f"no result file {file}.json: there are {', '.join(results)}")
    tables = results[file].tables
    if not number:
        return results[file], tables
    if not number.isdecimal() or not 1 <= int(number) <= len(tables):
        raise DataFileError(f"{name}: {file}.json has tables 1 to {len(tables)}")
    return results[file], tables[int(number) - 1 : int(number)]


def _shown(name: str, results: Mapping[str, Result]) -> str:
    result, tables = _named(name, results)
    commands = "\n".join(map(_wrapped, result.commands))
    parts = []
    for i, table in enumerate(tables):
        title = table.title if i == 0 or table.title != tables[i - 1].title else ""
        parts += [f"**{title}**"] * bool(title) + [markdown(table), *table.notes]
    source = "" if result.written == BY_COMMAND else f"; {result.written}"
    early = "" if result.complete else " The command ended early."
    return "\n\n".join([f"```sh\n{commands}\n```", *parts, f"*Measured: {result}{source}.{early}*"])


def _wrapped(command: str) -> str:
    """Return a command line as one that a page is wide enough for, broken between options."""
    first, *options = command.split(" --")
    lines = [first]
    for option in options:
        if len(lines[-1]) + len(option) > WIDTH:
            lines.append("   ")
        lines[-1] += f" --{option}"
    return " \\\n".join(lines)
