"""The notebook on images in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, becomes, drag_handle, drawn, redrawn, restored, start_lab

NAME = "14_images.ipynb"
SHIPPED, P4INV = (f".p4-images-samples figure:nth-of-type({place}) canvas" for place in (1, 2))
HERE, STRIP = (f".p4-images-strip figure:nth-of-type({place}) canvas" for place in (1, 2))


@pytest.mark.browser
def test_the_ring_is_dragged_before_any_training_and_lanes_learn_beside_it(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    here, strip = drawn(notebook, HERE), drawn(notebook, STRIP)
    drag_handle(notebook, "way", 160, 20)
    redrawn(notebook, HERE, here)
    restored(notebook, STRIP, strip)
    becomes(notebook, "0.55 < lab.view.way < 0.95", True)
    notebook.choose("flow", "PLU (Glow)")
    redrawn(notebook, STRIP, strip)

    notebook.turn("pictures", "Samples")
    shipped = drawn(notebook, SHIPPED)
    notebook.choose("digit", "7")
    sevens = redrawn(notebook, SHIPPED, shipped)
    notebook.drag_to("temperature", "min")
    redrawn(notebook, SHIPPED, sevens)
    untrained = drawn(notebook, P4INV)
    notebook.train(2)
    redrawn(notebook, P4INV, untrained)
    notebook.choose("digit", "each")
    notebook.drag_to("temperature", "max")
    assert notebook.state() == "running"
    notebook.pause()
    notebook.check_clean()
