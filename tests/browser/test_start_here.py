"""The page for new users in a real JupyterLab."""

from __future__ import annotations

from typing import Any

import pytest
from live_notebook import Notebook

NAME = "00_start_here.ipynb"
DRAWN = """() => document.querySelectorAll('.p4-start .p4-drawing[data-frames]').length === 2
    && document.querySelectorAll('.p4-start .p4-matrix').length === 7"""
MATRIX = """symbol => [...document.querySelectorAll('.p4-term')].filter((term) => term.lastChild.textContent === symbol)
    .map((term) => [...term.firstChild.children].map((cell) => +cell.textContent.replace('−', '-')))[0]"""
OUTSIDE = """() => {
    const lab = document.querySelector('.p4-start').getBoundingClientRect();
    return [...document.querySelectorAll('.p4-start :is(.p4-picture, .p4-equation, .p4-item)')]
        .filter((node) => node.getBoundingClientRect().right > lab.right + 1 || node.scrollWidth > node.clientWidth + 1)
        .map((node) => node.className + ' ' + (node.dataset.name ?? ''));
}"""


def start(notebook: Notebook) -> None:
    notebook.open(NAME)
    notebook.run_all()
    notebook.wait_for_state("idle")
    notebook.wait_for(DRAWN)
    notebook.page.locator(".p4-start").scroll_into_view_if_needed()


def matrix(notebook: Notebook, symbol: str) -> list[float]:
    found: list[float] = notebook.page.evaluate(MATRIX, symbol)
    return found


@pytest.mark.browser
def test_step_merge_and_run(notebook: Notebook) -> None:
    start(notebook)
    assert matrix(notebook, "A") == [1, 0, 0, 1]
    assert matrix(notebook, "u") == [0, 0]
    for k in range(3):
        notebook.button("Step").click()
        notebook.wait_for_count("==", k + 1)
    notebook.wait_for(f"symbol => ({MATRIX})(symbol).some((entry) => entry !== 0)", "u")
    assert matrix(notebook, "A") == [1, 0, 0, 1]

    notebook.button("To merge").click()
    notebook.wait_for_count("==", 15)
    notebook.wait_for(f"symbol => ({MATRIX})(symbol).every((entry) => entry === 0)", "u")
    notebook.wait_for_state("paused")
    assert matrix(notebook, "A") == matrix(notebook, "W") != [1, 0, 0, 1]
    before, after = notebook.ask("[float(v) for v in lab.player.engine.records.steps.columns['loss'][-1:]]"), None
    notebook.button("Step").click()
    notebook.wait_for_count("==", 16)
    after = notebook.ask("[float(v) for v in lab.player.engine.records.steps.columns['loss'][-1:]]")
    assert after < before

    notebook.item("speed").locator("button", has_text="max").click()
    notebook.button("Start").click()
    notebook.wait_for_count(">", 200)
    notebook.button("Pause").click()
    notebook.wait_for_state("paused")
    notebook.wait_for(f"symbol => ({MATRIX})(symbol).join() === '0.4,-1.3,1.1,0.7'", "W")
    notebook.check_clean()


@pytest.mark.browser
def test_the_target_is_dragged(notebook: Notebook) -> None:
    start(notebook)
    ring = notebook.page.locator('.p4-handle[data-name="1"]')
    box = ring.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    notebook.page.mouse.move(x, y)
    notebook.page.mouse.down()
    notebook.page.mouse.move(x + 30, y - 50, steps=6)
    notebook.page.mouse.up()
    notebook.page.wait_for_timeout(800)
    target = notebook.ask("lab.config.target")
    assert target != "0.4 -1.3; 1.1 0.7"
    assert [row.split()[0] for row in target.split(";")] == ["0.4", "1.1"]  # its first column stays
    ring.press("ArrowUp")
    notebook.page.wait_for_timeout(500)
    assert notebook.ask("lab.config.target") != target
    notebook.button("To merge").click()
    notebook.wait_for_count("==", 15)
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fits_the_page(notebook: Notebook, theme: Any, width: int) -> None:
    notebook.page.set_viewport_size({"width": width, "height": 1080})
    start(notebook)
    notebook.set_theme(theme)
    notebook.button("Start").click()
    notebook.wait_for_count(">=", 24)
    notebook.page.wait_for_timeout(700)
    notebook.page.evaluate("() => document.querySelector('.p4-start').scrollIntoView()")
    notebook.page.wait_for_timeout(400)
    notebook.screenshot(f"{theme}_{width}")
    notebook.button("Pause").click()
    notebook.wait_for_state("paused")
    assert notebook.page.evaluate(OUTSIDE) == []
    assert notebook.used_width() >= 0.95
    notebook.check_clean()
