"""The first notebook in a real JupyterLab."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from live_notebook import Notebook

from p4lab.p4 import PAPER, RECOMMENDED

NAME = "01_p4inv_live.ipynb"
# With P4LAB_SCREENSHOT_DIR=docs, the picture in the README is taken anew, after some training.
README_FOLDER = os.environ.get("P4LAB_SCREENSHOT_DIR")
THREADS = "sorted(t.name for t in __import__('threading').enumerate() if t.name.startswith('p4lab'))"

USED_WIDTH = """() => {
    const lab = document.querySelector('.p4-lab');
    return lab.clientWidth / lab.closest('.jp-OutputArea-output').clientWidth;
}"""
OVERFLOWING = """() => [...document.querySelectorAll('.p4-lab :is(.p4-item, .p4-group, .p4-grid, .p4-plot)')]
    .filter((node) => node.scrollWidth > node.clientWidth + 1)
    .map((node) => node.dataset.name || node.className)"""


def start_lab(notebook: Notebook) -> None:
    notebook.open(NAME)
    notebook.run_all()
    notebook.wait_for_state("idle")
    notebook.page.wait_for_selector(".p4-plot .main-svg")
    notebook.wait_for("() => document.querySelector('.p4-grid canvas')?.width > 50")


def check_clean(notebook: Notebook) -> None:
    assert notebook.ask("lab.error") == "None"
    assert notebook.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    assert notebook.errors == []


def train(notebook: Notebook, steps: int) -> None:
    notebook.button("Start").click()
    notebook.wait_for_state("running")
    notebook.wait_for(
        "n => +document.querySelector('[data-name=count] .p4-value').innerText.replace(',', '') >= n", steps
    )


def pause(notebook: Notebook) -> int:
    notebook.button("Pause").click()
    notebook.wait_for_state("paused")
    notebook.page.wait_for_timeout(700)
    return notebook.count()


def drag_learning_rate(notebook: Notebook, pixels: int) -> float:
    slider = notebook.item("learning_rate").locator("input")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    share = float(slider.input_value()) / float(slider.get_attribute("max"))
    x, y = box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2
    notebook.page.mouse.move(x, y)
    notebook.page.mouse.down()
    notebook.page.mouse.move(x + pixels, y, steps=8)
    notebook.page.mouse.up()
    return float(notebook.item("learning_rate").locator("output").inner_text())


@pytest.mark.browser
def test_start_drag_pause_step_reset(notebook: Notebook, tmp_path: Path) -> None:
    start_lab(notebook)
    assert notebook.count() == 0
    assert notebook.points() == 0
    assert notebook.button("Reset").is_disabled()
    noise = notebook.picture()
    notebook.page.screenshot(path=tmp_path / "idle.png")

    train(notebook, 20)
    assert notebook.button("Step").is_disabled()
    notebook.wait_for("() => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.length > 20")
    assert notebook.picture() != noise

    rate = drag_learning_rate(notebook, 30)
    assert rate != 2e-3
    notebook.wait_for("() => document.querySelector('.p4-plot .js-plotly-plot').layout.shapes.length >= 2")

    steps = pause(notebook)
    assert notebook.ask("lab.player.engine.config.learning_rate") == str(rate)
    notebook.page.wait_for_timeout(500)
    assert notebook.count() == steps

    notebook.button("Step").click()
    notebook.wait_for(
        "n => +document.querySelector('[data-name=count] .p4-value').innerText.replace(',', '') === n", steps + 1
    )
    notebook.wait_for("n => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.at(-1) === n", steps + 1)
    merged = notebook.ask("lab.player.engine.schedule.attempts")
    notebook.button("To merge").click()
    notebook.wait_for(
        "n => +document.querySelector('[data-name=count] .p4-value').innerText.replace(',', '') > n", steps + 1
    )
    notebook.wait_for_state("paused")
    assert int(notebook.ask("lab.player.engine.schedule.attempts")) == int(merged) + 1
    notebook.page.screenshot(path=tmp_path / "paused.png")

    notebook.button("Reset").click()
    notebook.wait_for_state("idle")
    notebook.wait_for("() => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.length === 0")
    assert notebook.count() == 0
    check_clean(notebook)


@pytest.mark.browser
def test_a_setting_that_waits_says_so_and_applies_at_reset(notebook: Notebook) -> None:
    start_lab(notebook)
    train(notebook, 5)
    pause(notebook)
    notebook.item("preset").locator("button", has_text="Paper").click()
    notebook.page.wait_for_selector('.p4-item[data-name="rank"][data-pending="true"]')
    assert "Press Reset" in notebook.item("message").inner_text()
    assert notebook.ask("lab.player.engine.config.rank") == str(RECOMMENDED.rank_for(64))
    notebook.button("Reset").click()
    notebook.wait_for_state("idle")
    notebook.page.wait_for_selector('.p4-item[data-name="rank"][data-pending="false"]')
    assert notebook.ask("lab.player.engine.config.rank") == str(PAPER.rank_for(64))
    check_clean(notebook)


@pytest.mark.browser
def test_reload_rerun_and_interrupt(notebook: Notebook) -> None:
    start_lab(notebook)
    train(notebook, 5)
    notebook.command("docmanager:save")
    notebook.page.reload(wait_until="domcontentloaded")
    notebook.wait_until_live()
    notebook.wait_for_state("running")
    notebook.page.wait_for_selector(".p4-plot .main-svg")
    before = notebook.points()
    notebook.wait_for("n => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.length > n", before)

    notebook.command("notebook:interrupt-kernel")
    steps = notebook.count()
    notebook.wait_for(
        "n => +document.querySelector('[data-name=count] .p4-value').innerText.replace(',', '') > n", steps + 20
    )

    notebook.run_all()
    notebook.wait_for_state("idle")
    assert notebook.ask(THREADS) == "['p4lab-pump', 'p4lab-trainer']"
    train(notebook, 5)
    pause(notebook)
    check_clean(notebook)


@pytest.mark.browser
def test_a_restarted_kernel_leaves_a_hint(notebook: Notebook) -> None:
    start_lab(notebook)
    notebook.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()")
    notebook.page.wait_for_selector(".p4-hint", state="visible")
    notebook.wait_until_live()
    notebook.run_all()
    notebook.wait_for_state("idle")
    train(notebook, 5)
    pause(notebook)
    check_clean(notebook)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fits_the_page(notebook: Notebook, theme: str, width: int, tmp_path: Path) -> None:
    for_readme = README_FOLDER is not None and (theme, width) == ("light", 1920)
    steps = 2000 if for_readme else 60
    notebook.page.set_viewport_size({"width": width, "height": 1080})
    start_lab(notebook)
    notebook.page.evaluate(
        "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", f"JupyterLab {theme.title()}"
    )
    notebook.wait_for("dark => document.body.dataset.jpThemeLight === dark", str(theme == "light").lower())
    train(notebook, steps // 2)
    drag_learning_rate(notebook, -14)
    notebook.wait_for_count(">=", steps)
    notebook.wait_for("steps => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.at(-1) >= steps", steps)
    notebook.page.screenshot(path=tmp_path / f"{theme}_{width}.png")
    if for_readme:
        notebook.page.locator(".p4-lab").screenshot(path=Path(README_FOLDER) / "p4inv_live.png")
    pause(notebook)
    assert notebook.page.evaluate(USED_WIDTH) >= 0.95
    assert notebook.page.evaluate(OVERFLOWING) == []
    check_clean(notebook)
