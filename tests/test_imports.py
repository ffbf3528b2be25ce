"""The import graph of the rooms runs one way, and the core stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "p4lab"

# A room may import from itself and from rooms before it. A new room needs a place here.
ROOMS = [
    "errors",
    "options",
    "packages",
    "files",
    "distributed",
    "results",
    "command",
    "fit",
    "linalg",
    "p4",
    "baselines",
    "flows",
    "problems",
    "estimator",
    "boltzmann",
    "molecules",
    "training",
    "plots",
    "labs",
    "widgets",
    "bench",
    "experiments",
]
# Plots are made from plain records, so they may use less than their place allows.
ONLY = {"plots": {"errors", "plots"}}
# Libraries that display are for one room.
DISPLAY = {"ipywidgets", "anywidget", "IPython"}
DISPLAY_ROOM = "widgets"
# p4lab/__init__.py is the public index: it may import every room, and no room may import from it.
INDEX = "__init__"


def imported(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Line and dotted name of every import, wherever it stands, with relative ones resolved in `package`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = base + (node.module.split(".") if node.module else [])
            for alias in node.names:
                yield node.lineno, [*module, alias.name]


def complaint(room: str, name: list[str], rooms: set[str]) -> str | None:
    """Why a module in `room` may not import `name`, or None if it may."""
    if name[0] in DISPLAY:
        return None if room == DISPLAY_ROOM else f"{name[0]} is for {DISPLAY_ROOM} alone"
    if name[0] != PACKAGE.name or room == INDEX:
        return None
    target = name[1] if len(name) > 1 and name[1] in rooms else INDEX
    if target == INDEX:
        return "imports from the top of the package: name the room instead"
    if ROOMS.index(target) > ROOMS.index(room):
        return f"{room} may not import {target}, which comes after it"
    if target not in ONLY.get(room, ROOMS):
        return f"{room} may import {' and '.join(sorted(ONLY[room]))} only, not {target}"
    return None


def violations(package: Path) -> list[str]:
    """Each import below `package` that breaks a rule, as `file:line: reason`; also rooms without a place."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        room = relative.parts[0].removesuffix(".py")
        if room not in (*ROOMS, INDEX):
            found.append(f"{relative}: room {room} has no place in ROOMS")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        for line, name in imported(tree, [PACKAGE.name, *relative.parts[:-1]]):
            reason = complaint(room, name, set(ROOMS))
            if reason:
                found.append(f"{relative}:{line}: {reason}")
    return found


def test_imports_run_one_way() -> None:
    assert list(PACKAGE.rglob("*.py")), "no modules found"
    assert not violations(PACKAGE)


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        pytest.param("linalg/a.py", "import p4lab.widgets", "linalg may not import widgets", id="backward"),
        pytest.param("linalg/a.py", "from p4lab.p4 import b", "linalg may not import p4", id="backward-from"),
        pytest.param("p4/a.py", "from p4lab import flows", "p4 may not import flows", id="backward-from-top"),
        pytest.param("p4/sub/a.py", "from ...flows import b", "p4 may not import flows", id="backward-relative"),
        pytest.param("p4/a.py", "def f():\n    import p4lab.bench", "p4 may not import bench", id="inside-a-function"),
        pytest.param("errors.py", "from . import linalg", "errors may not import linalg", id="single-file-room"),
        pytest.param("p4/a.py", "from p4lab import P4Inv", "top of the package", id="from-the-index"),
        pytest.param("p4/a.py", "import p4lab", "top of the package", id="the-index"),
        pytest.param("plots/a.py", "from p4lab.linalg import b", "errors and plots only", id="plots-know-records-only"),
        pytest.param("plots/a.py", "import IPython.display", "widgets alone", id="display-outside-widgets"),
        pytest.param("__init__.py", "import anywidget", "widgets alone", id="display-in-the-index"),
        pytest.param("attic/a.py", "", "no place", id="unknown-room"),
    ],
)
def test_a_bad_import_is_found(path: str, source: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(path)
    assert reason in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        pytest.param("p4/a.py", "from p4lab.linalg import b\nfrom ..errors import c\nfrom . import d", id="forward"),
        pytest.param("plots/a.py", "import plotly\nfrom p4lab.errors import b", id="plots"),
        pytest.param("widgets/a.py", "import anywidget, ipywidgets\nimport p4lab.plots", id="widgets"),
        pytest.param("__init__.py", "from p4lab.p4 import P4Inv", id="index"),
    ],
)
def test_a_good_import_passes(path: str, source: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(source)
    assert not violations(tmp_path)


@pytest.mark.parametrize("module", ["p4lab", "p4lab.p4", "p4lab.baselines"])
def test_the_core_is_light(module: str) -> None:
    heavy = ["plotly", "ipywidgets", "anywidget", "IPython", "sklearn", "pandas", "nflows", "geotorch", "geoopt"]
    program = f"import sys, {module}; print(*sorted(set(sys.modules) & set({heavy})))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
