"""Controls, live pictures and dashboards: the only room that displays."""

from p4lab.widgets.channel import BrowserError, Channel
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.dashboard import Dashboard, Picture, Style
from p4lab.widgets.digits_lab import digits_lab
from p4lab.widgets.image_grid import ImageGrid, Panel
from p4lab.widgets.live import train_live
from p4lab.widgets.live_plot import LivePlot

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
    "Picture",
    "Style",
    "digits_lab",
    "train_live",
]
