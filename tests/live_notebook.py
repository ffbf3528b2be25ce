"""A notebook in a browser page, for the tests."""

from collections.abc import Iterator
from typing import Literal

from p4lab.bench.browser import Server
from p4lab.bench.notebook import WAIT, Notebook

__all__ = ["WAIT", "Notebook", "Server", "check_fit", "looks"]

THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


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
