"""The API reference: a page for each module, grouped by room, made from what the rooms export.

A room that has ``__all__`` documents these names under the path by which one imports them, on the page of the module
that defines them. A room without one documents each module's own public names.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
FIRST = ("p4", "flows", "baselines", "linalg", "training", "problems", "labs", "widgets", "plots", "molecules")
"""Rooms that come first, in this order."""
INTERNAL = {"command", "fit", "options", "packages"}
"""Modules that serve other rooms only."""
WHOLE = (
    "p4lab.flows.zuko",
    "p4lab.labs.numbers",
    "p4lab.plots.layers",
    "p4lab.plots.gallery",
    "p4lab.problems.energies",
)
"""Modules that are meant to be imported from by themselves, in rooms that export other names."""
LAYERS = ["    options:", "      inherited_members: true"]
"""Layers have most of their methods from classes that nobody looks up."""
Named = griffe.Object | griffe.Alias


@dataclass
class Page:
    """A page of the reference.

    Attributes:
        module: the module that defines what stands on it.
        names: paths of the objects, as one imports them.
    """

    module: griffe.Module
    names: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Return where the page is among the pages."""
        parts = self.module.path.split(".")[1:]
        return f"api/{'/'.join(parts)}.md" if len(parts) > 1 else f"api/{parts[0]}/{parts[0]}.md"


@cache
def package() -> griffe.Module:
    """Return the package as it is written; nothing is imported."""
    return griffe.load("p4lab", search_paths=[str(ROOT)])


@cache
def rooms() -> tuple[str, ...]:
    """Return the names of all rooms."""
    found = {one.name for one in package().members.values() if not one.is_alias and one.is_module} - INTERNAL
    return (*FIRST, *sorted(name for name in found - set(FIRST) if not name.startswith("_")))


def own(module: griffe.Module) -> list[str]:
    """Return the paths of a module's own public names that have a docstring."""
    members = module.members.values()
    return [
        one.path
        for one in members
        if not one.is_alias and not one.is_module and not one.name.startswith("_") and one.has_docstring
    ]


def modules(room: griffe.Module) -> list[griffe.Module]:
    """Return the modules of a room."""
    found = [one for one in room.members.values() if not one.is_alias and isinstance(one, griffe.Module)]
    return [one for one in found if not one.name.startswith("_")] or [room]


def exported(room: griffe.Module) -> list[str]:
    """Return the paths of the names that a room exports; a module of the same name stands in the way of some."""
    paths = []
    for name in map(str, room.exports or ()):
        thing = room[name].final_target if room[name].is_alias else room[name]
        paths.append(f"{thing.path}.{name}" if thing.is_module else f"{room.path}.{name}")
    return paths


@cache
def pages(name: str) -> tuple[Page, ...]:
    """Return the pages of a room."""
    room = package()[name]
    found = {module.path: Page(module) for module in modules(room)}
    for path in exported(room):
        thing = package()[path.removeprefix("p4lab.")]
        target = thing.final_target if thing.is_alias else thing
        if target.module.path in found:  # else another room has it
            found[target.module.path].names.append(path)
    for module in modules(room):
        if room.exports is None or module.path in WHOLE:
            found[module.path].names += own(module)
    for page in found.values():
        order = list(page.module.members)
        page.names.sort(key=lambda path: order.index(path.rpartition(".")[2]))
    return tuple(found[path] for path in sorted(found) if found[path].names)


def public() -> Iterator[str]:
    """Yield the path of each public name."""
    yield from exported(package())
    for room in rooms():
        for page in pages(room):
            yield from page.names


def thing_at(path: str) -> Named:
    """Return the object at a path."""
    return package()[path.removeprefix("p4lab.")]


def first_line(thing: Named) -> str:
    """Return the sentence that opens a docstring; what a name stands for, where there is none."""
    return thing.docstring.value.splitlines()[0] if thing.docstring else ""


def table(paths: list[str]) -> list[str]:
    """Return a list of names, each linked, with its sentence."""
    lines = []
    for path in paths:
        lines += [f"[`{path.rpartition('.')[2]}`][{path}]", f":   {first_line(thing_at(path)) or 'A value.'}", ""]
    return lines


def index_page(name: str) -> str:
    """Return the first page of a room: its modules, and what is in them."""
    room = package()[name]
    intro = room.docstring.value.strip() if room.docstring else ""
    lines = [f"# p4lab.{name}", "", intro if len(pages(name)) > 1 else intro.splitlines()[0], ""]
    for page in pages(name):
        link = page.path.removeprefix(f"api/{name}/")
        lines += [f"## [{page.module.name}]({link})", ""]
        if page.module is not room:
            lines += [first_line(page.module), ""]
        lines += table(page.names)
    return "\n".join(lines)


def module_page(page: Page) -> str:
    """Return the page of a module."""
    about = page.module.docstring.value if page.module.docstring else ""
    lines = [f"# {page.module.path}", "", about, ""]
    for path in page.names:
        lines += [f"::: {path}", *(LAYERS if page.module.path.startswith("p4lab.p4.") else []), ""]
    return "\n".join(lines)


def start_page() -> str:
    """Return the first page of the reference."""
    lines = ["# API reference", "", "What `import p4lab` brings, and below it the rooms of the package.", ""]
    lines += table([path for path in exported(package()) if thing_at(path).docstring])
    lines += ["## Rooms", ""]
    for name in rooms():
        lines += [f"[`p4lab.{name}`]({name}/index.md)", f":   {first_line(package()[name])}", ""]
    return "\n".join(lines)


def on_config(config: Any) -> Any:
    """Put the reference into the navigation."""
    entries: list[Any] = [{"Overview": "api/index.md"}]
    for name in rooms():
        inside = [{page.module.name: page.path} for page in pages(name)]
        entries.append({name: [f"api/{name}/index.md", *inside]})
    config.nav.append({"Reference": entries})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    made = {"api/index.md": start_page()}
    for name in rooms():
        made[f"api/{name}/index.md"] = index_page(name)
        made |= {page.path: module_page(page) for page in pages(name)}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


# --- names in backticks are links -------------------------------------------------------------------------------------

SKIPPED = re.compile(r"(<pre\b.*?</pre>|<a\b.*?</a>|<h[1-6]\b.*?</h[1-6]>|<autoref\b.*?</autoref>)", re.DOTALL)
NAME = re.compile(r"<code>([A-Za-z_][\w.]*)</code>")


@cache
def targets() -> dict[str, str]:
    """Return which path a name in backticks means, where it means only one."""
    found: dict[str, set[str]] = {}
    for path in public():
        thing = thing_at(path)
        canonical = thing.final_target.path if thing.is_alias else thing.path
        members = [f".{one}" for one in thing.all_members if one[0] != "_"] if thing.is_class else []
        for member in ("", *members):
            for name in {path, canonical, path.rpartition(".")[2]}:
                found.setdefault(name + member, set()).add(canonical + member)
    for room in rooms():
        found[f"p4lab.{room}"] = {f"p4lab.{room}"}
    return {name: min(paths) for name, paths in found.items() if len(paths) == 1}


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Link the names of p4lab that stand in backticks."""

    def link(found: re.Match[str]) -> str:
        target = targets().get(found[1])
        return f'<autoref identifier="{target}" optional>{found[0]}</autoref>' if target else found[0]

    parts = SKIPPED.split(html)
    return "".join(part if i % 2 else NAME.sub(link, part) for i, part in enumerate(parts))
