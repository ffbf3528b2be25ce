"""Bring README.md, docs/results and docs/limits.md up to date with results/*.json, in the checkout that this runs in.

python -m p4lab.results
"""

import sys
from pathlib import Path

from p4lab.errors import P4Error
from p4lab.files import write_whole
from p4lab.results.pages import pages


def main(root: Path) -> None:
    """Write each page that has changed, and say so; a `P4Error` ends the process with what it says."""
    try:
        for path, text in [*pages(root)]:
            if text != path.read_text(encoding="utf-8"):
                write_whole(path, text.encode())
                print(f"{path.relative_to(root)} is up to date now: read again what it says about the numbers")
    except P4Error as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(Path.cwd())
