"""Result files: what a command printed, with where and when; and the pages that are made of them."""

from p4lab.results.markdown import cell, markdown, tables_in
from p4lab.results.pages import FOLDER, VALUE, fill, find, pages, read_all
from p4lab.results.record import MIGRATED, Machine, Number, Result, Table, Versions, read, write
from p4lab.results.recording import recorded

__all__ = [
    "FOLDER",
    "MIGRATED",
    "VALUE",
    "Machine",
    "Number",
    "Result",
    "Table",
    "Versions",
    "cell",
    "fill",
    "find",
    "markdown",
    "pages",
    "read",
    "read_all",
    "recorded",
    "tables_in",
    "write",
]
