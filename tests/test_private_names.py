"""Private names stay in their module: no room reads another's, and tests use what users use. The rest is counted down.

A private name begins with one underscore. Counted are those of p4lab that somebody else imports, reads as an attribute
of anything but ``self`` and ``cls``, or spells for ``getattr``, monkeypatch and the like.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "p4lab"
PRIVATE = re.compile(r"_[A-Za-z]\w*")
DOTTED = re.compile(r"(?:\w+\.)*(_[A-Za-z]\w*)")
FOREIGN = frozenset(dir(nn.Module())) | {"_repr_mimebundle_"}
"""Names of torch and of notebooks that p4lab's classes fill in, such as ``_apply``, are not p4lab's own."""
SPELLING = {"getattr", "setattr", "delattr", "hasattr", "attrgetter", "methodcaller", "patch", "object"}
"""Functions and methods that take a name as a string."""

ALLOWED: dict[str, int] = {"tests/attentive_page.py": 6, "tests/training": 2}
"""How many are left in each directory of tests, and in each room; what is not named here has none.

Whoever mends some writes the smaller number.
"""
ALLOWED_WITHIN: dict[str, int] = {}
"""How many names cross from one module to another inside of one room, which is nobody's concern but the room's."""


def parsed(root: Path) -> dict[str, ast.Module]:
    """All modules of the package and its tests, by their path relative to the repository."""
    return {
        path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8"), str(path))
        for folder in (PACKAGE, "tests")
        for path in sorted((root / folder).rglob("*.py"))
    }


def own(node: ast.expr) -> bool:
    """Whether an expression is the object itself, its class, or what it inherits."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in ("super", "type") and all(map(own, node.args))
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def defined(tree: ast.Module) -> set[str]:
    """The private names that a module gives to functions, classes, variables of its own and attributes of objects."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and own(node.value):
            names.add(node.attr)
    scopes = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for statement in (statement for scope in scopes for statement in scope.body):
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return {name for name in names if PRIVATE.fullmatch(name)} - FOREIGN


def spelled(node: ast.AST) -> Iterator[ast.Constant]:
    """The strings with which an expression may name an attribute of somebody else."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name), args=[first, *_] as arguments) if (
            name in SPELLING
        ):
            if not own(first):
                yield from (argument for argument in arguments if isinstance(argument, ast.Constant))
        case ast.Subscript(value=ast.Attribute(value=owner, attr="__dict__"), slice=ast.Constant() as key):
            if not own(owner):
                yield key


def used(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each private name that a module imports, reads as an attribute, or spells in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            parts = [part for name in [*module, *(alias.name for alias in node.names)] for part in name.split(".")]
            yield from ((node.lineno, part) for part in parts if PRIVATE.fullmatch(part))
        elif isinstance(node, ast.Attribute) and not own(node.value) and PRIVATE.fullmatch(node.attr):
            yield node.lineno, node.attr
        else:
            matches = (DOTTED.fullmatch(str(string.value)) for string in spelled(node))
            yield from ((node.lineno, match[1]) for match in matches if match)


def place(path: str) -> str:
    """The directory of tests, or the room, that a module belongs to; a module beside them is one by itself."""
    return "/".join(Path(path).parts[:2])


def crossings(modules: Mapping[str, ast.Module]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """By place, the private names of the package that come from another one, and from another module of the same."""
    homes: dict[str, set[str]] = defaultdict(set)
    for path, tree in modules.items():
        if path.startswith(f"{PACKAGE}/"):
            for name in defined(tree) | {Path(path).stem}:
                homes[name].add(path)
    across: dict[str, list[str]] = defaultdict(list)
    within: dict[str, list[str]] = defaultdict(list)
    for path, tree in modules.items():
        here = defined(tree)
        for line, name in used(tree):
            if name in homes and name not in here:
                near = any(place(home) == place(path) for home in homes[name])
                (within if near else across)[place(path)].append(f"{path}:{line}: {name}")
    return across, within


ACROSS, WITHIN = crossings(parsed(ROOT))


def count(where: str, names: list[str], allowed: int) -> str | None:
    """What is to do about a number that is not the allowed one."""
    if len(names) > allowed:
        return "\n".join([f"{where} uses {len(names)} private names of others, {allowed} are allowed:", *names])
    return None if len(names) == allowed else f"{where} uses {len(names)} private names, write that for {allowed}"


@pytest.mark.parametrize("where", sorted(ACROSS.keys() | ALLOWED.keys()) or [PACKAGE])
def test_no_private_name_is_used_elsewhere(where: str) -> None:
    assert count(where, ACROSS.get(where, []), ALLOWED.get(where, 0)) is None


@pytest.mark.parametrize("where", sorted(WITHIN.keys() | ALLOWED_WITHIN.keys()) or [PACKAGE])
def test_private_names_that_cross_modules_of_a_room_are_counted(where: str) -> None:
    assert count(where, WITHIN.get(where, []), ALLOWED_WITHIN.get(where, 0)) is None


HOME = """
_LIMIT = 3
class Layer:
    _kind: int = 1
    def __init__(self):
        self._seed = 0
    def _check(self): ...
"""


@pytest.mark.parametrize(
    ("path", "source", "name"),
    [
        pytest.param("tests/p4/test_a.py", "from p4lab.p4.layer import _LIMIT", "_LIMIT", id="import"),
        pytest.param("p4lab/flows/a.py", "import p4lab.p4._hidden", "_hidden", id="module"),
        pytest.param("p4lab/flows/a.py", "from p4lab.p4._hidden import f", "_hidden", id="from a module"),
        pytest.param("tests/p4/test_a.py", "layer._seed", "_seed", id="attribute"),
        pytest.param("tests/p4/test_a.py", "a.b()._kind = 2", "_kind", id="class attribute"),
        pytest.param("p4lab/flows/a.py", "def f(self, layer): layer._check()", "_check", id="method"),
        pytest.param("tests/test_a.py", "monkeypatch.setattr(layer, '_check', 1)", "_check", id="monkeypatch"),
        pytest.param("tests/test_a.py", "patch('p4lab.p4.layer._LIMIT', 1)", "_LIMIT", id="dotted string"),
        pytest.param("p4lab/flows/a.py", "layer.__dict__['_seed'] = 1", "_seed", id="dictionary"),
    ],
)
def test_a_private_name_of_another_place_is_seen(path: str, source: str, name: str) -> None:
    sources = {"p4lab/p4/layer.py": HOME, "p4lab/p4/_hidden.py": "", path: source}
    across, within = crossings({at: ast.parse(text) for at, text in sources.items()})
    assert (dict(across), dict(within)) == ({place(path): [f"{path}:1: {name}"]}, {})


@pytest.mark.parametrize(
    ("path", "source"),
    [
        pytest.param("p4lab/flows/a.py", "def f(self): return self._seed, super()._check()", id="inherited"),
        pytest.param("p4lab/flows/a.py", "_LIMIT = 1\nimport b\nb._LIMIT", id="a name of one's own"),
        pytest.param("tests/test_a.py", "model._modules, torch._C, point._replace(x=1)", id="names of others"),
        pytest.param("tests/test_a.py", "layer.__dict__, layer.__init__", id="dunder names"),
        pytest.param("tests/test_a.py", "name.removesuffix('_kind'), f'{name}_kind'", id="parts of words"),
    ],
)
def test_other_names_are_free(path: str, source: str) -> None:
    assert crossings({"p4lab/p4/layer.py": ast.parse(HOME), path: ast.parse(source)}) == ({}, {})


def test_a_private_name_inside_of_a_room_is_counted_apart() -> None:
    sources = {"p4lab/p4/layer.py": HOME, "p4lab/p4/a.py": "from p4lab.p4.layer import _LIMIT"}
    assert crossings({at: ast.parse(text) for at, text in sources.items()}) == (
        {},
        {"p4lab/p4": ["p4lab/p4/a.py:1: _LIMIT"]},
    )


@pytest.mark.parametrize(("allowed", "text"), [(1, "are allowed:\na\nb"), (2, None), (3, "write that for 3")])
def test_a_count_is_exact(allowed: int, text: str | None) -> None:
    verdict = count("tests/p4", ["a", "b"], allowed)
    assert (verdict is None) == (text is None)
    assert text is None or text in str(verdict)
