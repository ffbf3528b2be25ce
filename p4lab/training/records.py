"""What a run leaves behind: columns of numbers, events, paths of matrices, and immutable snapshots of all of it."""

import dataclasses
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.packages import require

if TYPE_CHECKING:
    import pandas

    from p4lab.training.config import RunConfig

Kind = Literal["merge", "skip", "discard", "refine", "set"]
KINDS: tuple[Kind, ...] = ("merge", "skip", "discard", "refine", "set")
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]

MAX_POINTS = 1000
MAX_EVENTS = 300
MAX_TRAIL = 512
MAX_SPECTRA = 128
TRAIL_BYTES = 2**20
TRAILS = ("trail", "merge_points", "skip_points", "spectrum")
STEP_COLUMNS = {
    "loss": "d",
    "smooth_loss": "f",
    "grad_norm": "f",
    "perturbation_norm": "f",
    "step_seconds": "f",
    "seconds": "f",
}
MEASURE_COLUMNS = dict.fromkeys(("test_loss", "logabsdet", "sign", "logabsdet_error", "residual", "condition"), "d")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened after a step.

    Attributes:
        step: number of optimizer steps done by then.
        kind: "merge", "skip", "discard", "refine" or "set" (a hyperparameter changed).
        layers: which P4 layers it concerns, counted from the data's side.
        text: why, or what was set.
    """

    step: int
    kind: Kind
    layers: tuple[int, ...] = ()
    text: str = ""


class Thinned(Generic[T]):
    """Things by step, of which at most ``limit`` are kept: evenly spread, and always the newest.

    What is kept stays where it is until their number is halved, so that a growing picture does not flicker.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.stride, self.count = limit, 1, 0
        self._kept: list[tuple[int, T]] = []
        self._newest: tuple[int, T] | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, step: int, thing: T) -> None:
        """Add the newest thing; amortized O(1)."""
        self._newest = step, thing
        if self.count % self.stride == 0:
            self._kept.append(self._newest)
        self.count += 1
        if len(self._kept) == self.limit:
            del self._kept[1::2]
            self.stride *= 2

    def items(self) -> list[tuple[int, T]]:
        """Return ``(step, thing)`` in order."""
        if self._newest is None or (self._kept and self._kept[-1] is self._newest):
            return list(self._kept)
        return [*self._kept, self._newest]

    def until(self, step: int) -> Self:
        """Return a copy without what came after a step."""
        copy = type(self)(self.limit)
        copy._kept = [item for item in self._kept if item[0] <= step]
        copy.stride, copy.count = self.stride, len(copy._kept) * self.stride
        copy._newest = copy._kept[-1] if copy._kept else None
        return copy


class Table:
    """Columns of numbers over steps that grow by one row at a time (amortized O(1)); steps are exact up to 2^24.

    Args:
        kinds: name of each column to its number format, "d" (float64) or "f" (float32).
    """

    def __init__(self, kinds: Mapping[str, str]) -> None:
        self.columns: dict[str, array[float]] = {"step": array("f")}
        self.columns |= {name: array(kind) for name, kind in kinds.items()}

    def __len__(self) -> int:
        return len(self.columns["step"])

    def append(self, **values: float) -> None:
        """Add one row; the first one may bring columns with it, and what a row does not give is NaN."""
        if not len(self):
            self.columns |= {name: array("d") for name in values if name not in self.columns}
        for name, column in self.columns.items():
            column.append(values.get(name, math.nan))

    def curve(self, name: str, limit: int = MAX_POINTS) -> Curve:
        """Return ``(step, value)`` with at most ``limit`` points, the last row always among them.

        Rows are left out by a power of two, so that the points of a growing curve stay where they are.
        """
        n = len(self)
        stride = 1 << max(0, math.ceil(math.log2(max(n, 1) / (limit - 1))))  # one place is kept for the last row
        rows = np.arange(0, n, stride)
        if n and rows[-1] != n - 1:
            rows = np.append(rows, n - 1)
        # The rows first: a long run's whole column is not copied for every picture.
        steps, values = (np.asarray(self.columns[column])[rows].astype(float) for column in ("step", name))
        return steps, values

    def until(self, step: int) -> "Table":
        """Return a copy without the rows after a step."""
        rows = int(np.searchsorted(np.asarray(self.columns["step"]), step, side="right"))
        copy = Table({name: column.typecode for name, column in self.columns.items() if name != "step"})
        copy.columns = {name: column[:rows] for name, column in self.columns.items()}
        return copy


Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Trail:
    """Matrices, or their eigenvalues, by step.

    Attributes:
        steps: shape (n,).
        values: matrices (n, d, d), or eigenvalues (n, d).
    """

    steps: NDArray[np.int64]
    values: NDArray[Any]

    def until(self, step: int) -> "Trail":
        """Return the part up to a step."""
        n = int(np.searchsorted(self.steps, step, side="right"))
        return Trail(self.steps[:n], self.values[:n])


def _trail(thinned: Thinned[NDArray[Any]]) -> Trail:
    items = thinned.items()
    if not items:
        return Trail(np.zeros(0, np.int64), np.zeros((0, 0)))
    steps, values = zip(*items, strict=True)
    return Trail(np.array(steps), np.stack(values))


def _events() -> dict[Kind, Thinned[Event]]:
    return {kind: Thinned(MAX_EVENTS) for kind in KINDS}


@dataclass
class Records:
    """All records of one run.

    Attributes:
        steps: one row per step: loss (nats/dim, or the mean squared error), its running mean, norm of the gradient,
            norm of the perturbations, seconds of the step, seconds of training so far (without measurements).
        measures: one row per measurement: test loss, log|det| (nats) and sign of the determinant, largest error of the
            carried log|det| of a layer against a factorization in float64, largest |A A^-1 - I|, largest condition
            number.
        events: merges, skips, discards, refinements, changed settings, by kind; evenly thinned to 300 of each.
        counts: number of layers merged, skipped, discarded, refined so far, and of settings changed.
        trail: the watched matrix as it went; merge_points and skip_points: as it was at merges and skips.
        spectrum: its eigenvalues.
    """

    steps: Table = field(default_factory=lambda: Table(STEP_COLUMNS))
    measures: Table = field(default_factory=lambda: Table(MEASURE_COLUMNS))
    events: dict[Kind, Thinned[Event]] = field(default_factory=_events)
    counts: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    trail: Thinned[Matrix] = field(default_factory=lambda: Thinned(MAX_TRAIL))
    merge_points: Thinned[Matrix] = field(default_factory=lambda: Thinned(MAX_TRAIL))
    skip_points: Thinned[Matrix] = field(default_factory=lambda: Thinned(MAX_TRAIL))
    spectrum: Thinned[NDArray[np.complex128]] = field(default_factory=lambda: Thinned(MAX_SPECTRA))

    @classmethod
    def watching(cls, bytes_each: int) -> "Records":
        """Return empty records that hold at most about 1 MB of matrices of that size."""
        limit = min(MAX_TRAIL, max(32, TRAIL_BYTES // max(1, bytes_each)))
        return cls(trail=Thinned(limit), merge_points=Thinned(limit), skip_points=Thinned(limit))

    def add(self, event: Event) -> None:
        """Add an event."""
        self.events[event.kind].add(event.step, event)
        self.counts[event.kind] += max(1, len(event.layers))

    def until(self, step: int, counts: Mapping[Kind, int]) -> "Records":
        """Return a copy without what came after a step; ``counts`` are those of that step."""
        copy = Records(self.steps.until(step), self.measures.until(step), counts=dict(counts))
        copy.events = {kind: events.until(step) for kind, events in self.events.items()}
        for name in TRAILS:
            setattr(copy, name, getattr(self, name).until(step))
        return copy

    def curves(self) -> dict[str, Curve]:
        """Return every column as a curve of at most 1000 points."""
        return {
            name: table.curve(name) for table in (self.steps, self.measures) for name in table.columns if name != "step"
        }

    def all_events(self) -> tuple[Event, ...]:
        """Return the events of all kinds in the order of their steps."""
        return tuple(
            sorted(
                (event for events in self.events.values() for _, event in events.items()),
                key=lambda event: event.step,
            )
        )

    def trails(self) -> dict[str, Any]:
        """Return trail, merge_points, skip_points and spectrum as arrays."""
        return {name: _trail(getattr(self, name)) for name in TRAILS}

    def frame(self) -> "pandas.DataFrame":
        """Return one row per step with every column, NaN where nothing was measured, and bits/dim."""
        pd = require("pandas", "lab")

        steps = pd.DataFrame({name: np.array(column) for name, column in self.steps.columns.items()})
        measures = pd.DataFrame({name: np.array(column) for name, column in self.measures.columns.items()})
        frame = steps.merge(measures, on="step", how="outer").astype({"step": int}).set_index("step")
        for name in ("loss", "test_loss"):
            frame[f"{name}_bits"] = frame[name] / math.log(2)
        return frame


def copied(value: Any) -> Any:
    """Return a deep copy of nested dicts and lists of tensors; everything else is kept as it is."""
    if torch.is_tensor(value):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Moment:
    """A moment of a run to come back to.

    Attributes:
        step: optimizer steps done.
        state: what `Engine.load_state` takes; only on the outermost level.
        pictures: what the problem showed.
        counts: number of layers merged, skipped, discarded, refined; number of settings changed.
        lanes: the same by lane.
    """

    step: int
    state: dict[str, Any]
    pictures: Mapping[str, NDArray[Any]]
    counts: Mapping[Kind, int]
    lanes: Mapping[str, "Moment"] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """State of a run at one moment, in plain numpy; safe to hand to another thread.

    Attributes:
        config: the settings in force.
        step: optimizer steps done.
        curves: name to ``(step, value)``, at most 1000 points each; of the whole run, also where ``step`` is in its
            past.
        events: events in the order of their steps, evenly thinned to at most 300 of each kind.
        counts: number of layers merged, skipped, discarded, refined; number of settings changed.
        pictures: name to array, what the problem shows.
        trail: the watched matrix (n, d, d), at most 512 moments; empty if the problem watches none.
        merge_points, skip_points: the watched matrix at merges and skipped merges.
        spectrum: eigenvalues (n, d) of the watched matrix, at most 128 moments.
        lanes: the lanes by name, if several models train side by side; the rest is then the first lane's.
        message: why a lane stopped.
    """

    config: "RunConfig"
    step: int
    curves: MappingProxyType[str, Curve]
    events: tuple[Event, ...]
    counts: MappingProxyType[Kind, int]
    pictures: Mapping[str, NDArray[Any]]
    trail: Trail
    merge_points: Trail
    skip_points: Trail
    spectrum: Trail
    lanes: Mapping[str, "Snapshot"] = field(default_factory=dict)
    message: str = ""

    def last(self, name: str) -> float:
        """Return the newest value of a curve at or before ``step``, NaN if there is none."""
        steps, values = self.curves[name]
        n = int(np.searchsorted(steps, self.step, side="right"))
        return float(values[n - 1]) if n else math.nan

    def seconds_below(self, goal: float) -> float:
        """Return the training time until the test loss was below a goal, NaN if it never was by ``step``."""
        steps, losses = self.curves["test_loss"]
        reached = steps[(losses < goal) & (steps <= self.step)]
        return self.seconds_at(reached[0]) if len(reached) else math.nan

    def seconds_at(self, step: float) -> float:
        """Return the training time that was spent by a step."""
        at, seconds = self.curves["seconds"]
        return float(np.interp(step, np.append(0.0, at), np.append(0.0, seconds)))

    def at(self, moment: Moment) -> "Snapshot":
        """Return the snapshot as of an earlier moment: pictures of then, paths up to then, curves in full."""
        lanes = {name: lane.at(moment.lanes[name]) for name, lane in self.lanes.items()}
        trails: dict[str, Any] = {name: getattr(self, name).until(moment.step) for name in TRAILS}
        now: dict[str, Any] = {
            "step": moment.step,
            "pictures": moment.pictures,
            "counts": MappingProxyType(dict(moment.counts)),
        }
        return dataclasses.replace(self, lanes=lanes, **now, **trails)
