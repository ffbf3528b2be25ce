"""The notebook on one's own model in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, becomes, drawn, redrawn, start_lab

NAME = "15_your_model.ipynb"
KEPT = ".p4-characters-turned figure:nth-of-type(2) canvas"


@pytest.mark.browser
def test_learns_while_rates_move(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    before = drawn(notebook, KEPT)
    notebook.train(4)
    for end in ("max", "min"):
        value = notebook.drag_to("rate_factor", end)
        becomes(notebook, "lab.player.engine.config.rate_factor", float(value))
    redrawn(notebook, KEPT, before)
    notebook.choose("projection", "block 1, up")
    becomes(notebook, "lab.view.projection", "0.up")
    assert notebook.state() == "running"
    assert float(notebook.told("violation").replace("−", "-")) < 1e-4
    notebook.pause()
    notebook.check_clean("lab", "table_lab")
