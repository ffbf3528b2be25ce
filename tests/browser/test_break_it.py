"""The stability lab in a real JupyterLab."""

from __future__ import annotations

from typing import Any

import pytest
from live_notebook import CANVAS, Notebook, becomes, drawn, redrawn, start_lab

NAME = "03_break_it.ipynb"
CONFIG = "lab.player.engine.config"
ATTACKS = {"Drive to 0": "0.0", "Hover at 1e-3": "0.001", "Cross det = 0": "-1.0", "Back to safety": "1.0"}


def more(notebook: Notebook, steps: int) -> None:
    """Train on for some steps."""
    notebook.wait_for_count(">=", notebook.count() + steps)


def at_full_speed(notebook: Notebook) -> None:
    notebook.choose("speed", "none")
    notebook.train(100)


def switch(notebook: Notebook, name: str) -> None:
    notebook.reach(name).locator("input").click()


def choose(notebook: Notebook, name: str, text: str) -> None:
    notebook.reach(name).get_by_role("button", name=text, exact=True).click()


def reads(notebook: Notebook, name: str, condition: str) -> None:
    """Wait until a number in the header fulfils a condition on x."""
    value = f"document.querySelector('[data-name={name}] .p4-value').innerText"
    notebook.wait_for(f"() => {{ const x = parseFloat({value}.replaceAll('−', '-')); return {condition}; }}")


@pytest.mark.browser
@pytest.mark.long
def test_every_control_acts_while_it_runs(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    still = drawn(notebook, CANVAS)
    notebook.train(50)
    redrawn(notebook, CANVAS, still)

    for label, push in ATTACKS.items():
        notebook.button(label).click()
        becomes(notebook, f"{CONFIG}.push", push)
    for name in ("push", "learning_rate", "merge_every"):
        for end in ("min", "max"):
            value = notebook.drag_to(name, end).split()[0]
            number = float(value.replace("−", "-"))
            becomes(notebook, f"{CONFIG}.{name}", int(number) if name == "merge_every" else number)
        if name == "learning_rate":
            notebook.reach(name).locator("input").press("Home")
    for name, after in (("skip", False), ("penalty", True)):
        becomes(notebook, f"{CONFIG}.{name}", not after)
        switch(notebook, name)
        becomes(notebook, f"{CONFIG}.{name}", after)
    for name, texts in (("refine_every", ("1", "2", "5", "20", "off")), ("refine_order", ("2", "7", "3"))):
        for text in texts:
            choose(notebook, name, text)
            becomes(notebook, f"{CONFIG}.{name}", text.replace("off", "0"))
    for label in ("Damage A⁻¹", "Wreck A⁻¹", "Recompute A⁻¹"):
        notebook.button(label).click()
        more(notebook, 5)
    notebook.screenshot("controls")
    assert notebook.state() == "running"

    notebook.pause()
    notebook.reset()
    notebook.check_clean()


@pytest.mark.browser
def test_det_zero_ruins_float32_without_skip_and_recomputing_mends_it(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    switch(notebook, "skip")
    at_full_speed(notebook)
    more(notebook, 100)
    notebook.button("Drive to 0").click()
    reads(notebook, "residual_float32", "x > 1")
    notebook.screenshot("ruined")
    notebook.button("Back to safety").click()
    reads(notebook, "smallest", "x > 0.9")  # the weights come back
    reads(notebook, "residual_float32", "x > 0.1")  # the inverse does not
    notebook.button("Recompute A⁻¹").click()
    reads(notebook, "residual_float32", "x < 1e-5")
    reads(notebook, "error_float32", "x < 1e-4")
    notebook.pause()
    assert notebook.told("skips") == "0"
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_a_layer_that_skips_comes_free_by_itself_and_refinement_mends_its_inverse(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    at_full_speed(notebook)
    notebook.button("Drive to 0").click()
    reads(notebook, "skips", "x > 20")
    reads(notebook, "residual_float32", "x < 0.1")
    notebook.button("Back to safety").click()
    reads(notebook, "smallest", "x > 0.9")
    choose(notebook, "refine_every", "1")
    reads(notebook, "residual_float32", "x < 1e-5")
    notebook.screenshot("freed")
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_penalty_keeps_away_and_a_branch_without_it_crosses(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    switch(notebook, "penalty")
    at_full_speed(notebook)
    notebook.button("Drive to 0").click()
    more(notebook, 500)
    reads(notebook, "smallest", "x > 1e-3")
    notebook.pause()

    scrubber: Any = notebook.item("scrub").locator("input")
    scrubber.focus()
    scrubber.press("Home")
    notebook.wait_for("() => !document.querySelector('[data-name=now] button').disabled")
    notebook.button("Damage A⁻¹").click()
    notebook.wait_for_message("is past")
    switch(notebook, "penalty")
    notebook.button("Branch here").click()
    notebook.wait_for_message("To merge goes on")
    notebook.button("Cross det = 0").click()
    notebook.train(400)
    notebook.wait_for("() => document.querySelector('[data-name=det] .p4-value').innerText === '−'")
    reads(notebook, "smallest", "x > 0.9")
    notebook.screenshot("branched")
    notebook.pause()
    assert notebook.ask("len(lab.table())") == "2"
    notebook.check_clean()
