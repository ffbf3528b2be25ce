"""Pictures in the plane that change many times a second."""

from collections.abc import Sequence
from typing import Any

from p4lab.plots.layers import Arrow, Handle, Heatmap, Layer, Path, Points, Text
from p4lab.widgets.channel import STATIC
from p4lab.widgets.layers import Layered, Moved


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

    def show(
        self,
        layers: Sequence[Layer],
        bounds: tuple[float, float, float, float] | None = None,
        labels: tuple[str, str] | None = None,
    ) -> None:
        """Show these layers, the first one undermost; sends those that have changed.

        Args:
            layers: what there is to see.
            bounds: x0, x1, y0, y1 of the frame; None: the frame follows the data, without jumping.
            labels: what stands under and beside the picture from now on (None: as before).

        Raises:
            ShapeError: not four bounds, or two labels.
            OptionError: a layer of another kind, or bounds that are not low < high.
        """
        self._show(layers, bounds, labels)
