"""The words of drawings: layers of a picture in the plane or in space, images, equations, tables; plain data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from p4lab.errors import OptionError, ShapeError


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


def check_share(layer: Layer, name: str) -> None:
    """Check that a number of a layer is between 0 and 1.

    Raises:
        OptionError: it is not.
    """
    value = getattr(layer, name)
    if not 0 <= value <= 1:
        raise OptionError(f"{type(layer).__name__}.{name} is {value}: expected 0 to 1")


def check_labels(labels: Sequence[str], points: ArrayLike, kind: str) -> None:
    """Check that there is no label, or one per point.

    Raises:
        ShapeError: another number.
    """
    if len(labels) not in (0, len(np.asarray(points))):
        raise ShapeError(f"{kind} has {len(labels)} labels for {len(np.asarray(points))} points: expected one each")


# --- in the plane -----------------------------------------------------------------------------------------------------

# Colours everywhere: "blue", "orange", "green", "red", "purple", "grey" and "ink" fit the page's theme; others are CSS.


@dataclass(frozen=True, eq=False)
class Heatmap(Layer):
    """A function on a grid, smoothly coloured, with a colour bar; NaN is left blank.

    Attributes:
        values: shape (h, w): row i is at height y_i, so the first row is the lowest.
        extent: x0, x1, y0, y1: the outer edges of the grid's cells.
        low: value of the first colour, None: the least value.
        high: value of the last colour, None: the greatest value.
        colors: "loss" (low is like the page, high is dark or bright) or "diverging" (blue, page, red).
        log: whether colours follow the logarithm.
        label: beside the colour bar.
    """

    values: ArrayLike
    extent: tuple[float, float, float, float]
    low: float | None = None
    high: float | None = None
    colors: str = "loss"
    log: bool = False
    label: str = ""

    _shapes: ClassVar = {"values": ("h", "w")}
    _choices: ClassVar = {"colors": ("loss", "diverging")}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "low", "high")
        x0, x1, y0, y1 = self.extent
        if not (x0 < x1 and y0 < y1):
            raise OptionError(f"Heatmap.extent is {self.extent}: expected x0 < x1 and y0 < y1")
        if self.log and self.low is not None and self.low <= 0:
            raise OptionError(f"Heatmap.low is {self.low} on a logarithmic scale: expected a positive number")


@dataclass(frozen=True, eq=False)
class Path(Layer):
    """A line; NaN breaks it.

    Attributes:
        points: shape (n, 2).
        color: of the line, where there are no values.
        width: in pixels.
        dashed: whether it is dashed.
        values: shape (n,): the line is coloured by them, with a colour bar.
        low: value of the first colour, None: the least value.
        high: value of the last colour, None: the greatest value.
        closed: whether the last point is joined to the first.
        label: in the legend, or beside the colour bar.
        fill: how opaque its inside is in its colour, 0 to 1.
    """

    points: ArrayLike
    color: str = "blue"
    width: float = 2
    dashed: bool = False
    values: ArrayLike | None = None
    low: float | None = None
    high: float | None = None
    closed: bool = False
    label: str = ""
    fill: float = 0

    _shapes: ClassVar = {"points": ("n", 2), "values": ("n",)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "low", "high")
        check_share(self, "fill")


@dataclass(frozen=True, eq=False)
class Points(Layer):
    """Marks; NaN leaves one out.

    Attributes:
        points: shape (n, 2).
        color: of all.
        shape: "dot", "ring", "cross" or "square".
        size: width in pixels.
        labels: one for each point, shown where the mouse rests, or none.
        fade: whether earlier points are fainter.
        label: in the legend.
    """

    points: ArrayLike
    color: str = "blue"
    shape: str = "dot"
    size: float = 7
    labels: tuple[str, ...] = ()
    fade: bool = False
    label: str = ""

    _shapes: ClassVar = {"points": ("n", 2)}
    _choices: ClassVar = {"shape": ("dot", "ring", "cross", "square")}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.labels, self.points, "Points")


@dataclass(frozen=True, eq=False)
class Arrow(Layer):
    """An arrow.

    Attributes:
        start: shape (2,).
        end: shape (2,).
        color: of all of it.
        width: in pixels.
        dashed: whether its shaft is dashed.
        label: in the legend.
    """

    start: ArrayLike
    end: ArrayLike
    color: str = "blue"
    width: float = 2
    dashed: bool = False
    label: str = ""

    _shapes: ClassVar = {"start": (2,), "end": (2,)}


@dataclass(frozen=True, eq=False)
class Text(Layer):
    """A few words at a point.

    Attributes:
        point: shape (2,).
        text: the words.
        color: of the letters.
        side: where they stand: "center", "left", "right", "above" or "below" the point.
    """

    point: ArrayLike
    text: str
    color: str = "ink"
    side: str = "center"

    _shapes: ClassVar = {"point": (2,)}
    _choices: ClassVar = {"side": ("center", "left", "right", "above", "below")}


@dataclass(frozen=True, eq=False)
class Handle(Layer):
    """A point that can be moved with the mouse and the arrow keys.

    Attributes:
        name: what the picture's ``on_moved`` is called with.
        point: shape (2,): where it is when nobody holds it.
        color: of the ring.
        label: what it stands for, beside it and for screen readers.
    """

    name: str
    point: ArrayLike
    color: str = "orange"
    label: str = ""

    _shapes: ClassVar = {"point": (2,)}


# --- in space ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Surface(Layer):
    """A surface of shaded, translucent quads with faint mesh lines; NaN leaves a hole.

    Attributes:
        vertices: shape (rows, cols, 3).
        color: of all of it.
        opacity: 0 to 1.
        label: in the legend.
    """

    vertices: ArrayLike
    color: str = "blue"
    opacity: float = 0.45
    label: str = ""

    _shapes: ClassVar = {"vertices": ("rows", "cols", 3)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "opacity")


@dataclass(frozen=True, eq=False)
class Line(Layer):
    """A line; NaN breaks it, and so does the box that `Space.show` was given.

    Attributes:
        points: shape (n, 3).
        color: of all of it.
        width: in pixels.
        dashed: whether it is dashed.
        label: in the legend.
    """

    points: ArrayLike
    color: str = "blue"
    width: float = 2
    dashed: bool = False
    label: str = ""

    _shapes: ClassVar = {"points": ("n", 3)}


@dataclass(frozen=True, eq=False)
class Dots(Layer):
    """Marks; NaN leaves one out.

    Attributes:
        points: shape (n, 3).
        color: of all.
        size: width in pixels.
        labels: one for each point, shown where the mouse rests, or none.
        label: in the legend.
    """

    points: ArrayLike
    color: str = "blue"
    size: float = 8
    labels: tuple[str, ...] = ()
    label: str = ""

    _shapes: ClassVar = {"points": ("n", 3)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_labels(self.labels, self.points, "Dots")


@dataclass(frozen=True, eq=False)
class Grip(Layer):
    """A point that can be moved, parallel to the screen, with the mouse and the arrow keys.

    Attributes:
        name: what the picture's ``on_moved`` is called with.
        point: shape (3,): where it is when nobody holds it.
        color: of the ring.
        label: what it stands for, beside it and for screen readers.
    """

    name: str
    point: ArrayLike
    color: str = "orange"
    label: str = ""

    _shapes: ClassVar = {"point": (3,)}


# --- whole drawings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plot:
    """Layers over each other, the first one undermost; in the plane or in space.

    Attributes:
        layers: what there is to see.
        bounds: low and high end of each axis (None: the frame follows the data).
        labels: what stands along the axes (None: as before).
    """

    layers: Sequence[Layer]
    bounds: Sequence[float] | None = None
    labels: Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Tile:
    """The images of one grid.

    Attributes:
        images: shape (n, h, w), uint8.
        note: a few words after the heading (None: as before).
        columns: images per row (None: as before).
    """

    images: NDArray[np.uint8]
    note: str | None = None
    columns: int | None = None


@dataclass(frozen=True, eq=False)
class Images:
    """Grids of images side by side.

    Attributes:
        tiles: one for each grid.
        ends: what the colour bar says at its ends (None: as before).
    """

    tiles: Sequence[Tile]
    ends: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class Term:
    """A symbol with its numbers.

    Attributes:
        symbol: what it is called.
        values: a matrix (r, c), or a number.
        color: of its numbers: "blue", "orange", "purple", "grey", "ink", or CSS.
        flash: whether it lights up when its numbers change.
    """

    symbol: str
    values: ArrayLike
    color: str = "ink"
    flash: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: what stands in it, as text.
        color: of the mark before its first cell.
        active: whether it is set in bold.
    """

    cells: Sequence[str]
    color: str = ""
    active: bool = False


@dataclass(frozen=True)
class Rows:
    """A table.

    Attributes:
        columns: headings, with what explains them.
        rows: from top to bottom.
        label: what the table is called.
    """

    columns: Mapping[str, str]
    rows: Sequence[Row]
    label: str = ""
