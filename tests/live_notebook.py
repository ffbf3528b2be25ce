"""A notebook in a browser page, for the tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from p4lab.bench.browser import Server
from p4lab.bench.notebook import WAIT, Notebook

__all__ = ["WAIT", "Notebook", "Server", "becomes", "check_fit", "download", "drag_handle", "looks", "start_lab"]

THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def start_lab(notebook: Notebook, name: str) -> None:
    """Open a notebook, run it, and wait until its lab is idle and has drawn curves and pictures."""
    notebook.open(name)
    notebook.run_all()
    notebook.wait_for_state("idle")
    notebook.page.wait_for_selector(".p4-plot .main-svg")
    notebook.wait_for_picture()


def becomes(notebook: Notebook, expression: str, value: Any) -> None:
    """Wait until an expression in the kernel has a value."""
    for _ in range(200):
        found = notebook.ask(expression)
        if found == str(value):
            return
        notebook.page.wait_for_timeout(100)
    raise AssertionError(f"{expression} is {found}, not {value}")


def drag_handle(notebook: Notebook, name: str, dx: float, dy: float) -> None:
    """Drag a picture's handle by so many pixels: to the right, and down."""
    handle = notebook.page.locator(f'.p4-handle[data-name="{name}"]')
    handle.scroll_into_view_if_needed()
    box, mouse = handle.bounding_box(), notebook.page.mouse
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + dx, y + dy, steps=12)
    mouse.up()


def download(notebook: Notebook, label: str, to: Path) -> Path:
    """Press a button beside the table of runs, and return the file that the browser saves."""
    with notebook.page.expect_download() as waiting:
        notebook.item("runs").locator("xpath=../..").get_by_role("button", name=label, exact=True).click()
    path = to / str(waiting.value.suggested_filename)
    waiting.value.save_as(path)
    return path


def looks(notebook: Notebook, height: int = 1200) -> Iterator[int]:
    """Show the lab in both themes at 1280 and 1920 pixels, take a picture each time, and yield the width."""
    for theme in THEMES:
        notebook.set_theme(theme)
        for width in (1280, 1920):
            notebook.page.set_viewport_size({"width": width, "height": height})
            notebook.page.wait_for_timeout(300)
            notebook.page.evaluate("() => document.querySelector('.p4-lab').scrollIntoView()")
            notebook.page.wait_for_timeout(1500)
            notebook.screenshot(f"{theme}_{width}")
            yield width


def check_fit(notebook: Notebook) -> None:
    """Fail if the lab leaves the page's width unused, or a part of it does not fit into its place."""
    assert notebook.used_width() >= 0.95
    assert notebook.overflowing() == []
