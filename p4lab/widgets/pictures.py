"""The widget of each kind of picture, and what puts a drawing on it."""

import dataclasses
from collections.abc import Callable
from typing import Any

from p4lab.labs.lab import Axes, Board, Box, Equations, Grids
from p4lab.plots.layers import Rows
from p4lab.widgets.channel import Channel
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.formula import Formula
from p4lab.widgets.image_grid import ImageGrid, Panel
from p4lab.widgets.layers import Moved
from p4lab.widgets.plane import Plane
from p4lab.widgets.space import Space

Show = Callable[[Any], None]
"""Puts a drawing on a widget."""


def picture_widget(
    base: Axes | Box | Grids | Board | Equations, moved: Moved | None = None, **options: Any
) -> tuple[Channel, Show]:
    """Return the widget of a picture that is looked at, and what puts a drawing on it.

    Args:
        base: what stays of the picture as it is.
        moved: called with the name of a handle and the point it was moved to; None: nothing can be moved.
        options: of the widget.
    """
    if isinstance(base, Axes | Box):
        kind: Any = Plane if isinstance(base, Axes) else Space
        given = dataclasses.asdict(base)
        hint = given.pop("hint")
        if moved:
            given["note"] = ", ".join(filter(None, (base.note, hint)))
        plot = kind(**given, on_moved=moved or (lambda name, point: None), **options)
        return plot, lambda drawing: plot.show(drawing.layers, drawing.bounds, drawing.labels)
    if isinstance(base, Grids):
        panels = [Panel(grid.label, grid.note, grid.columns, color=grid.color) for grid in base.grids]
        grids = ImageGrid(panels, base.top, base.colors, base.ends, **options)
        return grids, grids.show_all
    if isinstance(base, Board):
        table = Group("", (Item("table", "board", base.label),))
        board = ControlPanel([table], lambda name, value: None, direction="row", **options).add_class("p4-board")
        return board, lambda rows: board.show({"board": _table(rows)})
    formula = Formula(base.decimals, **options)
    return formula, formula.show


def _table(rows: Rows) -> dict[str, Any]:
    return {
        "columns": list(rows.columns),
        "help": list(rows.columns.values()),
        "rows": [{"color": row.color, "active": row.active, "cells": list(row.cells)} for row in rows.rows],
        "label": rows.label,
    }
