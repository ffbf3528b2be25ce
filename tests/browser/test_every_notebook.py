"""What every notebook with a lab has to bear, in a real JupyterLab."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from live_notebook import NOTEBOOKS, Notebook, count_beyond, download, start_lab, touch_all

LEAVE = {
    "00_start_here": ("view",),  # the curves are always the same, as in 08 and 09
    "05_race": ("budget",),  # at its least the race is over: the longest is chosen
    "06_densities_2d": ("density",),  # the last one is a drawing, and there is none
    "07_swaps": ("block",),  # beyond the last mixing layer of this run, that one is shown
    "08_properties": ("view",),
    "09_orthogonal_rnn": ("budget", "view"),
    "14_images": ("budget",),
}
SLOWED = ("01_p4inv_live",)
"""Labs whose highest learning rate can, as it should, end a run in some 13 steps: here they take one in a second."""
LAB = re.compile(r"^lab\b", re.MULTILINE)
RESTART = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"

pytestmark = [pytest.mark.browser, pytest.mark.long]
every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


@every_notebook
def test_all_settings_while_it_runs(notebook: Notebook, name: str) -> None:
    start_lab(notebook, f"{name}.ipynb")
    leave = LEAVE.get(name, ())
    if "budget" in leave:  # a race that lasts
        budget = notebook.reach("budget").locator("select")
        budget.select_option(index=budget.locator("option").count() - 1)
    if name in SLOWED:
        notebook.reach("speed").locator("select").select_option(index=0)
    notebook.train(2)
    touch_all(notebook, leave)
    assert notebook.state() == "running"
    count_beyond(notebook, 2)
    notebook.screenshot("touched")
    notebook.pause()
    notebook.reset()
    notebook.check_clean()


@every_notebook
def test_branch_save_reset_and_load(notebook: Notebook, name: str, tmp_path: Path) -> None:
    start_lab(notebook, f"{name}.ipynb")
    notebook.train(6)
    last = notebook.pause()
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    notebook.button("Branch here").click()
    notebook.wait_for_runs(2)
    notebook.wait_for_count("===", 0)
    for step in (1, 2):
        notebook.button("Step").click()
        notebook.wait_for_count("===", step)
    config = notebook.ask("lab.config.to_text()")
    path = download(notebook, "Save run", tmp_path)

    notebook.reset()
    upload = notebook.item("upload").locator("input")
    upload.set_input_files(path)
    notebook.wait_for_runs(3)
    notebook.wait_for_count("===", 2)
    assert notebook.ask("lab.config.to_text()") == config
    path.write_bytes(path.read_bytes()[:500])
    upload.set_input_files(path)
    notebook.wait_for_message("damaged or something else")
    notebook.train(5)
    notebook.pause()
    notebook.page.get_by_role("button", name="Make this the active run: run 1").click()
    notebook.wait_for_count("===", last)
    notebook.screenshot("three_runs")
    notebook.check_clean()


@every_notebook
def test_reload_interrupt_run_again_and_restart(notebook: Notebook, name: str) -> None:
    start_lab(notebook, f"{name}.ipynb")
    notebook.train(2)
    notebook.command("docmanager:save")
    notebook.page.reload(wait_until="domcontentloaded")
    notebook.wait_until_live()
    notebook.wait_for_state("running")
    notebook.page.wait_for_selector(".p4-plot .main-svg")
    notebook.wait_for_picture()
    count_beyond(notebook, 2)

    notebook.command("notebook:interrupt-kernel")
    count_beyond(notebook, 5)

    notebook.run_all()
    notebook.wait_for_state("idle")
    assert notebook.problems() == []  # one trainer and one pump: those of the first run are gone
    notebook.train(2)

    notebook.page.evaluate(RESTART)
    notebook.page.wait_for_selector(".p4-hint", state="visible")
    notebook.screenshot("restarted")
    notebook.wait_until_live()
    notebook.run_all()
    notebook.wait_for_state("idle")
    notebook.train(2)
    notebook.pause()
    notebook.check_clean()


@every_notebook
def test_two_labs_in_one_notebook(notebook: Notebook, name: str) -> None:
    (notebook.server.folder / "two.ipynb").write_text(json.dumps(twice(notebook.server.folder / f"{name}.ipynb")))
    notebook.open("two.ipynb")
    notebook.run_all()
    other = dataclasses.replace(notebook, lab=1)
    for one in (notebook, other):
        one.wait_for_state("idle")
    other.train(3)
    assert notebook.count() == 0
    notebook.train(3)
    assert other.state() == "running"
    for one in (notebook, other):
        assert one.pause() == int(one.ask(f"(lab, other)[{one.lab}].player.engine.step"))
    notebook.button("Reset").click()
    notebook.wait_for_state("idle")
    assert other.count() >= 3
    notebook.screenshot("two")
    notebook.check_clean("lab", "other")


def twice(path: Path) -> dict[str, Any]:
    """Return a notebook of the cell with imports, the cell with the lab, and the same with another lab."""
    content: dict[str, Any] = json.loads(path.read_text())
    imports, lab, *_ = (cell for cell in content["cells"] if cell["cell_type"] == "code")
    other = {**lab, "id": "second-lab", "source": LAB.sub("other", "".join(lab["source"]))}
    return {**content, "cells": [imports, lab, other]}
