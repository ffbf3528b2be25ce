"""Runs that can be gone back in, branched, kept, compared, saved and loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from p4lab.errors import ConfigError
from p4lab.packages import require
from p4lab.training.config import RunConfig
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes
from p4lab.training.records import Moment, Snapshot

if TYPE_CHECKING:
    import pandas

Factory = Callable[[RunConfig], Engine | Lanes]
MAX_RUNS = 8
MAX_MOMENTS = 64
MAX_BYTES = 24 * 2**20


class History:
    """Moments of a run to go back to: at most 64 and about 24 MB, evenly spread, the start always among them."""

    def __init__(self, first: Moment, interval: int = 5) -> None:
        self.moments = [first]
        self.interval = interval
        self._limit = max(4, min(MAX_MOMENTS, MAX_BYTES // max(1, _bytes(first.state))))

    def observe(self, engine: Engine | Lanes) -> None:
        """Add the present if it is due."""
        if engine.step % self.interval:
            return
        if len(self.moments) >= self._limit:
            self.interval *= 2
            later = [moment for moment in self.moments[1:] if moment.step % self.interval == 0]
            self.moments = [self.moments[0], *later]
        if engine.step % self.interval == 0:
            self.moments.append(engine.moment())

    def nearest(self, step: int) -> Moment:
        """Return the moment nearest to a step."""
        return min(self.moments, key=lambda moment: abs(moment.step - step))

    def until(self, step: int) -> "History":
        """Return a copy without the moments after a step."""
        copy = History(self.moments[0], self.interval)
        copy.moments = [moment for moment in self.moments if moment.step <= step]
        return copy


@dataclass
class Run:
    """One run among others.

    Attributes:
        name: what people call it.
        number: counts the runs of a lab; its colour goes by it.
        engine: what trains.
        history: moments to go back to.
        origin: name and step of what it was branched from, or "".
    """

    name: str
    number: int
    engine: Engine | Lanes
    history: History
    origin: str = ""

    def advance(self) -> None:
        """Do one step and remember it.

        Raises:
            TrainingError: as `Engine.run`.
        """
        self.engine.run()
        self.history.observe(self.engine)


@dataclass(frozen=True)
class RunView:
    """A run as others see it.

    Attributes:
        name, number, origin: as `Run`.
        active: whether this is the one that trains.
        snapshot: its present.
    """

    name: str
    number: int
    origin: str
    active: bool
    snapshot: Snapshot


class Runs:
    """The runs of a lab: one is active, the others are kept to be compared with it.

    Args:
        factory: makes the engine of a config.
        config: the first config.

    Attributes:
        runs: all of them, by age.
        active: the one that trains.
        shown: the moment that is looked at, None for the present.

    Raises:
        P4Error: whatever the factory raises.
    """

    def __init__(self, factory: Factory, config: RunConfig) -> None:
        self.factory = factory
        self._count = 0
        self.runs: list[Run] = []
        self.shown: Moment | None = None
        self._views: dict[int, Snapshot] = {}
        self.active = self._add(factory(config), "")

    def _add(self, engine: Engine | Lanes, origin: str, history: History | None = None, name: str = "") -> Run:
        if len(self.runs) >= MAX_RUNS:
            raise ConfigError(f"there are {len(self.runs)} runs, and {MAX_RUNS} is the most: remove one first")
        self._count += 1
        run = Run(self._free_name(name), self._count, engine, history or History(engine.moment()), origin)
        self.runs.append(run)
        return run

    def _free_name(self, name: str) -> str:
        taken = {run.name for run in self.runs}
        name = name.strip() or f"run {self._count}"
        number = 2
        free = name
        while free in taken:
            free, number = f"{name} ({number})", number + 1
        return free

    # --- going on ----------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Do one step of the active run; the present is looked at again.

        Raises:
            TrainingError: as `Engine.run`.
        """
        self.shown = None
        self.active.advance()

    def restart(self, config: RunConfig) -> None:
        """Let the active run start over with a config.

        Raises:
            P4Error: whatever the factory raises; then nothing has changed.
        """
        engine = self.factory(config)
        self.active.engine, self.active.history, self.active.origin = engine, History(engine.moment()), ""
        self.shown = None

    def keep(self, config: RunConfig) -> None:
        """Keep the active run for comparison and make a new one, at its start, with a config.

        Raises:
            ConfigError: too many runs.
        """
        self.active = self._add(self.factory(config), "")
        self.shown = None

    # --- time travel -------------------------------------------------------------------------------------------------

    def scrub(self, step: int | None) -> None:
        """Look at the moment nearest to a step of the active run (None: at the present)."""
        self.shown = None if step is None else self.active.history.nearest(step)

    def branch(self, config: RunConfig, name: str = "") -> None:
        """Start a second run from the moment that is looked at, with the live settings of a config; keep the first.

        Raises:
            ConfigError: too many runs.
        """
        parent = self.active
        moment = self.shown or parent.engine.moment()
        engine = self.factory(parent.engine.config)
        engine.load_state(moment.state, _records_until(parent.engine, moment))
        for setting, (value, _) in config.differences(parent.engine.config).items():
            if setting in config.live:
                engine.set(setting, value)
        history = parent.history.until(moment.step)
        self.active = self._add(engine, f"{parent.name}, step {moment.step:,}", history, name)
        self.shown = None

    # --- several runs ------------------------------------------------------------------------------------------------

    def _find(self, number: int) -> Run:
        for run in self.runs:
            if run.number == number:
                return run
        raise ConfigError(f"run={number!r}: there is no such run; expected one of {[run.number for run in self.runs]}")

    def select(self, number: int) -> None:
        """Make another run the active one.

        Raises:
            ConfigError: unknown number.
        """
        self.active = self._find(number)
        self.shown = None

    def rename(self, number: int, name: str) -> None:
        """Give a run another name (a free one that begins so).

        Raises:
            ConfigError: unknown number, or an empty name.
        """
        run = self._find(number)
        if not name.strip():
            raise ConfigError(f"name={name!r}: expected some text")
        if name.strip() != run.name:
            run.name = self._free_name(name)

    def remove(self, number: int) -> None:
        """Forget a run that is not the active one.

        Raises:
            ConfigError: unknown number, or the active run.
        """
        run = self._find(number)
        if run is self.active:
            raise ConfigError(f"run={run.name!r}: this one is active; select another before you remove it")
        self.runs.remove(run)

    def views(self, present: Snapshot) -> tuple[RunView, ...]:
        """Return all runs; those that are not active are looked at once, for they do not change."""
        self._views = {n: s for n, s in self._views.items() if n != self.active.number}
        for run in self.runs:
            if run is not self.active and run.number not in self._views:
                self._views[run.number] = run.engine.snapshot()
        return tuple(
            RunView(
                run.name,
                run.number,
                run.origin,
                run is self.active,
                present if run is self.active else self._views[run.number],
            )
            for run in self.runs
        )

    def add(self, run: Run) -> None:
        """Take in a run that was loaded, and make it the active one.

        Raises:
            ConfigError: too many runs.
        """
        self.active = self._add(run.engine, run.origin, run.history, run.name)
        self.shown = None

    def table(self) -> "pandas.DataFrame":
        """Return one row per run: steps, losses, merges, and the settings in which the runs differ."""
        pd = require("pandas", "lab")

        configs = [run.engine.config.to_dict() for run in self.runs]
        names = dict.fromkeys(name for config in configs for name in config)
        differ = [name for name in names if len({config.get(name) for config in configs}) > 1]
        rows = []
        for run, config in zip(self.runs, configs, strict=True):
            snapshot = run.engine.snapshot()
            rows.append(
                {
                    "run": run.name,
                    "from": run.origin,
                    "step": snapshot.step,
                    "loss": snapshot.last("smooth_loss"),
                    "test_loss": snapshot.last("test_loss"),
                    "merges": snapshot.counts["merge"],
                    "skips": snapshot.counts["skip"] + snapshot.counts["discard"],
                    **{name: config.get(name) for name in differ},
                }
            )
        return pd.DataFrame(rows).set_index("run")


def _records_until(engine: Engine | Lanes, moment: Moment) -> Any:
    if isinstance(engine, Lanes):
        return {name: _records_until(lane, moment.lanes[name]) for name, lane in engine.engines.items()}
    return engine.records.until(moment.step, moment.counts)


def _bytes(state: Any) -> int:
    if isinstance(state, Mapping):
        return sum(_bytes(value) for value in state.values())
    if isinstance(state, list):
        return sum(map(_bytes, state))
    return state.nbytes if hasattr(state, "nbytes") else 64
