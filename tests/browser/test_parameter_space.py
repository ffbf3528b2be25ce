"""The notebook on the space of matrices in a real JupyterLab."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from live_notebook import (
    CANVAS,
    Notebook,
    branch_with,
    download,
    drag_handle,
    drawn,
    redrawn,
    restored,
    start_lab,
    to_now,
)

from p4lab.problems.matrix import matrix

NAME = "02_parameter_space.ipynb"
PLANNED = "lab.player.frame(10).planned"


def settled(notebook: Notebook, expression: str) -> str:
    """Return a value of the kernel once it rests: the end of a drag arrives after its beginning."""
    before, now = "", notebook.ask(expression)
    while now != before:
        notebook.page.wait_for_timeout(700)
        before, now = now, notebook.ask(expression)
    return now


@pytest.mark.browser
def test_controls_to_their_ends_and_the_target_dragged_while_it_runs(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    still = drawn(notebook, CANVAS)
    notebook.train(20)
    redrawn(notebook, CANVAS, still)

    drag_handle(notebook, "target", 70, -60)
    notebook.wait_for("() => document.querySelector('[data-name=target] input').value.includes(';')")
    text = settled(notebook, f"{PLANNED}.target")
    assert notebook.ask("lab.player.engine.config.target") == text
    assert np.abs((matrix(text, 2) - matrix("rotation", 2)).numpy()).max() > 0.1
    assert notebook.state() == "running"

    for name in ("merge_every", "learning_rate"):
        for end in ("min", "max"):
            value = notebook.drag_to(name, end).split()[0]
            assert float(settled(notebook, f"lab.player.engine.config.{name}")) == float(value)
    # At this learning rate, with few merges, P4Inv's random directions are too long: that lane stops and says so.
    notebook.write("target", "2 0.5; 0.3 1")  # it may already have reached the one before
    notebook.wait_for_message("P4Inv stopped")
    assert notebook.told("loss_p4inv") == "stopped"
    notebook.screenshot("runaway")
    notebook.pause()
    notebook.reset()
    assert notebook.told("loss_p4inv") != "stopped"
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_start_and_target_by_hand_by_name_and_as_text(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    drag_handle(notebook, "start", 40, 30)
    notebook.wait_for("() => document.querySelector('[data-name=from] input').value.includes(';')")
    assert notebook.ask("lab.player.engine.config.start") == notebook.ask(f"{PLANNED}.start") != "identity"

    notebook.choose("pair", "Opposite sign of det")
    notebook.wait_for("() => document.querySelector('[data-name=target] input').value === 'reflection'")
    notebook.write("target", "2 0.5; 0.3 1")
    notebook.wait_for(
        "() => !document.querySelector('[data-name=loss_plain] .p4-value').innerText.startsWith('2.0e+00')"
    )
    assert notebook.ask("lab.player.engine.config.target") == "2 0.5; 0.3 1"
    notebook.train(30)

    notebook.write("target", "0 -1; 1")
    notebook.wait_for_message("rows such as")
    assert notebook.state() == "running"
    assert notebook.ask("lab.player.engine.config.target") == "2 0.5; 0.3 1"
    notebook.write("target", "0 -1; 1 0")
    notebook.wait_for_message("Move a slider")
    assert notebook.ask("lab.player.engine.config.target") == "0 -1; 1 0"

    notebook.pause()
    notebook.write("from", "1 1; 1 1")
    notebook.wait_for_message("Press Reset to apply: Start")
    notebook.button("Reset").click()
    notebook.wait_for_message("the start matrix is singular")
    notebook.screenshot("singular_start")
    notebook.write("from", "shear")
    notebook.wait_for_message("Press Reset to apply: Start")
    notebook.reset()
    assert notebook.ask("lab.player.engine.config.start") == "shear"
    notebook.train(20)
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_every_other_control_to_both_ends_while_it_runs(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.train(10)
    for name in ("skip", "penalty", "sampled", "train_v"):
        for _ in range(2):
            notebook.reach(name).locator("input").click()
            notebook.wait_for_count(">", notebook.count())
    for name in ("reset", "optimizer", "rank", "dtype", "dim", "pair", "speed"):
        select = notebook.reach(name).locator("select")
        for index in (select.locator("option").count() - 1, 0):
            select.select_option(index=index)
            notebook.page.wait_for_timeout(400)
            assert select.input_value() == str(index)
    for name in ("map", "view"):
        for button in notebook.reach(name).locator("button").all()[::-1]:
            button.click()
            notebook.wait_for('b => b.getAttribute("aria-pressed") === "true"', button.element_handle())
    for name in ("target", "start"):
        for dx, dy in ((-400, 300), (500, -400)):
            drag_handle(notebook, name, dx, dy)
            notebook.page.wait_for_timeout(300)
    assert notebook.state() == "running"
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_scrub_and_branch(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.train(60)
    notebook.pause()
    notebook.page.wait_for_timeout(700)
    last, present = notebook.count(), drawn(notebook, CANVAS)
    notebook.drag_to("scrub", "min")
    notebook.wait_for_count("===", 0)
    redrawn(notebook, CANVAS, present)
    to_now(notebook, last)
    restored(notebook, CANVAS, present)

    notebook.drag_to("scrub", "min")
    notebook.wait_for_count("===", 0)
    interval = notebook.drag_to("merge_every", "min").split()[0]
    branch_with(notebook, "Merge every")
    notebook.train(30)
    notebook.pause()
    assert notebook.ask("lab.player.engine.config.merge_every") == interval == "1"
    notebook.screenshot("branched")
    notebook.page.get_by_role("button", name="Make this the active run").first.click()
    notebook.wait_for_count("===", last)
    notebook.page.get_by_role("button", name="Remove this run").first.click()
    notebook.wait_for_runs(1)
    notebook.reset()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_a_saved_run_is_loaded(notebook: Notebook, tmp_path: Path) -> None:
    start_lab(notebook, NAME)
    notebook.choose("pair", "Opposite sign, sheared")
    notebook.train(40)
    notebook.pause()
    notebook.page.wait_for_timeout(700)
    last, det = notebook.count(), notebook.told("det")
    saved = download(notebook, "Save run", tmp_path)

    notebook.reset()
    notebook.choose("pair", "Turn by 120°")
    notebook.item("upload").locator("input").set_input_files(saved)
    notebook.wait_for_runs(2)
    notebook.wait_for_count("===", last)
    notebook.wait_for("det => document.querySelector('[data-name=det] .p4-value').innerText === det", det)
    assert notebook.item("target").locator("input").input_value() == "reflection"
    notebook.train(last + 20)
    notebook.pause()

    saved.write_bytes(saved.read_bytes()[:500])
    notebook.item("upload").locator("input").set_input_files(saved)
    notebook.wait_for_message("damaged or something else")
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_larger_matrices_change_the_picture_and_come_back(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.train(10)
    notebook.pause()
    for dim in (32, 8, 2):
        notebook.choose("dim", str(dim))
        notebook.wait_for_message("Press Reset to apply: ")
        notebook.reset()
        notebook.train(40)
        space = notebook.page.locator(".p4-picture", has_text="The space of 2 × 2 matrices")
        plane = notebook.page.locator(".p4-picture", has_text="The paths in their main plane")
        (space if dim == 2 else plane).wait_for(state="visible")
        assert (space.is_visible(), plane.is_visible()) == (dim == 2, dim != 2)
        notebook.screenshot(f"width_{dim}")
        notebook.pause()
    notebook.check_clean()
