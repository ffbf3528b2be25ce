"""Grids of small images that change many times a second."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.errors import OptionError, ShapeError
from p4lab.plots.layers import Images
from p4lab.widgets.channel import STATIC, Channel, as_bytes

COLORS = ("ink", "diverging")


@dataclass
class Panel:
    """One grid: what it is called, and its images.

    Attributes:
        label: heading.
        note: a few words after it.
        columns: images per row.
        images: shape (n, h, w), uint8.
        color: of a dot before the heading ("": none).
    """

    label: str
    note: str
    columns: int
    images: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 1, 1), np.uint8))
    color: str = ""


class ImageGrid(Channel):
    """Draw grids of grey images on canvases, side by side: sharp, square, in the theme's colours.

    Args:
        panels: the grids.
        top: the highest grey level.
        colors: "ink" (0 is like the page, the highest level is dark or bright) or "diverging" (blue, page, red).
        ends: what the colour bar says at its ends (None: the grey levels).

    Raises:
        OptionError: unknown colours.

    Cost per update: one byte per pixel, and about a millisecond in the browser.
    """

    _esm = STATIC / "image_grid.js"

    def __init__(
        self,
        panels: list[Panel],
        top: int,
        colors: str = "ink",
        ends: tuple[str, str] | None = None,
        **options: Any,
    ) -> None:
        if colors not in COLORS:
            raise OptionError(f"colors={colors!r}: expected one of {COLORS}")
        self._panels, self._top, self._colors = panels, top, colors
        self._ends = ends or ("grey level 0", str(top))
        super().__init__(**options)

    def scale(self, low: str, high: str) -> None:
        """Set what the colour bar says at its ends; sends nothing if it says so already."""
        with self._lock:
            if (low, high) != self._ends:
                self._ends = low, high
                self._post(*self._message([]))

    def show(self, index: int, images: NDArray[np.uint8], note: str | None = None, columns: int | None = None) -> None:
        """Show images in one of the grids; sends nothing if all is as before.

        Args:
            index: which grid.
            images: shape (n, h, w), uint8.
            note: a few words after the heading (None: as before).
            columns: images per row (None: as before).

        Raises:
            ShapeError: another shape or dtype.
        """
        if images.ndim != 3 or images.dtype != np.uint8:
            raise ShapeError(f"images of shape {images.shape} and dtype {images.dtype}: expected (n, h, w) and uint8")
        with self._lock:
            panel = self._panels[index]
            note = panel.note if note is None else note
            columns = panel.columns if columns is None else columns
            if (note, columns) == (panel.note, panel.columns) and np.array_equal(images, panel.images):
                return
            panel.images, panel.note, panel.columns = images, note, columns
            self._post(*self._message([index]))

    def show_all(self, drawing: Images) -> None:
        """Show a drawing: the images of every grid, and what the colour bar says.

        Raises:
            ShapeError: as `show`.
        """
        if drawing.ends is not None:
            self.scale(*drawing.ends)
        for index, tile in enumerate(drawing.tiles):
            self.show(index, tile.images, tile.note, tile.columns)

    def _greeting(self) -> tuple[dict[str, Any], list[memoryview]]:
        return self._message(range(len(self._panels)))

    def _message(self, indices: Any) -> tuple[dict[str, Any], list[memoryview]]:
        chosen = [(index, self._panels[index]) for index in indices]
        described = [
            {
                "index": i,
                "label": p.label,
                "note": p.note,
                "columns": p.columns,
                "shape": p.images.shape,
                "color": p.color,
            }
            for i, p in chosen
        ]
        return {"top": self._top, "colors": self._colors, "ends": self._ends, "panels": described}, [
            as_bytes(p.images) for _, p in chosen
        ]
