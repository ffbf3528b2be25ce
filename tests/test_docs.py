"""The documentation: its code runs, and the site that is built of it is whole and needs no other host."""

import importlib
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from browser_server import chromium

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WITHOUT_CODE = {"clients"}
"""Guides with no code that runs here."""
PAGES = [DOCS / "index.md", *(page for page in sorted((DOCS / "guides").glob("*.md")) if page.stem not in WITHOUT_CODE)]
TAG = re.compile(r"<(a|link|script|img|iframe|source|video)\b([^>]*)>")
ATTRIBUTE = re.compile(r'\b(href|src|data-src|poster|rel)="([^"]*)"')
ANCHOR = re.compile(r'\b(?:id|name)="([^"]+)"')
THREADS_OF_GLOO = """
from pathlib import Path

threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""
"""What a script may not leave behind: a thread of gloo that outlives Python aborts the process now and then."""
BLOCK = re.compile(r"^```python(?: title=\"([^\"]+)\")?\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def hooks() -> Iterator[Any]:
    """Import a module of docs/ or docs/hooks by name."""
    folders = [str(DOCS), str(DOCS / "hooks")]
    sys.path[:0] = folders
    yield importlib.import_module
    for folder in folders:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in strict mode without a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert (built.returncode, built.stdout, built.stderr) == (0, "", "")
    return folder


@cache
def anchors(page: Path) -> set[str]:
    return {unescape(name) for name in ANCHOR.findall(page.read_text(encoding="utf-8"))}


def tags(site: Path) -> Iterator[tuple[Path, str, dict[str, str]]]:
    """Yield page, name and attributes of each tag that leads somewhere; replays are pages of their own."""
    for page in site.rglob("*.html"):
        if page.parent.name != "replays":
            for name, text in TAG.findall(page.read_text(encoding="utf-8")):
                yield page, name, {key: unescape(value) for key, value in ATTRIBUTE.findall(text)}


# --- what readers paste --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
@pytest.mark.filterwarnings("ignore:Port .* is already in use:UserWarning")
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": __name__}
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    if page.stem == "molecule":
        pytest.importorskip("mdtraj")
    if page.stem == "machines":
        pytest.importorskip("distributed")
    assert blocks
    for title, code in blocks:
        if title:
            (tmp_path / title).write_text(code)
        else:
            exec(compile(code, str(page), "exec"), names)


def test_the_script_for_several_processes_ends_with_equal_replicas(tmp_path: Path) -> None:
    ((name, code),) = [block for block in BLOCK.findall((DOCS / "guides" / "machines.md").read_text()) if block[0]]
    (tmp_path / name).write_text(code + THREADS_OF_GLOO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", name]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("all replicas are equal after 3 merges") == 2


# --- the site ------------------------------------------------------------------------------------------------------


def test_every_public_name_is_in_the_inventory(site: Path, hooks: Any) -> None:
    content = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]
    found = {line.split()[0] for line in zlib.decompress(content).decode().splitlines()}
    reference = hooks("reference")
    names = set(reference.public())
    assert len(names) > 700
    assert names - found == set()
    assert {"p4lab.distributed.check_replicas", "p4lab.errors.P4Error", "p4lab.p4.convert.convert"} < names


def test_links_anchors_and_pictures_are_there(site: Path) -> None:
    lost = []
    for page, name, attributes in tags(site):
        for key in ("href", "src", "data-src", "poster"):
            parts = urlsplit(attributes.get(key, ""))
            if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
                continue
            base = site if parts.path.startswith("/") else page.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            place = unquote(parts.fragment)
            if not target.is_file() or (place and place not in anchors(target)):
                lost.append(f"{page.relative_to(site)}: <{name}> {attributes[key]}")
    assert lost == []


def test_nothing_is_asked_of_another_host(site: Path) -> None:
    foreign = [
        f"{page.relative_to(site)}: <{name}> {attributes}"
        for page, name, attributes in tags(site)
        if name != "a" and attributes.get("rel") != "canonical"
        for key in ("href", "src", "data-src", "poster")
        if urlsplit(attributes.get(key, "")).netloc
    ]
    for sheet in site.rglob("*.css"):
        foreign += re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]*", sheet.read_text(encoding="utf-8"))
    assert foreign == []


@pytest.mark.browser
def test_search_finds_a_name_in_pages_opened_as_files(site: Path, chromium_path: str) -> None:
    with chromium(chromium_path) as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "index.html").as_uri())
        page.click(".md-search__input")
        page.get_by_text("Type to start searching").wait_for(state="attached", timeout=60_000)  # the index is there
        page.keyboard.type("P4Inv")
        page.wait_for_selector(".md-search-result__link[href*='invertible.html']", state="attached", timeout=60_000)
    assert [url for url in asked if urlsplit(url).netloc] == []


# --- the gallery ---------------------------------------------------------------------------------------------------


def test_every_lab_has_a_card_a_poster_and_a_notebook_that_opens_it(hooks: Any) -> None:
    from p4lab import widgets

    cards = hooks("replays").CARDS
    assert set(cards) == {name.removesuffix("_lab") for name in widgets.__all__ if name.endswith("_lab")}
    for name, about in cards.items():
        assert f"{name}_lab()" in (ROOT / "notebooks" / f"{about['notebook']}.ipynb").read_text(encoding="utf-8")
        assert 1 <= about["see"].count(". ") + 1 <= 3
    assert {path.stem for path in (DOCS / "assets" / "posters").iterdir()} == set(cards)
    assert set(hooks("replays").QUICK) < set(cards)


def test_the_titles_of_cards_are_those_of_the_labs(hooks: Any) -> None:
    from p4lab.labs.start import START

    titles = hooks("gallery").titles()
    assert titles["start"] == START.title
    assert set(titles) >= set(hooks("replays").CARDS)


def test_a_replay_is_made_and_kept(hooks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = hooks("replays")
    monkeypatch.setattr(replays, "CACHE", tmp_path)
    assert replays.make("start").startswith("start: 60 steps")
    page = replays.replay_of("start").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Freeze, perturb, merge" in page


# --- formulas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tex", "mathml"),
    [
        (r"\tfrac12", '<mstyle displaystyle="false" scriptlevel="0"><mfrac><mn>1</mn><mn>2</mn></mfrac></mstyle>'),
        ("A^{-1}", '<msup><mi>A</mi><mrow><mrow><mo form="prefix">−</mo><mn>1</mn></mrow></mrow></msup>'),
        (r"\sum_i u_i", "<mrow><munder><mo>∑</mo><mi>i</mi></munder><msub><mi>u</mi><mi>i</mi></msub></mrow>"),
        (r"p_\text{a b}", "<msub><mi>p</mi><mtext>a&nbsp;b</mtext></msub>"),
        ("b'", "<msup><mi>b</mi><mrow><mo>′</mo></mrow></msup>"),
        (r"\log x", '<mrow><mi>log</mi><mspace width="0.17em"/><mi>x</mi></mrow>'),
    ],
)
def test_a_formula_is_set(hooks: Any, tex: str, mathml: str) -> None:
    assert hooks("formulas").Formula(tex).row() == mathml


@pytest.mark.parametrize(
    ("tex", "words"),
    [
        (r"\nonsense x", r"\\nonsense is not known"),
        ("{a", "something is missing at the end"),
        ("a @ b", "'@' is not known"),
    ],
)
def test_a_formula_that_cannot_be_set_is_refused(hooks: Any, tex: str, words: str) -> None:
    formulas = hooks("formulas")
    with pytest.raises(formulas.FormulaError, match=words):
        formulas.block(tex)


def test_a_formula_breaks_at_wide_spaces(hooks: Any) -> None:
    assert hooks("formulas").block(r"a = b, \qquad c = d").count("<math") == 2
