"""Packaging: the files that repeat one another agree, and the repository carries nothing that it should not."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
MAX_BYTES = 3_000_000

# Written in pieces, so that this file does not match itself.
MACHINE_PATHS = ["/" + name + "/" for name in ("root", "work")]
MACHINE_PATHS += ["/opt/" + name for name in ("wheels", "pypi")] + ["file:" + "///"]
INDEX_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pypi", "python", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("registry", "npmjs", "org"),
        ("anaconda", "org"),
        ("deb", "debian", "org"),
    )
]


def direct_requirements() -> list[Requirement]:
    """Every requirement that pyproject.toml names, without the extras that refer to p4lab itself."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def pins() -> dict[str, str]:
    """Name to version, from constraints.txt; a line of any other form is an error."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name, separator, version = line.partition("==")
        assert separator, f"constraints.txt: not a plain pin: {line!r}"
        assert re.fullmatch(r"[\w.!]+", version), f"constraints.txt: a plain version without local label, not {line!r}"
        found[canonicalize_name(name)] = version
    return found


def tracked_files() -> list[Path]:
    """What git tracks, or would with the next `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("git is not installed")
    except subprocess.CalledProcessError as error:
        if not (ROOT / ".git").exists():
            pytest.skip("not a git checkout")
        raise AssertionError(error.stderr) from error
    files = [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]
    assert files, "git lists no files"
    return files


def text_hits(paths: list[Path], needles: list[str]) -> list[str]:
    """`file:line: needle` for each needle in each file that is text."""
    hits = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            hits += [f"{path.name}:{number}: {needle}" for needle in needles if needle in line]
    return hits


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda requirement: requirement.name)
def test_direct_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    version = pins().get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} has no pin: run `make constraints`"
    assert requirement.specifier.contains(version), f"pin {version} is outside {requirement}"


@pytest.mark.parametrize("name", sorted(pins()))
def test_pin_supports_the_lowest_python(name: str) -> None:
    """Debian 12 has Python 3.11.2, and a pin that wants 3.11.5 sends pip on a search without end."""
    (lowest,) = SpecifierSet(PROJECT["requires-python"])
    # The pinned version is the installed one after `make test`; of another version nothing is known here.
    try:
        installed = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    if Version(installed["Version"]).public != pins()[name]:
        pytest.skip(f"{name} {installed['Version']} is installed, not the pinned {pins()[name]}")
    supported = SpecifierSet(installed.get("Requires-Python") or "")
    assert supported.contains(f"{lowest.version}.0"), f"{name} {pins()[name]} needs Python {supported}"


def test_torch_pin() -> None:
    assert pins()["torch"] == "2.13.0"


def test_all_extra_contains_every_other_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(extras) - {"all"}


def test_environment_yml_leaves_everything_to_pyproject() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip_section,) = [entry for entry in dependencies if isinstance(entry, dict)]
    python, pip = [entry for entry in dependencies if isinstance(entry, str)]
    assert pip_section == {"pip": ["-c constraints.txt", "-e .[all]"]}
    assert pip == "pip"
    # Binder chooses its base image by `python=X.Y`, and the pins were made under the lowest Python.
    (lowest,) = SpecifierSet(PROJECT["requires-python"])
    assert lowest.operator == ">="
    assert python == f"python={lowest.version}"


@pytest.mark.parametrize("target", ["lab", "test", "bench"])
def test_make_target_exists_and_sets_up_first(target: str) -> None:
    assert re.search(rf"^{target}: \$\(STAMP\)", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_minimum_python_is_the_same_everywhere() -> None:
    (lowest,) = SpecifierSet(PROJECT["requires-python"])
    major, minor = lowest.version.split(".")
    assert f"sys.version_info < ({major}, {minor})" in (ROOT / "Makefile").read_text()
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{major}{minor}"


def test_changelog_has_an_entry_for_this_version() -> None:
    heading = rf"^## \[{re.escape(PROJECT['version'])}\] - \d{{4}}-\d\d-\d\d$"
    assert re.search(heading, (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_data_files_are_packaged() -> None:
    declared = PYPROJECT["tool"]["setuptools"]["package-data"]
    packaged = {
        path
        for package, patterns in declared.items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    data = {path for path in tracked_files() if path.is_relative_to(ROOT / "p4lab") and path.suffix != ".py"}
    assert data <= packaged, f"not declared in package-data: {sorted(map(str, data - packaged))}"


def test_no_tracked_file_is_large() -> None:
    large = {path.name: path.stat().st_size for path in tracked_files() if path.stat().st_size > MAX_BYTES}
    assert not large


def test_no_machine_paths_or_index_hosts() -> None:
    assert not text_hits(tracked_files(), MACHINE_PATHS + INDEX_HOSTS)


@pytest.mark.parametrize("needle", MACHINE_PATHS + INDEX_HOSTS)
def test_text_hits_finds(needle: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"first line\nsee {needle}here\n")
    assert f"page.md:2: {needle}" in text_hits([path], MACHINE_PATHS + INDEX_HOSTS)
