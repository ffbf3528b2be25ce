"""The notebook on mixing layers in a real JupyterLab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live_notebook import Notebook, check_fit, looks

NAME = "07_swaps.ipynb"
CONFIG = "lab.player.engine.config"
P4INV = ".p4-swaps-matrices figure:nth-of-type(4) canvas"
IMAGE = ".p4-swaps-images figure:nth-of-type(4) canvas"


def start_lab(notebook: Notebook) -> None:
    notebook.open(NAME)
    notebook.run_all()
    notebook.wait_for_state("idle")
    notebook.page.wait_for_selector(".p4-plot .main-svg")
    notebook.wait_for_picture()
    notebook.item("board").locator("td", has_text="P4Orthogonal").wait_for()


def picture(notebook: Notebook, selector: str) -> str:
    return str(notebook.page.evaluate("s => document.querySelector(s).toDataURL()", selector))


def changes(notebook: Notebook, selector: str, before: str) -> str:
    """Wait until a picture is another one, and return it."""
    notebook.wait_for("([s, before]) => document.querySelector(s).toDataURL() !== before", [selector, before])
    return picture(notebook, selector)


def becomes(notebook: Notebook, expression: str, value: Any) -> None:
    """Wait until an expression in the kernel has a value."""
    for _ in range(200):
        found = notebook.ask(expression)
        if found == str(value):
            return
        notebook.page.wait_for_timeout(100)
    raise AssertionError(f"{expression} is {found}, not {value}")


def message(notebook: Notebook, part: str) -> None:
    notebook.wait_for("part => document.querySelector('.p4-message').innerText.includes(part)", part)


def choose(notebook: Notebook, name: str, text: str) -> None:
    notebook.item(name).locator("select").select_option(label=text)


def press(notebook: Notebook, name: str, text: str) -> None:
    notebook.item(name).get_by_role("button", name=text, exact=True).click()


@pytest.mark.browser
@pytest.mark.long
def test_every_control_and_every_way_through_time(notebook: Notebook, tmp_path: Path) -> None:
    start_lab(notebook)
    choose(notebook, "data", "Two moons")
    becomes(notebook, f"{CONFIG}.data", "two_moons")
    still, drawn = picture(notebook, P4INV), picture(notebook, IMAGE)
    notebook.train(5)
    changes(notebook, P4INV, still)
    changes(notebook, IMAGE, drawn)
    for name in ("learning_rate", "merge_every"):
        for end in ("max", "min"):
            value = notebook.drag_to(name, end).split()[0]
            becomes(notebook, f"{CONFIG}.{name}", float(value) if name == "learning_rate" else value)
        notebook.drag_by(name, 2)
    for name in ("blocks", "hidden", "batch_size", "rank", "dtype", "data", "speed"):
        select = notebook.item(name).locator("select")
        first = select.input_value()
        for index in (select.locator("option").count() - 1, 0, int(first)):
            select.select_option(index=index)
            notebook.page.wait_for_timeout(300)
    for name, texts in (("matrix", ("Change", "Matrix")), ("curve", ("Batches", "Test data"))):
        for text in texts:
            before = picture(notebook, P4INV)
            press(notebook, name, text)
            changes(notebook, P4INV, before)  # it trains, too
    notebook.item("block").locator("select").select_option(index=6)
    becomes(notebook, "lab._look.block", 6)
    assert notebook.state() == "running"
    notebook.screenshot("controls")

    notebook.pause()
    last, present = notebook.count(), picture(notebook, P4INV)
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    changes(notebook, P4INV, present)
    notebook.button("Now").click()
    notebook.wait_for_count("===", last)
    notebook.wait_for("() => document.querySelector('[data-name=now] button').disabled")
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    notebook.drag_by("learning_rate", 1)
    message(notebook, "and press Branch here")
    notebook.button("Branch here").click()
    notebook.wait_for("() => document.querySelectorAll('[data-name=runs] input').length === 2")
    notebook.train(5)
    notebook.pause()

    path, steps = tmp_path / "run.p4run", notebook.count()
    with notebook.page.expect_download() as download:
        notebook.button("Save run").click()
    download.value.save_as(path)
    text = notebook.item("config").locator("input").input_value()
    choose(notebook, "data", "Rings")
    message(notebook, "Press Reset to apply: data")
    notebook.button("Reset").click()
    notebook.wait_for_count("===", 0)
    becomes(notebook, "lab.config.data", "rings")
    notebook.page.locator("input[type=file]").set_input_files(path)
    notebook.wait_for_count("===", steps)
    becomes(notebook, "lab.config.to_text()", text)
    notebook.check_clean()


@pytest.mark.browser
def test_fits_the_page(notebook: Notebook) -> None:
    start_lab(notebook)
    notebook.train(20)
    for _ in looks(notebook):
        check_fit(notebook)
    notebook.pause()
    press(notebook, "matrix", "Change")
    notebook.wait_for("() => document.querySelector('.p4-swaps-matrices .p4-scale').innerText.includes('change')")
    notebook.page.wait_for_timeout(500)
    notebook.screenshot("change")
    notebook.check_clean()
