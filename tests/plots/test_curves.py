"""Training curves: data in, a valid plotly figure out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from p4lab.plots import RUN_COLORS, VIEWS, Figure, Loss, Shown, training_curves
from p4lab.plots.curves import merge_marks

NAMES = (
    *("loss", "smooth_loss", "test_loss", "grad_norm", "perturbation_norm", "step_seconds"),
    *("logabsdet", "sign", "residual", "condition", "logabsdet_error"),
)


@dataclass
class Mark:
    step: int
    kind: str
    layers: tuple[int, ...] = ()
    text: str = ""


def curves(n: int) -> dict:
    steps = np.arange(n, dtype=float)
    return {name: (steps, np.linspace(2.0, 1.0, n)) for name in NAMES}


def drawn(curves: dict, events: Sequence[Mark] = (), **options: Any) -> Figure:
    return training_curves([Shown("run 1", "#123456", curves, events)], **options)


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
    figure = go.Figure(**drawn(curves(n), EVENTS))
    for axis in ("xaxis", "yaxis", "yaxis2", "yaxis3", "yaxis4", "yaxis5"):
        assert figure.layout[axis].domain is not None


def test_loss_is_in_nats_and_its_hover_in_bits_too() -> None:
    trace = traces(drawn(curves(5)))["train"]
    np.testing.assert_allclose(trace["customdata"], trace["y"] / np.log(2))
    assert "bits/dim" in trace["hovertemplate"]


def test_a_residual_of_zero_is_left_out_of_its_logarithmic_axis() -> None:
    given = curves(3)
    given["residual"] = (np.arange(3.0), np.array([0.0, 1e-9, 1e3]))
    figure = drawn(given)
    assert np.isnan(traces(figure)["residual |A A⁻¹ − I|"]["y"][0])
    low, high = figure["layout"]["yaxis4"]["range"]
    assert low < -9
    assert high > 3


def test_marks_say_what_happened() -> None:
    found = traces(drawn(curves(50), EVENTS))
    assert found["merged"]["text"] == ["step 10: 3 layers merged"]
    assert found["skipped"]["text"] == ["step 20: layer 2 skipped<br>singular"]
    assert found["inverse refined"]["x"].tolist() == [30]


def test_a_moved_control_leaves_a_line_on_both_sides_and_a_label() -> None:
    layout = drawn(curves(50), EVENTS)["layout"]
    assert [(shape["xref"], shape["x0"]) for shape in layout["shapes"]] == [("x", 40), ("x2", 40)]
    assert layout["annotations"][-1]["text"] == "learning rate 0.01"


def test_a_drag_is_one_change() -> None:
    drag = [Mark(step, "set", (), f"learning_rate = {step}") for step in range(100, 115)]
    later = [Mark(105, "set", (), "skip = False"), Mark(300, "set", (), "learning_rate = 1")]
    layout = drawn(curves(400), [*drag, *later])["layout"]
    assert [shape["x0"] for shape in layout["shapes"][::2]] == [114, 105, 300]


@pytest.mark.parametrize(("peak", "cut"), [(1e12, True), (20.0, False), (np.nan, False), (np.inf, False)])
def test_a_peak_does_not_press_the_loss_flat(peak: float, cut: bool) -> None:
    given = curves(100)
    steps = given["loss"][0]
    given["loss"] = given["test_loss"] = (steps, np.where(steps == 50, peak, np.linspace(3.0, 1.0, len(steps))))
    axis = drawn(given)["layout"]["yaxis"]
    assert ("range" in axis) == cut
    if cut:
        low, high = axis["range"]
        assert low < 1 < 2.7 < high < 3.5


def test_labels_of_changes_do_not_cover_each_other() -> None:
    changes = [Mark(step, "set", (), f"{name} = 1") for step, name in ((0, "a"), (90, "b"), (94, "c"), (200, "d"))]
    notes = drawn(curves(400), changes)["layout"]["annotations"]
    assert [note["text"] for note in notes if note.get("textangle") == -90] == ["d 1", "c 1", "a 1"]


@pytest.mark.parametrize(
    ("steps", "expected"), [((0,), {16: "0"}), ((0, 20), {20: "20"}), ((0, 40), {40: "40", 16: "0"})]
)
def test_a_label_at_the_first_steps_does_not_cover_the_axis(steps: tuple[int, ...], expected: dict[int, str]) -> None:
    changes = [Mark(step, "set", (), str(step)) for step in steps]
    notes = drawn(curves(400), changes)["layout"]["annotations"]
    labels = [note for note in notes if note.get("textangle") == -90]
    assert {note["x"]: note["text"] for note in labels} == expected
    assert {note["xanchor"] for note in labels} == {"right"}


def test_zoom_is_kept_within_a_run_only() -> None:
    revisions = [drawn(curves(n), run=run)["layout"]["uirevision"] for n, run in ((1, 0), (9, 0), (1, 1))]
    assert revisions[0] == revisions[1] != revisions[2]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("loss", [Loss(), Loss("error", log=True, bits=False, test=False)], ids=["nats", "error"])
def test_several_runs_are_told_apart(view: str, loss: Loss) -> None:
    runs = [Shown(f"run {i}", RUN_COLORS[i], curves(n), EVENTS if i == 1 else ()) for i, n in enumerate((40, 80, 0))]
    figure = training_curves(runs, view, loss)
    go.Figure(**figure)
    for run in runs[1:]:
        lines = [trace for trace in figure["data"] if trace.get("legendgroup") == run.name]
        assert [line["showlegend"] for line in lines] == [True, False, False, False]
        assert {line["line"]["color"] for line in lines} == {run.color}
    main = [trace for trace in figure["data"] if trace.get("name", "").startswith("run 0: ")]
    assert len(main) == (3 if loss.test else 2)
    assert main[0]["line"]["color"] == runs[0].color
    assert figure["layout"]["xaxis"]["range"][1] == 80
    assert figure["layout"]["shapes"] == []
    assert (figure["layout"]["yaxis"].get("type") == "log") == loss.log


def test_a_change_of_sign_is_marked_where_it_happened() -> None:
    given = curves(5)
    given["sign"] = (given["sign"][0], np.array([1.0, 1.0, -1.0, -1.0, 1.0]))
    mark = traces(drawn(given))["det changes its sign"]
    assert mark["x"].tolist() == [2, 4]
    assert mark["text"] == ["det is negative from step 2", "det is positive from step 4"]
    assert traces(drawn(given, view="training"))["det changes its sign"]["x"].tolist() == []


def test_the_moment_that_is_shown_has_a_line() -> None:
    shapes = drawn(curves(50), cursor=7)["layout"]["shapes"]
    assert [(shape["xref"], shape["x0"]) for shape in shapes] == [("x", 7), ("x2", 7)]


EXACT, NOISY = (Loss("loss", log=True, bits=False, test=False, exact=exact) for exact in (True, False))


def exactly(losses: np.ndarray[Any, Any], loss: Loss = EXACT, names: Sequence[str] = ("run 1",)) -> Figure:
    steps = np.arange(1.0, len(losses) + 1)
    drawn = {key: (steps, losses + (key != "loss")) for key in NAMES}
    return training_curves([Shown(name, RUN_COLORS[0], drawn) for name in names], loss=loss)


@pytest.mark.parametrize("loss", [EXACT, NOISY], ids=["exact", "noisy"])
def test_runs_are_drawn_alike(loss: Loss) -> None:
    losses = np.geomspace(1, 0.1, 30)
    figure = exactly(losses, loss, ("run 1", "run 2"))
    bold = [trace for trace in figure["data"] if trace.get("yaxis") == "y" and trace.get("opacity") == 1]
    assert [trace["name"].split(":")[0] for trace in bold] == ["run 2", "run 1"]
    for trace in bold:
        np.testing.assert_array_equal(trace["y"], losses + (not loss.exact))


def test_an_exact_loss_has_no_running_mean() -> None:
    (line,) = (trace for trace in exactly(np.ones(5))["data"] if trace.get("yaxis") == "y")
    assert (line["name"], line["opacity"], line["line"]["width"]) == ("loss", 1, 2.2)


def test_a_merge_is_marked_at_the_first_loss_after_it() -> None:
    losses = np.geomspace(1, 0.1, 30)
    marks = merge_marks((np.arange(1.0, 31), losses), np.array([10, 20, 30]))
    np.testing.assert_array_equal(marks["x"], [11, 21])
    np.testing.assert_array_equal(marks["y"], losses[[10, 20]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (np.geomspace(1, 0.1, 9), {"dtick": "D2"}),
        (np.geomspace(1, 1e-12, 9), {"dtick": 3}),
        (np.zeros(0), {"dtick": 1, "range": [-2.5, 0.5]}),
        (np.array([0.0, np.nan]), {"dtick": 1, "range": [-2.5, 0.5]}),
    ],
    ids=["one decade", "twelve decades", "no step yet", "nothing that a logarithm has"],
)
def test_labels_fit_the_range(loss: np.ndarray[Any, Any], expected: dict[str, Any]) -> None:
    axis = exactly(loss)["layout"]["yaxis"]
    assert {key: axis[key] for key in expected} == expected
    assert ("range" in axis) == ("range" in expected)
