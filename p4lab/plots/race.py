"""A race: the losses of all lanes over time or steps, and how exact each is."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from p4lab.plots.curves import LEFT, RIGHT, RUN_COLORS, Curves, Figure, Shown

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
) -> Figure:
    """Draw the test losses on the left; inverse error, log|det| error and condition numbers on the right.

    Args:
        lanes: the methods, in the order of `lane_style`; their events are not drawn.
        earlier: the same methods with other seeds, drawn thin in the colours given.
        axis: what the horizontal axis shows.
        log: whether the loss has a logarithmic axis.
        label: title of the loss.
        run: while it stays the same, zoom and hidden curves are kept.
    """
    traces = [_line(lane, "test_loss", axis, "x", "y", number, thin=True) for number, lane in _numbered(lanes, earlier)]
    for number, lane in enumerate(lanes):
        traces.append(_line(lane, "test_loss", axis, "x", "y", number))
        traces += [_line(lane, key, axis, "x2", f"y{row + 3}", number) for row, (key, _) in enumerate(SMALL)]
    return {"data": traces, "layout": _layout(axis, log, label, run)}


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


def _layout(axis: Axis, log: bool, label: str, run: int) -> dict[str, Any]:
    third = (1 - 2 * GAP) / 3
    rows = [[i * (third + GAP), i * (third + GAP) + third] for i in (2, 1, 0)]
    horizontal = {"title": {"text": TITLES[axis], "standoff": 6}, "zeroline": False, "rangemode": "tozero", "nticks": 6}
    power = {"type": "log", "exponentformat": "power", "zeroline": False, "nticks": 5}
    headings = [
        {
            **{"xref": "paper", "yref": "paper", "x": RIGHT[0], "y": rows[row][1], "xanchor": "left"},
            **{"yanchor": "bottom", "text": title, "showarrow": False, "font": {"size": 12}},
        }
        for row, (_, title) in enumerate(SMALL)
    ]
    return {
        "uirevision": f"{run} {axis}",
        "height": 430,
        "margin": {"l": 58, "r": 10, "t": 52, "b": 42},
        "hovermode": "closest",
        "hoverlabel": {"font": {"size": 11}},
        "font": {"size": 12},
        "legend": {"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom", "xanchor": "left", "itemwidth": 30},
        "xaxis": {**horizontal, "domain": LEFT, "anchor": "y"},
        "xaxis2": {**horizontal, "domain": RIGHT, "anchor": "y5", "matches": "x"},
        "yaxis": {"anchor": "x", "title": {"text": label, "standoff": 6}, "zeroline": False, **(power if log else {})},
        **{f"yaxis{row + 3}": {**power, "domain": rows[row], "anchor": "x2"} for row in range(len(SMALL))},
        "annotations": headings,
    }
