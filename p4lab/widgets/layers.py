"""What plane and space have in common: layers that travel when they change, and points that a person moves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from p4lab.errors import OptionError, ShapeError
from p4lab.widgets.channel import FOLDER, Channel, as_bytes

Moved = Callable[[str, tuple[float, ...]], None]
"""Called with the name of a handle and the point that it was moved to."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One thing in a picture: plain data, copied when made.

    Subclasses say in ``_shapes`` what shapes their arrays have (equal letters stand for equal lengths), and in
    ``_choices`` which values their options may take. An array that is None is left out.

    Raises:
        ShapeError: an array of another shape.
        OptionError: an option has a value outside of its range.
    """

    _shapes: ClassVar[dict[str, tuple[str | int, ...]]] = {}
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        lengths: dict[str, int] = {}
        for name, shape in self._shapes.items():
            if getattr(self, name) is not None:
                array = self._fitting(name, getattr(self, name), shape, lengths)
                object.__setattr__(self, name, array)
        for name, allowed in self._choices.items():
            if getattr(self, name) not in allowed:
                raise OptionError(f"{self._called(name)} is {getattr(self, name)!r}: expected one of {allowed}")

    def _called(self, name: str) -> str:
        return f"{type(self).__name__}.{name}"

    def _fitting(
        self, name: str, value: ArrayLike, shape: tuple[str | int, ...], lengths: dict[str, int]
    ) -> NDArray[np.float32]:
        array = np.array(value, np.float32)
        fits = array.ndim == len(shape) and all(
            lengths.setdefault(wanted, found) == found if isinstance(wanted, str) else wanted == found
            for wanted, found in zip(shape, array.shape, strict=True)
        )
        if not fits:
            expected = ", ".join(map(str, shape))
            counted = f" with n = {lengths['n']}" if "n" in lengths else ""
            raise ShapeError(f"{self._called(name)} has shape {array.shape}: expected ({expected}){counted}")
        return array

    def same(self, other: "Layer") -> bool:
        """Return whether another layer would look the same; O(numbers)."""
        return type(self) is type(other) and all(
            _equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        )

    def described(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """Return what travels as text, and what travels as binary buffers."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        plain = {name: _plain(value) for name, value in values.items() if name not in arrays}
        return {"kind": type(self).__name__, **plain}, arrays


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=True)
    return type(one) is type(other) and bool(one == other)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def check_finite(layer: Layer, *names: str) -> None:
    """Check that these numbers of a layer are None or finite.

    Raises:
        OptionError: one is not.
    """
    for name in names:
        value = getattr(layer, name)
        if value is not None and not math.isfinite(value):
            raise OptionError(f"{type(layer).__name__}.{name} is {value}: expected a finite number, or None")


def check_labels(labels: Sequence[str], points: ArrayLike, kind: str) -> None:
    """Check that there is no label, or one per point.

    Raises:
        ShapeError: another number.
    """
    if len(labels) not in (0, len(np.asarray(points))):
        raise ShapeError(f"{kind} has {len(labels)} labels for {len(np.asarray(points))} points: expected one each")


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

    def _show(self, layers: Sequence[Layer], bounds: Sequence[float] | None) -> None:
        for layer in layers:
            if not isinstance(layer, self._kinds):
                names = ", ".join(kind.__name__ for kind in self._kinds)
                raise OptionError(f"{type(self).__name__} got a {type(layer).__name__}: expected layers ({names})")
        box = None if bounds is None else self._box(bounds)
        with self._lock:
            before, self._layers = self._layers, tuple(layers)
            moved, self._bounds = self._bounds != box, box
            changed = {k for k, layer in enumerate(layers) if k >= len(before) or not layer.same(before[k])}
            if changed or moved or len(before) != len(layers):
                self._post(*self._message(changed))

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
