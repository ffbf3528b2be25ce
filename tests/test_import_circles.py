"""No module of p4lab imports itself by way of others: not when it is loaded, and but for a few not later either.

That the rooms are in order is tested by `test_imports`; this is about modules, within a room, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "p4lab"

# Circles by way of an import inside of a function or for types alone. Shrink this list; nothing may be added.
LATER: set[frozenset[str]] = set()


def is_for_types(node: ast.AST) -> bool:
    """Whether a statement is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST, later: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run when a module is loaded; with ``later`` those of functions, and for types, as well."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif later or not (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_for_types(node)):
            yield from statements(node, later)


def modules(package: Path) -> dict[str, Path]:
    """Files by the dotted name of their module; a package has the name of its folder."""
    paths = {path: path.relative_to(package.parent).with_suffix("").parts for path in package.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for path, parts in paths.items()}


def graph(package: Path, later: bool) -> dict[str, set[str]]:
    """What each module imports of the package. The packages that a module lies in are no import of it."""
    files = modules(package)
    edges: dict[str, set[str]] = {}
    for name, path in files.items():
        edges[name] = set()
        inside = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in statements(ast.parse(path.read_text(encoding="utf-8")), later):
            if isinstance(node, ast.Import):
                candidates = [alias.name for alias in node.names]
            else:
                base = inside[: len(inside) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                # `from package import module` names a module, `from module import name` does not.
                candidates = [full if (full := f"{source}.{a.name}") in files else source for a in node.names]
            edges[name] |= {target for target in candidates if target in files and target != name}
    return edges


def circles(edges: dict[str, set[str]]) -> set[frozenset[str]]:
    """The groups of modules that reach each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: set[frozenset[str]] = set()

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(edges[name]):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            place = stack.index(name)
            group = frozenset(stack[place:])
            del stack[place:]
            if len(group) > 1:
                groups.add(group)

    for name in edges:
        if name not in index:
            visit(name)
    return groups


def test_no_circle_when_modules_are_loaded() -> None:
    edges = graph(PACKAGE, later=False)
    assert sum(map(len, edges.values())) > 500, "hardly any imports seen"
    assert circles(edges) == set()


def test_circles_of_later_imports_are_listed() -> None:
    present = circles(graph(PACKAGE, later=True))
    assert not present - LATER, "a new circle"
    assert not LATER - present, "no circle any more: take it off the list"


@pytest.mark.parametrize(
    ("files", "at_load", "later"),
    [
        pytest.param({"a": "from pack.b import x", "b": "import pack.a"}, 1, 1, id="two"),
        pytest.param({"a": "from pack import b", "b": "from . import c", "c": "from .a import x"}, 1, 1, id="three"),
        pytest.param({"a": "from pack import b", "b": "import os"}, 0, 0, id="one-way"),
        pytest.param({"a": "import pack.b", "b": "def f():\n    import pack.a"}, 0, 1, id="inside-a-function"),
        pytest.param({"a": "import pack.b", "b": "if TYPE_CHECKING:\n    import pack.a"}, 0, 1, id="for-types"),
        pytest.param({"a": "import pack.b", "b": "class C:\n    import pack.a"}, 1, 1, id="inside-a-class"),
        pytest.param({"a": "import pack.b", "b": "try:\n    import pack.a\nfinally:\n    pass"}, 1, 1, id="in-try"),
        pytest.param({"__init__": "from pack.a import x", "a": "from pack.b import x", "b": ""}, 0, 0, id="index"),
    ],
)
def test_a_circle_is_found(files: dict[str, str], at_load: int, later: int, tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, source in files.items():
        (package / f"{name}.py").write_text(source)
    assert [len(circles(graph(package, kind))) for kind in (False, True)] == [at_load, later]
