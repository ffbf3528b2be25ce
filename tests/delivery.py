"""A wheel and an sdist of the checkout, and environments that have no more than some extras need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name != "all"}
"""What each extra but that of everything names."""


def tracked(folder: str = ".") -> list[str]:
    """What git tracks below a folder, or would with the next `git add`: paths from the root of the checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(name for name in names if (ROOT / name).is_file())


def build(folder: Path, *kinds: str, source: Path | None = None) -> list[Path]:
    """Build the checkout (or ``source``) without a network, and return the files: an sdist and, made of it, a wheel.

    Args:
        folder: an empty one to work in.
        kinds: "--wheel" for a wheel that is made of the files directly.
        source: a folder with a pyproject.toml (None: a copy of what git tracks).
    """
    if source is None:
        source = folder / "source"
        for name in tracked():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", folder / "dist", source]
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return sorted((folder / "dist").iterdir())


def needed(lines: Iterable[str]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that requirements need, and all that those need, by name.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in lines]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        distribution = found.setdefault(name, metadata.distribution(name))
        # A package is asked for what it needs at any rate (as the extra ""), and for each of the extras once.
        for extra in {"", *requirement.extras} - {asked for known, asked in seen if known == name}:
            seen.add((name, extra))
            needs = map(Requirement, distribution.requires or ())
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return found


def modules(distribution: metadata.Distribution) -> set[str]:
    """What of a distribution lies in site-packages: the first parts of its files' paths."""
    first = {file.parts[0] for file in distribution.files or ()}
    return first - {"..", "__pycache__"}


def environment(folder: Path, wheel: Path, extras: Iterable[str] = ()) -> Path:
    """Make a virtual environment with p4lab and what it and some of its extras need; return its interpreter.

    The packages are links to those of this environment: what is not needed cannot be imported. p4lab itself is
    installed by pip, from the wheel.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    command = [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    for distribution in needed(lines_of(extras)).values():
        for name in modules(distribution):
            link, target = site / name, Path(str(distribution.locate_file(name)))
            if not link.exists():
                link.symlink_to(target, target.is_dir())
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, capture_output=True, text=True, check=True)
    return python


def lines_of(extras: Iterable[str]) -> Iterator[str]:
    """What p4lab and some of its extras name."""
    yield from PROJECT["dependencies"]
    for extra in extras:
        yield from EXTRAS[extra]


def run(python: Path, program: str, folder: Path, *arguments: str) -> str:
    """Return what a program prints in an environment, away from the checkout.

    Raises:
        AssertionError: it fails, with what it says.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [python, "-c", program, *arguments]
    result = subprocess.run(command, cwd=folder, env=inherited, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout
