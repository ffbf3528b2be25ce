"""While a command runs: the tables that it prints go to a result file, too."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO

from p4lab.errors import DataFileError
from p4lab.files import writable
from p4lab.results.markdown import tables_in
from p4lab.results.record import Result, Table, read, write


class _Recorder(io.TextIOBase):
    """Hands on what is written, and keeps the tables in it."""

    def __init__(self, out: TextIO, path: Path, command: str) -> None:
        self.out, self.path, self.command = out, path, command
        self.text = ""
        self.tables: tuple[Table, ...] = ()

    def write(self, text: str) -> int:
        self.out.write(text)
        self.text += text
        found = tables_in(self.text)
        if found != self.tables:
            self.tables = found
            self.keep(complete=False)
        return len(text)

    def flush(self) -> None:
        self.out.flush()

    def keep(self, complete: bool) -> None:
        write(Result.now(self.command, self.tables, complete), self.path)


@contextmanager
def recorded(path: Path, command: str) -> Iterator[None]:
    """Keep the tables that are printed meanwhile in a result file, each as soon as it is there.

    What ends early leaves a file that says so (``"complete": false``); a file of that name stays until the first table.

    Args:
        path: the file.
        command: the command line, for the file.

    Raises:
        FileError: the file cannot be written, which is known before anything is done.
        DataFileError: there is a file of that name that is no result file; or there was no table at all.
    """
    if (target := writable(path, folders=True)).exists():
        try:
            read(target)
        except DataFileError as error:
            raise DataFileError(f"{path} is there, and is no result file: choose another name. ({error})") from error
    recorder = _Recorder(sys.stdout, target, command)
    with redirect_stdout(recorder):
        yield
    if not recorder.tables:
        raise DataFileError(f"{command} printed no table, so that there is no {path.name}: leave out --results")
    recorder.keep(complete=True)
