"""What a run leaves behind: columns of numbers, events, and immutable snapshots of both."""

import math
from array import array
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas

    from p4lab.training.config import RunConfig

Kind = Literal["merge", "skip", "discard", "refine", "set"]
KINDS: tuple[Kind, ...] = ("merge", "skip", "discard", "refine", "set")
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]

MAX_POINTS = 1000
MAX_EVENTS = 300
STEP_COLUMNS = ("loss", "smooth_loss", "grad_norm", "step_seconds")
MEASURE_COLUMNS = ("test_loss", "logabsdet", "residual", "condition")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened after a step.

    Attributes:
        step: number of optimizer steps done by then.
        kind: "merge", "skip", "discard", "refine" or "set" (a hyperparameter changed).
        layers: which P4Inv layers it concerns, counted from the data's side.
        text: why, or what was set.
    """

    step: int
    kind: Kind
    layers: tuple[int, ...] = ()
    text: str = ""


def _stride(count: int, limit: int) -> int:
    """Return the smallest power of two by which ``count`` things can be thinned to at most ``limit``."""
    return 1 << max(0, math.ceil(math.log2(max(count, 1) / limit)))


class Table:
    """Columns of floats over steps that grow by one row at a time (amortized O(1))."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.columns = {"step": array("d"), **{name: array("d") for name in names}}

    def __len__(self) -> int:
        return len(self.columns["step"])

    def append(self, **values: float) -> None:
        """Add one row; every column needs its value."""
        for name, column in self.columns.items():
            column.append(values[name])

    def curve(self, name: str, limit: int = MAX_POINTS) -> Curve:
        """Return ``(step, value)`` with at most ``limit`` points, the last row always among them.

        Rows are left out by a power of two, so that the points of a growing curve stay where they are.
        """
        n = len(self)
        rows = np.arange(0, n, _stride(n, limit - 1))  # one place is kept for the last row
        if n and rows[-1] != n - 1:
            rows = np.append(rows, n - 1)
        return np.asarray(self.columns["step"])[rows], np.asarray(self.columns[name])[rows]


@dataclass
class Records:
    """All records of one run.

    Attributes:
        steps: one row per step: loss (nats/dim), its running mean, norm of the gradient, seconds.
        measures: one row per measurement: test loss (nats/dim), log|det| of all P4Inv layers (nats), largest
            |A A^-1 - I|, largest condition number.
        events: merges, skips, discards, refinements, changed settings; each kind in the order of its steps.
        counts: number of layers merged, skipped, discarded, refined so far.
    """

    steps: Table = field(default_factory=lambda: Table(STEP_COLUMNS))
    measures: Table = field(default_factory=lambda: Table(MEASURE_COLUMNS))
    events: dict[Kind, list[Event]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    counts: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, event: Event) -> None:
        """Add an event."""
        self.events[event.kind].append(event)
        self.counts[event.kind] += max(1, len(event.layers))

    def curves(self) -> dict[str, Curve]:
        """Return every column as a curve of at most 1000 points."""
        return {
            name: table.curve(name) for table in (self.steps, self.measures) for name in table.columns if name != "step"
        }

    def thinned(self) -> tuple[Event, ...]:
        """Return at most `MAX_EVENTS` events of each kind, evenly spread, in the order of their steps."""
        kept: list[Event] = []
        for events in self.events.values():
            kept += events[:: _stride(len(events), MAX_EVENTS)]
        return tuple(sorted(kept, key=lambda event: event.step))

    def frame(self) -> "pandas.DataFrame":
        """Return one row per step with every column, NaN where nothing was measured, and bits/dim."""
        import pandas as pd  # here: it takes half a second to import

        steps = pd.DataFrame({name: np.array(column) for name, column in self.steps.columns.items()})
        measures = pd.DataFrame({name: np.array(column) for name, column in self.measures.columns.items()})
        frame = steps.merge(measures, on="step", how="outer").astype({"step": int}).set_index("step")
        for name in ("loss", "test_loss"):
            frame[f"{name}_bits"] = frame[name] / math.log(2)
        return frame


@dataclass(frozen=True)
class Snapshot:
    """State of a run at one moment, in plain numpy; safe to hand to another thread.

    Attributes:
        config: the settings in force.
        step: optimizer steps done.
        curves: name to ``(step, value)``, at most 1000 points each.
        events: events in the order of their steps, evenly thinned to at most 300 of each kind.
        counts: number of layers merged, skipped, discarded, refined; number of settings changed.
        pictures: name to array, what the problem shows.
    """

    config: "RunConfig"
    step: int
    curves: MappingProxyType[str, Curve]
    events: tuple[Event, ...]
    counts: MappingProxyType[Kind, int]
    pictures: MappingProxyType[str, NDArray[Any]]

    def last(self, name: str) -> float:
        """Return the newest value of a curve, NaN if it is empty."""
        values = self.curves[name][1]
        return float(values[-1]) if len(values) else math.nan
