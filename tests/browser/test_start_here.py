"""The page for new users in a real JupyterLab."""

from __future__ import annotations

import re

import numpy as np
import pytest
from live_notebook import Notebook, branch_with, drag_handle, start_lab, to_now

NAME = "00_start_here.ipynb"
LAST_LOSS = "float(lab.player.engine.records.steps.columns['loss'][-1])"
DRAWN = """() => document.querySelectorAll('.p4-start .p4-drawing[data-frames]').length === 2
    && document.querySelectorAll('.p4-start .p4-matrix').length === 7"""
MATRIX = """symbol => [...document.querySelectorAll('.p4-term')].filter((term) => term.lastChild.textContent === symbol)
    .map((term) => [...term.firstChild.children].map((cell) => +cell.textContent.replace('−', '-')))[0]"""


def start(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.wait_for(DRAWN)
    notebook.page.locator(".p4-start").scroll_into_view_if_needed()


def drag_to_corner(notebook: Notebook, name: str, share: float) -> None:
    """Drag a ring to a corner of its picture: lower left (0) or upper right (1)."""
    ring = notebook.page.locator(f'.p4-handle[data-name="{name}"]')
    notebook.bring(ring)
    stage = ring.locator("xpath=..").bounding_box()
    box = ring.bounding_box()
    dx = stage["x"] + share * stage["width"] - (box["x"] + box["width"] / 2)
    dy = stage["y"] + (1 - share) * stage["height"] - (box["y"] + box["height"] / 2)
    drag_handle(notebook, name, dx, dy)
    notebook.page.wait_for_timeout(800)


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
    before = float(notebook.ask(LAST_LOSS))
    notebook.button("Step").click()
    notebook.wait_for_count("==", 16)
    assert float(notebook.ask(LAST_LOSS)) < before

    notebook.reach("speed").locator("button", has_text="max").click()
    notebook.train(201)
    notebook.pause()
    notebook.wait_for(f"symbol => ({MATRIX})(symbol).join() === '0.4,-1.3,1.1,0.7'", "W")
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_the_target_is_dragged(notebook: Notebook) -> None:
    start(notebook)
    drag_handle(notebook, "1", 30, -50)
    notebook.page.wait_for_timeout(800)
    target = notebook.ask("lab.config.target")
    assert target != "0.4 -1.3; 1.1 0.7"
    assert [row.split()[0] for row in target.split(";")] == ["0.4", "1.1"]  # its first column stays
    notebook.page.locator('.p4-handle[data-name="1"]').press("ArrowUp")
    notebook.page.wait_for_timeout(500)
    assert notebook.ask("lab.config.target") != target
    notebook.button("To merge").click()
    notebook.wait_for_count("==", 15)
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_every_control_to_both_ends_while_it_runs(notebook: Notebook) -> None:
    start(notebook)
    notebook.reach("speed").locator("button", has_text="20").click()
    notebook.train(6)
    for name in ("merge_every", "learning_rate"):
        for end in ("max", "min"):
            value = float(notebook.drag_to(name, end).split()[0])
            notebook.wait_for_count(">", notebook.count() + 5)
            assert float(notebook.ask(f"lab.player.engine.config.{name}")) == value
    for speed in ("1", "max", "5"):
        notebook.reach("speed").locator("button", has_text=re.compile(f"^{speed}$")).click()
        notebook.wait_for_count(">", notebook.count())
    for handle in ("0", "1"):
        for share in (0.0, 1.0):
            drag_to_corner(notebook, handle, share)
            notebook.wait_for_count(">", notebook.count())
    assert notebook.state() == "running"
    assert np.abs(np.array(matrix(notebook, "W"))).max() < 20
    notebook.pause()
    for text in ("0", "123456"):
        notebook.write("seed", text)
    notebook.wait_for_message("Press Reset to apply: Seed")
    notebook.reset()
    assert notebook.ask("lab.player.engine.config.seed") == "123456"
    assert matrix(notebook, "W") == [1, 0, 0, 1]
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_scrub_branch_and_reset(notebook: Notebook) -> None:
    start(notebook)
    notebook.wait_for_message("Frozen")
    notebook.reach("speed").locator("button", has_text="20").click()
    notebook.train(40)
    notebook.pause()
    last, present = notebook.count(), matrix(notebook, "W")
    notebook.drag_to("scrub", "min")
    notebook.wait_for_count("===", 0)
    notebook.wait_for(f"symbol => ({MATRIX})(symbol).join() === '1,0,0,1'", "W")
    to_now(notebook, last)
    notebook.wait_for(f"([symbol, now]) => ({MATRIX})(symbol).join() === now.join()", ["W", present])

    notebook.drag_to("scrub", "min")
    notebook.wait_for_count("===", 0)
    notebook.drag_to("merge_every", "min")
    branch_with(notebook, "Merge every")
    notebook.button("Step").click()
    notebook.wait_for_count("===", 1)
    notebook.wait_for_message("Merged")
    assert matrix(notebook, "A") == matrix(notebook, "W") != [1, 0, 0, 1]
    notebook.screenshot("branched")
    notebook.page.get_by_role("button", name="Make this the active run").click()
    notebook.wait_for_count("===", last)
    notebook.page.get_by_role("button", name="Remove this run").click()
    notebook.wait_for_runs(1)
    notebook.reset()
    notebook.check_clean()
