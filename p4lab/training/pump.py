"""The pump: one thread that shows what a player does, as fast as its screens can take it."""

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from p4lab.training.player import Frame, Player, State

PATIENCE = 0.25
"""Seconds until a screen that is not ready is looked at again, should it not call `Pump.wake` itself."""
FAST = 0.5
"""Interval of a screen, in seconds, up to which it need not wait for its end when somebody changed something."""


class Screen(Protocol):
    """What a pump draws on.

    Attributes:
        interval: least time between two frames in seconds.
    """

    interval: float

    @property
    def ready(self) -> bool:
        """Whether the last frame has arrived, so that another one is welcome (back-pressure)."""

    def draw(self, frame: Frame) -> None:
        """Show a frame."""


@dataclass(eq=False)
class _Slot:
    screen: Screen
    seen: int = -1
    error: BaseException | None = None
    next: float = 0.0


class Pump:
    """Draw a player's frames on screens; the only thread that writes to them.

    A screen gets a frame when something changed, its interval is over and it acknowledged the frame before: a slow
    browser gets fewer frames, never old ones. Intervals end on the beats of the shortest one, so that the screens share
    frames: each costs the training thread some milliseconds. While the player is not running, intervals do not count:
    what a key press changed, and the last frame after a pause, are drawn as soon as the screens are ready. While it is,
    fast screens show at once what somebody changed.

    Args:
        player: whose frames.
        screens: on what.

    Attributes:
        error: why a screen shows nothing at present (it is tried again with the next frame), None if all is well.
    """

    def __init__(self, player: Player, screens: Sequence[Screen]) -> None:
        self._lost: BaseException | None = None
        self._player = player
        self._slots = [_Slot(screen) for screen in screens]
        self._wake = threading.Event()
        self._beat = min((screen.interval for screen in screens), default=0.0)
        self._closed = self._waits_for_change = False
        player.changed = self._changed
        self._thread = threading.Thread(target=self._loop, name="p4lab-pump", daemon=True)
        self._thread.start()

    @property
    def screens(self) -> list[Screen]:
        """The screens that are drawn."""
        return [slot.screen for slot in self._slots]

    @property
    def error(self) -> BaseException | None:
        """Why there is no frame, or why a screen shows nothing at present; None if all is well."""
        return self._lost or next((slot.error for slot in self._slots if slot.error), None)

    def wake(self) -> None:
        """Look at the screens now, for one became ready; may be called from any thread."""
        self._wake.set()

    def close(self, timeout: float = 10.0) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _changed(self, asked: bool) -> None:
        if asked:
            for slot in self._slots:
                if slot.screen.interval <= FAST:
                    slot.next = 0.0
        # While the screens rest, the training thread should not be disturbed by the pump after every step.
        if asked or self._waits_for_change or not self._running:
            self._wake.set()

    @property
    def _running(self) -> bool:
        return self._player.state is State.RUNNING

    def _loop(self) -> None:
        while not self._closed:
            self._wake.clear()
            self._waits_for_change = True  # before the version is read: no change may be missed
            version, now, running = self._player.version, time.monotonic(), self._running
            waiting = [slot for slot in self._slots if running and slot.next > now]
            stale = [slot for slot in self._slots if slot.seen != version and slot not in waiting]
            due = [slot for slot in stale if slot.screen.ready]
            if due:
                self._draw(due)
                continue
            # A screen whose interval is over and that has seen everything must hear of the next step.
            self._waits_for_change = len(waiting) + len(stale) < len(self._slots)
            waits = [slot.next - now for slot in waiting] + [PATIENCE for _ in stale]
            self._wake.wait(min(waits, default=None))

    def _draw(self, due: list[_Slot]) -> None:
        try:
            frame = self._player.frame(timeout=1.0)
        except TimeoutError:  # one step takes longer than that, or the player is closing: look again
            self._wake.wait(PATIENCE)
            return
        except BaseException as error:  # of what the problem shows, an exit too; thread and pictures go on
            self._lost = error
            self._wake.wait(PATIENCE)
            return
        self._lost, before = None, type(self.error)
        now = time.monotonic()
        for slot in due:
            slot.seen, slot.next = frame.version, self._next(now + slot.screen.interval)
            try:
                slot.screen.draw(frame)
                slot.error = None
            except BaseException as error:  # reported through `error`; the other screens go on
                slot.error = error
        if type(self.error) is not before:  # one of the other screens tells of it, and may have been drawn before
            for slot in self._slots:
                slot.seen = slot.seen if slot.error else -1

    def _next(self, end: float) -> float:
        """Return the beat nearest to the end of an interval."""
        return math.floor(end / self._beat + 0.5) * self._beat if self._beat else end
