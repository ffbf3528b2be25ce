"""The training curves: records in, a plotly figure out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Figure = dict[str, Any]
"""A plotly figure as plain data: ``plotly.graph_objects.Figure(**figure)`` draws it anywhere."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
Curves = Mapping[str, Curve]

# Colours that read on white and on near-black; by role, the same in every picture.
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82d6", "#e0791b", "#2f9e62", "#9b6ddb", "#e0443e", "#8a8f98"
GAP = 0.075
DRAG = 20
NATS_PER_BIT = math.log(2)


class Mark(Protocol):
    """An event: what happened to which layers after which step, and why."""

    @property
    def step(self) -> int:
        """Number of optimizer steps done by then."""

    @property
    def kind(self) -> str:
        """What happened: merge, skip, discard, refine or set."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Which layers."""

    @property
    def text(self) -> str:
        """Why, or what was set."""


def training_curves(curves: Curves, events: Sequence[Mark] = (), run: int = 0) -> Figure:
    """Draw loss, log|det|, inverse residual, condition number, and what happened when.

    Args:
        curves: name to ``(step, value)`` for loss, smooth_loss and test_loss (nats/dim), logabsdet (nats), residual and
            condition.
        events: merges, skips and refinements (a rug below the loss), changed settings (vertical lines).
        run: number of the run; zoom and hidden curves are kept while it stays the same.

    Returns:
        A figure with the loss on the left, the three diagnostics on the right, and one axis of steps for all of them.
    """
    traces = [
        _line(curves["loss"], "train", BLUE, "x", "y", width=1, opacity=0.35, legend=True, extra=_bits),
        _line(curves["smooth_loss"], "train, running mean", BLUE, "x", "y", width=2.2, legend=True, extra=_bits),
        _line(curves["test_loss"], "test", ORANGE, "x", "y", width=2.2, legend=True, extra=_bits),
        _ANCHOR,
        *(_rug(events, kind, *style) for kind, style in _RUG_STYLES.items()),
        _line(curves["logabsdet"], "log|det|", GREEN, "x2", "y3", unit=" nats"),
        _line(_positive(curves["residual"]), "largest |A A⁻¹ − I|", PURPLE, "x2", "y4"),
        _line(_positive(curves["condition"]), "largest condition number", PURPLE, "x2", "y5"),
    ]
    return {"data": traces, "layout": _layout(curves, events, run)}


def _positive(curve: Curve) -> Curve:
    """Leave out what a logarithmic axis cannot show: an exact 0, such as the residual of the identity."""
    x, y = curve
    return x, np.where(y > 0, y, np.nan)


def _bits(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    return nats / NATS_PER_BIT


def _line(
    curve: Curve,
    name: str,
    color: str,
    xaxis: str,
    yaxis: str,
    width: float = 2.0,
    opacity: float = 1.0,
    unit: str = "",
    legend: bool = False,
    extra: Any = None,
) -> dict[str, Any]:
    x, y = curve
    hover = f"%{{y:.4g}}{unit}" if extra is None else "%{y:.4f} nats/dim = %{customdata:.3f} bits/dim"
    trace = {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "name": name,
        "xaxis": xaxis,
        "yaxis": yaxis,
        "opacity": opacity,
        "showlegend": legend,
        "line": {"color": color, "width": width},
        "hovertemplate": hover,
    }
    return trace if extra is None else {**trace, "customdata": extra(y)}


# plotly has no place for the axes of a subplot that is empty, and draws their lines at NaN.
_ANCHOR = {
    "type": "scatter",
    "mode": "markers",
    "x": [0],
    "y": [0],
    "xaxis": "x",
    "yaxis": "y2",
    "marker": {"opacity": 0},
    "hoverinfo": "skip",
    "showlegend": False,
}

_RUG_STYLES = {
    "merge": ("merged", 0, GREY, "line-ns-open", 7),
    "refine": ("inverse refined", 1, GREEN, "diamond", 7),
    "skip": ("skipped", 2, RED, "line-ns-open", 9),
    "discard": ("discarded", 2, RED, "x", 8),
}


def _rug(events: Sequence[Mark], kind: str, name: str, row: int, color: str, symbol: str, size: int) -> dict[str, Any]:
    marks = [event for event in events if event.kind == kind]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": np.array([event.step for event in marks], dtype=float),
        "y": np.full(len(marks), float(row)),
        "text": [_what(event) for event in marks],
        "name": name,
        "xaxis": "x",
        "yaxis": "y2",
        "showlegend": False,
        "marker": {"color": color, "symbol": symbol, "size": size, "line": {"color": color, "width": 1}},
        "hovertemplate": "%{text}<extra></extra>",
        "cliponaxis": False,
    }


def _what(event: Mark) -> str:
    number = len(event.layers)
    which = f"layer {event.layers[0] + 1}" if number == 1 else f"{number} layers"
    verb = {"merge": "merged", "skip": "skipped", "discard": "discarded", "refine": "refined"}[event.kind]
    return f"step {event.step}: {which} {verb}" + (f"<br>{event.text}" if event.text else "")


def _layout(curves: Curves, events: Sequence[Mark], run: int) -> dict[str, Any]:
    left, right = [0.0, 0.56], [0.655, 1.0]
    third = (1 - 2 * GAP) / 3
    rows = [[i * (third + GAP), i * (third + GAP) + third] for i in range(3)]
    steps = {"range": [0, max(_last_step(curves), 50)], "zeroline": False, "tickformat": "~s", "nticks": 6}
    changed = _settings(events)
    quiet = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
    return {
        "uirevision": run,
        "height": 430,
        "margin": {"l": 58, "r": 10, "t": 30, "b": 42},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"size": 11}},
        "font": {"size": 12},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left", "itemwidth": 30},
        "xaxis": {**steps, "domain": left, "anchor": "y2", "title": _title("step")},
        "xaxis2": {**steps, "domain": right, "anchor": "y5", "title": _title("step"), "matches": "x"},
        "yaxis": {"domain": [0.16, 1], "anchor": "x", "title": _title("loss (nats/dim)"), "zeroline": False},
        "yaxis2": {
            "domain": [0, 0.12],
            "anchor": "x",
            "range": [-0.6, 2.6],
            "fixedrange": True,
            **quiet,
            "showticklabels": True,
            "tickvals": [0, 1, 2],
            "ticktext": ["merge", "refine", "skip"],
            "tickfont": {"size": 10},
        },
        "yaxis3": {"domain": rows[2], "anchor": "x2", "zeroline": False, "nticks": 4},
        "yaxis4": {"domain": rows[1], "anchor": "x2", **_decades(curves["residual"], 1e-7, 1e-5)},
        "yaxis5": {"domain": rows[0], "anchor": "x2", **_decades(curves["condition"], 1.0, 10.0)},
        "annotations": [
            _heading("log|det| (nats)", rows[2][1]),
            _heading("inverse residual |A A⁻¹ − I|", rows[1][1]),
            _heading("condition number", rows[0][1]),
            *_setting_labels(changed[-12:]),
        ],
        "shapes": [_setting_line(event, axis) for event in changed for axis in ("x", "x2")],
    }


def _last_step(curves: Curves) -> float:
    return max((float(x[-1]) for x, _ in curves.values() if len(x)), default=0.0)


def _decades(curve: Curve, low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis that shows at least ``low`` to ``high`` and labels at most five decades."""
    y = curve[1][curve[1] > 0]
    bottom, top = math.log10(min(low, y.min(initial=low))), math.log10(max(high, y.max(initial=high)))
    room = 0.06 * (top - bottom)
    ticks = {"exponentformat": "power", "dtick": math.ceil((top - bottom) / 4), "zeroline": False}
    return {"type": "log", "range": [bottom - room, top + room], **ticks}


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 6}


def _heading(text: str, y: float) -> dict[str, Any]:
    place = {"xref": "paper", "yref": "paper", "x": 0.655, "y": y, "xanchor": "left", "yanchor": "bottom"}
    return {**place, "text": text, "showarrow": False, "font": {"size": 12}}


def _settings(events: Sequence[Mark]) -> list[Mark]:
    """Return the changed settings; of one setting's changes in quick succession only the last: a drag is one change."""
    kept: list[Mark] = []
    for event in (event for event in events if event.kind == "set"):
        before = next(
            (i for i, other in enumerate(kept) if _name(other) == _name(event) and event.step - other.step <= DRAG),
            None,
        )
        if before is not None:
            del kept[before]
        kept.append(event)
    return kept


def _name(event: Mark) -> str:
    return event.text.split(" = ")[0]


def _setting_line(event: Mark, axis: str) -> dict[str, Any]:
    ends = {"xref": axis, "yref": "paper", "x0": event.step, "x1": event.step, "y0": 0, "y1": 1}
    return {"type": "line", **ends, "line": {"color": ORANGE, "width": 1, "dash": "dot"}, "layer": "below"}


def _setting_labels(changed: Sequence[Mark]) -> list[dict[str, Any]]:
    return [
        {
            "xref": "x",
            "yref": "paper",
            "x": event.step,
            "y": 0.99,
            "text": event.text.replace("_", " ").replace(" = ", " "),
            "textangle": -90,
            "xanchor": "right",
            "yanchor": "top",
            "showarrow": False,
            "font": {"size": 10, "color": ORANGE},
        }
        for event in changed
    ]
