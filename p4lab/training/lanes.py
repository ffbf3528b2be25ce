"""Several engines that train side by side, step by step."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from p4lab.errors import ConfigError, TrainingError
from p4lab.packages import require
from p4lab.training.config import RunConfig
from p4lab.training.engine import Engine
from p4lab.training.interrupts import whole_steps
from p4lab.training.records import Moment, Records, Snapshot

if TYPE_CHECKING:
    import pandas


class Lanes:
    """Engines that differ in a few settings and train side by side; the interface is an engine's.

    They train in step. If the config has a ``turn`` (milliseconds) and a ``budget`` (seconds), each of them trains for
    the same time instead: a step is a turn of every lane, a lane whose step takes longer than its turn waits until the
    others have caught up, and the run is finished when each has used up its budget. A lane whose loss is not finite any
    more stops and says why; the others go on.

    Args:
        config: the settings that they share.
        vary: name of the setting in which they differ.
        over: its values, one for each lane; or, by the lane's name, all the settings that make it differ, or its engine
            (``vary`` is then only what they differ in, in a word). The first lane's records and pictures stand for the
            whole.

    Attributes:
        engines: the lanes by value of the setting, or by name.
        failed: why lanes stopped, likewise.
        step: number of steps, or turns, that each lane has had.
        turn: milliseconds of a turn; None if the lanes train in step.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> from p4lab.training import MatrixConfig
        >>> lanes = Lanes(MatrixConfig(), "route", ("p4inv", "plain"))
        >>> lanes.run(3)
        >>> [engine.step for engine in lanes.engines.values()]
        [3, 3]
    """

    def __init__(
        self, config: RunConfig, vary: str, over: Sequence[Any] | Mapping[str, Mapping[str, Any]] | Mapping[str, Engine]
    ) -> None:
        self.config, self.vary, self.step = config, vary, 0
        lanes: Mapping[str, Any] = over if isinstance(over, Mapping) else {str(value): {vary: value} for value in over}
        self.engines = {
            name: lane if isinstance(lane, Engine) else Engine(config.replace(**lane)) for name, lane in lanes.items()
        }
        self.failed: dict[str, str] = {}
        self.turn: float | None = getattr(config, "turn", None)

    @property
    def clock(self) -> float:
        """Seconds that each lane may have trained by now; infinite if they train in step."""
        return math.inf if self.turn is None else self.step * self.turn / 1000

    @property
    def finished(self) -> bool:
        """Whether the budget is used up; never, if the lanes train in step."""
        return self.turn is not None and bool(self.clock >= self.config.budget)  # type: ignore[attr-defined]

    @property
    def merges(self) -> bool:
        """Whether there is anything to merge in a lane."""
        return any(engine.merges for engine in self.engines.values())

    @property
    def merge_due(self) -> bool:
        """Whether the next step ends with a merge attempt of a lane."""
        return any(self.engines[name].merge_due for name in self._alive())

    @property
    def records(self) -> Records:
        """The first lane's records."""
        return next(iter(self.engines.values())).records

    def run(self, n: int = 1) -> None:
        """Do ``n`` steps, or turns, in every lane that can go on.

        An interrupt waits, as in `Engine.run`, until every lane has had its step.

        Raises:
            TrainingError: no lane can.
        """
        with whole_steps() as between:
            for _ in range(n):
                between()
                self._one_step()

    def _one_step(self) -> None:
        self.step += 1
        for name in self._alive():
            try:
                self._go_on(self.engines[name])
            except TrainingError as error:
                self.failed[name] = str(error)
        if not self._alive():
            self.step -= 1
            failed, self.failed = self.failed, {}  # after a change of settings all of them may try again
            raise TrainingError("; ".join(f"{name}: {failed[name]}" for name in self.engines))

    def _go_on(self, engine: Engine) -> None:
        if self.turn is None:
            engine.run()
            return
        while engine.seconds < self.clock:
            engine.run()

    def set(self, name: str, value: Any) -> None:
        """Change a live setting in every lane.

        Raises:
            ConfigError: as `Engine.set`, or a setting in which the lanes differ.
        """
        if any(
            getattr(engine.config, name, None) != getattr(self.config, name, None) for engine in self.engines.values()
        ):
            raise ConfigError(f"{name}={value!r}: the lanes differ in this setting; choose the lanes at reset")
        for engine in self.engines.values():
            engine.set(name, value)
        self.config = self.config.replace(**{name: value})

    def snapshot(self) -> Snapshot:
        """Return the state of all lanes; the top level shows the first one."""
        lanes = {
            name: dataclasses.replace(engine.snapshot(), message=self.failed.get(name, ""))
            for name, engine in self.engines.items()
        }
        first = next(iter(lanes.values()))
        return dataclasses.replace(first, config=self.config, step=self.step, lanes=MappingProxyType(lanes))

    def moment(self) -> Moment:
        """Return the present as a moment to come back to."""
        lanes = {name: engine.moment() for name, engine in self.engines.items()}
        first = next(iter(lanes.values()))
        state = {
            "config": self.config.to_dict(),
            "step": self.step,
            "failed": dict(self.failed),
            "lanes": {name: moment.state for name, moment in lanes.items()},
        }
        return Moment(self.step, state, first.pictures, first.counts, lanes)

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on."""
        return self.moment().state

    def load_state(self, state: dict[str, Any], records: Mapping[str, Records] | None = None) -> None:
        """Go to a state, as `Engine.load_state`.

        Raises:
            ConfigError: the state is not one of the same lanes.
        """
        if set(state.get("lanes", {})) != set(self.engines):
            there = ", ".join(state.get("lanes", {})) or "none"
            raise ConfigError(f"state of a run with lanes {there}: expected {', '.join(self.engines)}")
        for name, engine in self.engines.items():
            engine.load_state(state["lanes"][name], records[name] if records else None)
        self.config = self.config.replace(**state["config"])
        self.step, self.failed = int(state["step"]), dict(state["failed"])

    def release(self) -> None:
        """Free what the lanes' problems hold outside of torch."""
        for engine in self.engines.values():
            engine.release()

    def frame(self) -> "pandas.DataFrame":
        """Return the records as one table with a column for the lane."""
        pd = require("pandas", "lab")

        return pd.concat({name: engine.frame() for name, engine in self.engines.items()}, names=["lane"])

    def _alive(self) -> list[str]:
        # Whoever comes first in a step may wait for the thread that draws: each lane in turn.
        names = [name for name in self.engines if name not in self.failed]
        turn = self.step % max(1, len(names))
        return names[turn:] + names[:turn]
