"""Pictures in space that change many times a second and can be turned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import ArrayLike

from p4lab.errors import OptionError
from p4lab.widgets.channel import STATIC
from p4lab.widgets.layers import Layer, Layered, Moved, check_labels


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
        if not 0 <= self.opacity <= 1:
            raise OptionError(f"Surface.opacity is {self.opacity}: expected 0 to 1")


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


class Space(Layered):
    """A picture in space: a box with three axes that is turned by dragging, or with the arrow keys.

    The wheel zooms while Ctrl or Shift is held, or after a click into the picture (Escape lets it go), so that it never
    takes a page's scrolling away; a double click brings the first view back. How a person has turned it stays in the
    browser.

    Args:
        title: heading.
        note: a few words after it.
        labels: of the three axes.
        equal: whether one unit is as long on all axes.
        height: of the picture in pixels, without heading and legend.
        home: direction from which one looks at first: degrees around the third axis, and above its plane.
        on_moved: called with the name of a grip and the point (x, y, z) it was moved to; at most 16 times a second
            while it is dragged, and once more when it is let go.

    Cost per update: four bytes per number that changed, and one redraw on a canvas, O(n log n) in its pieces.
    """

    _esm = STATIC / "space.js"

    def __init__(
        self,
        title: str,
        note: str = "",
        labels: tuple[str, str, str] = ("x", "y", "z"),
        equal: bool = True,
        height: int = 380,
        home: tuple[float, float] = (-55.0, 22.0),
        on_moved: Moved = lambda name, point: None,
        **options: Any,
    ) -> None:
        view = {
            "dim": 3,
            "title": title,
            "note": note,
            "labels": labels,
            "equal": equal,
            "height": height,
            "home": home,
        }
        super().__init__(view, (Surface, Line, Dots, Grip), on_moved, **options)

    def show(
        self, layers: Sequence[Layer], bounds: tuple[float, float, float, float, float, float] | None = None
    ) -> None:
        """Show these layers; sends those that have changed.

        Args:
            layers: what there is to see.
            bounds: x0, x1, y0, y1, z0, z1 of the box; None: the box follows the data, without jumping.

        Raises:
            ShapeError: not six bounds.
            OptionError: a layer of another kind, or bounds that are not low < high.
        """
        self._show(layers, bounds)
