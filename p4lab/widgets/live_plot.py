"""A plotly figure that is sent once and then fed with arrays."""

import functools
import gzip
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.packages import require
from p4lab.widgets.channel import STATIC, Channel, as_bytes, packed

Figure = dict[str, Any]
Key = tuple[int, str]

STREAMED = ("x", "y", "z", "text", "customdata")
"""What of a trace is data; all else is its looks, and a change there sends the figure anew."""


@functools.lru_cache(maxsize=1)
def library() -> bytes:
    """Return plotly.js from the plotly package, compressed (1.4 MB); a page asks for it once."""
    return gzip.compress(require("plotly.offline", "lab").get_plotlyjs().encode(), 6)


class LivePlot(Channel):
    """Draw plotly figures, again and again.

    `show` takes a whole figure as plain data (``{"data": [...], "layout": {...}}`` with numpy arrays). The widget
    works out what changed: arrays go to the browser as binary buffers, looks only when they differ. It follows theme,
    width and height of its surroundings and keeps the user's zoom while ``layout.uirevision`` stays the same.

    Cost per update: about 1 ms in the kernel; the browser spends 20-100 ms on the axes, so once or twice a second is
    plenty.
    """

    _esm = STATIC / "live_plot.js"

    def __init__(self, **options: Any) -> None:
        self._looks: Figure | None = None
        self._arrays: dict[Key, NDArray[Any]] = {}
        self._values: dict[Key, Any] = {}
        super().__init__(**options)

    def show(self, figure: Figure) -> None:
        """Show a figure in place of the one before."""
        looks, arrays, values = _split(figure)
        with self._lock:
            before, old_arrays, old_values = self._looks, self._arrays, self._values
            self._looks, self._arrays, self._values = looks, arrays, values
            if before is None or before["data"] != looks["data"]:
                self._post(*self._greeting())
                return
            message, buffers = _pack(
                {
                    key: a
                    for key, a in arrays.items()
                    if key not in old_arrays or not np.array_equal(a, old_arrays[key], equal_nan=True)
                },
                {key: v for key, v in values.items() if old_values.get(key) != v},
            )
            if before["layout"] != looks["layout"]:
                message["layout"] = looks["layout"]
            self._post(message, buffers)

    def save_picture(self, name: str) -> None:
        """Let the browser save the plot as it is seen, as a PNG file of twice the resolution."""
        self.send({"save": name})

    def _greeting(self) -> tuple[dict[str, Any], list[memoryview]]:
        if self._looks is None:
            return {}, []
        message, buffers = _pack(self._arrays, self._values)
        return {**message, "figure": self._looks}, buffers

    def _heard(self, message: dict[str, Any]) -> None:
        if "library" in message:
            self.send({"library": 1}, [library()])


def _split(figure: Figure) -> tuple[Figure, dict[Key, NDArray[Any]], dict[Key, Any]]:
    arrays: dict[Key, NDArray[Any]] = {}
    values: dict[Key, Any] = {}
    traces = []
    for index, trace in enumerate(figure["data"]):
        for key in STREAMED:
            value = trace.get(key)
            if isinstance(value, np.ndarray):
                arrays[index, key] = value
            elif value is not None:
                values[index, key] = value
        traces.append({key: value for key, value in trace.items() if key not in STREAMED})
    return {"data": traces, "layout": figure.get("layout", {})}, arrays, values


def _pack(arrays: dict[Key, NDArray[Any]], values: dict[Key, Any]) -> tuple[dict[str, Any], list[memoryview]]:
    described, buffers = [], []
    for (trace, key), array in arrays.items():
        code, data = packed(array)
        described.append([trace, key, code, data.shape])
        buffers.append(as_bytes(data))
    return {"arrays": described, "values": [[trace, key, value] for (trace, key), value in values.items()]}, buffers
