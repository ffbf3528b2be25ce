"""The live lab in a real browser, measured by ``tests/live_benchmark.py``: in a checkout of p4lab, not in its wheel."""

import importlib
import sys
from pathlib import Path

import p4lab.bench
from p4lab.errors import ConfigError, MissingPackageError

CHECKOUT = Path(p4lab.bench.__file__).parents[2]
DEFAULT = "01_p4inv_live.ipynb"
"""The notebook that is measured if none is named."""


def live(notebook: str = DEFAULT, quick: bool = False, minutes: float | None = None) -> str:
    """Measure a notebook's lab, which must be called ``lab`` there, and return a Markdown table.

    Args:
        notebook: a path, or the name of a file in the checkout's folder of notebooks.
        quick: whether a look is enough.
        minutes: how long the memory is watched (None: 10, or a tenth of a minute for a look).

    Raises:
        MissingPackageError: there is no checkout around this package.
        ConfigError: no such notebook.
        BrowserSetupError: no Chromium, Playwright or JupyterLab.
    """
    support, path = CHECKOUT / "tests", Path(notebook)
    if not (support / "live_benchmark.py").is_file():
        raise MissingPackageError(
            f"the live benchmark needs a checkout of p4lab, and {CHECKOUT} is none: it drives a browser as the tests "
            "do. Run it in a clone of the repository"
        )
    path = path if path.is_file() else CHECKOUT / "notebooks" / path
    if not path.is_file():
        raise ConfigError(f"no notebook {path}: name a file, as in --notebook {DEFAULT}")
    sys.path.insert(0, str(support))
    try:
        benchmark = importlib.import_module("live_benchmark")
    finally:
        sys.path.remove(str(support))
    return str(benchmark.measure(path, benchmark.plan_of(quick, minutes)))
