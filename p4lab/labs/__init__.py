"""The labs as values: one file per notebook, and what they are made of."""

from p4lab.labs.lab import (
    PRESET,
    Axes,
    Bar,
    Board,
    Box,
    Button,
    Canvas,
    Control,
    Equations,
    Grid,
    Grids,
    Lab,
    Number,
    Picture,
    Sight,
    View,
)

__all__ = [
    "PRESET",
    "Axes",
    "Bar",
    "Board",
    "Box",
    "Button",
    "Canvas",
    "Control",
    "Equations",
    "Grid",
    "Grids",
    "Lab",
    "Number",
    "Picture",
    "Sight",
    "View",
]
