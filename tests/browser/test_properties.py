"""The notebook on properties in a real JupyterLab."""

from __future__ import annotations

import pytest
from live_notebook import Notebook, becomes, drawn, redrawn, start_lab, to_now

from p4lab.baselines.properties import PROPERTIES

NAME = "08_properties.ipynb"
CONFIG = "lab.player.engine.config"
P4 = ".p4-property-matrices figure:nth-of-type(1) canvas"


@pytest.mark.browser
def test_another_property_a_slider_time_travel_and_reset(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    first = drawn(notebook, P4)
    notebook.train(10)
    redrawn(notebook, P4, first)
    for name in ("noise", "merge_every"):
        value = notebook.drag_to(name, "max").split()[0]
        becomes(notebook, f"{CONFIG}.{name}", float(value) if name == "noise" else value)
    assert notebook.state() == "running"
    assert float(notebook.told("violation_p4").replace("−", "-")) < 1e-5
    notebook.pause()

    last, present = notebook.count(), drawn(notebook, P4)
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    redrawn(notebook, P4, present)
    assert drawn(notebook, P4) == first
    to_now(notebook, last)

    notebook.choose("prop", PROPERTIES["circulant"].label)
    notebook.wait_for_message("Press Reset to apply: Property")
    notebook.reset()
    notebook.reach("board").locator("td", has_text="P4Circulant").wait_for()
    notebook.train(10)
    notebook.pause()
    notebook.reset()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_every_property_and_every_control_while_it_runs(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    for name, prop in PROPERTIES.items():
        if name != "orthogonal":
            notebook.choose("prop", prop.label)
            notebook.reset()
        becomes(notebook, f"{CONFIG}.prop", name)
        notebook.train(5)
        for slider in ("noise", "rate_factor", "strength", "merge_every"):
            notebook.drag_by(slider, 1)
            notebook.drag_by(slider, -1)
        for text_of in ("Error W − T", "Matrix W"):
            before = drawn(notebook, P4)
            notebook.reach("matrix").get_by_role("button", name=text_of, exact=True).click()
            redrawn(notebook, P4, before)
        notebook.pause()
        notebook.screenshot(name)
    for name in ("dim", "samples", "batch_size", "rank", "reset", "dtype", "speed"):
        select = notebook.reach(name).locator("select")
        first = select.input_value()
        for index in (select.locator("option").count() - 1, 0, int(first)):
            select.select_option(index=index)
            notebook.page.wait_for_timeout(200)
    notebook.check_clean()
