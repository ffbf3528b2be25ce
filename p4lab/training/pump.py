"""The pump: one thread that shows what a player does, as fast as its views can take it."""

import threading
import time
from dataclasses import dataclass
from typing import Protocol

from p4lab.training.player import Frame, Player

PATIENCE = 0.25
"""Seconds until a view that is not ready is looked at again, should it not call `Pump.wake` itself."""


class View(Protocol):
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


@dataclass
class _Slot:
    view: View
    seen: int = -1
    next: float = 0.0


class Pump:
    """Draw a player's frames on views; the only thread that writes to them.

    A view gets a frame when something changed, its interval is over and it acknowledged the frame before: a slow
    browser gets fewer frames, never old ones. The last frame after a pause is always drawn.

    Args:
        player: whose frames.
        views: on what.

    Attributes:
        error: the first exception that a view raised (it gets no further frames), None if all is well.
    """

    def __init__(self, player: Player, views: list[View]) -> None:
        self.error: Exception | None = None
        self._player = player
        self._slots = [_Slot(view) for view in views]
        self._wake = threading.Event()
        self._closed = False
        player.changed = self._wake.set
        self._thread = threading.Thread(target=self._loop, name="p4lab-pump", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at the views now, for one became ready; may be called from any thread."""
        self._wake.set()

    def close(self, timeout: float = 10.0) -> None:
        """End the thread."""
        self._closed = True
        self._wake.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _loop(self) -> None:
        while not self._closed:
            stale = [slot for slot in self._slots if slot.seen != self._player.version]
            now = time.monotonic()
            due = [slot for slot in stale if slot.next <= now and slot.view.ready]
            if due:
                self._draw(due)
                continue
            waits = [slot.next - now if slot.next > now else PATIENCE for slot in stale]
            self._wake.wait(min(waits, default=None))
            self._wake.clear()

    def _draw(self, due: list[_Slot]) -> None:
        try:
            frame = self._player.frame(timeout=1.0)
        except TimeoutError:  # one step takes longer than that, or the player is closing: look again
            self._wake.wait(PATIENCE)
            return
        now = time.monotonic()
        for slot in due:
            slot.seen, slot.next = frame.version, now + slot.view.interval
            try:
                slot.view.draw(frame)
            except Exception as error:  # reported through `error`; the other views go on
                self.error = self.error or error
                self._slots.remove(slot)
