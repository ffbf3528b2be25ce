"""Plane and space in a real JupyterLab: drawn, dragged, turned, hidden, reloaded."""

from __future__ import annotations

import time
from typing import Any

import nbformat
import pytest
from live_notebook import Notebook

NAME = "pictures.ipynb"
CODE = """
import numpy as np
from p4lab.plots.layers import Arrow, Dots, Grip, Handle, Heatmap, Line, Path, Points, Surface, Text
from p4lab.widgets.plane import Plane
from p4lab.widgets.space import Space

moved = []
x = np.linspace(-2, 2, 81)
X, Y = np.meshgrid(x, x)
loss = 0.4 * (1 - X) ** 2 + 3 * (Y - 0.6 * X**2) ** 2 + 0.01
t = np.linspace(0, 1, 80)
path = np.stack([-1.6 + 2.4 * t, 1.7 - 3.2 * t + 2.2 * t**2], 1)

def flat(start=(-1, 0)):
    plane.show([
        Heatmap(loss, (-2, 2, -2, 2), low=0.01, high=30, log=True, label="loss"),
        Path(path, color="orange", width=2.5, label="P4Inv"),
        Points(path[::10], color="orange", labels=tuple(f"merge {k}" for k in range(8)), label="merges"),
        Points([[1, 0.6]], color="green", shape="cross", size=10, label="target"),
        Arrow((0, 0), (-0.5, -1), color="red"),
        Text((1, 0.6), "optimum", side="below"),
        Handle("start", start, label="start"),
    ], bounds=(-2, 2, -2, 2))

def cone():
    q, angle = np.linspace(-2, 2, 51)[:, None], np.linspace(0, 2 * np.pi, 51)[None]
    return np.stack([np.abs(q) * np.cos(angle), np.abs(q) * np.sin(angle), q + 0 * angle], -1)

def route(a):
    s = np.linspace(0, 1, 500)
    r = 1.6 - s
    return np.stack([r * np.cos(a + 3 * s), r * np.sin(a + 3 * s), -1.2 + 2.6 * s], 1)

def deep(target=(0.6, -0.4, 1.6)):
    space.show([
        Surface(cone(), opacity=0.35, label="det = 0"),
        *(Line(route(a), color=c, dashed=c == "red", label=n)
          for a, c, n in ((0, "orange", "P4Inv"), (2, "green", "plain matrix"), (4, "red", "through the inverse"))),
        Dots([route(a)[0] for a in (0, 2, 4)], color="ink", labels=("one", "two", "three"), label="start"),
        Grip("target", target, label="target"),
    ], bounds=(-2, 2, -2, 2, -2, 2))

def heard(name, point):
    moved.append((name, point))
    flat(point) if name == "start" else deep(point)

plane = Plane("Loss over two parameters", "log scale", "u\\u2081", "u\\u2082", on_moved=heard)
space = Space("All 2 \\u00d7 2 matrices", "of one trace", labels=("p", "s", "q"), on_moved=heard)
flat()
deep()
"""
SHOW = """
import ipywidgets
from IPython.display import display
display(ipywidgets.GridBox([plane, space], layout={"grid_template_columns": "1fr 1fr", "grid_gap": "24px"}))
"""
DRAWN = "n => [...document.querySelectorAll('.p4-drawing[data-frames] canvas')].filter((c) => c.width > 50).length >= n"
OVERFLOWING = """() => [...document.querySelectorAll('.p4-drawing *')]
    .filter((node) => node.clientWidth && node.scrollWidth > node.clientWidth + 1)
    .map((node) => node.className)"""
COLLAPSE = "hide => { document.querySelector('.p4-drawing').parentElement.style.display = hide ? 'none' : '' }"


@pytest.fixture
def pictures(notebook: Notebook) -> Notebook:
    v4 = nbformat.v4
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    cells = [v4.new_code_cell(CODE.strip()), v4.new_code_cell(SHOW.strip())]
    nbformat.write(v4.new_notebook(cells=cells, metadata=metadata), notebook.server.folder / NAME)
    notebook.open(NAME)
    notebook.run_all()
    notebook.wait_for(DRAWN, 2)
    notebook.page.wait_for_timeout(300)
    notebook.page.locator(".p4-drawing").first.scroll_into_view_if_needed()
    return notebook


def canvas(notebook: Notebook, index: int) -> Any:
    return notebook.page.locator(".p4-drawing canvas").nth(index)


def image(notebook: Notebook, index: int) -> str:
    """What a canvas shows, two frames from now."""
    notebook.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    notebook.page.wait_for_timeout(150)
    return str(canvas(notebook, index).evaluate("canvas => canvas.toDataURL()"))


def drag(notebook: Notebook, start: tuple[float, float], by: tuple[float, float], steps: int = 10) -> None:
    mouse = notebook.page.mouse
    mouse.move(*start)
    mouse.down()
    for k in range(steps):
        mouse.move(start[0] + by[0] * (k + 1) / steps, start[1] + by[1] * (k + 1) / steps)
        notebook.page.wait_for_timeout(20)
    mouse.up()
    notebook.page.wait_for_timeout(300)


def centre(locator: Any) -> tuple[float, float]:
    box = locator.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def check_clean(notebook: Notebook) -> None:
    assert notebook.ask("plane.error, space.error") == "None None"
    assert notebook.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').count() == 0
    assert notebook.errors == []


@pytest.mark.browser
def test_a_handle_is_dragged_and_moved_by_keys(pictures: Notebook) -> None:
    handle = pictures.page.locator('.p4-handle[data-name="start"]')
    before = image(pictures, 0)
    began = time.monotonic()
    drag(pictures, centre(handle), (60, -40), steps=30)
    seconds = time.monotonic() - began
    told = int(pictures.ask("len(moved)"))
    assert 2 <= told <= 16 * seconds + 2
    pixels = float(canvas(pictures, 0).evaluate("c => c.clientHeight - 48"))  # of the frame: 4 units high
    x, y = (float(pictures.ask(f"moved[-1][1][{k}]")) for k in (0, 1))
    assert (x, y) == pytest.approx((-1 + 60 * 4 / pixels, 40 * 4 / pixels), abs=0.02)
    assert image(pictures, 0) != before
    assert "start, at" in handle.get_attribute("aria-label")

    handle.focus()
    selected = pictures.page.locator(".jp-Notebook-cell.jp-mod-active").inner_text()
    handle.press("ArrowRight")
    handle.press("ArrowDown")
    pictures.page.wait_for_timeout(300)
    assert float(pictures.ask("moved[-1][1][0]")) == pytest.approx(x + 10 * 4 / pixels, abs=0.01)
    assert float(pictures.ask("moved[-1][1][1]")) == pytest.approx(y - 10 * 4 / pixels, abs=0.01)
    assert pictures.page.locator(".jp-Notebook-cell.jp-mod-active").inner_text() == selected
    check_clean(pictures)


@pytest.mark.browser
def test_space_is_turned_zoomed_and_comes_home(pictures: Notebook) -> None:
    place = canvas(pictures, 1)
    box = place.bounding_box()
    corner = (box["x"] + 30, box["y"] + box["height"] - 30)
    pictures.page.mouse.move(*corner)
    home = image(pictures, 1)

    pictures.page.mouse.wheel(0, 3)  # the page's, not ours
    assert image(pictures, 1) == home
    pictures.page.keyboard.down("Control")
    pictures.page.mouse.wheel(0, -200)
    pictures.page.keyboard.up("Control")
    zoomed = image(pictures, 1)
    assert zoomed != home

    drag(pictures, corner, (80, 30))
    turned = image(pictures, 1)
    assert turned not in (home, zoomed)
    pictures.ask("deep((0.6, -0.4, 1.5))")  # new data does not turn it back
    pictures.ask("deep((0.6, -0.4, 1.6))")
    assert image(pictures, 1) == turned
    place.press("ArrowLeft")
    assert image(pictures, 1) != turned
    place.press("Home")
    assert image(pictures, 1) == home
    place.press("ArrowUp")
    pictures.page.mouse.dblclick(*corner)
    assert image(pictures, 1) == home
    check_clean(pictures)


@pytest.mark.browser
def test_a_grip_moves_parallel_to_the_screen(pictures: Notebook) -> None:
    grip = pictures.page.locator('.p4-handle[data-name="target"]')
    here = centre(grip)
    drag(pictures, here, (0, 70))
    assert pictures.ask("moved[-1][0]") == "target"
    assert float(pictures.ask("moved[-1][1][2]")) < 1.3  # down on the screen is down in space
    pictures.page.wait_for_timeout(900)  # nobody holds it any more: it is where the kernel says
    assert centre(grip) == pytest.approx((here[0], here[1] + 70), abs=1)
    check_clean(pictures)


@pytest.mark.browser
def test_marks_tell_their_labels(pictures: Notebook) -> None:
    box = canvas(pictures, 0).bounding_box()
    tip = pictures.page.locator(".p4-tip").first
    assert not tip.is_visible()
    found = set()
    for share in range(24, 80, 1):  # along a line that crosses the path
        pictures.page.mouse.move(box["x"] + box["width"] * share / 100, box["y"] + box["height"] * 0.36)
        found.update(text for text in tip.all_inner_texts() if text)
    assert any(text.startswith("merge ") for text in found)


@pytest.mark.browser
def test_a_hidden_picture_answers_and_is_drawn_when_it_appears(pictures: Notebook) -> None:
    before = image(pictures, 0)
    pictures.page.evaluate(COLLAPSE, True)
    pictures.ask("flat((1.5, -1.5))")
    pictures.page.wait_for_timeout(800)
    assert pictures.ask("plane.ready") == "True"
    assert image(pictures, 0) == before
    pictures.page.evaluate(COLLAPSE, False)
    assert image(pictures, 0) != before
    check_clean(pictures)


@pytest.mark.browser
def test_two_views_and_a_reload(pictures: Notebook) -> None:
    pictures.command("docmanager:save")
    pictures.page.reload(wait_until="domcontentloaded")
    pictures.wait_until_live()
    pictures.wait_for(DRAWN, 2)
    assert "legend" in pictures.page.locator(".p4-drawing").first.inner_html()

    pictures.page.evaluate("""() => {
        const { content } = window.jupyterapp.shell.currentWidget;
        content.activeCellIndex = 1;
    }""")
    pictures.command("notebook:insert-cell-below")
    pictures.page.evaluate("""() => {
        window.jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource("display(plane)");
    }""")
    pictures.command("notebook:run-cell")
    pictures.wait_for(DRAWN, 3)
    pictures.ask("flat((0, 1))")
    pictures.page.wait_for_timeout(500)
    labels = pictures.page.locator('.p4-handle[data-name="start"]').evaluate_all("all => all.map((n) => n.ariaLabel)")
    assert len(labels) == 2
    assert all("at 0, 1." in label for label in labels)
    check_clean(pictures)


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_fits_the_page(pictures: Notebook, theme: Any) -> None:
    before = image(pictures, 1)
    pictures.page.set_viewport_size({"width": 1280, "height": 1000})
    pictures.set_theme(theme)
    assert image(pictures, 1) != before
    pictures.screenshot(theme)
    assert pictures.page.evaluate(OVERFLOWING) == []
    check_clean(pictures)
