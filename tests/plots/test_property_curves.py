"""The curves of the lab of properties: data in, a valid plotly figure out."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from p4lab.plots import Shown
from p4lab.plots.property_curves import PLACES, property_curves


@dataclass
class Mark:
    step: int
    kind: str
    layers: tuple[int, ...] = ()
    text: str = ""


def lane(name: str, n: int = 40, violation: float = 1e-6, **changes: Any) -> Shown:
    steps = np.arange(1, n + 1, dtype=float)
    measured = np.arange(0, n + 1, 5, dtype=float)
    curves = {
        "test_loss": (measured, np.geomspace(1, 1e-3, len(measured))),
        "residual": (measured, np.full(len(measured), violation)),
        "seconds": (steps, 0.01 * steps),
        "step_seconds": (steps, np.full(n, 0.01)),
        **changes,
    }
    return Shown(name, "#123456", curves)


def traces(figure: Any, axes: str) -> list[dict[str, Any]]:
    return [trace for trace in figure["data"] if trace["yaxis"] == f"y{axes}" and trace["mode"] == "lines"]


@pytest.mark.parametrize("n", [0, 1, 40], ids=["empty", "one-step", "a-run"])
def test_it_is_a_figure_and_no_subplot_is_empty(n: int) -> None:
    figure = property_curves([lane("P4", n), lane("plain", n)], "|W|", cursor=3 if n else None, best=1e-3)
    go.Figure(**figure)
    for axes in PLACES:
        drawn = [trace for trace in figure["data"] if trace["yaxis"] == f"y{axes}"]
        assert any(len(trace["x"]) and np.isfinite(trace["y"]).any() for trace in drawn)


def test_the_first_lane_lies_on_top_and_stands_first_in_the_legend() -> None:
    figure = property_curves([lane("P4"), lane("usual"), lane("plain")], "|W|")
    assert [trace["name"] for trace in traces(figure, "")] == ["plain", "usual", "P4"]
    assert figure["layout"]["legend"]["traceorder"] == "reversed"


def test_time_is_that_of_training() -> None:
    figure = property_curves([lane("P4")], "|W|")
    (over_time,) = traces(figure, "2")
    np.testing.assert_allclose(over_time["x"], 0.01 * np.arange(0, 41, 5))
    (step_time,) = traces(figure, "4")
    np.testing.assert_allclose(step_time["y"], 10.0)


@pytest.mark.parametrize(("violation", "height"), [(0.0, 1e-8), (1e-12, 1e-8), (1e-3, 1e-3)], ids=["0", "low", "high"])
def test_an_exact_zero_has_a_place_on_the_logarithmic_axis(violation: float, height: float) -> None:
    figure = property_curves([lane("P4", violation=violation)], "|W|", floor=1e-8)
    (drawn,) = traces(figure, "3")
    np.testing.assert_allclose(drawn["y"], height)
    low, high = figure["layout"]["yaxis3"]["range"]
    assert low < np.log10(height) < high


def test_what_runs_away_is_left_out_and_a_missing_violation_too() -> None:
    steps = np.array([0.0, 5.0, 10.0])
    wild = lane("wild", test_loss=(steps, np.array([1.0, 1e9, np.inf])), residual=(steps, np.full(3, np.nan)))
    figure = property_curves([wild], "|W|")
    assert np.isnan(traces(figure, "")[0]["y"][1:]).all()
    assert np.isnan(traces(figure, "3")[0]["y"]).all()
    assert figure["layout"]["yaxis"]["range"][1] < 2


def test_changes_are_marked_and_a_drag_counts_once() -> None:
    events = [Mark(3, "merge"), *(Mark(step, "set", (), "noise = 1") for step in (5, 6, 7, 50))]
    shapes = property_curves([lane("P4")], "|W|", events)["layout"]["shapes"]
    assert sorted({shape["x0"] for shape in shapes}) == [7, 50]
    assert {shape["xref"] for shape in shapes} == {"x", "x3", "x4"}


def test_earlier_runs_are_thin() -> None:
    figure = property_curves([lane("P4")], "|W|", earlier=[lane("P4")])
    old, new = traces(figure, "")
    assert old["line"]["width"] < new["line"]["width"]
    assert (old["showlegend"], new["showlegend"]) == (False, True)
