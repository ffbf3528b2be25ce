"""Pictures in the plane that change many times a second."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import ArrayLike

from p4lab.errors import OptionError
from p4lab.widgets.channel import STATIC
from p4lab.widgets.layers import Layer, Layered, Moved, check_finite, check_labels

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

    _shapes: ClassVar = {"points": ("n", 2), "values": ("n",)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite(self, "low", "high")


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


class Plane(Layered):
    """A picture in the plane: layers over each other, on axes that follow the data.

    Args:
        title: heading.
        note: a few words after it.
        x_label: under the picture.
        y_label: beside the picture.
        equal: whether one unit is as long on both axes.
        height: of the picture in pixels, without heading and legend.
        on_moved: called with the name of a handle and the point (x, y) it was moved to; at most 16 times a second
            while it is dragged, and once more when it is let go.

    Cost per update: four bytes per number that changed, and one redraw on a canvas (about a millisecond).
    """

    _esm = STATIC / "plane.js"

    def __init__(
        self,
        title: str,
        note: str = "",
        x_label: str = "",
        y_label: str = "",
        equal: bool = True,
        height: int = 340,
        on_moved: Moved = lambda name, point: None,
        **options: Any,
    ) -> None:
        view = {"dim": 2, "title": title, "note": note, "labels": [x_label, y_label], "equal": equal, "height": height}
        super().__init__(view, (Heatmap, Path, Points, Arrow, Text, Handle), on_moved, **options)

    def show(self, layers: Sequence[Layer], bounds: tuple[float, float, float, float] | None = None) -> None:
        """Show these layers, the first one undermost; sends those that have changed.

        Args:
            layers: what there is to see.
            bounds: x0, x1, y0, y1 of the frame; None: the frame follows the data, without jumping.

        Raises:
            ShapeError: not four bounds.
            OptionError: a layer of another kind, or bounds that are not low < high.
        """
        self._show(layers, bounds)
