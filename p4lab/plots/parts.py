"""A figure with several pairs of axes, taken apart: the loss, and the diagnostics that stand beside it."""

from typing import Any

from p4lab.plots.curves import LEGEND, Figure

Cell = tuple[str, str]
LOSS_PART, DIAGNOSTICS_PART = 0, 1
"""The parts of a figure of curves."""
SPACE = 0.09
"""Between two columns, as a share of the width."""
RUG, ABOVE_RUG = [0.0, 0.22], [0.27, 1.0]
"""Vertical domains of the marks of merges, which have three names, and of what stands above them."""
BELOW_HEADING = [0.0, 0.87]
"""Vertical domain of a column: its heading stands above it, and the legend above the headings."""


def part(figure: Figure, number: int) -> Figure:
    """Return a part of a figure as a figure of its own, over the full width.

    What shares one horizontal axis in the first part stays stacked, as the loss above the marks of merges; all else
    becomes columns, each with axes of its own.

    Args:
        figure: its ``layout.meta`` lists the horizontal axes of each part; others have one part, themselves.
        number: which.
    """
    layout = figure["layout"]
    parts = layout.get("meta", {}).get("parts")
    if parts is None:
        return figure
    traces = [trace for trace in figure["data"] if trace["xaxis"] in parts[number]]
    cells: list[Cell] = list(dict.fromkeys((trace["xaxis"], trace["yaxis"]) for trace in traces))
    stacked = number == LOSS_PART and len(parts[number]) == 1
    names = {cell: cell if stacked else (_axis("x", k), _axis("y", k)) for k, cell in enumerate(cells)}
    axes: dict[str, Any] = {}
    for k, (cell, (x, y)) in enumerate(names.items()):
        across, up = (dict(layout[_key(axis)]) for axis in cell)
        if "matches" in across or number:
            across["matches"] = "x"
        if x == "x":
            across.pop("matches", None)
        if not stacked:
            up |= {"domain": BELOW_HEADING, "anchor": x}
            across |= {"domain": _column(k, len(cells)), "anchor": y}
        else:
            across["domain"] = [0, 1]
            if len(cells) == 2:
                up["domain"] = RUG if up["domain"][0] == 0 else ABOVE_RUG
        axes |= {_key(x): across, _key(y): up}
    rest = {key: value for key, value in layout.items() if not key.startswith(("xaxis", "yaxis"))}
    marks = {kind: [new for mark in layout[kind] for new in _moved(mark, names)] for kind in ("annotations", "shapes")}
    revision = f"{layout.get('uirevision')} {number}"
    order = {key: value for key, value in layout["legend"].items() if key == "traceorder"}
    margin = {**layout["margin"], "t": 8}  # plotly makes room for the legend
    return {
        "data": _with_legend([_renamed(trace, names) for trace in traces], number),
        "layout": {
            **{**rest, **axes, **marks},
            "margin": margin,
            "legend": {**LEGEND, **order},
            "uirevision": revision,
        },
    }


def _axis(letter: str, number: int) -> str:
    return letter if number == 0 else f"{letter}{number + 1}"


def _key(axis: str) -> str:
    """Return the name of an axis in the layout: "x2" is "xaxis2"."""
    return f"{axis[0]}axis{axis[1:]}"


def _column(number: int, count: int) -> list[float]:
    width = (1 - (count - 1) * SPACE) / count
    return [number * (width + SPACE), min(1.0, number * (width + SPACE) + width)]


def _renamed(trace: dict[str, Any], names: dict[Cell, Cell]) -> dict[str, Any]:
    x, y = names[trace["xaxis"], trace["yaxis"]]
    return {**trace, "xaxis": x, "yaxis": y}


def _with_legend(traces: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """Return traces of which each group has one entry in the legend, those of the first column."""
    if number == LOSS_PART:
        return traces
    groups = [trace.get("legendgroup") for trace in traces]
    first = {group: k for k, group in reversed(list(enumerate(groups))) if group is not None}
    return [
        {**trace, "showlegend": first.get(group) == k}
        for k, (trace, group) in enumerate(zip(traces, groups, strict=True))
    ]


def _moved(mark: dict[str, Any], names: dict[Cell, Cell]) -> list[dict[str, Any]]:
    """Return a line or a text in the axes of the part: once for each column that it is meant for."""
    x, y = (mark[key].removesuffix(" domain") for key in ("xref", "yref"))
    places = [new for (old_x, old_y), new in names.items() if x == old_x and y in ("paper", old_y)]
    if y == "paper":
        places = list({new_x: (new_x, new_y) for new_x, new_y in places}.values())
    return [
        {
            **mark,
            "xref": mark["xref"].replace(x, new_x),
            "yref": mark["yref"] if y == "paper" else mark["yref"].replace(y, new_y),
        }
        for new_x, new_y in places
    ]
