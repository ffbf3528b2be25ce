"""What a lab lets people take home."""

import io
import re
from typing import TYPE_CHECKING

from p4lab.packages import require
from p4lab.plots import Figure
from p4lab.training import Run, save_run, table_bytes

if TYPE_CHECKING:
    import plotly.graph_objects

QUIET = {"displaylogo": False, "modeBarButtonsToRemove": ["sendChartToCloud"]}
"""What plotly leaves out of a page: nothing of a run is sent anywhere."""

__all__ = ["figure", "html", "run_bytes", "safe_name", "table_bytes"]


def figure(data: Figure, title: str) -> "plotly.graph_objects.Figure":
    """Return a figure in plain data as plotly's own, with a title and room for it."""
    drawn = require("plotly.graph_objects", "lab").Figure(**data)
    drawn.update_layout(title=title, template="plotly_white", margin={"t": 80}, height=560)
    return drawn


def html(drawn: "plotly.graph_objects.Figure") -> bytes:
    """Return a figure as a page that needs nothing else (about 5 MB, for plotly.js is in it)."""
    return str(drawn.to_html(include_plotlyjs=True, config=QUIET)).encode()


def run_bytes(run: Run) -> bytes:
    """Return a run as the content of a file that `p4lab.training.load_run` reads."""
    stream = io.BytesIO()
    save_run(run, stream)
    return stream.getvalue()


def safe_name(title: str) -> str:
    """Return a file name made from a title.

    Example:
        >>> safe_name("P4Inv flow: 8 x 8 digits")
        'p4inv-flow-8-x-8-digits'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "p4lab"
