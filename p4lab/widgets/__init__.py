"""Controls, live pictures and dashboards: the only room that displays. It needs the packages of p4lab[lab]."""
# ruff: noqa: E402  (what is missing is named before anything needs it)

from p4lab.packages import require

for name in ("ipywidgets", "anywidget"):
    require(name, "lab")

from p4lab.widgets.catalog import (
    boltzmann_lab,
    break_lab,
    characters_lab,
    density_lab,
    digits_lab,
    directions_lab,
    images_lab,
    linear_lab,
    molecule_lab,
    parameter_lab,
    property_lab,
    race_lab,
    rnn_lab,
    start_lab,
    swaps_lab,
    temperature_lab,
)
from p4lab.widgets.channel import BrowserError, Channel
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.dashboard import Dashboard
from p4lab.widgets.image_grid import ImageGrid, Panel
from p4lab.widgets.live import train_live
from p4lab.widgets.live_plot import LivePlot
from p4lab.widgets.plane import Plane
from p4lab.widgets.sketch import Sketch
from p4lab.widgets.space import Space

__all__ = [
    "BrowserError",
    "Channel",
    "ControlPanel",
    "Dashboard",
    "Group",
    "ImageGrid",
    "Item",
    "LivePlot",
    "Panel",
    "Plane",
    "Sketch",
    "Space",
    "boltzmann_lab",
    "break_lab",
    "characters_lab",
    "density_lab",
    "digits_lab",
    "directions_lab",
    "images_lab",
    "linear_lab",
    "molecule_lab",
    "parameter_lab",
    "property_lab",
    "race_lab",
    "rnn_lab",
    "start_lab",
    "swaps_lab",
    "temperature_lab",
    "train_live",
]
