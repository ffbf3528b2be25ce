"""The notebook on alanine dipeptide in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, becomes, check_fit, drawn, looks, redrawn, start_lab

NAME = "11_alanine_dipeptide.ipynb"
PLOT = ".p4-alanine-map canvas"


@pytest.mark.browser
def test_trains_by_energy_and_fits_the_page(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    before = drawn(notebook, PLOT)
    notebook.train(5)
    assert notebook.drag_to("by_energy", "max").startswith("1")
    becomes(notebook, "lab.player.engine.config.by_energy", "1.0")
    redrawn(notebook, PLOT, before)
    for _ in looks(notebook):
        check_fit(notebook)
    assert notebook.state() == "running"
    notebook.pause()
    becomes(notebook, "lab.player.engine.problem.energy.context", "None")
    notebook.check_clean()
