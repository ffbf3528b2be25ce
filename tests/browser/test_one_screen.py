"""Every lab on one screen: what is needed at once is seen at once, in windows of three sizes."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from live_notebook import NOTEBOOKS, Notebook, becomes, check_fit, start_lab

from p4lab.widgets.dashboard import PLACES

SIZES = ((1440, 900), (1280, 800), (1920, 1080))
ROOM = 770
"""Pixels below the upper edge of the notebook in which a lab stands in a window of 1440 x 900."""
Rect = list[float]  # left, top, right, bottom

# What the pictures that are seen show.
SEEN = """() => [...document.querySelectorAll('.p4-pictures canvas')].filter((canvas) => canvas.checkVisibility())
    .map((canvas) => canvas.toDataURL()).join()"""
FRAMES = "() => +document.querySelector('.p4-plot').dataset.frames"
SLIDER = "() => document.querySelector('.p4-side .p4-item-slider').dataset.name"
# Whether a click on Start would meet the button.
START = """() => {
    const button = document.querySelector('.p4-item[data-name=start] button'), at = button.getBoundingClientRect();
    return document.elementFromPoint((at.left + at.right) / 2, (at.top + at.bottom) / 2) === button;
}"""


def within(inner: Rect, outer: Rect, slack: float = 1.0) -> bool:
    return (
        inner[0] >= outer[0] - slack
        and inner[1] >= outer[1] - slack
        and inner[2] <= outer[2] + slack
        and inner[3] <= outer[3] + slack
    )


def overlap(one: Rect, other: Rect, slack: float = 1.0) -> bool:
    return all(one[k] < other[k + 2] - slack and other[k] < one[k + 2] - slack for k in (0, 1))


def scroll_to_lab(notebook: Notebook) -> None:
    notebook.page.evaluate("() => document.querySelector('.p4-lab').scrollIntoView({ block: 'start' })")
    notebook.page.wait_for_timeout(600)  # curves and pictures have their new sizes


def titles(notebook: Notebook, place: str) -> list[str]:
    """The pages of a place."""
    return [str(text) for text in notebook.item(f"page:{place}").get_by_role("tab").all_inner_texts()]


def check_one_screen(look: dict[str, Any]) -> None:
    """Transport, numbers, settings, pictures and curves are in sight at once, and none stands on another."""
    left, top, right, bottom = look["panel"]
    screen = [left, top, right, min(bottom, top + ROOM)]
    beyond = [name for name, rect in look["parts"].items() if not within(rect, screen)]
    assert beyond == []
    assert not look["scrolls"], "the settings of the first page need to be scrolled"
    over = [names for names in combinations(look["areas"], 2) if overlap(*(look["areas"][name] for name in names))]
    assert over == []


def check_every_page(notebook: Notebook, areas: dict[str, Rect]) -> None:
    """On no page is anything cut off or covered, and no page moves what stands around it."""
    pages = {place: found for place in PLACES if len(found := titles(notebook, place)) > 1}
    for number in range(max(map(len, pages.values()))):
        for place, found in pages.items():
            notebook.turn(place, found[number % len(found)])
        notebook.page.wait_for_timeout(600)
        check_fit(notebook)
        assert notebook.look()["areas"] == areas, f"page {number + 1} moves the lab"
    for place, found in pages.items():
        notebook.turn(place, found[0])


def check_slider(notebook: Notebook) -> None:
    """The first slider changes a picture at once, or what is trained and then seen; all of it in sight."""
    name = notebook.page.evaluate(SLIDER)
    value, looks = f"lab.values()[{name!r}]", notebook.ask(f"{name!r} in lab.lab.view.settings") == "True"
    if not looks:
        notebook.train(2)
    before, seen = notebook.ask(value), notebook.page.evaluate(SEEN)
    for notches in (1, -1):  # it may stand at an end
        if notebook.ask(value) == before:
            notebook.drag_by(name, notches)
    after = notebook.ask(value)
    assert after != before
    if looks:
        notebook.wait_for(f"seen => ({SEEN})() !== seen", seen)
        notebook.train(2)
    else:
        becomes(notebook, f"lab.player.engine.config.{name}", after)
        notebook.wait_for(f"frames => ({FRAMES})() > frames", notebook.page.evaluate(FRAMES))
    look = notebook.look()
    shown = [rect for part, rect in look["parts"].items() if part.split()[0] == name or "p4-curves" in part]
    assert len(shown) == 2
    assert all(within(rect, look["panel"]) for rect in shown)


def check_header_stays(notebook: Notebook) -> None:
    """The transport can be pressed while one scrolls through the lab."""
    panel, head = notebook.look()["panel"], notebook.look()["areas"]["head"]
    notebook.page.mouse.move(head[0] + 400, head[3] + 200)
    notebook.page.mouse.wheel(0, 300)
    notebook.page.wait_for_timeout(400)
    look = notebook.look()
    assert look["lab"][1] < panel[1] - 200, "it was not scrolled"
    assert look["areas"]["head"][1] == pytest.approx(panel[1], abs=3)
    assert notebook.page.evaluate(START)


LABS = (*NOTEBOOKS, "13_directions", "15_your_model")
QUICK = ("00_start_here", "05_race", "06_densities_2d", "11_alanine_dipeptide")
"""Those that `make test` looks at; `make test-all` looks at all of them."""


@pytest.mark.browser
@pytest.mark.parametrize("name", [one if one in QUICK else pytest.param(one, marks=pytest.mark.long) for one in LABS])
def test_a_lab_stands_on_one_screen(notebook: Notebook, name: str) -> None:
    notebook.page.set_viewport_size(dict(zip(("width", "height"), SIZES[0], strict=True)))
    start_lab(notebook, f"{name}.ipynb", whole=False)
    assert notebook.page.locator(".jp-FileBrowser").is_visible()
    scroll_to_lab(notebook)
    check_slider(notebook)
    notebook.wait_for_count(">=", 6)
    notebook.pause()
    for width, height in SIZES:
        notebook.page.set_viewport_size({"width": width, "height": height})
        if width == 1280:
            notebook.set_theme("dark")
        scroll_to_lab(notebook)
        look = notebook.look()
        if width == 1440:
            check_one_screen(look)
        if width == 1920:
            (left, top, right, bottom), (panel_left, panel_top, panel_right, panel_bottom) = look["lab"], look["panel"]
            assert right - left >= 0.9 * (panel_right - panel_left)
            assert bottom - top >= 0.9 * (panel_bottom - panel_top)
        notebook.screenshot(str(width))
        check_every_page(notebook, look["areas"])
    check_header_stays(notebook)
    notebook.check_clean()
