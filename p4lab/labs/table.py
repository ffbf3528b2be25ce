"""A table beside what a flow makes of it: each column by itself, and two columns at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.labs.lab import SLOW, Axes, Bar, Picture, Sight, View
from p4lab.plots.gallery import step_up
from p4lab.plots.layers import Path, Plot, Points
from p4lab.problems import TableProblem
from p4lab.training.config import Rule, setting

SEEN = 6
"""Columns that are seen at a time."""
ROWS = 500
"""Rows of the table that are drawn as points."""
FEW = 32
"""Integers of a range of at most so many have a bar each."""
BINS = (10, 32)
"""Least and largest number of bins of a histogram."""
MARGIN = 0.08
"""What is seen beyond the data on either side, as a share of their range."""
ROUNDING = 1e-3
"""What float32 may have added to an integer."""
STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
"""How much higher than the data's highest bar a frame may be."""
DATA, MODEL = "grey", "blue"
LABELS = "table", "samples"
Array = NDArray[np.float64]
Frame = tuple[float, float]
INDEX = Rule(int, lambda value: value >= 0, "the number of a column, from 0 on")


@dataclass(frozen=True)
class TableView(View):
    """What is looked at."""

    speed: float | None = setting(None, choices=SLOW)
    page: int = setting(0, "Columns", INDEX, kind="choice", live=True, help="Which columns have a histogram")
    across: int = setting(0, "Across", INDEX, kind="choice", live=True, help="The column along the horizontal axis")
    upward: int = setting(1, "Upward", INDEX, kind="choice", live=True, help="The column along the vertical axis")


STYLE = """
.p4-pictures { grid-auto-flow: column; grid-template: repeat(2, minmax(0, 1fr)) / minmax(0, 1.6fr); gap: 6px 16px; }
.p4-pictures:not(:has(> .p4-table-column-1)) { grid-template: minmax(0, 1fr) / minmax(0, 1fr); }
.p4-pictures > .p4-table-pair { grid-row: span 2; }
.p4-bar .p4-group { flex-wrap: wrap; gap: 6px 20px; }
.p4-bar .p4-item { display: flex; align-items: center; gap: 8px; min-width: 0; }
.p4-bar .p4-select { width: auto; max-width: 220px; }
"""


class Table:
    """What pictures know of a table: its rows in original units, and how its columns are divided.

    Args:
        problem: the table.
    """

    def __init__(self, problem: TableProblem) -> None:
        rows = torch.cat([problem.train, problem.test]).cpu().double()
        self.rows: Array = (rows * problem.std.cpu().double() + problem.mean.cpu().double()).numpy()
        self.columns = problem.columns
        self.edges = [_edges(column) for column in self.rows.T]

    @property
    def pages(self) -> dict[int, str]:
        """What histograms can be seen together, as first and last column."""
        last, n = len(self.columns) - 1, self.columns
        return {
            page: f"{n[first]} … {n[min(first + SEEN - 1, last)]}"
            for page, first in enumerate(range(0, last + 1, SEEN))
        }

    def offers(self) -> dict[str, Mapping[str, Any]]:
        """Return what the controls offer."""
        names = dict(enumerate(self.columns))
        return {"page": {"choices": self.pages}, "across": {"choices": names}, "upward": {"choices": names}}

    def view(self) -> TableView:
        """Return what is seen first: of all pairs of columns the one with the largest correlation."""
        d = len(self.columns)
        sizes = np.triu(np.abs(np.corrcoef(self.rows, rowvar=False)).reshape(d, d), 1)
        across, upward = divmod(int(sizes.argmax()), d)
        return TableView(across=across, upward=upward)

    def pictures(self) -> list[Picture]:
        """Return a row of controls, two columns at a time, and each column by itself."""
        d = len(self.columns)
        controls = (*(("across", "upward") if d > 1 else ()), *(("page",) if d > SEEN else ()))
        pair = Axes("Two columns", "rows of the table, and samples", "x", "y", equal=False, height=318)
        one = Axes("", "", "x", "% of rows", equal=False, height=176)
        return [
            *([Picture(Bar(controls), area="controls")] if controls else []),
            *([Picture(pair, self.pair, area="pair")] if d > 1 else []),
            *(Picture(one, partial(self.marginal, k), area=f"column-{k}") for k in range(min(d, SEEN))),
        ]

    def pair(self, sight: Sight[Any, TableView]) -> Plot:
        """Return two columns of the table, and of samples."""
        last = len(self.columns) - 1
        i, j = (min(k, last) for k in (sight.view.across, sight.view.upward))
        samples = _finite(sight.snapshot.pictures["samples"])
        parts = zip((self.rows[:ROWS], samples), (DATA, MODEL), LABELS, strict=True)
        layers = [Points(x[:, [i, j]], color, size=4.5, label=label) for x, color, label in parts]
        bounds = *_frame(self.edges[i]), *_frame(self.edges[j])
        return Plot(layers, bounds, (self.columns[i], self.columns[j]))

    def marginal(self, place: int, sight: Sight[Any, TableView]) -> Plot | None:
        """Return the histogram of a column, and that of samples; None beyond the last column."""
        k = SEEN * min(sight.view.page, len(self.pages) - 1) + place
        if k >= len(self.columns):
            return None
        edges = self.edges[k]
        data, model = (_shares(x[:, k], edges) for x in (self.rows, _finite(sight.snapshot.pictures["samples"])))
        # Where there is a picture of two columns, its legend is everybody's.
        table, samples = LABELS if len(self.columns) == 1 else ("", "")
        solid: dict[str, Any] = {"width": 0, "closed": True}
        if _whole(self.rows[:, k]):
            layers = [
                Path(_bars(edges, data, 0.1, 0.5), DATA, fill=0.55, label=table, **solid),
                Path(_bars(edges, model, 0.5, 0.9), MODEL, fill=0.85, label=samples, **solid),
            ]
        else:
            layers = [
                Path(_bars(edges, data, 0.0, 1.0), DATA, fill=0.45, label=table, **solid),
                Path(_outline(edges, model), MODEL, width=1.8, label=samples),
            ]
        top = 1.08 * data.max()
        return Plot(
            layers, (*_frame(edges), 0.0, top * step_up(model.max() / top, STEPS)), (self.columns[k], "% of rows")
        )


def _finite(samples: NDArray[Any]) -> Array:
    return np.where(np.isfinite(samples), samples, np.nan).astype(np.float64)


def _whole(x: Array) -> bool:
    """Return whether numbers are integers of a narrow range."""
    return bool(np.ptp(x) < FEW and np.abs(x - np.round(x)).max() < ROUNDING)


def _edges(x: Array) -> Array:
    """Return the edges of the bins: around each integer, or of equal width, as many as Freedman and Diaconis say."""
    low, high = x.min(), x.max()
    if _whole(x):
        return np.arange(np.round(low), np.round(high) + 2) - 0.5
    count = len(np.histogram_bin_edges(x, "fd", (low, high))) - 1
    return np.linspace(low, high, int(np.clip(count, *BINS)) + 1)


def _frame(edges: Array) -> Frame:
    margin = MARGIN * (edges[-1] - edges[0])
    return float(edges[0] - margin), float(edges[-1] + margin)


def _shares(x: Array, edges: Array) -> Array:
    """Return how many of all numbers lie in each bin, in percent; beyond the last ones go bins of the same width."""
    return 100 * np.histogram(x[~np.isnan(x)], edges)[0] / max(1, len(x))


def _bars(edges: Array, heights: Array, left: float, right: float) -> Array:
    """Return a rectangle for each bin, over a part of its width, as a path of shape (5 n, 2)."""
    a, width = edges[:-1], np.diff(edges)
    x = np.stack([a + left * width, a + left * width, a + right * width, a + right * width, np.nan * a], 1)
    y = np.stack([0 * heights, heights, heights, 0 * heights, np.nan * heights], 1)
    return np.stack([x.ravel(), y.ravel()], 1)


def _outline(edges: Array, heights: Array) -> Array:
    """Return the upper rim of a histogram, shape (2 n + 2, 2)."""
    return np.stack([np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(heights, 2), [0.0]])], 1)
