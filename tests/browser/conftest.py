"""A JupyterLab of its own on loopback, and a Chromium page that looks at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_page import Notebook, opened
from browser_server import Server, chromium, jupyterlab

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab on copies of the notebooks; ended after the tests."""
    with jupyterlab(NOTEBOOKS, tmp_path_factory.mktemp("jupyter")) as server:
        yield server


@pytest.fixture(scope="session")
def browser(chromium_path: str) -> Iterator[Any]:
    """One Chromium for all tests."""
    with chromium(chromium_path) as browser:
        yield browser


@pytest.fixture
def notebook(browser: Any, server: Server, tmp_path: Path) -> Iterator[Notebook]:
    """A fresh page; its screenshots go to the test's own folder."""
    with opened(browser, server) as notebook:
        notebook.pictures = tmp_path
        yield notebook
