"""Training curves: data in, a valid plotly figure out."""

from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import pytest

from p4lab.plots import training_curves

NAMES = ("loss", "smooth_loss", "test_loss", "logabsdet", "residual", "condition")


@dataclass
class Mark:
    step: int
    kind: str
    layers: tuple[int, ...] = ()
    text: str = ""


def curves(n: int) -> dict:
    steps = np.arange(n, dtype=float)
    return {name: (steps, np.linspace(2.0, 1.0, n)) for name in NAMES}


EVENTS = [
    Mark(10, "merge", (0, 1, 2)),
    Mark(20, "skip", (1,), "singular"),
    Mark(30, "refine", (0, 1, 2)),
    Mark(40, "set", (), "learning_rate = 0.01"),
]


def traces(figure: dict) -> dict[str, dict]:
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


@pytest.mark.parametrize("n", [0, 1, 100])
def test_plotly_accepts_it(n: int) -> None:
    figure = go.Figure(**training_curves(curves(n), EVENTS))
    for axis in ("xaxis", "yaxis", "yaxis2", "yaxis3", "yaxis4", "yaxis5"):
        assert figure.layout[axis].domain is not None


def test_loss_is_in_nats_and_its_hover_in_bits_too() -> None:
    trace = traces(training_curves(curves(5)))["train"]
    np.testing.assert_allclose(trace["customdata"], trace["y"] / np.log(2))
    assert "bits/dim" in trace["hovertemplate"]


def test_a_residual_of_zero_is_left_out_of_its_logarithmic_axis() -> None:
    given = curves(3)
    given["residual"] = (np.arange(3.0), np.array([0.0, 1e-9, 1e3]))
    figure = training_curves(given)
    assert np.isnan(traces(figure)["largest |A A⁻¹ − I|"]["y"][0])
    low, high = figure["layout"]["yaxis4"]["range"]
    assert low < -9
    assert high > 3


def test_marks_say_what_happened() -> None:
    found = traces(training_curves(curves(50), EVENTS))
    assert found["merged"]["text"] == ["step 10: 3 layers merged"]
    assert found["skipped"]["text"] == ["step 20: layer 2 skipped<br>singular"]
    assert found["inverse refined"]["x"].tolist() == [30]


def test_a_moved_control_leaves_a_line_on_both_sides_and_a_label() -> None:
    layout = training_curves(curves(50), EVENTS)["layout"]
    assert [(shape["xref"], shape["x0"]) for shape in layout["shapes"]] == [("x", 40), ("x2", 40)]
    assert layout["annotations"][-1]["text"] == "learning rate 0.01"


def test_a_drag_is_one_change() -> None:
    drag = [Mark(step, "set", (), f"learning_rate = {step}") for step in range(100, 115)]
    later = [Mark(105, "set", (), "skip = False"), Mark(300, "set", (), "learning_rate = 1")]
    layout = training_curves(curves(400), [*drag, *later])["layout"]
    assert [shape["x0"] for shape in layout["shapes"][::2]] == [114, 105, 300]


def test_zoom_is_kept_within_a_run_only() -> None:
    revisions = [training_curves(curves(n), run=run)["layout"]["uirevision"] for n, run in ((1, 0), (9, 0), (1, 1))]
    assert revisions[0] == revisions[1] != revisions[2]
