"""A figure taken apart: every trace and mark is in one part, on axes that are there."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import pytest

from p4lab.plots.parts import DIAGNOSTICS_PART, LOSS_PART, part
from p4lab.widgets import digits_lab, property_lab, race_lab

LABS = {
    "digits": (digits_lab, {"blocks": 1, "rank": 2, "batch_size": 16, "measure_every": 2, "merge_every": 2}, (1, 3)),
    "property": (property_lab, {"dim": 8, "batch_size": 32, "measure_every": 2}, (2, 2)),
    "race": (race_lab, {"methods": "plain+p4inv", "dim": 8, "turn": 2.0, "budget": 0.04}, (1, 3)),
}


@pytest.fixture(params=LABS)
def figure_and_columns(request: pytest.FixtureRequest) -> Any:
    make, settings, columns = LABS[request.param]
    lab = make(name="parts", **settings)
    for _ in range(4):
        lab.touch("step")
    lab.touch("learning_rate" if request.param == "digits" else "rate_factor", 0.01 if request.param == "digits" else 2)
    lab.touch("step")
    yield lab.lab.curves(lab.sight()), columns
    lab.close()


@pytest.mark.parametrize("number", [LOSS_PART, DIAGNOSTICS_PART])
def test_a_part_is_a_figure_of_its_own(figure_and_columns: Any, number: int) -> None:
    figure, columns = figure_and_columns
    drawn = part(figure, number)
    layout = drawn["layout"]
    across = [layout[key]["domain"] for key in layout if key.startswith("xaxis")]
    assert len(across) == columns[number]
    assert across[0][0] == 0
    assert across[-1][1] == pytest.approx(1)
    assert all(left[1] < right[0] for left, right in pairwise(across))
    for thing in (*drawn["data"], *layout["shapes"], *layout["annotations"]):
        for name in (thing.get(key) for key in ("xaxis", "yaxis", "xref", "yref")):
            assert (
                name in (None, "paper")
                or name.removesuffix(" domain").replace("x", "xaxis").replace("y", "yaxis") in layout
            )
    go.Figure(drawn)  # plotly knows all of it


def test_nothing_is_lost(figure_and_columns: Any) -> None:
    figure, _ = figure_and_columns
    both = [part(figure, number) for number in (LOSS_PART, DIAGNOSTICS_PART)]
    assert sum(len(drawn["data"]) for drawn in both) == len(figure["data"])
    headings = {note["text"] for note in figure["layout"]["annotations"]}
    assert {note["text"] for drawn in both for note in drawn["layout"]["annotations"]} == headings


def test_a_figure_without_parts_stays_as_it_is() -> None:
    figure: dict[str, Any] = {"data": [], "layout": {"height": 100}}
    assert part(figure, DIAGNOSTICS_PART) is figure
