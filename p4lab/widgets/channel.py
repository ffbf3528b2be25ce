"""The kernel's end of the conversation that js/channel.ts holds in the browser."""

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import anywidget
import numpy as np
from numpy.typing import NDArray

from p4lab.errors import P4Error

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
"""The modules of js/, bundled by ``make bundles``: one file for each widget, as the browser gets it."""

LOST = 10.0
"""Seconds after which a frame without acknowledgement counts as lost (a closed page, a broken connection)."""

AHEAD = 16
"""Frames that may be on their way to a quick browser; a slow one gets the next when it has shown the last."""
SLOW = 0.3
"""Seconds from a frame to its picture that make a browser a slow one."""

KERNEL = secrets.token_hex(8)
"""Tells this process from others that the same page may talk to."""

DTYPES = {"float32": "f4", "float64": "f8", "uint8": "u1", "int32": "i4"}


class BrowserError(P4Error, RuntimeError):
    """A widget's JavaScript failed."""


class Channel(anywidget.AnyWidget):
    """A widget that is sent frames, which the browser acknowledges.

    Several frames may be under way: an acknowledgement makes JupyterLab redraw its own signs of a busy kernel, which
    costs the page more than a picture, so a quick browser gives about one a second for the frames of all channels. How
    far the kernel runs ahead follows the time that a frame takes until it is seen; it tells when it waits for one.

    Subclasses send with `_post` and answer `_greeting` with everything that a new page needs.

    Args:
        on_ready: called, from any thread, when a frame may be sent again; a pump's ``wake``.

    Attributes:
        error: the first failure in the browser, None if all is well.
    """

    # By model id: the browser acknowledges frames of several channels in one message.
    _channels: ClassVar[WeakValueDictionary[str, "Channel"]] = WeakValueDictionary()

    def __init__(self, on_ready: Callable[[], None] = lambda: None, **options: Any) -> None:
        self.error: BrowserError | None = None
        self.on_ready = on_ready
        self._lock = threading.RLock()  # a greeting is answered in the kernel's thread, frames come from the pump's
        self._connected = False
        self._sent = self._acked = 0
        self._sent_at: deque[float] = deque([0.0], maxlen=AHEAD)
        self._ahead = 1
        super().__init__(**options)
        self._channels[self.model_id] = self
        self.on_msg(lambda _, message, buffers: self.hear(message, buffers))

    @property
    def ready(self) -> bool:
        """Whether a page is there that keeps up with the frames, or has lost them."""
        return self._connected and (
            self._sent - self._acked < self._ahead or time.monotonic() - self._sent_at[-1] > LOST
        )

    def display(self, shown: bool) -> None:
        """Show the widget, or take it off the page."""
        display = None if shown else "none"
        if self.layout.display != display:
            self.layout.display = display

    @property
    def sent(self) -> int:
        """Number of frames sent so far; the page shows it as ``data-frames`` of the widget once the frame is drawn."""
        return self._sent

    def _greeting(self) -> tuple[dict[str, Any], list[memoryview]]:
        """Return the message and buffers that bring a new page up to date."""
        raise NotImplementedError

    def _heard(self, message: dict[str, Any]) -> None:
        """Handle a message that is not part of the channel's own protocol."""

    def _post(self, message: dict[str, Any], buffers: Sequence[memoryview] = ()) -> None:
        """Send a frame (nothing, if no page has asked for any yet)."""
        with self._lock:
            if not self._connected:
                return
            self._sent += 1
            self._sent_at.append(time.monotonic())
            under_way = self._sent - self._acked
            self.send({**message, "frame": self._sent, "awaited": 2 * under_way >= self._ahead}, list(buffers))

    def _acknowledged(self, frame: int, held: float) -> None:
        if frame > self._acked:
            with self._lock:
                behind = self._sent - frame
                taken = time.monotonic() - held - self._sent_at[max(0, len(self._sent_at) - 1 - behind)]
                self._ahead = AHEAD if taken < SLOW else 1
                self._acked = frame
        self.on_ready()

    def hear(self, message: dict[str, Any], buffers: Sequence[Any] = ()) -> None:
        """Take in what the browser says."""
        if "acks" in message:
            for name, (frame, held) in message["acks"].items():
                if name in self._channels:
                    self._channels[name]._acknowledged(frame, held / 1000)
        elif "hello" in message:
            with self._lock:
                self._connected = True
                greeting, memory = self._greeting()
                self._post({**greeting, "channel": [KERNEL, self.model_id]}, memory)
        elif "error" in message:
            self.error = self.error or BrowserError(f"{type(self).__name__} in the browser: {message['error']}")
        else:
            self._heard(message)


def packed(array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Return the dtype code of an array, and the array in a dtype and layout that the browser can read.

    64-bit integers become float64 (exact up to 2^53), other unknown kinds float64 as well.

    Raises:
        TypeError: the array holds no numbers.
    """
    if array.dtype.kind not in "fiub":
        raise TypeError(f"array of dtype {array.dtype}: expected numbers; pass text as a list")
    name = array.dtype.name
    if name == "bool":
        name = "uint8"
    if name not in DTYPES:
        name = "float64"
    return DTYPES[name], np.ascontiguousarray(array, dtype=name)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """Return the memory of a contiguous array; an empty one gives empty memory (`memoryview.cast` refuses it)."""
    return memoryview(array.tobytes())
