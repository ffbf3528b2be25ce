"""The training curves of a loss that is exact, so that a running mean would only blur it."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.plots.curves import Figure

MEAN = "running mean"
EMPTY = [-2.5, 0.5]
"""Decades that the axis of the loss shows before the first step."""


def exact_loss(figure: Figure, merges: NDArray[np.int64] | None = None) -> Figure:
    """Return training curves without the running mean of the loss, and with labels that fit its few decades.

    Args:
        figure: what `training_curves` drew, with a logarithmic axis for the loss.
        merges: steps after which there was a merge, to be marked on the loss (None: none). The loss of a step is that
            before it, so that the first one after the merge is marked.

    Cost O(n) in the number of points.
    """
    mean = next((trace for trace in figure["data"] if trace.get("name", "").endswith(MEAN)), None)
    if mean is None:
        return figure
    name = mean["name"].removesuffix(f", {MEAN}")
    raw = next(trace for trace in figure["data"] if trace.get("name") == name)
    loss = {**raw, "name": name.removesuffix(": train") if ":" in name else "loss", "line": mean["line"], "opacity": 1}
    marks = [] if merges is None else [_marks(loss, merges)]
    drawn = [loss if trace is raw else trace for trace in figure["data"] if trace is not mean]
    lines = [trace for trace in drawn if trace.get("yaxis") == "y" and trace["mode"] == "lines"]
    layout = {**figure["layout"], "yaxis": {**figure["layout"]["yaxis"], **_axis(lines)}}
    return {"data": [*drawn, *marks], "layout": layout}


def _marks(loss: dict[str, Any], merges: NDArray[np.int64]) -> dict[str, Any]:
    steps, values = np.asarray(loss["x"]), np.asarray(loss["y"])
    at = np.isin(steps, merges + 1)
    return {
        **{key: loss[key] for key in ("type", "xaxis", "yaxis", "showlegend")},
        "mode": "markers",
        "x": steps[at],
        "y": values[at],
        "name": "merge",
        "marker": {"color": loss["line"]["color"], "size": 8, "symbol": "circle-open", "line": {"width": 2}},
        "hovertemplate": "right after a merge<extra></extra>",
    }


def _axis(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return labels at 1, 2 and 5 for one decade or two, at powers of ten for more, and a range if there is no data."""
    values = np.concatenate([np.asarray(line["y"], dtype=np.float64) for line in lines])
    values = values[(values > 0) & np.isfinite(values)]
    if not len(values):
        return {"range": EMPTY, "dtick": 1}
    decades = math.log10(values.max() / values.min())
    return {"dtick": "D2" if decades < 2 else max(1, round(decades / 6)), "nticks": None}
