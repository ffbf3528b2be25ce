"""Replays in a Chromium without a network, opened from disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_tools import SMALL, train
from replay_page import Replay

from p4lab import widgets

FIRST = ("start", "digits", "density")
WAIT = 30_000
PICTURES = ".p4-replay-pictures > :not([hidden]), .p4-board:not([hidden])"
SEEN = """(pictures) => [...document.querySelectorAll(`${pictures}, .p4-replay-liveplot`)].map((el) => [
    el.dataset.place,
    el.innerText + [...el.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL()).join()
        + [...el.querySelectorAll('.shapelayer path, .p4-handle')].map((path) => path.outerHTML).join(),
])"""


class Page:
    """A replay in a browser.

    Attributes:
        page: Playwright's page.
        said: errors and warnings of the console, failed loads, and what else was asked for than the file itself.
    """

    def __init__(self, context: Any, path: Path) -> None:
        self.page, self.said = context.new_page(), []
        self.page.on("console", lambda line: self.said.append(line.text) if line.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(path.as_uri())
        self.drawn()

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "blob:", "data:")):
            self.said.append(request.url)

    def drawn(self) -> None:
        """Wait until everything that can be seen has been drawn, and stays as it is."""
        self.page.wait_for_function(
            """() => [...document.querySelectorAll('.p4-drawing, .p4-plot')].every((el) => el.closest('[hidden]')
                || el.dataset.frames) && document.querySelector('.p4-plot .main-svg')""",
            timeout=WAIT,
        )
        before, now = None, self.seen()
        while before != now:
            self.page.wait_for_timeout(400)
            before, now = now, self.seen()

    def seen(self) -> dict[str, str]:
        """Return what every picture shows, and the curves."""
        return dict(self.page.evaluate(SEEN, PICTURES))

    def move(self, moment: int) -> None:
        """Set the slider."""
        self.page.get_by_label("Moment of the run").fill(str(moment))
        self.drawn()

    @property
    def step(self) -> str:
        """What the bar says."""
        return self.page.locator(".p4-replay-step").inner_text()


def exported(kind: str, folder: Path) -> Path:
    """Return the replay of a short run."""
    lab = getattr(widgets, f"{kind}_lab")(name="replay", **SMALL[kind])
    try:
        train(lab, 12)
        lab.export(folder / "run.replay.html")
        assert lab.error is None
    finally:
        lab.close()
    return folder / "run.replay.html"


@pytest.fixture(params=[kind if kind in FIRST else pytest.param(kind, marks=pytest.mark.long) for kind in SMALL])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path(kind: str, tmp_path: Path) -> Path:
    return exported(kind, tmp_path)


@pytest.fixture
def page(browser: Any, kind: str, path: Path) -> Iterator[Page]:
    """A page without a network, for one of the labs a dark one; nothing may have been said on its console."""
    scheme = "dark" if kind == "density" else "light"
    context = browser.new_context(
        viewport={"width": 1280, "height": 800}, color_scheme=scheme, offline=True, reduced_motion="reduce"
    )
    try:
        page = Page(context, path)
        assert page.page.evaluate("document.body.dataset.jpThemeLight") == str(scheme == "light").lower()
        yield page
        assert page.said == []
        assert page.page.locator(".p4-replay-fault").is_hidden()
    finally:
        context.close()


def test_a_replay_moves_plays_and_fits(page: Page, path: Path) -> None:
    assert page.step == "step 12 of 12"
    last = page.seen()
    page.move(0)
    assert page.step == "step 0 of 12"
    first = page.seen()
    widgets_told = Replay(path).widgets
    del widgets_told["numbers"]
    moving = {place for place, told in widgets_told.items() if told["at"][0] != told["at"][-1]}
    assert {place for place in set(first) | set(last) if first.get(place) != last.get(place)} == moving
    assert moving > {"curves"}, "the slider moves pictures and curves"
    page.move(3)
    assert page.seen() == last, "the same moment looks the same, wherever one comes from"

    page.page.locator("h1").click()
    page.page.keyboard.press("Home")
    page.page.keyboard.press("Space")
    page.page.wait_for_function("() => document.querySelector('.p4-replay-step').innerText === 'step 12 of 12'")
    page.drawn()
    assert page.seen() == last, "played to the end"

    background = "getComputedStyle(document.body).backgroundColor"
    before = page.page.evaluate(background)
    page.page.locator(".p4-replay-head button").click()
    page.drawn()
    assert page.page.evaluate(background) != before
    assert page.seen() != last
    for width in (1280, 700, 420):
        page.page.set_viewport_size({"width": width, "height": 800})
        page.drawn()
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("kind", ["parameter"], indirect=True)
def test_curves_tell_numbers_and_pictures_in_space_turn(page: Page) -> None:
    plot = page.page.locator(".p4-plot .nsewdrag").first
    for share in (0.1, 0.15):  # plotly wants to see the pointer move
        plot.hover(position={"x": share * page.page.evaluate("innerWidth") / 2, "y": 60})
    page.page.wait_for_function("() => document.querySelector('.hoverlayer').textContent.length > 3")
    canvas = page.page.locator(".p4-replay-space canvas")
    before = page.seen()
    canvas.focus()
    page.page.keyboard.press("ArrowLeft")
    page.drawn()
    place = page.page.locator(".p4-replay-space").get_attribute("data-place")
    assert page.seen()[place] != before[place]
    assert page.step == "step 12 of 12", "the arrow turned the picture, and left the time alone"
    assert page.page.locator(".p4-handle").first.is_disabled()
