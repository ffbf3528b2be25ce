"""What tests of labs share: a lab without a browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from p4lab.labs import Lab
from p4lab.widgets import Dashboard

OFTEN: dict[str, Any] = {"measure_every": 5, "merge_every": 4}
SMALL: dict[str, dict[str, Any]] = {
    "start": {"merge_every": 4},
    "digits": {"blocks": 1, "rank": 2, "batch_size": 16, **OFTEN},
    "parameter": {"merge_every": 4},
    "break": {"dim": 8, "rank": 4, **OFTEN},
    "linear": {"dim": 5, "learning_rate": 0.1, "measure_every": 5},
    "directions": {"dim": 16, **OFTEN},
    "race": {"methods": "plain+p4inv+dense", "dim": 8, "turn": 2.0, "budget": 0.04, "measure_every": 5},
    "density": {"blocks": 2, "couplings": 2, "batch_size": 32, **OFTEN},
    "images": {"blocks": 1, "hidden": 4, "batch_size": 8, "turn": 2.0, "budget": 0.04, **OFTEN},
    "swaps": {"data": "two_moons", "blocks": 3, "hidden": 8, "batch_size": 32, **OFTEN},
    "property": {"dim": 8, "batch_size": 32, "noise": 0.3, **OFTEN},
    "rnn": {"dim": 8, "delay": 5, "batch_size": 4, "turn": 2.0, "budget": 0.04, "rank": 2, **OFTEN},
    "boltzmann": {"blocks": 2, "hidden": 8, "batch_size": 32, **OFTEN},
    "temperature": {"blocks": 2, "hidden": 8, "batch_size": 32, **OFTEN},
    "characters": {
        "dim": 16,
        "blocks": 1,
        "length": 8,
        "batch_size": 4,
        "turn": 2.0,
        "budget": 0.04,
        "rank": 4,
        **OFTEN,
    },
    "molecule": {"initial": "new", "architecture": "realnvp_p4inv", "batch_size": 16, **OFTEN},
}
"""Settings with which a lab is quick; they merge, and measure, within ten steps."""


@contextmanager
def opened(lab: Lab[Any, Any], **changes: Any) -> Iterator[Dashboard]:
    """Open a lab, and see to it that it ends without an error."""
    dashboard = Dashboard(lab, name=f"test of {lab.name}", **changes)
    try:
        yield dashboard
        assert dashboard.error is None
    finally:
        dashboard.close()


def train(lab: Dashboard, steps: int) -> None:
    """Do some steps at once."""

    def advance(runs: Any) -> None:
        for _ in range(steps):
            runs.active.advance()

    lab.player.ask(advance, 60)


def break_lane(lab: Dashboard, lane: str) -> None:
    """Make the weights of a lane NaN, and do a step."""

    def breaks(runs: Any) -> None:
        next(runs.active.engine.engines[lane].model.parameters()).data.fill_(float("nan"))
        runs.active.advance()

    lab.player.ask(breaks, 10)


def table(lab: Dashboard, area: str = "board") -> list[dict[str, str]]:
    """Return the rows of a table as mappings from heading to text."""
    rows: Any = lab.drawings()[area]
    return [dict(zip(rows.columns, row.cells, strict=True)) for row in rows.rows]


def as_number(text: str) -> float:
    """Return the number that a text shows."""
    return float(text.replace("−", "-").replace(",", "").split()[0])


def threads() -> list[str]:
    """Return the names of the threads of labs that are alive."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("p4lab"))


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds, and fail if it never does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
