"""The notebook on densities in the plane in a real JupyterLab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live_notebook import Notebook, becomes, check_fit, download, drawn, looks, redrawn, start_lab, to_now

NAME = "06_densities_2d.ipynb"
CONFIG = "lab.player.engine.config"
RIGHT = ".p4-pictures > :nth-child(3) canvas"
ROUTE = ".p4-pictures > :nth-child(7) canvas"
SKETCH = ".p4-sketch canvas"
BOXES = "(w for box in lab.root.children[0].children for w in getattr(box, 'children', ()))"
INK = f"next(int(w.ink.astype(int).sum()) for w in {BOXES} if hasattr(w, 'ink'))"


def start(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.item("board").locator("td", has_text="RealNVP").wait_for()


def shows(notebook: Notebook, name: str, index: int) -> None:
    """Wait until a choice shows this one: an older frame may have been on its way."""
    value = f".p4-item[data-name={name}] select"
    notebook.wait_for("([s, i]) => document.querySelector(s).value === i", [value, str(index)])


def tool(notebook: Notebook, text: str) -> Any:
    return notebook.page.locator(".p4-sketch button", has_text=text)


def draw(notebook: Notebook, *spots: tuple[float, float]) -> None:
    """Draw a line with the mouse through spots, as shares of the square from its lower left corner."""
    canvas = notebook.page.locator(SKETCH)
    canvas.scroll_into_view_if_needed()
    box, mouse = canvas.bounding_box(), notebook.page.mouse
    side = box["width"] - 66  # the margins of sketch.ts
    points = [(box["x"] + 58 + u * side, box["y"] + 8 + (1 - v) * side) for u, v in spots]
    mouse.move(*points[0])
    mouse.down()
    for point in points[1:]:
        mouse.move(*point, steps=10)
    mouse.up()


def ink(notebook: Notebook) -> int:
    return int(notebook.ask(INK))


def inked(notebook: Notebook, condition: str) -> None:
    becomes(notebook, f"{INK} {condition}", True)


@pytest.mark.browser
@pytest.mark.long
def test_every_control_to_both_ends_while_it_runs(notebook: Notebook) -> None:
    start(notebook)
    still = drawn(notebook, RIGHT)
    notebook.train(5)
    redrawn(notebook, RIGHT, still)
    for name in ("skip", "penalty"):
        for _ in range(2):
            before = notebook.ask(f"{CONFIG}.{name}")
            notebook.item(name).locator("input").click()
            becomes(notebook, f"{CONFIG}.{name}", before == "False")
    for name in ("learning_rate", "merge_every", "refine_every"):
        for end in ("max", "min"):
            value = notebook.drag_to(name, end).split()[0]
            becomes(notebook, f"{CONFIG}.{name}", float(value) if name == "learning_rate" else value)
        notebook.drag_by(name, 4)
    for name in ("reset", "speed", "density", "blocks", "couplings", "optimizer", "batch_size", "rank", "dtype"):
        select = notebook.item(name).locator("select")
        first = select.input_value()
        for index in (select.locator("option").count() - 1, 0):
            if name == "density" and index:
                index -= 1  # there is no drawing yet
            select.select_option(index=index)
            notebook.page.wait_for_timeout(400)
            shows(notebook, name, index)
        select.select_option(index=int(first))
    notebook.item("train_v").locator("input").click()
    notebook.wait_for_message("train v")
    for text in ("Density", "Log-density"):
        before = drawn(notebook, RIGHT)
        notebook.item("log").get_by_role("button", name=text, exact=True).click()
        redrawn(notebook, RIGHT, before)
    for name in ("lattice", "samples", "samples", "lattice"):
        notebook.item(name).locator("input").click()
    assert notebook.state() == "running"
    notebook.screenshot("controls")
    notebook.pause()
    notebook.reset()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_depth_while_it_runs_and_while_it_rests(notebook: Notebook) -> None:
    start(notebook)
    notebook.train(20)
    for end, text in (("min", "latent z"), ("max", "data x")):
        assert notebook.drag_to("depth", end) == text
    assert notebook.state() == "running"
    notebook.pause()
    seen = [drawn(notebook, ROUTE)]
    for _ in range(3):
        for _ in range(8):
            notebook.press("depth", "ArrowLeft")
        seen.append(redrawn(notebook, ROUTE, seen[-1]))
        notebook.page.wait_for_timeout(500)
    assert len(set(seen)) == len(seen)
    notebook.screenshot("depth")
    notebook.button("Play").click()
    notebook.button("Stop").wait_for()
    notebook.page.locator(".p4-legend", has_text="grid of z after 33 of 33 layers").wait_for()
    notebook.button("Play").wait_for()
    notebook.press("depth", "Home")
    notebook.page.locator(".p4-legend", has_text="grid of z after 0 of 33 layers").wait_for()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_draw_and_train_on_it(notebook: Notebook, tmp_path: Path) -> None:
    start(notebook)
    assert tool(notebook, "Train on this").is_disabled()
    draw(notebook, (0.2, 0.2), (0.5, 0.8), (0.8, 0.2))
    inked(notebook, "> 500")
    drawn = ink(notebook)
    tool(notebook, "Erase").click()
    draw(notebook, (0.1, 0.5), (0.9, 0.5))
    inked(notebook, f"< {drawn}")
    tool(notebook, "Undo").click()
    inked(notebook, f"== {drawn}")
    tool(notebook, "Clear").click()
    inked(notebook, "== 0")
    tool(notebook, "Undo").click()
    inked(notebook, f"== {drawn}")
    tool(notebook, "Paint").click()
    tool(notebook, "L").first.click()
    draw(notebook, (0.5, 0.15), (0.5, 0.16))
    inked(notebook, f"> {drawn}")
    canvas = notebook.page.locator(SKETCH)
    before = ink(notebook)
    for key in ("ArrowUp", "Space", "Shift+ArrowLeft"):
        canvas.press(key)
    inked(notebook, f"> {before}")
    canvas.press("Control+z")

    tool(notebook, "Train on this").click()
    notebook.wait_for_state("running")
    notebook.wait_for_count(">=", 20)
    becomes(notebook, f"{CONFIG}.density", "drawing")
    notebook.item("board").locator("td", has_text="Your own drawing").wait_for()
    notebook.screenshot("drawing")
    notebook.pause()

    path = download(notebook, "Save run", tmp_path)
    text = notebook.item("config").locator("input").input_value()
    notebook.choose("density", "Two moons")
    notebook.reset()
    notebook.page.locator("input[type=file]").set_input_files(path)
    notebook.wait_for_count(">=", 20)
    becomes(notebook, "lab.config.to_text()", text)
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_scrub_branch_and_reset(notebook: Notebook) -> None:
    start(notebook)
    notebook.train(40)
    notebook.pause()
    last, present = notebook.count(), drawn(notebook, RIGHT)
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    past = redrawn(notebook, RIGHT, present)
    to_now(notebook, last)
    notebook.press("scrub", "Home")
    notebook.wait_for_count("===", 0)
    notebook.drag_by("learning_rate", 1)
    notebook.wait_for_message("and press Branch here")
    notebook.button("Branch here").click()
    notebook.wait_for_runs(2)
    notebook.train(20)
    notebook.pause()
    assert drawn(notebook, RIGHT) != past
    notebook.choose("density", "Rings")
    notebook.wait_for_message("Press Reset to apply: density")
    notebook.reset()
    notebook.item("board").locator("td", has_text="Rings").wait_for()
    notebook.screenshot("branched")
    notebook.check_clean()


@pytest.mark.browser
def test_fits_the_page(notebook: Notebook) -> None:
    start(notebook)
    draw(notebook, (0.3, 0.3), (0.7, 0.7))
    notebook.train(30)
    for _ in looks(notebook):
        check_fit(notebook)
    notebook.pause()
    notebook.check_clean()
