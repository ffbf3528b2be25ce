"""What results look like: tables in Markdown, medians with their spread, and the machine that they come from."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from types import MappingProxyType
from typing import Any

from p4lab.results import Machine, Versions

Runs = Sequence[Mapping[str, Any]]
"""The results of one method by name, one for each seed, in the order of the seeds."""
Columns = Mapping[str, tuple[str, str]]
"""By heading: the name of a result, and the format of its numbers."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows as a Markdown table; floats get three significant digits."""
    text = [list(header), *([f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in text]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def median(values: Iterable[float]) -> float:
    """Return the median; what is not finite counts as infinitely bad."""
    return statistics.median(value if math.isfinite(value) else math.inf for value in values)


def spread(values: Iterable[float], form: str, never: str = "inf") -> str:
    """Return "median [min, max]", or the one number that there is, or "-" for none.

    Args:
        values: what is not finite counts as infinitely bad.
        form: format of a number.
        never: how infinity is written.

    Example:
        >>> spread([0.3, 0.1, 0.2], ".1f")
        '0.2 [0.1, 0.3]'
    """
    values = sorted(value if math.isfinite(value) else math.inf for value in values)
    if not values:
        return "-"
    middle, least, most = (
        never if math.isinf(value) else f"{value:{form}}".removesuffix("%")
        for value in (statistics.median(values), values[0], values[-1])
    )
    return f"{middle} [{least}, {most}]" if len(values) > 1 else middle


def number_of(runs: Sequence[object], broken: int, how: str = "stopped early") -> str:
    """Return how many runs there are, and how many of them broke down, if any did."""
    return f"{len(runs)}" + f", {broken} {how}" * bool(broken)


def method_table(
    results: Mapping[str, Runs],
    columns: Columns,
    broken: Callable[[Mapping[str, Any]], bool],
    medians: Columns = MappingProxyType({}),
) -> str:
    """Return one row for each method: its parameters, its results (median [min, max] over seeds), and its seeds.

    Args:
        results: by method; each run has "parameters" and what the columns name.
        columns: what is shown.
        broken: whether a run stopped early.
        medians: what is shown behind them, as medians alone.
    """
    rows = []
    for method, runs in results.items():
        cells = [spread([run[name] for run in runs], form) for name, form in columns.values()]
        cells += [f"{median(run[name] for run in runs):{form}}" for name, form in medians.values()]
        rows.append([method, f"{runs[0]['parameters']:,}", *cells, number_of(runs, sum(map(broken, runs)))])
    return table(["method", "parameters", *columns, *medians, "seeds"], rows)


def machine() -> str:
    """Describe what this runs on, in one line."""
    return f"{date.today()}, {Machine.here()}, {Versions.here()}"
