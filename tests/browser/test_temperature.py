"""The notebook on one flow for all temperatures in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, drawn, redrawn, start_lab, still

NAME = "12_temperature.ipynb"
EXACT = ".p4-temperature .p4-pictures > :nth-child(1) canvas"
FLOW = ".p4-temperature .p4-pictures > :nth-child(2) canvas"


def turned(notebook: Notebook, text: str) -> None:
    """Wait until the table is that of a temperature."""
    notebook.turn("below", "Estimates")
    notebook.item("board").locator("th", has_text=f"at {text}").wait_for()


@pytest.mark.browser
def test_the_dial_turns_while_it_trains_and_while_it_rests(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    before = drawn(notebook, FLOW)
    notebook.train(10)
    redrawn(notebook, FLOW, before)
    exact = drawn(notebook, EXACT)  # does not change by training
    hot = notebook.drag_to("temperature", "max")
    redrawn(notebook, EXACT, exact)
    turned(notebook, hot)
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


@pytest.mark.browser
def test_a_flow_that_reads_the_temperature_trains_and_turns(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.choose("dial", "TRADE")
    notebook.item("restart").click()
    before = drawn(notebook, FLOW)
    notebook.train(5)
    redrawn(notebook, FLOW, before)
    notebook.pause()
    flow = still(notebook, FLOW)
    hot = notebook.drag_to("temperature", "max")
    redrawn(notebook, FLOW, flow)
    turned(notebook, hot)
    notebook.turn("pictures", "Over temperatures")
    notebook.screenshot("read")
    notebook.check_clean()
