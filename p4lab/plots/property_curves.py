"""What a property costs: error over steps and over seconds, violation, and step time of several lanes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.plots.curves import ORANGE, RED, Curve, Figure, Mark, Shown, heading
from p4lab.plots.race import over

LEFT, RIGHT = [0.0, 0.455], [0.545, 1.0]
TOP, BOTTOM = [0.59, 1.0], [0.0, 0.41]
PLACES = {"": (LEFT, TOP), "2": (RIGHT, TOP), "3": (LEFT, BOTTOM), "4": (RIGHT, BOTTOM)}
"""Horizontal and vertical domain of each pair of axes."""
RUNAWAY = 1e4
"""Values above it are not drawn: a lane that runs away would flatten all others."""
WINDOW = 25
"""Steps in a running median of step times."""
DRAG = 20


def property_curves(
    lanes: Sequence[Shown],
    violation: str,
    events: Sequence[Mark] = (),
    earlier: Sequence[Shown] = (),
    best: float = 0.0,
    cursor: int | None = None,
    run: int = 0,
    floor: float = 1e-8,
) -> Figure:
    """Draw four pictures: error over steps, error over seconds, violation over steps, step time over steps.

    Args:
        lanes: the ways to keep a property; "test_loss" is the error and "residual" the violation. Of two lanes with
            one curve the first is on top.
        violation: what the violation is, in symbols.
        events: changed settings are marked as dotted lines.
        earlier: lanes of other runs, thin and without a place in the legend.
        best: the least possible error, drawn as a dashed line unless it is 0.
        cursor: step that the rest of the lab shows, None for the present.
        run: while it stays the same, zoom and hidden curves are kept.
        floor: smaller violations, an exact 0 among them, are drawn at this height.

    Example:
        >>> curve = np.array([0.0, 1.0]), np.array([1.0, 0.1])
        >>> names = "test_loss", "residual", "step_seconds", "seconds"
        >>> figure = property_curves([Shown("P4", "red", dict.fromkeys(names, curve))], "|W|")
        >>> len(figure["data"])
        8
    """
    traces = [trace for lane in earlier for trace in _lane(lane, floor, thin=True)]
    traces += [trace for lane in reversed(lanes) for trace in _lane(lane, floor)]
    traces += [{**_ANCHOR, "xaxis": f"x{axes}", "yaxis": f"y{axes}"} for axes in PLACES]
    return {"data": traces, "layout": _layout(lanes, violation, events, best, cursor, run, floor)}


# plotly has no place for the axes of a subplot that is empty, and draws their lines at NaN.
_ANCHOR = {
    "type": "scatter",
    "mode": "markers",
    "x": [0],
    "y": [1],
    "marker": {"opacity": 0},
    "hoverinfo": "skip",
    "showlegend": False,
}


def _lane(lane: Shown, floor: float, thin: bool = False) -> list[dict[str, Any]]:
    error, (steps, missed) = lane.curves["test_loss"], lane.curves["residual"]
    return [
        _line(lane, error, "", "%{y:.3g}", thin),
        _line(lane, over(lane.curves, "test_loss", "seconds"), "2", "%{y:.3g} after %{x:.2f} s", thin),
        _line(lane, (steps, np.maximum(missed, floor)), "3", "%{y:.1e}", thin),
        _line(lane, step_times(lane.curves["step_seconds"]), "4", "%{y:.2f} ms", thin),
    ]


def _line(lane: Shown, curve: Curve, axes: str, hover: str, thin: bool) -> dict[str, Any]:
    x, y = curve
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": np.where((y > 0) & (y < RUNAWAY), y, np.nan),
        "name": lane.name,
        "legendgroup": lane.name,
        "showlegend": axes == "" and not thin,
        "xaxis": f"x{axes}",
        "yaxis": f"y{axes}",
        "opacity": 0.4 if thin else 1.0,
        "line": {"color": lane.color, "width": 1.0 if thin else 2.0},
        "hovertemplate": hover,
        "hoverinfo": "skip" if thin else "all",
    }


def step_times(curve: Curve) -> Curve:
    """Return step times in milliseconds, as medians of some neighbours: a merge is a spike of one step."""
    steps, seconds = curve
    if len(seconds) < WINDOW:
        return steps, 1e3 * seconds
    padded = np.pad(seconds, WINDOW // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)
    return steps, 1e3 * np.median(windows, axis=1)


def _layout(
    lanes: Sequence[Shown],
    violation: str,
    events: Sequence[Mark],
    best: float,
    cursor: int | None,
    run: int,
    floor: float,
) -> dict[str, Any]:
    steps = {"range": [0, _ceiling(_last(lanes))], "zeroline": False, "tickformat": "~s", "nticks": 6}
    titles = {"": "step", "2": "seconds of training", "3": "step", "4": "step"}
    headings = {
        "": "Error |W − T|² / d over steps",
        "2": "Error |W − T|² / d over time",
        "3": f"Violation {violation}",
        "4": "Step time (ms)",
    }
    values = {axes: _values(lanes, key) for axes, key in (("", "test_loss"), ("3", "residual"))}
    values["2"] = values[""]
    values["3"] = np.maximum(values["3"], floor)
    values["4"] = np.concatenate([step_times(lane.curves["step_seconds"])[1] for lane in lanes])
    layout: dict[str, Any] = {
        "uirevision": f"{run}",
        "meta": {"parts": [["x", "x2"], ["x3", "x4"]]},
        "height": 520,
        "margin": {"l": 52, "r": 10, "t": 70, "b": 40},
        "hovermode": "closest",
        "hoverlabel": {"font": {"size": 11}},
        "font": {"size": 12},
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 0.995,
            "yref": "container",
            "yanchor": "top",
            "xanchor": "left",
            "itemwidth": 30,
            "traceorder": "reversed",
        },
        "annotations": [heading(text, f"x{axes}", f"y{axes}") for axes, text in headings.items()],
        "shapes": [
            *(
                _vertical(f"x{axes}", f"y{axes}", at, ORANGE, "dot")
                for at in _changed(events)
                for axes in ("", "3", "4")
            ),
            *(_vertical(f"x{axes}", f"y{axes}", cursor, RED, "solid") for axes in ("", "3", "4") if cursor is not None),
            *(_level(f"x{axes}", f"y{axes}", best) for axes in ("", "2") if best > 0),
        ],
    }
    for axes, (across, up) in PLACES.items():
        horizontal = steps if axes != "2" else {"rangemode": "tozero", "zeroline": False, "nticks": 6}
        title = {"text": titles[axes], "standoff": 4}
        layout[f"xaxis{axes}"] = {**horizontal, "domain": across, "anchor": f"y{axes}", "title": title}
        layout[f"yaxis{axes}"] = {"domain": up, "anchor": f"x{axes}", **_log(values[axes], _SPANS[axes])}
    for axes in ("3", "4"):
        layout[f"xaxis{axes}"]["matches"] = "x"
    return layout


_SPANS = {"": (1e-2, 1.0), "2": (1e-2, 1.0), "3": (1e-7, 1.0), "4": (0.1, 10.0)}
"""What the logarithmic axes show at least."""


def _log(values: NDArray[np.float64], span: tuple[float, float]) -> dict[str, Any]:
    """Return a logarithmic axis that shows all values, and moves in steps."""
    kept = values[(values > 0) & (values < RUNAWAY)]
    low = math.floor(2 * math.log10(min(span[0], kept.min(initial=span[0])))) / 2
    high = math.ceil(2 * math.log10(max(span[1], kept.max(initial=span[1])))) / 2
    room = 0.04 * (high - low)
    ticks = {"exponentformat": "power", "dtick": math.ceil((high - low) / 5), "zeroline": False}
    return {"type": "log", "range": [low - room, high + room], **ticks}


def _values(lanes: Sequence[Shown], key: str) -> NDArray[np.float64]:
    return np.concatenate([lane.curves[key][1] for lane in lanes])


def _last(lanes: Sequence[Shown]) -> float:
    return max((float(lane.curves["seconds"][0][-1]) for lane in lanes if len(lane.curves["seconds"][0])), default=0.0)


def _ceiling(step: float) -> float:
    """Return the end of an axis that grows now and then: a plot whose axes stay is drawn in half the time."""
    if step <= 50:
        return 50.0
    unit = 10.0 ** math.floor(math.log10(step)) / 4
    return unit * math.ceil(step / unit)


def _changed(events: Sequence[Mark]) -> list[int]:
    """Return the steps at which settings changed; a drag of a slider counts once, where it ended."""
    steps = [event.step for event in events if event.kind == "set"]
    return [step for step, after in zip(steps, [*steps[1:], math.inf], strict=False) if after - step > DRAG]


def _vertical(x: str, y: str, step: int, color: str, dash: str) -> dict[str, Any]:
    ends = {"xref": x, "yref": f"{y} domain", "x0": step, "x1": step, "y0": 0, "y1": 1}
    return {"type": "line", **ends, "line": {"color": color, "width": 1.2, "dash": dash}, "layer": "below"}


def _level(x: str, y: str, value: float) -> dict[str, Any]:
    ends = {"xref": f"{x} domain", "yref": y, "x0": 0, "x1": 1, "y0": value, "y1": value}
    return {"type": "line", **ends, "line": {"color": "#8a8f98", "width": 1.2, "dash": "dash"}, "layer": "below"}
