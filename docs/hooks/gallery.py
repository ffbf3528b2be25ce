"""The gallery: a card for each lab, and the replays that docs/replays.py has made, if it has."""

import ast
from functools import cache
from html import escape
from typing import Any

import griffe
from mkdocs.structure.files import File
from reference import ROOT, package

PLACE = "<!-- the cards -->"


@cache
def replays() -> Any:
    """Return docs/replays.py as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("replays", ROOT / "docs" / "replays.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def titles() -> dict[str, str]:
    """Return what each lab calls itself, as it is written in p4lab.labs."""
    found = {}
    for module in package()["labs"].modules.values():
        for attribute in module.attributes.values():
            call = attribute.value
            if isinstance(call, griffe.ExprCall) and str(call.function) == "Lab":
                words = {word.name: word.value for word in call.arguments if isinstance(word, griffe.ExprKeyword)}
                found[ast.literal_eval(str(words["name"]))] = ast.literal_eval(str(words["title"]))
    return found


def made(name: str) -> bool:
    """Return whether the replay of a lab is there."""
    return bool(replays().replay_of(name).exists())


def card(name: str, about: dict[str, Any]) -> str:
    """Return the card of a lab as Markdown."""
    poster = f'<img src="assets/posters/{name}.webp" alt="" loading="lazy" width="640" height="400">'
    if made(name):
        label = f"Play the replay of {escape(titles()[name])}"
        stage = f'<a class="p4-stage" href="replays/{name}.html" aria-label="{label}">{poster}<span>Play</span></a>'
    else:
        stage = f'<div class="p4-stage">{poster}<em>This replay was not made in this build.</em></div>'
    notebook, number = f"notebooks/{about['notebook']}.ipynb", about["notebook"].partition("_")[0]
    alone = f' <a href="replays/{name}.html" target="_blank">On a page of its own</a>' if made(name) else ""
    return "\n".join(
        [
            '<div class="p4-card" markdown>',
            f"## {titles()[name]} {{ #{name} }}",
            stage,
            "",
            about["see"],
            "",
            f'<p class="p4-links"><a href="{notebook}" download>Notebook {number}</a>{alone}</p>',
            "</div>",
            "",
        ]
    )


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Put the cards into their page, and say how many of them play."""
    if PLACE not in markdown:
        return markdown
    cards = replays().CARDS
    missing = [name for name in cards if not made(name)]
    note = ""
    if missing:
        note = (
            f'!!! note "{len(cards) - len(missing)} of {len(cards)} replays were made in this build"\n'
            "    `make docs` makes all of them, which takes some minutes the first time.\n\n"
        )
    inside = "\n".join(card(name, about) for name, about in cards.items())
    return markdown.replace(PLACE, f'{note}<div class="p4-gallery" markdown>\n{inside}\n</div>')


def on_files(files: Any, config: Any) -> Any:
    """Add the replays and the notebooks."""
    for name in replays().CARDS:
        if made(name):
            files.append(File.generated(config, f"replays/{name}.html", abs_src_path=str(replays().replay_of(name))))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files
