"""The training curves: records in, a plotly figure out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Figure = dict[str, Any]
"""A plotly figure as plain data: ``plotly.graph_objects.Figure(**figure)`` draws it anywhere."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
Curves = Mapping[str, Curve]

# Colours that read on white and on near-black; by role, the same in every picture.
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82d6", "#e0791b", "#2f9e62", "#9b6ddb", "#e0443e", "#8a8f98"
RUN_COLORS = (BLUE, "#c2479b", "#0d9aa8", "#a37b1c", "#6d6fd8", "#5f8f2f", "#b5533c", "#6b7a8f")
"""Colours of runs and lanes; none of them is used for anything else than the first."""
GAP = 0.11
USUAL, PEAK = 0.9, 30.0
"""A linear axis of losses ends above this share of them if the highest loss is so many times higher."""
EMPTY = [-2.5, 0.5]
"""Decades that a logarithmic axis of losses shows before the first step."""
LABEL = 0.04
"""Width of a label of a changed setting, as a share of the axis of steps."""
DRAG = 20
NATS_PER_BIT = math.log(2)
LEGEND = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "xanchor": "left", "itemwidth": 30}
"""A legend in a line above the curves."""
LEFT, RIGHT = [0.0, 0.56], [0.655, 1.0]


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


@dataclass(frozen=True)
class Shown:
    """A run, or a lane, to be drawn.

    Attributes:
        name: in the legend.
        color: its colour where several are drawn.
        curves: name to ``(step, value)``.
        events: what happened when; drawn for the first run only.
    """

    name: str
    color: str
    curves: Curves
    events: Sequence[Mark] = ()


@dataclass(frozen=True)
class Loss:
    """How losses read.

    Attributes:
        label: title of the axis.
        log: whether the axis is logarithmic.
        bits: whether the hover text adds bits/dim (for losses in nats/dim).
        test: whether there is a test loss apart from the training loss.
        exact: whether the loss of a step is that of all data, so that it is drawn itself, of every run: a running mean
            would hide how far it has come.
    """

    label: str = "loss (nats/dim)"
    log: bool = False
    bits: bool = True
    test: bool = True
    exact: bool = False

    @property
    def line(self) -> str:
        """The curve that stands for a run: its training loss where that is exact, else the running mean."""
        return "loss" if self.exact else "smooth_loss"


@dataclass(frozen=True)
class Diagnostic:
    """One of the small pictures on the right.

    Attributes:
        key: which curve.
        title: heading, with the unit.
        color: of its line where one run is drawn.
        span: for a logarithmic axis, what it shows at least; None is a linear axis.
        scale: factor on the values.
    """

    key: str
    title: str
    color: str
    span: tuple[float, float] | None
    scale: float = 1.0


VIEWS: dict[str, tuple[Diagnostic, Diagnostic, Diagnostic]] = {
    "inverse": (
        Diagnostic("logabsdet", "log|det| (nats)", GREEN, None),
        Diagnostic("residual", "residual |A A⁻¹ − I|", PURPLE, (1e-7, 1e-5)),
        Diagnostic("condition", "condition number", PURPLE, (1.0, 10.0)),
    ),
    "training": (
        Diagnostic("grad_norm", "norm of the gradient", BLUE, (0.1, 1.0)),
        Diagnostic("perturbation_norm", "norm of the perturbation |u|", ORANGE, (0.1, 1.0)),
        Diagnostic("step_seconds", "step time (ms)", GREY, (1.0, 10.0), scale=1e3),
    ),
    "accuracy": (
        Diagnostic("logabsdet", "log|det| (nats)", GREEN, None),
        Diagnostic("residual", "residual |A A⁻¹ − I|", PURPLE, (1e-7, 1e-5)),
        Diagnostic("logabsdet_error", "error of log|det| (nats)", RED, (1e-7, 1e-5)),
    ),
}
"""The groups of diagnostics to choose from."""


def training_curves(
    runs: Sequence[Shown], view: str = "inverse", loss: Loss | None = None, cursor: int | None = None, run: int = 0
) -> Figure:
    """Draw loss, three diagnostics, and what happened when.

    Args:
        runs: what to draw; the first one in full, with its events (merges, skips and refinements in a rug below the
            loss, changed settings as vertical lines), the others as thin lines in their colours.
        view: which diagnostics, one of `VIEWS`.
        loss: how losses read (None: nats/dim).
        cursor: step that the rest of the lab shows, None for the present.
        run: while it stays the same, zoom and hidden curves are kept.

    Returns:
        A figure with the loss on the left, the diagnostics on the right, and one axis of steps for all of them.
    """
    loss = loss or Loss()
    main, others = runs[0], runs[1:]
    color = main.color if others else BLUE
    traces = [
        *(trace for other in others for trace in _other(other, view, loss.line)),
        *_losses(main, color, loss, bool(others)),
        anchor("x", "y2"),
        *(_rug(main.events, kind, *style) for kind, style in _RUG_STYLES.items()),
        *_diagnostics(main, view, color if others else None),
        *(
            anchor("x2", f"y{index + 3}", y=1.0)
            for index, diagnostic in enumerate(VIEWS[view])
            if not np.isfinite(main.curves[diagnostic.key][1]).any()
        ),
        _sign_changes(main.curves, view),
    ]
    return {"data": traces, "layout": _layout(runs, view, loss, cursor, run)}


def _losses(main: Shown, color: str, loss: Loss, named: bool) -> list[dict[str, Any]]:
    extra = _bits if loss.bits else None
    prefix = f"{main.name}: " if named else ""
    kind: dict[str, Any] = {"legend": True, "extra": extra}
    name = (main.name if named else "loss") if loss.exact else f"{prefix}train, running mean"
    lines = [_line(main.curves[loss.line], name, color, "x", "y", width=2.2, **kind)]
    if not loss.exact:
        lines.insert(0, _line(main.curves["loss"], f"{prefix}train", color, "x", "y", width=1, opacity=0.35, **kind))
    if loss.test:
        test = _line(main.curves["test_loss"], f"{prefix}test", ORANGE, "x", "y", width=2.2, **kind)
        lines.append(test)
    return lines


def _other(shown: Shown, view: str, line: str) -> list[dict[str, Any]]:
    """Draw a run that is there for comparison: one legend entry for all its lines."""
    lines = [_line(shown.curves[line], shown.name, shown.color, "x", "y", width=1.4, legend=True)]
    for index, diagnostic in enumerate(VIEWS[view]):
        curve = _scaled(shown.curves[diagnostic.key], diagnostic)
        lines.append(_line(curve, shown.name, shown.color, "x2", f"y{index + 3}", width=1.2, opacity=0.8))
    return [{**line, "legendgroup": shown.name} for line in lines]


def _diagnostics(main: Shown, view: str, color: str | None) -> list[dict[str, Any]]:
    """Draw the diagnostics in their own colours; beside other runs (with a ``color``), under the name of the run."""
    lines = [
        _line(
            _scaled(main.curves[diagnostic.key], diagnostic),
            main.name if color else diagnostic.title,
            color or diagnostic.color,
            "x2",
            f"y{index + 3}",
        )
        for index, diagnostic in enumerate(VIEWS[view])
    ]
    return [{**line, "legendgroup": main.name} for line in lines] if color else lines


def _scaled(curve: Curve, diagnostic: Diagnostic) -> Curve:
    """Scale a curve, and leave out what a logarithmic axis cannot show: an exact 0, as the identity's residual."""
    x, y = curve
    y = y * diagnostic.scale
    return (x, y) if diagnostic.span is None else (x, np.where(y > 0, y, np.nan))


def _sign_changes(curves: Curves, view: str) -> dict[str, Any]:
    """Mark where the determinant changed its sign, on the curve of log|det|."""
    keys = [diagnostic.key for diagnostic in VIEWS[view]]
    steps, signs = curves["sign"]
    at = np.flatnonzero(signs[1:] * signs[:-1] < 0) + 1 if "logabsdet" in keys else np.zeros(0, int)
    now = ["positive" if signs[i] > 0 else "negative" for i in at]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": steps[at],
        "y": curves["logabsdet"][1][at],
        "text": [f"det is {sign} from step {int(steps[i])}" for i, sign in zip(at, now, strict=True)],
        "name": "det changes its sign",
        "xaxis": "x2",
        "yaxis": f"y{keys.index('logabsdet') + 3}" if "logabsdet" in keys else "y3",
        "showlegend": False,
        "marker": {"color": RED, "symbol": "diamond-open", "size": 9, "line": {"color": RED, "width": 2}},
        "hovertemplate": "%{text}<extra></extra>",
    }


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
    legend: bool = False,
    extra: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
) -> dict[str, Any]:
    x, y = curve
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
        "hovertemplate": "%{y:.4g}" if extra is None else "%{y:.4f} nats/dim = %{customdata:.3f} bits/dim",
    }
    return trace if extra is None else {**trace, "customdata": extra(y)}


def anchor(xaxis: str, yaxis: str, y: float = 0.0) -> dict[str, Any]:
    """Return an invisible mark at step 0: plotly draws the axes of a subplot without any point at NaN."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [0],
        "y": [y],
        "xaxis": xaxis,
        "yaxis": yaxis,
        "marker": {"opacity": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def merge_marks(curve: Curve, merges: NDArray[np.int64]) -> dict[str, Any]:
    """Return rings on the curve of an exact loss, at the first loss after each merge (a step's is that before it)."""
    steps, values = curve
    at = np.isin(steps, merges + 1)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": steps[at],
        "y": values[at],
        "name": "merge",
        "xaxis": "x",
        "yaxis": "y",
        "showlegend": True,
        "marker": {"color": BLUE, "size": 8, "symbol": "circle-open", "line": {"width": 2}},
        "hovertemplate": "right after a merge<extra></extra>",
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


def _layout(runs: Sequence[Shown], view: str, loss: Loss, cursor: int | None, run: int) -> dict[str, Any]:
    third = (1 - 2 * GAP) / 3
    rows = [[i * (third + GAP), i * (third + GAP) + third] for i in (2, 1, 0)]
    end = _ceiling(max(map(_last_step, runs)))
    steps = {"range": [0, end], "zeroline": False, "tickformat": "~s", "nticks": 6}
    changed = _settings(runs[0].events)
    quiet = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
    diagnostics = VIEWS[view]
    vertical = [_cursor(cursor, axis) for axis in ("x", "x2") if cursor is not None]
    return {
        "uirevision": f"{run} {view}",
        "meta": {"parts": [["x"], ["x2"]]},
        "height": 430,
        "margin": {"l": 70, "r": 10, "t": 24, "b": 36},
        "hovermode": "x unified",
        "hoverlabel": {"font": {"size": 11}},
        "font": {"size": 12},
        "legend": LEGEND,
        "xaxis": {**steps, "domain": LEFT, "anchor": "y2", "title": _title("step")},
        "xaxis2": {**steps, "domain": RIGHT, "anchor": "y5", "title": _title("step"), "matches": "x"},
        "yaxis": {"domain": [0.2, 1], "anchor": "x", "title": _title(loss.label), **_loss_axis(loss, runs)},
        "yaxis2": {
            "domain": [0, 0.16],
            "anchor": "x",
            "range": [-0.6, 2.6],
            "fixedrange": True,
            **quiet,
            "showticklabels": True,
            "tickvals": [0, 1, 2],
            "ticktext": ["merge", "refine", "skip"],
            "tickfont": {"size": 9},
        },
        **{
            f"yaxis{index + 3}": {"domain": rows[index], "anchor": "x2", **_axis(diagnostic, runs)}
            for index, diagnostic in enumerate(diagnostics)
        },
        "annotations": [
            *(heading(diagnostic.title, "x2", f"y{index + 3}") for index, diagnostic in enumerate(diagnostics)),
            *_setting_labels(changed, end),
        ],
        "shapes": [*(_setting_line(event, axis) for event in changed for axis in ("x", "x2")), *vertical],
    }


def _loss_axis(loss: Loss, runs: Sequence[Shown]) -> dict[str, Any]:
    """Return the axis of losses; a linear one cuts off peaks that would press all else flat."""
    if loss.log:
        log = {"zeroline": False, "type": "log", "exponentformat": "power"}
        keys = {"loss", loss.line, *(["test_loss"] if loss.test else [])}
        values = np.concatenate([shown.curves[key][1] for shown in runs for key in keys])
        values = values[(values > 0) & np.isfinite(values)]
        if not len(values):
            return {**log, "range": EMPTY, "dtick": 1}
        decades = math.log10(values.max() / values.min())
        return {**log, "dtick": "D2" if decades < 1.5 else math.ceil(decades / 4)}
    axis: dict[str, Any] = {"zeroline": False}
    values = np.concatenate([shown.curves[key][1] for shown in runs for key in ("loss", "test_loss")])
    values = values[np.isfinite(values)]
    if len(values):
        low, most, high = np.quantile(values, [0, USUAL, 1])
        if high - low > PEAK * (most - low):
            margin = 0.05 * (most - low)
            axis["range"] = [float(low - margin), float(most + margin)]
    return axis


def _last_step(shown: Shown) -> float:
    return max((float(x[-1]) for x, _ in shown.curves.values() if len(x)), default=0.0)


def _ceiling(step: float) -> float:
    """Return the end of an axis that grows now and then: a plot whose axes stay is drawn in half the time."""
    if step <= 50:
        return 50.0
    unit = 10.0 ** math.floor(math.log10(step)) / 4
    return unit * math.ceil(step / unit)


def _axis(diagnostic: Diagnostic, runs: Sequence[Shown]) -> dict[str, Any]:
    """Return a linear axis, or a logarithmic one that shows at least its span and labels at most five decades."""
    if diagnostic.span is None:
        return {"zeroline": False, "nticks": 4, "tickfont": {"size": 10}}
    values = np.concatenate([shown.curves[diagnostic.key][1] for shown in runs]) * diagnostic.scale
    y = values[(values > 0) & np.isfinite(values)]
    low, high = diagnostic.span
    bottom, top = math.log10(min(low, y.min(initial=low))), math.log10(max(high, y.max(initial=high)))
    bottom, top = math.floor(4 * bottom) / 4, math.ceil(4 * top) / 4  # as `_ceiling`
    room = 0.06 * (top - bottom)
    ticks = {
        "exponentformat": "power",
        "dtick": math.ceil((top - bottom) / 3),
        "zeroline": False,
        "tickfont": {"size": 10},
    }
    return {"type": "log", "range": [bottom - room, top + room], **ticks}


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 6}


def heading(text: str, x: str, y: str) -> dict[str, Any]:
    """Return the text above a pair of axes."""
    place = {"xref": f"{x} domain", "yref": f"{y} domain", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
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
    return _vertical(event.step, axis, {"color": ORANGE, "width": 1, "dash": "dot"})


def _cursor(step: int, axis: str) -> dict[str, Any]:
    return _vertical(step, axis, {"color": RED, "width": 1.5})


def _vertical(step: int, axis: str, line: dict[str, Any]) -> dict[str, Any]:
    ends = {"xref": axis, "yref": "paper", "x0": step, "x1": step, "y0": 0, "y1": 1}
    return {"type": "line", **ends, "line": line, "layer": "below"}


def _setting_labels(changed: Sequence[Mark], end: float) -> list[dict[str, Any]]:
    """Label the newest changes; where lines stand so close that labels would cover each other, the last of them.

    A label stands left of its line, but never on the axis of losses.
    """
    named: dict[float, Mark] = {}  # by the right edges of the labels
    for event in sorted(changed, key=lambda event: event.step, reverse=True):
        edge = max(float(event.step), LABEL * end)
        if min(named, default=math.inf) - edge >= LABEL * end:
            named[edge] = event
    return [
        {
            "xref": "x",
            "yref": "paper",
            "x": edge,
            "y": 0.99,
            "text": event.text.replace("_", " ").replace(" = ", " "),
            "textangle": -90,
            "xanchor": "right",
            "yanchor": "top",
            "showarrow": False,
            "font": {"size": 10, "color": ORANGE},
        }
        for edge, event in [*named.items()][:12]
    ]
