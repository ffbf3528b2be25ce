"""What plane and space have in common: layers that travel when they change, and points that a person moves."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from p4lab.errors import OptionError, ShapeError
from p4lab.plots.layers import Layer
from p4lab.widgets.channel import FOLDER, Channel, as_bytes

Moved = Callable[[str, tuple[float, ...]], None]
"""Called with the name of a handle and the point that it was moved to."""


class Layered(Channel):
    """A picture made of layers: each travels once, and again only when it has changed.

    Args:
        view: what stays as it is: title, labels, height.
        kinds: what it can show.
        on_moved: called, in the kernel's thread, with the name of a handle and where it was moved to.
    """

    _css = FOLDER / "pictures.css"

    def __init__(self, view: dict[str, Any], kinds: tuple[type[Layer], ...], on_moved: Moved, **options: Any) -> None:
        self._view, self._kinds, self._on_moved = view, kinds, on_moved
        self._layers: tuple[Layer, ...] = ()
        self._bounds: tuple[float, ...] | None = None
        super().__init__(**options)

    def _show(
        self, layers: Sequence[Layer], bounds: Sequence[float] | None, labels: Sequence[str] | None = None
    ) -> None:
        for layer in layers:
            if not isinstance(layer, self._kinds):
                names = ", ".join(kind.__name__ for kind in self._kinds)
                raise OptionError(f"{type(self).__name__} got a {type(layer).__name__}: expected layers ({names})")
        box = None if bounds is None else self._box(bounds)
        said = self._view["labels"] if labels is None else list(labels)
        if len(said) != self._view["dim"]:
            raise ShapeError(f"labels are {said}: expected {self._view['dim']}, one per axis")
        with self._lock:
            before, self._layers = self._layers, tuple(layers)
            moved, self._bounds = self._bounds != box, box
            changed = {k for k, layer in enumerate(layers) if k >= len(before) or not layer.same(before[k])}
            renamed, self._view = self._view["labels"] != said, {**self._view, "labels": said}
            if changed or moved or renamed or len(before) != len(layers):
                message, buffers = self._message(changed)
                self._post({**message, "labels": said} if renamed else message, buffers)

    def _box(self, bounds: Sequence[float]) -> tuple[float, ...]:
        box = tuple(float(value) for value in bounds)
        expected = 2 * self._view["dim"]
        if len(box) != expected:
            raise ShapeError(f"bounds have {len(box)} numbers: expected {expected}, two per axis")
        if not all(math.isfinite(low) and low < high < math.inf for low, high in zip(box[::2], box[1::2], strict=True)):
            raise OptionError(f"bounds are {box}: expected low < high on each axis, all finite")
        return box

    def _greeting(self) -> tuple[dict[str, Any], list[memoryview]]:
        message, buffers = self._message(set(range(len(self._layers))))
        return {"view": self._view, **message}, buffers

    def _message(self, changed: set[int]) -> tuple[dict[str, Any], list[memoryview]]:
        described: list[dict[str, Any] | None] = []
        buffers: list[memoryview] = []
        for index, layer in enumerate(self._layers):
            if index not in changed:
                described.append(None)
                continue
            plain, arrays = layer.described()
            places = {name: [len(buffers) + k, list(array.shape)] for k, (name, array) in enumerate(arrays.items())}
            described.append({**plain, "arrays": places})
            buffers.extend(as_bytes(array) for array in arrays.values())
        return {"layers": described, "bounds": self._bounds}, buffers

    def _heard(self, message: dict[str, Any]) -> None:
        if "moved" in message:
            self._on_moved(message["moved"], tuple(float(value) for value in message["point"]))
