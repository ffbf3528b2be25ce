"""A race: the losses of all lanes over time or steps, and three more curves of each."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from p4lab.plots.curves import (
    GREY,
    LEFT,
    LEGEND,
    ORANGE,
    RED,
    RIGHT,
    RUN_COLORS,
    Curves,
    Figure,
    Shown,
    anchor,
    heading,
)

Axis = Literal["seconds", "steps"]
TITLES = {"seconds": "seconds of training", "steps": "optimizer steps"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SMALL = (
    ("residual", "inverse: max |f⁻¹(f(I)) − I|"),
    ("logabsdet_error", "error of log|det| (nats)"),
    ("condition", "condition number"),
)
GAP = 0.075


def lane_style(number: int) -> tuple[str, str]:
    """Return colour and dash of a lane: all different for the first 40."""
    return RUN_COLORS[number % len(RUN_COLORS)], DASHES[number // len(RUN_COLORS) % len(DASHES)]


def over(curves: Curves, key: str, axis: Axis) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a curve over steps, or over the seconds of training that these took."""
    steps, values = curves[key]
    if axis == "steps":
        return steps, values
    at, seconds = curves["seconds"]
    return np.interp(steps, np.append(0.0, at), np.append(0.0, seconds)), values


def race_curves(
    lanes: Sequence[Shown],
    earlier: Sequence[Shown] = (),
    axis: Axis = "seconds",
    log: bool = True,
    label: str = "test loss",
    run: int = 0,
    small: Sequence[tuple[str, str]] = SMALL,
    levels: Mapping[str, float] = MappingProxyType({}),
    marks: Sequence[float] = (),
    cursor: float | None = None,
) -> Figure:
    """Draw the test losses on the left; on the right, inverse error, log|det| error and condition numbers, or others.

    Args:
        lanes: the methods, in the order of `lane_style`; their events are not drawn.
        earlier: the same methods with other seeds, drawn thin in the colours given.
        axis: what the horizontal axis shows.
        log: whether the loss has a logarithmic axis.
        label: title of the loss.
        run: while it stays the same, zoom and hidden curves are kept.
        small: keys and headings of the three curves on the right.
        levels: losses to compare with, by what they are called; dashed.
        marks: where on the horizontal axis a setting was changed; dotted.
        cursor: where on it the rest of the lab is (None: at the present).
    """
    traces = [_line(lane, "test_loss", axis, "x", "y", number, thin=True) for number, lane in _numbered(lanes, earlier)]
    for number, lane in enumerate(lanes):
        traces.append(_line(lane, "test_loss", axis, "x", "y", number))
        traces += [_line(lane, key, axis, "x2", f"y{row + 3}", number) for row, (key, _) in enumerate(small)]
    for row, (key, _) in enumerate(small):
        if not any((lane.curves[key][1] > 0).any() for lane in lanes):
            traces.append(anchor("x2", f"y{row + 3}", y=1.0))
    layout = _layout(axis, log, label, run, small)
    for name, value in levels.items():
        height = math.log10(value) if log else value  # plotly's way: annotations take the exponent, shapes the value
        layout["annotations"].append({**_LEVEL_TEXT, "text": name, "y": height})
        ends = {"xref": "x domain", "yref": "y", "x0": 0, "x1": 1, "y0": value, "y1": value}
        layout["shapes"].append({"type": "line", **ends, "line": {"color": GREY, "width": 1.2, "dash": "dash"}})
    lines = [*((at, ORANGE, "dot") for at in marks), *([] if cursor is None else [(cursor, RED, "solid")])]
    layout["shapes"] += [_vertical(x, *line) for line in lines for x in ("x", "x2")]
    return {"data": traces, "layout": layout}


_LEVEL_TEXT = {
    **{"xref": "x domain", "yref": "y", "x": 1, "xanchor": "right", "yanchor": "bottom"},
    **{"showarrow": False, "font": {"size": 11, "color": GREY}},
}


def _vertical(x: str, at: float, color: str, dash: str) -> dict[str, Any]:
    ends = {"xref": x, "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1}
    return {"type": "line", **ends, "line": {"color": color, "width": 1.2, "dash": dash}, "layer": "below"}


def _numbered(lanes: Sequence[Shown], earlier: Sequence[Shown]) -> list[tuple[int, Shown]]:
    place = {lane.name: number for number, lane in enumerate(lanes)}
    return [(place[lane.name], lane) for lane in earlier if lane.name in place]


def _line(lane: Shown, key: str, axis: Axis, x: str, y: str, number: int, thin: bool = False) -> dict[str, Any]:
    at, values = over(lane.curves, key, axis)
    color, dash = lane_style(number)
    if key != "test_loss":
        values = np.where(values > 0, values, np.nan)  # the identity's exact 0 has no place on a logarithmic axis
    return {
        "type": "scatter",
        "mode": "lines",
        "x": at,
        "y": values,
        "name": lane.name,
        "legendgroup": lane.name,
        "xaxis": x,
        "yaxis": y,
        "showlegend": key == "test_loss" and not thin,
        "opacity": 0.35 if thin else 1.0,
        "line": {"color": color, "dash": dash, "width": 1.0 if thin else 2.2 if key == "test_loss" else 1.4},
        "hovertemplate": "%{y:.4g}",
        "hoverinfo": "skip" if thin else "all",
    }


def _layout(axis: Axis, log: bool, label: str, run: int, small: Sequence[tuple[str, str]]) -> dict[str, Any]:
    third = (1 - 2 * GAP) / 3
    rows = [[i * (third + GAP), i * (third + GAP) + third] for i in (2, 1, 0)]
    horizontal = {"title": {"text": TITLES[axis], "standoff": 6}, "zeroline": False, "rangemode": "tozero", "nticks": 6}
    power = {"type": "log", "exponentformat": "power", "zeroline": False, "nticks": 5}
    headings = [heading(title, "x2", f"y{row + 3}") for row, (_, title) in enumerate(small)]
    return {
        "uirevision": f"{run} {axis}",
        "meta": {"parts": [["x"], ["x2"]]},
        "height": 430,
        "margin": {"l": 70, "r": 10, "t": 52, "b": 42},
        "hovermode": "closest",
        "hoverlabel": {"font": {"size": 11}},
        "font": {"size": 12},
        "legend": {**LEGEND, "y": 1.04},
        "xaxis": {**horizontal, "domain": LEFT, "anchor": "y"},
        "xaxis2": {**horizontal, "domain": RIGHT, "anchor": "y5", "matches": "x"},
        "yaxis": {"anchor": "x", "title": {"text": label, "standoff": 6}, "zeroline": False, **(power if log else {})},
        **{f"yaxis{row + 3}": {**power, "domain": rows[row], "anchor": "x2"} for row in range(len(small))},
        "annotations": headings,
        "shapes": [],
    }
