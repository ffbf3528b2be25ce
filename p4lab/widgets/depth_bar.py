"""A row of controls whose slider plays by itself."""

from collections.abc import Callable
from typing import Any

from p4lab.widgets.channel import FOLDER, script
from p4lab.widgets.controls import ControlPanel, Group, Item

DEPTHS = tuple(k / 48 for k in range(49))
"""Shares of the way from the latent space to the data."""
EXPORT = "export default () =>"


class DepthBar(ControlPanel):
    """Depth with a button that plays it, and what is shown of densities and flows.

    Args:
        touched: as `ControlPanel`; names are "depth", "lattice", "samples" and "log".
    """

    # The panel as it is, with its export caught by what moves the slider.
    _esm = script("panel.js").replace(EXPORT, "const panel = () =>") + (FOLDER / "depth_bar.js").read_text("utf-8")

    def __init__(self, touched: Callable[[str, Any], None]) -> None:
        def told(name: str, value: Any) -> None:
            if name != "play":  # played in the browser; the slider tells where it is
                touched(name, value)

        super().__init__(_groups(), told, direction="row")


def _groups() -> list[Group]:
    texts = tuple("latent z" if d == 0 else "data x" if d == 1 else f"{100 * d:.0f} %" for d in DEPTHS)
    depth = "How far samples and grid below have come on their way from the latent space to the data"
    return [
        Group(
            "",
            [
                Item("slider", "depth", "Depth", choices=DEPTHS, texts=texts, help=depth),
                Item("button", "play", "▶ Play", help="Let samples and grid flow from the latent space to the data"),
                Item("toggle", "lattice", "Grid", help="A lattice of latent lines, on its way with the samples"),
                Item("toggle", "samples", "Samples", help="Data and samples over the densities"),
                Item("segments", "log", "", choices=(False, True), texts=("Density", "Log-density")),
            ],
        )
    ]
