"""The kernel's side of pictures in the plane, without a browser."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from wire import Wire

from p4lab.errors import OptionError, ShapeError
from p4lab.plots.layers import Arrow, Dots, Handle, Heatmap, Layer, Path, Points, Text
from p4lab.widgets.plane import Plane

SQUARE = (-1.0, 1.0, -1.0, 1.0)
LINE = np.array([[0.0, 0.0], [1.0, 2.0], [np.nan, np.nan]])


def numbers(buffer: memoryview) -> list[float]:
    return np.frombuffer(buffer, np.float32).tolist()


def test_a_page_gets_the_layers_as_text_and_float32_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane("title", "note", "x", "y", height=200)
    plane.show([Heatmap(np.ones((2, 3)), SQUARE, label="loss"), Path(LINE, values=[0, 1, 2]), Text((1, 2), "here")])
    wire = Wire(plane, monkeypatch)
    wire.says(hello=1)
    message, buffers = wire.take()
    assert message["view"] == {
        "dim": 2,
        "title": "title",
        "note": "note",
        "labels": ["x", "y"],
        "equal": True,
        "height": 200,
    }
    assert message["bounds"] is None
    assert [layer["kind"] for layer in message["layers"]] == ["Heatmap", "Path", "Text"]
    assert [layer["arrays"] for layer in message["layers"]] == [
        {"values": [0, [2, 3]]},
        {"points": [1, [3, 2]], "values": [2, [3]]},
        {"point": [3, [2]]},
    ]
    assert message["layers"][0]["label"] == "loss"
    assert np.array_equal(numbers(buffers[1]), LINE.ravel(), equal_nan=True)
    assert numbers(buffers[3]) == [1, 2]


def layers() -> list[Layer]:
    return [Path(LINE), Points(LINE, labels=("a", "b", "c")), Handle("h", (0, 1))]


CHANGES: dict[str, Callable[[list[Layer]], list[Layer]]] = {
    "numbers": lambda old: [old[0], Points(LINE + 1, labels=("a", "b", "c")), old[2]],
    "number of points": lambda old: [old[0], Points(LINE[:2]), old[2]],
    "text": lambda old: [old[0], Points(LINE, labels=("a", "b", "z")), old[2]],
    "kind": lambda old: [old[0], Path(LINE), old[2]],
    "values appear": lambda old: [old[0], Path(LINE, values=[1, 2, 3]), old[2]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_layers_that_changed_are_sent(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane("t")
    wire = Wire(plane, monkeypatch)
    plane.show(layers())
    wire.says(hello=1)
    wire.sent.clear()
    plane.show(layers())
    assert wire.sent == []
    plane.show(CHANGES[change](layers()))
    message, _ = wire.take()
    assert [layer is None for layer in message["layers"]] == [True, False, True]
    assert "view" not in message


@pytest.mark.parametrize("count", [2, 4], ids=["one less", "one more"])
def test_a_layer_comes_or_goes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane("t")
    wire = Wire(plane, monkeypatch)
    plane.show(layers())
    wire.says(hello=1)
    wire.sent.clear()
    plane.show([*layers(), Arrow((0, 0), (1, 1))][:count])
    message, _ = wire.take()
    assert [layer is None for layer in message["layers"]] == [True, True, True, False][:count]


def test_bounds_alone_are_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane("t")
    wire = Wire(plane, monkeypatch)
    wire.says(hello=1)
    wire.sent.clear()
    for _ in range(2):
        plane.show([], bounds=SQUARE)
    assert wire.take()[0]["bounds"] == SQUARE


def test_arrays_are_copied_when_a_layer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.zeros((1, 2))
    plane = Plane("t")
    wire = Wire(plane, monkeypatch)
    plane.show([Points(points)])
    wire.says(hello=1)
    wire.sent.clear()
    points += 1
    plane.show([Points(points)])
    assert numbers(wire.take()[1][0]) == [1, 1]


def test_numpy_scalars_travel_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane("t")
    wire = Wire(plane, monkeypatch)
    plane.show([Heatmap(np.eye(2), SQUARE, low=np.float32(0.5))])
    wire.says(hello=1)
    assert type(wire.take()[0]["layers"][0]["low"]) is float


def test_a_moved_handle_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Any] = []
    plane = Plane("t", on_moved=lambda *what: moved.append(what))
    Wire(plane, monkeypatch).says(moved="target", point=[1, 2.5])
    assert moved == [("target", (1.0, 2.5))]


WRONG: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "points": (ShapeError, r"Points.points has shape \(3,\): expected \(n, 2\)", lambda: Points([1, 2, 3])),
    "heat map": (
        ShapeError,
        r"Heatmap.values has shape \(4,\): expected \(h, w\)",
        lambda: Heatmap(np.ones(4), SQUARE),
    ),
    "values": (ShapeError, r"Path.values has shape \(2,\).* with n = 3", lambda: Path(LINE, values=[1, 2])),
    "labels": (ShapeError, "2 labels for 3 points", lambda: Points(LINE, labels=("a", "b"))),
    "handle": (ShapeError, r"Handle.point has shape \(3,\): expected \(2\)", lambda: Handle("h", (1, 2, 3))),
    "mark": (OptionError, "Points.shape is 'star': expected one of", lambda: Points(LINE, shape="star")),
    "side": (OptionError, "Text.side is 'top'", lambda: Text((0, 0), "a", side="top")),
    "scale": (OptionError, "Path.high is nan", lambda: Path(LINE, high=float("nan"))),
    "log scale": (OptionError, "Heatmap.low is 0", lambda: Heatmap(np.ones((2, 2)), SQUARE, low=0, log=True)),
    "extent": (OptionError, "expected x0 < x1", lambda: Heatmap(np.ones((2, 2)), (1, -1, 0, 1))),
    "number of bounds": (ShapeError, "bounds have 2 numbers: expected 4", lambda: Plane("t").show([], bounds=(0, 1))),  # type: ignore[arg-type]
    "bounds": (OptionError, "expected low < high", lambda: Plane("t").show([], bounds=(0, 1, 1, 1))),
    "foreign layer": (OptionError, "Plane got a Dots", lambda: Plane("t").show([Dots(np.ones((1, 3)))])),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_shown_is_refused(case: str) -> None:
    error, text, attempt = WRONG[case]
    with pytest.raises(error, match=text):
        attempt()


def test_labels_of_axes_travel_when_they_change_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane("title", x_label="x", y_label="y")
    wire = Wire(plane, monkeypatch)
    wire.says(hello=1)
    assert wire.take()[0]["view"]["labels"] == ["x", "y"]
    plane.show([Path(LINE, closed=True, fill=0.5)], SQUARE, ("length", "weight"))
    message, _ = wire.take()
    assert message["labels"] == ["length", "weight"]
    assert message["layers"][0]["fill"] == 0.5
    plane.show([Path(LINE)], SQUARE)
    message, _ = wire.take()
    assert "labels" not in message
    wire.says(hello=1)
    assert wire.take()[0]["view"]["labels"] == ["length", "weight"]


def test_labels_and_fillings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="expected 2, one per axis"):
        Plane("title").show([], labels=("x",))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"Path.fill is 1.5: expected 0 to 1"):
        Path(LINE, fill=1.5)
