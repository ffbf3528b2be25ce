"""The first notebook in a real JupyterLab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from live_notebook import CANVAS, Notebook, drawn, start_lab

from p4lab.p4 import PAPER, RECOMMENDED

NAME = "01_p4inv_live.ipynb"
# With P4LAB_SCREENSHOT_DIR=docs, the picture in the documentation is taken anew, after some training.
DOCS_FOLDER = os.environ.get("P4LAB_SCREENSHOT_DIR")


@pytest.mark.browser
def test_start_drag_pause_step_reset(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    assert notebook.count() == 0
    assert notebook.points() == 0
    assert notebook.button("Reset").is_disabled()
    noise = drawn(notebook, CANVAS)
    notebook.screenshot("idle")

    notebook.train(20)
    assert notebook.button("Step").is_disabled()
    notebook.wait_for("() => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.length > 20")
    assert drawn(notebook, CANVAS) != noise

    rate = float(notebook.drag_by("learning_rate", 2))
    assert rate != 2e-3
    notebook.wait_for("() => document.querySelector('.p4-plot .js-plotly-plot').layout.shapes.length >= 1")

    steps = notebook.pause()
    assert notebook.ask("lab.player.engine.config.learning_rate") == str(rate)
    notebook.page.wait_for_timeout(500)
    assert notebook.count() == steps

    notebook.button("Step").click()
    notebook.wait_for_count("===", steps + 1)
    notebook.wait_for("n => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.at(-1) === n", steps + 1)
    merged = notebook.ask("lab.player.engine.schedule.attempts")
    notebook.button("To merge").click()
    notebook.wait_for_count(">", steps + 1)
    notebook.wait_for_state("paused")
    assert int(notebook.ask("lab.player.engine.schedule.attempts")) == int(merged) + 1
    notebook.screenshot("paused")

    notebook.reset()
    notebook.wait_for("() => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.length === 0")
    assert notebook.count() == 0
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_a_setting_that_waits_says_so_and_applies_at_reset(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.train(5)
    notebook.pause()
    notebook.reach("preset").locator("button", has_text="Paper").click()
    notebook.page.wait_for_selector('.p4-item[data-name="rank"][data-pending="true"]')
    assert "Press Reset" in notebook.item("message").inner_text()
    assert notebook.ask("lab.player.engine.config.rank") == str(RECOMMENDED.rank_for(64))
    notebook.reset()
    notebook.page.wait_for_selector('.p4-item[data-name="rank"][data-pending="false"]')
    assert notebook.ask("lab.player.engine.config.rank") == str(PAPER.rank_for(64))
    notebook.check_clean()


@pytest.mark.browser
def test_reload_rerun_and_interrupt(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.train(5)
    notebook.command("docmanager:save")
    notebook.page.reload(wait_until="domcontentloaded")
    notebook.wait_until_live()
    notebook.wait_for_state("running")
    notebook.page.wait_for_selector(".p4-plot .main-svg")
    before = notebook.points()
    notebook.wait_for("n => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.length > n", before)

    notebook.command("notebook:interrupt-kernel")
    steps = notebook.count()
    notebook.wait_for_count(">", steps + 20)

    notebook.run_all()
    notebook.wait_for_state("idle")
    assert notebook.problems() == []  # one trainer and one pump: those of the first run are gone
    notebook.train(5)
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
def test_a_restarted_kernel_leaves_a_hint(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    notebook.page.wait_for_selector(".p4-hint", state="visible")
    notebook.wait_until_live()
    notebook.run_all()
    notebook.wait_for_state("idle")
    notebook.train(5)
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_the_picture_of_the_documentation(notebook: Notebook, tmp_path: Path) -> None:
    steps = 600 if DOCS_FOLDER else 60
    notebook.page.set_viewport_size({"width": 1600, "height": 1000})
    start_lab(notebook, NAME, whole=False)
    notebook.train(steps // 2)
    notebook.drag_by("learning_rate", -1)
    notebook.wait_for_count(">=", steps)
    notebook.pause()
    path = Path(DOCS_FOLDER or tmp_path) / "p4inv_live.png"
    notebook.page.locator(".p4-lab").screenshot(path=path)
    assert path.stat().st_size > 50_000
    notebook.check_clean()
