"""What all tests share: the seeds, the hypothesis profile, and the search for a Chromium."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from browser_server import HOW_TO_INSTALL, NO_CHROMIUM, find_chromium

# Without it, jupyter_core warns at import (and warnings are errors here). Kernels and servers inherit it.
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")

SEED = 0

# For matrices as small as here one thread is fastest; on a busy machine, by a factor of ten.
torch.set_num_threads(1)


class _TorchRandom:
    """Torch's default generator as hypothesis wants it, so that examples replay and shrink exactly."""

    seed = staticmethod(torch.default_generator.manual_seed)
    getstate = staticmethod(torch.default_generator.get_state)
    setstate = staticmethod(torch.default_generator.set_state)


_TORCH_RANDOM = _TorchRandom()  # hypothesis keeps only a weak reference
hypothesis.register_random(_TORCH_RANDOM)
hypothesis.settings.register_profile("p4lab", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.load_profile("p4lab")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Start each test from the same random state."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  (libraries under test may still draw from it)
    torch.manual_seed(SEED)


# --- Chromium for the browser tests ---


def browser_required() -> bool:
    """Whether a missing Chromium is a failure: in CI, or when P4LAB_REQUIRE_BROWSER asks for it."""
    return os.environ.get("CI", "").lower() in ("1", "true") or os.environ.get("P4LAB_REQUIRE_BROWSER") == "1"


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Path of a headless-capable Chromium; without one, browser tests are skipped, or fail where one is required."""
    path = find_chromium()
    if path is None:
        if browser_required():
            pytest.fail("\n".join((f"{NO_CHROMIUM}, and browser tests are required here.", *HOW_TO_INSTALL)), False)
        pytest.skip(NO_CHROMIUM)
    return path


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses a Chromium as a browser test, so that `-m "not browser"` can be trusted.

    Browser, server and kernel are processes of others, on cores that they share with two more such tests: where one
    of these tests fails, it is tried once more. The summary counts such reruns and names the tests.
    """
    for item in items:
        if "chromium_path" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any) -> Iterator[None]:
    """After all other summaries, say loudly which browser tests did not run."""
    yield
    skipped = [
        report.nodeid
        for report in terminalreporter.getreports("skipped")
        if isinstance(report.longrepr, tuple) and NO_CHROMIUM in report.longrepr[2]
    ]
    if not skipped:
        return
    terminalreporter.section("BROWSER TESTS DID NOT RUN", sep="!", red=True, bold=True)
    terminalreporter.line(f"{len(skipped)} browser test(s) were skipped, because {NO_CHROMIUM}:")
    for nodeid in skipped:
        terminalreporter.line(f"  {nodeid}")
    for line in HOW_TO_INSTALL:
        terminalreporter.line(line)
    terminalreporter.line("What the notebooks show in a browser is therefore UNTESTED in this run.")
    terminalreporter.section("BROWSER TESTS DID NOT RUN", sep="!", red=True, bold=True)
