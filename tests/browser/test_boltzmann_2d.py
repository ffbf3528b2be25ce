"""The notebook on Boltzmann generators in the plane in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, becomes, drawn, redrawn, start_lab, still

NAME = "10_boltzmann_2d.ipynb"
SHARE = "lab.player.engine.config.share"
FLOW = ".p4-boltzmann .p4-pictures > :nth-child(2) canvas"


@pytest.mark.browser
def test_learns_by_example_then_by_energy(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    before = drawn(notebook, FLOW)
    notebook.train(10)
    redrawn(notebook, FLOW, before)
    for end, text, share in (("max", "by energy", 1.0), ("min", "by example", 0.0)):
        assert notebook.drag_to("share", end) == text
        becomes(notebook, SHARE, share)
    notebook.drag_by("share", 10)
    becomes(notebook, SHARE, 0.5)
    assert notebook.state() == "running"
    notebook.pause()
    at_rest = still(notebook, FLOW)
    notebook.item("log").get_by_role("button", name="Log-density", exact=True).click()
    redrawn(notebook, FLOW, at_rest)
    notebook.check_clean()
