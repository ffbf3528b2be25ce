"""The notebook on densities in the plane in a real JupyterLab."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from live_notebook import Notebook, becomes, branch_with, download, drawn, redrawn, start_lab, to_now
from PIL import Image

NAME = "06_densities_2d.ipynb"
CONFIG = "lab.player.engine.config"
RIGHT = ".p4-density-of-p4inv_bent canvas"
ROUTE = ".p4-density-way-p4inv_bent canvas"
SKETCH = ".p4-sketch canvas"
WIDGETS = "__import__('p4lab.widgets.dashboard', fromlist=['boxes_in']).boxes_in(lab.root)"
INK = f"next(int(w.ink.astype(int).sum()) for w in {WIDGETS} if hasattr(w, 'ink'))"
# With P4LAB_SCREENSHOT_DIR=docs, the moving picture in the README is taken anew, at these steps.
DOCS_FOLDER = os.environ.get("P4LAB_SCREENSHOT_DIR")
MOMENTS = (
    1,
    4,
    15,
    30,
    50,
    80,
    110,
    150,
    190,
    240,
    300,
    360,
    430,
    500,
    580,
    670,
    760,
    860,
    970,
    1100,
    1250,
    1450,
    1700,
)
MOMENTS = (*MOMENTS, 2000, 2400, 2900, 3400, 3900) if DOCS_FOLDER else (1, 40)


def start(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    notebook.reach("board").locator("td", has_text="RealNVP").wait_for()


def shows(notebook: Notebook, name: str, index: int) -> None:
    """Wait until a choice shows this one: an older frame may have been on its way."""
    value = f".p4-item[data-name={name}] select"
    notebook.wait_for("([s, i]) => document.querySelector(s).value === i", [value, str(index)])


def tool(notebook: Notebook, text: str) -> Any:
    return notebook.page.locator(".p4-sketch button", has_text=text)


def draw(notebook: Notebook, *spots: tuple[float, float]) -> None:
    """Draw a line with the mouse through spots, as shares of the square from its lower left corner."""
    notebook.turn("pictures", "Draw your own")
    canvas = notebook.page.locator(SKETCH)
    notebook.bring(canvas)
    box, mouse = canvas.bounding_box(), notebook.page.mouse
    side = min(box["width"] - 66, box["height"] - 30)  # the margins of sketch.ts
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
            notebook.reach(name).locator("input").click()
            becomes(notebook, f"{CONFIG}.{name}", before == "False")
    for name in ("learning_rate", "merge_every", "refine_every"):
        for end in ("max", "min"):
            value = notebook.drag_to(name, end).split()[0]
            becomes(notebook, f"{CONFIG}.{name}", float(value) if name == "learning_rate" else value)
        notebook.drag_by(name, 4)
    for name in ("reset", "speed", "density", "blocks", "couplings", "optimizer", "batch_size", "rank", "dtype"):
        select = notebook.reach(name).locator("select")
        first = select.input_value()
        for index in (select.locator("option").count() - 1, 0):
            if name == "density" and index:
                index -= 1  # there is no drawing yet
            select.select_option(index=index)
            notebook.page.wait_for_timeout(400)
            shows(notebook, name, index)
        select.select_option(index=int(first))
    notebook.reach("train_v").locator("input").click()
    notebook.wait_for_message("Train v, too")
    for text in ("Density", "Log-density"):
        before = drawn(notebook, RIGHT)
        notebook.item("log").get_by_role("button", name=text, exact=True).click()
        redrawn(notebook, RIGHT, before)
    for name in ("lattice", "samples", "samples", "lattice"):
        notebook.reach(name).locator("input").click()
    assert notebook.state() == "running"
    notebook.screenshot("controls")
    notebook.pause()
    notebook.reset()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_depth_while_it_runs_and_while_it_rests(notebook: Notebook) -> None:
    start(notebook)
    notebook.turn("pictures", "From noise to data")
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
    notebook.turn("pictures", "Draw your own")
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
    notebook.reach("board").locator("td", has_text="Your own drawing").wait_for()
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
    branch_with(notebook, "Learning rate")
    notebook.train(20)
    notebook.pause()
    assert drawn(notebook, RIGHT) != past
    notebook.choose("density", "Rings")
    notebook.wait_for_message("Press Reset to apply: Density")
    notebook.reset()
    notebook.reach("board").locator("td", has_text="Rings").wait_for()
    notebook.screenshot("branched")
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_the_moving_picture_of_the_readme(notebook: Notebook, tmp_path: Path) -> None:
    notebook.page.set_viewport_size({"width": 1440, "height": 1100})
    start_lab(notebook, NAME, whole=False)
    notebook.command("application:toggle-left-area")
    lab = notebook.page.locator(".p4-lab")
    lab.evaluate("node => node.scrollIntoView({ block: 'start' })")
    notebook.page.wait_for_timeout(1500)
    box = lab.bounding_box()
    clip = {"x": box["x"] - 8, "y": box["y"], "width": box["width"] + 16, "height": 960}

    def frame() -> Image.Image:
        shot = Image.open(io.BytesIO(notebook.page.screenshot(clip=clip))).convert("RGB")
        return shot.resize((1000, round(1000 * shot.height / shot.width)), Image.Resampling.LANCZOS)

    frames = [frame()]
    notebook.button("Start").click()
    for moment in MOMENTS:
        notebook.wait_for_count(">=", moment)
        frames.append(frame())
    notebook.pause()
    path = Path(DOCS_FOLDER or tmp_path) / "densities_live.webp"
    milliseconds = [900, *[220] * (len(frames) - 2), 2500]
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[1:],
        duration=milliseconds,
        loop=0,
        quality=70,
        method=6,
        minimize_size=True,
    )
    with Image.open(path) as film:
        assert film.n_frames == len(frames)
    assert path.stat().st_size < 1_000_000
    notebook.check_clean()
