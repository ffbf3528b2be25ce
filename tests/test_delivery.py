"""What people install is complete: built, installed and tried where nothing else is."""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import delivery
import pytest
import yaml
from delivery import EXTRAS, PROJECT, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CORE = {"p4lab", "torch", "numpy", "zuko"}
NAMED = re.compile(r"(?P<package>\w+) is not installed \(.+\): pip install 'p4lab\[(?P<extra>\w+)\]'")
PROVIDERS = metadata.packages_distributions()
NOT_IMPORTED = {
    "jupyterlab": "what the labs are shown in",
    "mdtraj": "its trajectories are taken by molecules.dataset.frames_of, which asks them for coordinates",
}
"""What an extra names without that p4lab imports it."""
OF_DEVELOPERS = {"test", "docs"}
"""Extras for work on p4lab, which the package itself does not need."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was made of it."""
    folder = tmp_path_factory.mktemp("built")
    delivery.build(folder)
    return folder / "dist"


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the core alone."""
    return delivery.environment(tmp_path_factory.mktemp("bare") / "venv", wheel)


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_wheel_is_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in content(wheel) if ".dist-info/" not in name}
    assert names == set(delivery.tracked("p4lab"))
    assert "p4lab/py.typed" in names
    assert {Path(name).suffix for name in names} == {".css", ".js", ".json", ".npz", ".pt", ".py", ".ts", ".typed"}


def test_the_sdist_makes_the_wheel_that_the_checkout_makes(wheel: Path, tmp_path: Path) -> None:
    (direct,) = delivery.build(tmp_path, "--wheel")
    assert direct.name == wheel.name
    assert content(direct) == content(wheel)


# --- the core alone --------------------------------------------------------------------------------------------------

IMPORT_ALL = """
import json, pkgutil, p4lab
found = {}
for module in pkgutil.walk_packages(p4lab.__path__, "p4lab.", onerror=lambda name: None):
    try:
        __import__(module.name)
        found[module.name] = None
    except Exception as error:
        found[module.name] = [type(error).__name__, str(error)]
print(json.dumps(found))
"""


def names_an_extra(kind: str, text: str) -> bool:
    """Whether an error is the one that names an extra of pyproject.toml, which brings what is missing."""
    match = NAMED.fullmatch(text)
    return kind == "MissingPackageError" and bool(match) and brings(match["extra"], match["package"])


def brings(extra: str, module: str) -> bool:
    """Whether an extra installs a module."""
    return bool(delivery.needed(EXTRAS.get(extra, ())).keys() & set(map(canonicalize_name, PROVIDERS.get(module, ()))))


def test_nothing_else_is_in_the_bare_environment(bare: Path, tmp_path: Path) -> None:
    program = """
import importlib.util, json, sys
print(json.dumps([name for name in json.loads(sys.argv[1]) if importlib.util.find_spec(name)]))
"""
    extra = {name for lines in EXTRAS.values() for line in lines for name in modules_of(Requirement(line).name)}
    assert {"pandas", "ipywidgets", "sklearn", "nflows", "openmm", "distributed", "jupyterlab"} <= extra
    assert json.loads(delivery.run(bare, program, tmp_path, json.dumps(sorted(extra)))) == []


def test_the_core_trains_alone(bare: Path, tmp_path: Path) -> None:
    program = """
import torch
import p4lab, p4lab.p4, p4lab.flows, p4lab.linalg, p4lab.baselines, p4lab.bench, p4lab.problems
from p4lab.problems.matrix import MatrixProblem
from p4lab.training import run
from p4lab.labs.directions import DIRECTIONS

layer = p4lab.P4Inv(4, seed=0)
optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
merges = p4lab.MergeSchedule(layer, optimizer, every=2)
for step in range(6):
    optimizer.zero_grad()
    (layer(torch.randn(8, 4)).square().mean() - layer.logabsdet() / 4).backward()
    optimizer.step()
    merges.step()
engine = DIRECTIONS.trainer(DIRECTIONS.config)
engine.run(3)
print(merges.attempts, engine.snapshot().step, p4lab.__version__)
"""
    assert delivery.run(bare, program, tmp_path).split() == ["3", "3", PROJECT["version"]]


def test_each_module_imports_or_names_its_extra(bare: Path, tmp_path: Path) -> None:
    found = json.loads(delivery.run(bare, IMPORT_ALL, tmp_path))
    failed = {name: error for name, error in found.items() if error}
    assert not {name: error for name, error in failed.items() if not names_an_extra(*error)}
    assert set(failed) == {"p4lab.estimator", "p4lab.widgets"}
    assert len(found) > 150


@pytest.mark.slow
def test_each_entry_point_works_or_names_its_extra(bare: Path, tmp_path: Path) -> None:
    program = (Path(__file__).parent / "entry_points.py").read_text()
    found = json.loads(delivery.run(bare, program, tmp_path).splitlines()[-1])
    failed = {name: error for name, error in found.items() if error}
    assert not {name: error for name, error in failed.items() if not names_an_extra(*error)}
    assert {"train digits", "records as a table", "images", "lab digits"} <= set(failed)
    assert {"train a matrix", "lab directions", "task so", "method p4inv"} <= set(found) - set(failed)


# --- each extra ------------------------------------------------------------------------------------------------------


def modules_of(distribution: str) -> set[str]:
    """The modules that a distribution provides."""
    name = canonicalize_name(distribution)
    return {module for module, names in PROVIDERS.items() if name in map(canonicalize_name, names)}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def third_party(tree: ast.AST) -> set[str]:
    """What a module imports of others than Python and p4lab, wherever that stands; imports for types are left out."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).partition(".")[0])
        elif not is_for_types(node):
            names |= third_party(node)
    return names - sys.stdlib_module_names


def required(tree: ast.AST) -> set[tuple[str, str]]:
    """The pairs of module and extra that a module hands to `p4lab.packages.require`, or its room's short name of it."""
    pairs = set()
    loops = {
        node.target.id: [element.value for element in node.iter.elts if isinstance(element, ast.Constant)]
        for node in ast.walk(tree)
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Tuple)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SHORT):
            continue
        first, *rest = node.args
        extra = SHORT[node.func.id] or rest[0].value  # type: ignore[attr-defined]
        for name in loops[first.id] if isinstance(first, ast.Name) else [first.value]:  # type: ignore[attr-defined]
            pairs.add((name.partition(".")[0], extra))
    return pairs


SHORT = {"require": None, "package": "molecules"}
TREES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "p4lab").rglob("*.py"))}


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_module_imports_is_of_the_core_or_required(path: Path) -> None:
    """An optional package is imported by `require`, or in a room whose first lines require it."""
    room = TREES[path.parent / "__init__.py"] if (path.parent / "__init__.py") in TREES else TREES[path]
    extras = {extra for _, extra in required(room)} if path.parent != ROOT / "p4lab" else set()
    foreign = third_party(TREES[path]) - CORE
    assert not {name for name in foreign if not any(brings(extra, name) for extra in extras)}


def test_what_is_required_is_in_the_extra_that_is_named() -> None:
    pairs = {pair for tree in TREES.values() for pair in required(tree)}
    assert len(pairs) > 10
    assert not {(name, extra) for name, extra in pairs if not brings(extra, name)}


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - OF_DEVELOPERS))
def test_an_extra_names_no_more_than_is_needed(extra: str) -> None:
    used = {name for tree in TREES.values() for name in third_party(tree) | {name for name, _ in required(tree)}}
    named = {canonicalize_name(Requirement(line).name) for line in EXTRAS[extra]}
    unused = {name for name in named if not modules_of(name) & used}
    assert unused <= set(NOT_IMPORTED)


def test_what_is_named_without_an_import_is_still_named() -> None:
    named = {canonicalize_name(Requirement(line).name) for lines in EXTRAS.values() for line in lines}
    used = {name for tree in TREES.values() for name in third_party(tree) | {name for name, _ in required(tree)}}
    assert {name for name in NOT_IMPORTED if name in named and not modules_of(name) & used} == set(NOT_IMPORTED)


ENOUGH = {
    "lab": IMPORT_ALL.replace("print(json.dumps(found))", "assert not any(found.values()), found")
    + """
from p4lab.labs.digits import DIGITS
from p4lab.training import DigitsConfig, run, table_bytes
from p4lab.widgets import Dashboard
lab = Dashboard(DIGITS)
lab.touch("step")
lab.figure().to_html()
assert len(table_bytes(run(DigitsConfig(), 1), "parquet")) > 100
assert lab.error is None, lab.error
lab.close()
""",
    "baselines": """
from p4lab.baselines import METHODS
for method in METHODS.values():
    for optimizer in method.optimizers.values():
        optimizer(method.build(4, seed=0), 1e-3)
""",
    "molecules": """
from p4lab.molecules import dataset
from p4lab.molecules.molecule import Molecule
import mdtraj
molecule = Molecule.from_sequence("A")
own = mdtraj.Trajectory(dataset.load().x[:2].numpy(), mdtraj.Topology.from_openmm(molecule.topology))
dataset.frames_of(own, molecule)
""",
    "cluster": """
from p4lab.bench.workers import parallel
from p4lab.errors import ConfigError
try:
    parallel([(abs, (1,), {})], "dask")
except ConfigError as error:
    assert "there is no cluster" in str(error)
""",
}


def test_each_extra_is_tried() -> None:
    assert set(ENOUGH) == set(EXTRAS) - OF_DEVELOPERS


@pytest.mark.slow
@pytest.mark.parametrize("extra", ENOUGH)
def test_an_extra_is_enough(extra: str, wheel: Path, tmp_path: Path) -> None:
    python = delivery.environment(tmp_path / "venv", wheel, [extra])
    delivery.run(python, ENOUGH[extra], tmp_path)


# --- how it is cited -------------------------------------------------------------------------------------------------


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "references"} <= set(citation)
    assert citation["version"] == PROJECT["version"]
    assert citation["title"] == PROJECT["name"]
    assert citation["abstract"] == PROJECT["description"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert citation["keywords"] == PROJECT["keywords"]
    (paper,) = citation["references"]
    assert paper["title"] == "Training Invertible Linear Layers through Rank-One Perturbations"
    assert [author["family-names"] for author in paper["authors"]] == ["Krämer", "Köhler", "Noé"]
    assert paper["url"].endswith("/2010.07033")
