"""The notebook on mixing layers in a real JupyterLab."""

from __future__ import annotations

from pathlib import Path

import pytest
from live_notebook import Notebook, becomes, branch_with, download, drawn, redrawn, start_lab, to_now

NAME = "07_swaps.ipynb"
CONFIG = "lab.player.engine.config"
P4INV = ".p4-swaps-matrices figure:nth-of-type(4) canvas"
STEPS_APART = """apart => {
    const steps = document.querySelector('.p4-plot .js-plotly-plot').data.find((trace) => trace.name === 'P4Inv').x;
    return steps[2] - steps[1] === apart;
}"""
IMAGE = ".p4-swaps-images figure:nth-of-type(4) canvas"


def start(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.reach("board").locator("td", has_text="P4Orthogonal").wait_for()
    notebook.turn("below", "Loss")


def press(notebook: Notebook, name: str, text: str) -> None:
    notebook.reach(name).get_by_role("button", name=text, exact=True).click()


@pytest.mark.browser
@pytest.mark.long
def test_every_control_and_every_way_through_time(notebook: Notebook, tmp_path: Path) -> None:
    start(notebook)
    notebook.choose("data", "Two moons")
    becomes(notebook, f"{CONFIG}.data", "two_moons")
    matrix, image = drawn(notebook, P4INV), drawn(notebook, IMAGE)
    notebook.train(5)
    redrawn(notebook, P4INV, matrix)
    redrawn(notebook, IMAGE, image)
    for name in ("learning_rate", "merge_every"):
        for end in ("max", "min"):
            value = notebook.drag_to(name, end).split()[0]
            becomes(notebook, f"{CONFIG}.{name}", float(value) if name == "learning_rate" else value)
        notebook.drag_by(name, 2)
    for name in ("blocks", "hidden", "batch_size", "rank", "dtype", "data", "speed"):
        select = notebook.reach(name).locator("select")
        first = select.input_value()
        for index in (select.locator("option").count() - 1, 0, int(first)):
            select.select_option(index=index)
            notebook.page.wait_for_timeout(300)
    for text in ("Change", "Matrix"):
        before = drawn(notebook, P4INV)
        press(notebook, "matrix", text)
        redrawn(notebook, P4INV, before)
    for text, apart in (("Batches", 1), ("Test data", 10)):  # a 2 x 2 heatmap may stand still meanwhile
        press(notebook, "curve", text)
        notebook.wait_for(STEPS_APART, apart)
    notebook.reach("block").locator("select").select_option(index=6)
    becomes(notebook, "lab.view.block", 7)
    assert notebook.state() == "running"
    notebook.screenshot("controls")

    notebook.pause()
    last, present = notebook.count(), drawn(notebook, P4INV)
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    redrawn(notebook, P4INV, present)
    to_now(notebook, last)
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    notebook.drag_by("learning_rate", 1)
    branch_with(notebook, "Learning rate")
    notebook.train(5)
    notebook.pause()

    path, steps = download(notebook, "Save run", tmp_path), notebook.count()
    text = notebook.item("config").locator("input").input_value()
    notebook.choose("data", "Rings")
    notebook.wait_for_message("Press Reset to apply: Problem")
    notebook.button("Reset").click()
    notebook.wait_for_count("===", 0)
    becomes(notebook, "lab.config.data", "rings")
    notebook.page.locator("input[type=file]").set_input_files(path)
    notebook.wait_for_count("===", steps)
    becomes(notebook, "lab.config.to_text()", text)
    notebook.check_clean()


@pytest.mark.browser
def test_the_change_of_the_matrices_has_a_scale_of_its_own(notebook: Notebook) -> None:
    start(notebook)
    notebook.train(20)
    notebook.pause()
    press(notebook, "matrix", "Change")
    notebook.wait_for("() => document.querySelector('.p4-swaps-matrices .p4-scale').innerText.includes('change')")
    notebook.page.wait_for_timeout(500)
    notebook.screenshot("change")
    notebook.check_clean()
