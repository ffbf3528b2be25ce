"""The race in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, start_lab

NAME = "05_race.ipynb"
CONFIG = "lab.player.frame(10).snapshot.config"


def start(notebook: Notebook, whole: bool = False) -> None:
    start_lab(notebook, NAME, whole)
    notebook.page.wait_for_selector(".p4-table tr:nth-child(2)")


@pytest.mark.browser
def test_tick_race_and_race_again(notebook: Notebook) -> None:
    start(notebook, whole=True)
    notebook.reach("method:woodbury").locator("input").click()
    notebook.wait_for("() => document.querySelectorAll('.p4-table tr').length === 7")
    notebook.train(5)
    for end in ("max", "min"):
        value = notebook.drag_to("rate_factor", end)
        notebook.wait_for_count(">", notebook.count() + 1)
        assert float(notebook.ask(f"{CONFIG}.rate_factor")) == float(value)
    notebook.reach("method:plu").locator("input").click()
    notebook.page.wait_for_selector('.p4-item[data-name="method:plu"][data-pending="true"]')
    notebook.reach("axis").locator("button", has_text="Steps").click()
    notebook.wait_for("() => document.querySelector('.js-plotly-plot').layout.xaxis.title.text.includes('steps')")
    notebook.pause()
    notebook.choose("budget", "2 s")
    notebook.reset()
    notebook.wait_for("() => document.querySelectorAll('.p4-table tr').length === 6")
    notebook.train(2)
    notebook.wait_for_state("paused")
    assert "Time is up" in notebook.item("message").inner_text()
    notebook.button("Next seed").click()
    notebook.wait_for("() => document.querySelector('.p4-table caption').innerText.includes('2 seeds')")
    notebook.wait_for_count(">", 2)
    notebook.screenshot("two_seeds")
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_tasks_scrub_and_branch(notebook: Notebook) -> None:
    start(notebook)
    for task in ("ICA: photos", "Map: det < 0"):
        notebook.choose("task", task)
        if notebook.state() != "idle":
            notebook.reset()
        notebook.wait_for("t => document.querySelector('[data-name=task] select').selectedOptions[0].label === t", task)
        notebook.train(12)
        notebook.pause()
    notebook._drag(notebook.item("scrub").locator("input"), 0.5)
    step = notebook.item("scrub").locator("output")
    step.filter(has_text="step").wait_for()
    notebook.button("Branch here").click()
    notebook.wait_for_runs(2)
    turn = notebook.count()
    notebook.train(turn + 3)
    notebook.pause()
    notebook.check_clean()
