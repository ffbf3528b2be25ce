"""What tests of labs share: a lab without a browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from p4lab.labs import Lab
from p4lab.widgets import Dashboard


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
