"""The notebook on one flow for all temperatures in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, check_fit, drawn, looks, redrawn, start_lab, still

NAME = "12_temperature.ipynb"
EXACT = ".p4-temperature .p4-pictures > :nth-child(1) canvas"
FLOW = ".p4-temperature .p4-pictures > :nth-child(2) canvas"


def turned(notebook: Notebook, text: str) -> None:
    """Wait until the table is that of a temperature."""
    notebook.item("board").locator("th", has_text=f"at {text}").wait_for()


@pytest.mark.browser
def test_the_dial_turns_while_it_trains_and_while_it_rests_and_fits_the_page(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    before = drawn(notebook, FLOW)
    notebook.train(10)
    redrawn(notebook, FLOW, before)
    exact = drawn(notebook, EXACT)  # does not change by training
    hot = notebook.drag_to("temperature", "max")
    redrawn(notebook, EXACT, exact)
    turned(notebook, hot)
    for _ in looks(notebook):
        check_fit(notebook)
    assert notebook.state() == "running"

    steps = notebook.pause()
    flow, exact = still(notebook, FLOW), drawn(notebook, EXACT)
    cold = notebook.drag_to("temperature", "min")
    assert (cold, hot) == ("T = 0.31", "T = 3.17")
    redrawn(notebook, FLOW, flow)
    redrawn(notebook, EXACT, exact)
    turned(notebook, cold)
    assert notebook.count() == steps
    notebook.screenshot("cold")
    notebook.check_clean()
