"""The curves of a race: data in, a valid plotly figure out; levels, marks and the cursor in the right places."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from p4lab.plots import Shown
from p4lab.plots.race import SMALL, lane_style, race_curves


def lane(name: str, place: int = 0, pace: float = 0.01) -> Shown:
    steps, measured = np.arange(1.0, 41.0), np.arange(0.0, 41.0, 5.0)
    measures = dict.fromkeys(("residual", "logabsdet_error", "condition"), (measured, np.full(9, 1e-6)))
    curves = {
        "test_loss": (measured, np.geomspace(1, 1e-3, 9)),
        "seconds": (steps, pace * steps),
        "step_ms": (steps, np.full(40, 1e3 * pace)),
        **measures,
    }
    return Shown(name, lane_style(place)[0], curves)


@pytest.mark.parametrize(("axis", "end"), [("seconds", 0.4), ("steps", 40.0)])
def test_losses_and_three_more_curves_of_every_lane(axis: Any, end: float) -> None:
    lanes = [lane("a"), lane("b", 1, 0.02)]
    figure = race_curves(lanes, earlier=[lane("b", 1)], axis=axis)
    go.Figure(**figure)
    assert [trace["name"] for trace in figure["data"]] == ["b", *["a"] * 4, *["b"] * 4]
    assert figure["data"][1]["x"][-1] == pytest.approx(end)
    assert figure["layout"]["shapes"] == []
    assert [note["text"] for note in figure["layout"]["annotations"]] == [title for _, title in SMALL]


def test_other_small_curves() -> None:
    small = (("residual", "violation"), ("step_ms", "step time"), ("condition", "condition"))
    figure = race_curves([lane("a", pace=0.02)], small=small)
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["violation", "step time", "condition"]
    np.testing.assert_allclose(figure["data"][2]["y"], 20.0)


@pytest.mark.parametrize(("log", "height"), [(True, -1.0), (False, 0.1)])
def test_levels_have_their_height_and_name(log: bool, height: float) -> None:
    layout = race_curves([lane("a")], levels={"solved": 0.1}, log=log)["layout"]
    (line,) = layout["shapes"]
    assert (line["y0"], line["y1"], line["line"]["dash"]) == (0.1, 0.1, "dash")
    assert (layout["annotations"][-1]["text"], layout["annotations"][-1]["y"]) == ("solved", pytest.approx(height))


def test_marks_are_dotted_and_the_cursor_is_a_line_in_both_columns() -> None:
    shapes = race_curves([lane("a")], marks=[0.1, 0.2], cursor=0.3)["layout"]["shapes"]
    assert [(shape["x0"], shape["xref"]) for shape in shapes if shape["line"]["dash"] == "dot"] == [
        (at, x) for at in (0.1, 0.2) for x in ("x", "x2")
    ]
    assert [shape["x0"] for shape in shapes if shape["line"]["dash"] == "solid"] == [0.3, 0.3]
