"""The player: one thread that owns an engine and does what it is told."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from p4lab.errors import ConfigError, P4Error
from p4lab.training.config import LIVE, RunConfig
from p4lab.training.engine import Engine
from p4lab.training.records import Snapshot

Factory = Callable[[RunConfig], Engine]


class State(StrEnum):
    """What a player is doing."""

    IDLE = "idle"
    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True)
class Frame:
    """Everything that a view may show: the player and its run at one moment.

    Attributes:
        version: grows with every change of what follows.
        state: what the player is doing.
        message: why it failed or what it refused; empty if all is well.
        planned: the settings of the next run; they differ from the run's own where a setting waits for a reset.
        speed: limit in steps per second, None for full speed.
        steps_per_second: over the last steps of this stretch of running, 0 if it is not running.
        run: counts the resets.
        snapshot: the run.
    """

    version: int
    state: State
    message: str
    planned: RunConfig
    speed: float | None
    steps_per_second: float
    run: int
    snapshot: Snapshot

    @property
    def pending(self) -> tuple[str, ...]:
        """Names of the settings that wait for a reset."""
        now, then = self.snapshot.config.to_dict(), self.planned.to_dict()
        return tuple(name for name in now if now[name] != then[name])


class Player:
    """Run an engine in a thread of its own; every method returns at once and may be called from any thread.

    idle -> running <-> paused; a run that cannot go on is failed, with a message, and may be started again (say, with a
    lower learning rate) or reset. A setting outside of its range is refused with a message and changes nothing.

    Args:
        factory: makes the engine of a config; called at once and at each reset.
        config: the first config.

    Attributes:
        error: the last exception that stopped the run or was refused, None if all is well.
        version: grows with every change; cheap to compare.
        changed: called (from the player's thread) after every change; a view's pump sets it.

    Raises:
        P4Error: whatever the factory raises on the first config.
    """

    def __init__(self, factory: Factory, config: RunConfig) -> None:
        self.error: Exception | None = None
        self.version = 0
        self.changed: Callable[[], None] = lambda: None
        self._factory, self._planned = factory, config
        self._engine = factory(config)
        self._state = State.IDLE
        self._speed: float | None = None
        self._run = 0
        self._until_merge = False
        self._next_step = 0.0
        self._times: deque[float] = deque(maxlen=50)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="p4lab-trainer", daemon=True)
        self._thread.start()

    # --- commands ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Train until told otherwise."""
        self._commands.put(self._start)

    def pause(self) -> None:
        """Stop after the present step."""
        self._commands.put(self._pause)

    def step(self) -> None:
        """Do one step and pause."""
        self._commands.put(lambda: self._advance(until_merge=False))

    def step_to_merge(self) -> None:
        """Train until a merge has been tried, and pause."""
        self._commands.put(lambda: self._advance(until_merge=True))

    def reset(self) -> None:
        """Start over, idle, with the planned settings."""
        self._commands.put(self._reset)

    def set(self, **changes: Any) -> None:
        """Change settings: at once where they are live, or while the run has not begun; else at the next reset."""
        self._commands.put(lambda: self._set(changes))

    def limit(self, steps_per_second: float | None) -> None:
        """Limit the speed (None: full speed)."""
        self._commands.put(lambda: self._limit(steps_per_second))

    def frame(self, timeout: float | None = None) -> Frame:
        """Return the present state, taken between two steps.

        Raises:
            TimeoutError: it took longer than ``timeout`` seconds, or the player is closed.
        """
        future: Future[Frame] = Future()
        self._commands.put(lambda: self._answer(future))
        if self._state is State.CLOSED and not self._thread.is_alive():
            raise TimeoutError("the player is closed")
        return future.result(timeout)

    def close(self, timeout: float = 10.0) -> None:
        """End the thread; the engine stays as it is."""
        self._commands.put(self._close)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    @property
    def state(self) -> State:
        """What the player is doing."""
        return self._state

    @property
    def engine(self) -> Engine:
        """The engine of the present run; touch it only while the player is not running."""
        return self._engine

    # --- the thread --------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._state is not State.CLOSED:
            command = self._next_command()
            try:
                if command is not None:
                    command()
                else:
                    self._one_step()
            except Exception as error:
                # Shown by the views. The thread must live on, or the lab would be dead without a word.
                self._fail(error)

    def _next_command(self) -> Callable[[], None] | None:
        """Wait for a command, or for the time of the next step (then None)."""
        try:
            if self._state is not State.RUNNING:
                return self._commands.get()
            wait = self._next_step - time.monotonic() if self._speed else 0.0
            return self._commands.get(timeout=wait) if wait > 0 else self._commands.get_nowait()
        except queue.Empty:
            return None

    def _one_step(self) -> None:
        if self._speed:
            self._next_step = max(time.monotonic(), self._next_step + 1 / self._speed)
        merging = self._engine.merge_due
        self._engine.run(1)
        self._times.append(time.monotonic())
        if self._until_merge and merging:
            self._state, self._until_merge = State.PAUSED, False
        self._touch()

    def _start(self) -> None:
        self._state, self.error, self._until_merge = State.RUNNING, None, False
        self._times.clear()
        self._touch()

    def _pause(self) -> None:
        if self._state is State.RUNNING:
            self._state = State.PAUSED
            self._touch()

    def _advance(self, until_merge: bool) -> None:
        self.error = None
        if until_merge:
            self._state, self._until_merge = State.RUNNING, True
            self._times.clear()
        else:
            self._state = State.PAUSED
            self._engine.run(1)
        self._touch()

    def _reset(self) -> None:
        self._engine = self._factory(self._planned)
        self._state, self.error, self._until_merge = State.IDLE, None, False
        self._run += 1
        self._touch()

    def _set(self, changes: dict[str, Any]) -> None:
        planned = self._planned.replace(**changes)
        if self._state is State.IDLE:
            # Nothing has been trained yet, so a new engine costs nothing and no setting needs to wait.
            self._engine, self._planned = self._factory(planned), planned
        else:
            for name in changes:
                if name in LIVE:
                    self._engine.set(name, changes[name])
            self._planned = planned
        if self._state is not State.FAILED:
            self.error = None
        self._touch()

    def _limit(self, steps_per_second: float | None) -> None:
        if steps_per_second is not None and not steps_per_second > 0:
            raise ConfigError(
                f"speed={steps_per_second!r}: expected a number of steps per second above 0, or None for full speed"
            )
        self._speed, self._next_step = steps_per_second, time.monotonic()
        self._touch()

    def _answer(self, future: "Future[Frame]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        message = "" if self.error is None else describe(self.error)
        future.set_result(
            Frame(
                self.version,
                self._state,
                message,
                self._planned,
                self._speed,
                self._rate(),
                self._run,
                self._engine.snapshot(),
            )
        )

    def _rate(self) -> float:
        if self._state is not State.RUNNING or len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    def _close(self) -> None:
        self._state = State.CLOSED
        self._touch()

    def _fail(self, error: Exception) -> None:
        self.error = error
        if not isinstance(error, ConfigError):  # a refused setting does not stop a run
            self._state, self._until_merge = State.FAILED, False
        self._touch()

    def _touch(self) -> None:
        self.version += 1
        self.changed()


def describe(error: Exception) -> str:
    """Return an error as one line for people; bugs carry their type's name."""
    text = " ".join(str(error).split())
    return text if isinstance(error, P4Error) else f"{type(error).__name__}: {text}"
