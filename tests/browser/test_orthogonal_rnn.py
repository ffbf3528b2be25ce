"""The notebook on recurrent networks in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, becomes, check_fit, drawn, redrawn, start_lab

NAME = "09_orthogonal_rnn.ipynb"
P4 = ".p4-rnn-answers figure:nth-of-type(3) canvas"


@pytest.mark.browser
def test_learns_while_rates_move(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    before = drawn(notebook, P4)
    notebook.train(5)
    for end in ("max", "min"):
        value = notebook.drag_to("rate_factor", end)
        becomes(notebook, "lab.player.engine.config.rate_factor", float(value))
    redrawn(notebook, P4, before)
    assert notebook.state() == "running"
    assert float(notebook.told("violation_p4").replace("−", "-")) < 1e-4
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
def test_another_task_has_another_picture(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.choose("task", "Add two numbers")
    notebook.page.wait_for_selector(".p4-picture:has-text('Sums')", state="visible")
    assert not notebook.page.locator(P4).is_visible()
    notebook.train(3)
    check_fit(notebook)
    notebook.screenshot("adding")
    notebook.pause()
    notebook.check_clean()
