"""The player: one thread that owns an engine and does what it is told."""

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from p4lab.errors import ConfigError, P4Error, TrainingError
from p4lab.training.config import RunConfig
from p4lab.training.records import Snapshot
from p4lab.training.runs import Factory, Run, Runs, RunView

T = TypeVar("T")
SLOWEST = 1e-3
"""Least number of steps per second that the speed can be limited to."""


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
        run: grows when other curves are to be seen: a reset, a branch, another run.
        snapshot: the active run, at present or at the moment that is looked at.
        shown: step of that moment, None for the present.
        moments: steps that can be looked at.
        runs: all runs, the active one among them.
    """

    version: int
    state: State
    message: str
    planned: RunConfig
    speed: float | None
    steps_per_second: float
    run: int
    snapshot: Snapshot
    shown: int | None = None
    moments: tuple[int, ...] = ()
    runs: tuple[RunView, ...] = ()

    @property
    def pending(self) -> tuple[str, ...]:
        """Names of the settings that wait for a reset, or, while the past is shown, for a branch."""
        return tuple(self.snapshot.config.differences(self.planned))


class Player:
    """Train in a thread of its own; every method but `ask` returns at once and may be called from any thread.

    idle -> running <-> paused; a run that cannot go on is failed, with a message, and may be started again (say, with a
    lower learning rate) or reset. A setting outside of its range is refused with a message and changes nothing. While
    the past is shown, settings are kept for a branch; going on applies them to the run itself.

    Args:
        factory: makes the engine of a config; called at once and at each reset.
        config: the first config.

    Attributes:
        error: the last exception that stopped the run or was refused, None if all is well.
        version: grows with every change; cheap to compare.
        changed: called (from the player's thread) after every change, with True if somebody asked for it and False
            after a step; a view's pump sets it.

    Raises:
        P4Error: whatever the factory raises on the first config.
    """

    def __init__(self, factory: Factory, config: RunConfig) -> None:
        self.error: BaseException | None = None
        self.version = 0
        self.changed: Callable[[bool], None] = lambda asked: None
        self._planned = config
        self._runs = Runs(factory, config)
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

    def change(self, changes: Callable[[RunConfig], Mapping[str, Any]]) -> None:
        """Change settings, as `set`, to what follows from those that are planned."""
        self._commands.put(lambda: self._set(self._following(changes)))

    def limit(self, steps_per_second: float | None) -> None:
        """Limit the speed (None: full speed)."""
        self._commands.put(lambda: self._limit(steps_per_second))

    def scrub(self, step: int | None) -> None:
        """Pause and show the moment nearest to a step; None shows the present."""
        self._commands.put(lambda: self._look(step))

    def branch(self, name: str = "") -> None:
        """Start a second run, paused, from the moment that is shown, with the planned live settings."""
        self._commands.put(lambda: self._change(lambda runs: runs.branch(self._planned, name), State.PAUSED))

    def keep(self) -> None:
        """Keep the run for comparison and make a new one, idle, with the planned settings."""
        self._commands.put(lambda: self._change(lambda runs: runs.keep(self._planned), State.IDLE))

    def select(self, number: int) -> None:
        """Go on, paused, with another run."""
        self._commands.put(lambda: self._change(lambda runs: runs.select(number), State.PAUSED))

    def add(self, run: Run) -> None:
        """Take in a run that was loaded, and go on, paused, with it."""
        self._commands.put(lambda: self._change(lambda runs: runs.add(run), State.PAUSED))

    def rename(self, number: int, name: str) -> None:
        """Give a run another name."""
        self._commands.put(lambda: self._edit(lambda runs: runs.rename(number, name)))

    def remove(self, number: int) -> None:
        """Forget a run that is not active."""
        self._commands.put(lambda: self._edit(lambda runs: runs.remove(number)))

    def ask(self, question: Callable[[Runs], T], timeout: float | None = None) -> T:
        """Return the answer to a question that is asked between two steps, in the player's thread.

        Raises:
            TimeoutError: it took longer than ``timeout`` seconds, or the player is closed.
        """
        future: Future[T] = Future()
        self._commands.put(lambda: self._answer(future, question))
        if self._state is State.CLOSED and not self._thread.is_alive():
            raise TimeoutError("the player is closed: by close(), or by a newer lab of the same name (name=...)")
        try:
            return future.result(timeout)
        except TimeoutError as error:
            if future.done():
                raise
            reason = f"the player has not answered for {timeout:g} s: a step takes long; what was asked for comes later"
            raise TimeoutError(reason) from error

    def frame(self, timeout: float | None = None) -> Frame:
        """Return the present state, taken between two steps.

        Raises:
            TimeoutError: as `ask`.
        """
        return self.ask(self._frame, timeout)

    def recorded(self, limit: int, timeout: float | None = None) -> tuple[Frame, ...]:
        """Return the recorded moments of the active run, and the present last, as they look while it rests.

        What is shown stays as it is, and a run that goes on does.

        Args:
            limit: most frames, at least 2; the first and the last moment are always among them, the others evenly
                spread.
            timeout: as `ask`.

        Raises:
            TimeoutError: as `ask`.
        """
        return self.ask(lambda runs: self._recorded(runs, limit), timeout)

    def poke(self) -> None:
        """Have the views drawn again: something else that they show has changed."""
        self._commands.put(self._touch)

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
    def engine(self) -> Any:
        """The engine (or lanes) of the active run; touch it only while the player is not running."""
        return self._runs.active.engine

    # --- the thread --------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while self._state is not State.CLOSED:
            command = None
            # The thread must live on, whatever is raised, or the lab would be dead without a word.
            try:
                command = self._next_command()
                (command or self._one_step)()
            except BaseException as error:
                self._fail(error, stopped=command is None or isinstance(error, TrainingError))

    def _next_command(self) -> Callable[[], None] | None:
        """Wait for a command, or for the time of the next step (then None)."""
        if self._state is not State.RUNNING:
            return self._commands.get()
        while (wait := self._next_step - time.monotonic() if self._speed else 0.0) > 0:
            try:
                return self._commands.get(timeout=min(wait, 1.0))
            except queue.Empty:
                continue
        try:
            return self._commands.get_nowait()
        except queue.Empty:
            return None

    def _one_step(self) -> None:
        if self._speed:
            self._next_step = max(time.monotonic(), self._next_step + 1 / self._speed)
        merging = self.engine.merge_due
        self._runs.advance()
        self._times.append(time.monotonic())
        if (self._until_merge and merging) or self.engine.finished:
            self._state, self._until_merge = State.PAUSED, False
        self._touch(asked=False)

    def _start(self) -> None:
        self._return()
        self._state, self.error, self._until_merge = State.RUNNING, None, False
        self._times.clear()
        self._touch()

    def _pause(self) -> None:
        if self._state is State.RUNNING:
            self._state = State.PAUSED
            self.engine.release()
            self._touch()

    def _advance(self, until_merge: bool) -> None:
        if until_merge and not self.engine.merges:
            raise ConfigError("this run has no P4 layers: there is nothing to merge; press Step or Start")
        self._return()
        self.error = None
        if until_merge:
            self._state, self._until_merge = State.RUNNING, True
            self._times.clear()
        else:
            self._state = State.PAUSED
            self._runs.advance()
        self._touch()

    def _reset(self) -> None:
        self.engine.release()
        self._runs.restart(self._planned)
        self._state, self.error, self._until_merge = State.IDLE, None, False
        self._run += 1
        self._touch()

    def _following(self, changes: Callable[[RunConfig], Mapping[str, Any]]) -> dict[str, Any]:
        try:
            return dict(changes(self._planned))
        except Exception as error:  # a value that somebody's function cannot take is refused like any other
            raise ConfigError(describe(error)) from error

    def _set(self, changes: dict[str, Any]) -> None:
        planned = self._planned.replace(**changes)
        if self._state is State.IDLE:
            # Nothing has been trained yet, so a new engine costs nothing and no setting needs to wait.
            self._runs.restart(planned)
        elif self._runs.shown is None:
            self._apply(planned)
        self._planned = planned
        self._clear()
        self._touch()

    def _clear(self) -> None:
        """Forget what was refused before; why the run has stopped is kept."""
        if self._state is not State.FAILED:
            self.error = None

    def _apply(self, planned: RunConfig) -> None:
        before, done = self.engine.config, []
        try:
            for name in planned.differences(before):
                if name in planned.live:
                    self.engine.set(name, getattr(planned, name))
                    done.append(name)
        except Exception:  # what is refused changes nothing
            for name in done:
                self.engine.set(name, getattr(before, name))
            raise

    def _return(self) -> None:
        """Go back to the present, with the settings that were made meanwhile."""
        if self._runs.shown is not None:
            self._apply(self._planned)
            self._runs.scrub(None)

    def _look(self, step: int | None) -> None:
        if step is not None and not isinstance(step, int):
            raise ConfigError(f"scrub={step!r}: expected a step, a whole number, or None for the present")
        if step is None:
            self._return()
        else:
            self._pause()
            self._runs.scrub(step)
        self._clear()
        self._touch()

    def _change(self, change: Callable[[Runs], None], state: State) -> None:
        """Make another run the active one."""
        self.engine.release()
        change(self._runs)
        self._planned = self.engine.config
        self._state, self.error, self._until_merge = state, None, False
        self._run += 1
        self._touch()

    def _edit(self, change: Callable[[Runs], None]) -> None:
        change(self._runs)
        self._run += 1
        self._clear()
        self._touch()

    def _limit(self, steps_per_second: float | None) -> None:
        if steps_per_second is not None and not (
            isinstance(steps_per_second, int | float) and steps_per_second >= SLOWEST
        ):
            raise ConfigError(
                f"speed={steps_per_second!r}: expected {SLOWEST:g} or more steps per second, or None for full speed"
            )
        self._speed, self._next_step = steps_per_second, time.monotonic()
        self._clear()
        self._touch()

    def _answer(self, future: "Future[T]", question: Callable[[Runs], T]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(question(self._runs))
        except BaseException as error:  # it belongs to whoever asked
            future.set_exception(error)

    def _frame(self, runs: Runs) -> Frame:
        present = runs.active.engine.snapshot()
        shown = runs.shown
        snapshot = present if shown is None else present.at(shown)
        return Frame(
            version=self.version,
            state=self._state,
            message="" if self.error is None else describe(self.error),
            planned=self._planned,
            speed=self._speed,
            steps_per_second=self._rate(),
            run=self._run,
            snapshot=snapshot,
            shown=None if shown is None else shown.step,
            moments=tuple(moment.step for moment in runs.active.history.moments),
            runs=runs.views(snapshot),
        )

    def _recorded(self, runs: Runs, limit: int) -> tuple[Frame, ...]:
        frame, present = self._frame(runs), runs.active.engine.snapshot()
        state = State.PAUSED if frame.state is State.RUNNING else frame.state
        frame = dataclasses.replace(frame, state=state, steps_per_second=0.0)
        past = [moment for moment in runs.active.history.moments if moment.step < present.step]
        snapshots = [(moment.step, present.at(moment)) for moment in spread(past, limit - 1)]
        return tuple(
            dataclasses.replace(frame, snapshot=snapshot, shown=shown, runs=runs.views(snapshot))
            for shown, snapshot in (*snapshots, (None, present))
        )

    def _rate(self) -> float:
        if self._state is not State.RUNNING or len(self._times) < 2:
            return 0.0
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    def _close(self) -> None:
        self._state = State.CLOSED
        self.engine.release()
        self._touch()

    def _fail(self, error: BaseException, stopped: bool) -> None:
        self.error = error
        # What is refused (a setting, a file) does not stop a run.
        if stopped:
            self._state, self._until_merge = State.FAILED, False
        self._touch()

    def _touch(self, asked: bool = True) -> None:
        self.version += 1
        self.changed(asked)


def spread(things: Sequence[T], limit: int) -> list[T]:
    """Return at most so many of some things, evenly spread, the first always among them and of two or more the last."""
    if len(things) <= limit:
        return list(things)
    return [things[round(k * (len(things) - 1) / max(1, limit - 1))] for k in range(limit)]


def describe(error: BaseException) -> str:
    """Return an error as one line for people, with the notes on where it was; bugs carry their type's name."""
    text, kind = " ".join(str(error).split()), type(error).__name__
    if not (text and isinstance(error, P4Error)):
        text = f"{kind}: {text}" if text else kind
    return text + "".join(f" ({' '.join(note.split())})" for note in getattr(error, "__notes__", ()))
