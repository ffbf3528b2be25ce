"""The notebook on linear problems in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import CANVAS, Notebook, becomes, branch_with, drawn, redrawn, restored, start_lab, to_now

NAME = "04_linear_problems.ipynb"
CONFIG = "lab.player.engine.config"


@pytest.mark.browser
@pytest.mark.long
def test_every_control_to_both_ends_while_it_runs(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    still = drawn(notebook, CANVAS)
    notebook.train(50)
    redrawn(notebook, CANVAS, still)
    for name, after in (("skip", False), ("skip", True), ("penalty", True), ("penalty", False)):
        notebook.reach(name).locator("input").click()
        becomes(notebook, f"{CONFIG}.{name}", after)
    for text in ("off", "1", "10", "50"):
        notebook.reach("refine_every").get_by_role("button", name=text, exact=True).click()
        becomes(notebook, f"{CONFIG}.refine_every", text.replace("off", "0"))
    for name in ("way", "speed", "case", "optimizer", "dtype"):
        select = notebook.reach(name).locator("select")
        for index in (select.locator("option").count() - 1, 0):
            select.select_option(index=index)
            notebook.page.wait_for_timeout(500)
            assert select.input_value() == str(index)
    notebook.reach("sampled").locator("input").click()
    notebook.wait_for_message("Sampled batches")
    for end in ("max", "min"):
        value = notebook.drag_to("learning_rate", end).split()[0]
        becomes(notebook, f"{CONFIG}.learning_rate", float(value))
    assert notebook.state() == "running"
    notebook.screenshot("controls")
    notebook.pause()
    notebook.reset()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_a_lane_that_runs_away_says_so_and_the_others_go_on(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    notebook.choose("speed", "none")
    notebook.drag_to("learning_rate", "max")
    notebook.train(50)
    notebook.wait_for_message("N = 1 stopped")
    assert notebook.told("loss_n1") == "stopped"
    assert float(notebook.told("loss_plain").replace("−", "-")) < 1e-3
    assert notebook.state() == "running"
    notebook.screenshot("runaway")
    notebook.pause()
    notebook.reset()
    assert notebook.told("loss_n1") != "stopped"
    notebook.check_clean()


@pytest.mark.browser
def test_another_problem_another_lane(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    notebook.train(30)
    notebook.pause()
    for text, target in (("SO(128)", "rotation"), ("SPD 32", "spd_near_one"), ("−I 101", "minus_identity")):
        notebook.choose("case", text)
        notebook.wait_for_message("Press Reset to apply: ")
        notebook.reset()
        becomes(notebook, f"{CONFIG}.target", target)
        for lane in ("N = 50", "inverse", "N = 10"):
            notebook.choose("way", lane)
            notebook.page.locator(".p4-legend", has_text=f"{lane}, step 0").wait_for()
        notebook.train(50)
        notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_scrub_branch_and_penalty(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    notebook.train(100)
    notebook.pause()
    last, present = notebook.count(), drawn(notebook, CANVAS)
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    redrawn(notebook, CANVAS, present)
    to_now(notebook, last)
    restored(notebook, CANVAS, present)

    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    notebook.reach("penalty").locator("input").click()
    branch_with(notebook, "Penalty on det")
    notebook.choose("speed", "none")
    notebook.train(80)
    notebook.wait_for_message("N = 1 stopped")
    notebook.screenshot("branched")
    notebook.pause()
    notebook.check_clean()
