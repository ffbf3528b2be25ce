"""Pictures in space that change many times a second and can be turned."""

from collections.abc import Sequence
from typing import Any

from p4lab.plots.layers import Dots, Grip, Layer, Line, Surface
from p4lab.widgets.channel import STATIC
from p4lab.widgets.layers import Layered, Moved


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
        self,
        layers: Sequence[Layer],
        bounds: tuple[float, float, float, float, float, float] | None = None,
        labels: tuple[str, str, str] | None = None,
    ) -> None:
        """Show these layers; sends those that have changed.

        Args:
            layers: what there is to see.
            bounds: x0, x1, y0, y1, z0, z1 of the box; None: the box follows the data, without jumping.
            labels: what stands along the axes from now on (None: as before).

        Raises:
            ShapeError: not six bounds, or three labels.
            OptionError: a layer of another kind, or bounds that are not low < high.
        """
        self._show(layers, bounds, labels)
