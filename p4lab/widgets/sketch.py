"""A canvas on which a person paints with the mouse or the keyboard."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.errors import OptionError, ShapeError
from p4lab.widgets.channel import FOLDER, STATIC, Channel, as_bytes

Ink = NDArray[np.uint8]
Used = Callable[[Ink], None]
"""Called with a copy of the drawing, in a thread of the kernel: put a command on a queue and return."""


class Sketch(Channel):
    """A square to paint on: brush, rubber, undo, clear, and two buttons that the kernel hears of.

    Mouse: press and move. Keys, while the square has the focus: arrows move the brush, Space paints, with Shift the
    arrows paint as they move, Delete or Backspace rubs out, Ctrl+Z takes back.

    Args:
        size: cells per side.
        levels: greatest amount of ink in a cell, 1 to 255.
        extent: x0, x1, y0, y1: what the square stands for, on the axes.
        title: heading.
        note: a few words after it.
        on_use: the button "Train on this", enabled while there is something on the canvas.
        on_copy: the button "Copy truth": put something on the canvas with `show`.

    Attributes:
        ink: the drawing, shape (size, size), uint8; the first row at the top.

    Raises:
        OptionError: size, levels or extent out of range.
    """

    _esm = STATIC / "sketch.js"
    _css = FOLDER / "pictures.css"

    def __init__(
        self,
        size: int = 24,
        levels: int = 15,
        extent: tuple[float, float, float, float] = (-1.0, 1.0, -1.0, 1.0),
        title: str = "Draw",
        note: str = "",
        on_use: Used = lambda ink: None,
        on_copy: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        if not 2 <= size <= 256:
            raise OptionError(f"size={size}: expected 2 to 256 cells per side")
        if not 1 <= levels <= 255:
            raise OptionError(f"levels={levels}: expected 1 to 255")
        if not (extent[0] < extent[1] and extent[2] < extent[3]):
            raise OptionError(f"extent={extent}: expected x0 < x1 and y0 < y1")
        self._view: dict[str, Any] = {"size": size, "levels": levels, "title": title, "note": note}
        self._view["extent"] = list(extent)
        self._on_use, self._on_copy = on_use, on_copy
        self.ink: Ink = np.zeros((size, size), np.uint8)
        super().__init__(**options)

    def show(self, ink: NDArray[Any]) -> None:
        """Put a drawing on the canvas; sends nothing if it is there already.

        Args:
            ink: shape (size, size), whole numbers from 0 to ``levels``, the first row at the top.

        Raises:
            ShapeError: another shape.
            OptionError: a number out of range.
        """
        fresh = self._checked(ink)
        with self._lock:
            if np.array_equal(fresh, self.ink):
                return
            self.ink = fresh
            self._post({}, [as_bytes(fresh)])

    def _checked(self, ink: NDArray[Any]) -> Ink:
        size, levels = self._view["size"], self._view["levels"]
        if np.shape(ink) != (size, size):
            raise ShapeError(f"ink of shape {np.shape(ink)}: expected ({size}, {size})")
        values = np.asarray(ink)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > levels:
            raise OptionError(f"ink from {values.min()} to {values.max()}: expected 0 to {levels}")
        return values.astype(np.uint8)

    def _greeting(self) -> tuple[dict[str, Any], list[memoryview]]:
        return {"view": self._view}, [as_bytes(self.ink)]

    def hear(self, message: dict[str, Any], buffers: Sequence[Any] = ()) -> None:
        """Take in what the browser says."""
        if "drawn" not in message:
            super().hear(message, buffers)
            return
        with self._lock:
            self.ink = self._checked(np.frombuffer(bytes(buffers[0]), np.uint8).reshape(self.ink.shape))
        if message["drawn"] == "use":
            self._on_use(self.ink.copy())

    def _heard(self, message: dict[str, Any]) -> None:
        if "copy" in message:
            self._on_copy()
