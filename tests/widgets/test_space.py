"""The kernel's side of pictures in space, without a browser."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from p4lab.errors import OptionError, ShapeError
from p4lab.plots.layers import Dots, Grip, Line, Points, Surface
from p4lab.widgets.space import Space

SHEET = np.zeros((4, 5, 3))
ROUTE = np.arange(6.0).reshape(2, 3)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    messages: list[Any] = []
    monkeypatch.setattr(Space, "send", lambda self, message, buffers=(): messages.append((message, list(buffers))))
    return messages


def test_a_surface_is_sent_once(sent: list[Any]) -> None:
    space = Space("title", labels=("p", "s", "q"), home=(10, 20))
    space.show([Surface(SHEET), Line(ROUTE)])
    space.hear({"hello": 1}, [])
    message, buffers = sent.pop()
    assert message["view"]["labels"] == ("p", "s", "q")
    assert message["view"]["home"] == (10, 20)
    assert message["layers"][0]["arrays"] == {"vertices": [0, [4, 5, 3]]}
    assert [len(buffer) for buffer in buffers] == [4 * 60, 4 * 6]

    space.show([Surface(SHEET), Line(ROUTE + 1)])
    message, buffers = sent.pop()
    assert message["layers"][0] is None
    assert message["layers"][1]["arrays"] == {"points": [0, [2, 3]]}
    assert np.frombuffer(buffers[0], np.float32).tolist() == (ROUTE + 1).ravel().tolist()


def test_a_second_page_gets_the_surface_again(sent: list[Any]) -> None:
    space = Space("title")
    space.hear({"hello": 1}, [])
    space.show([Surface(SHEET)], bounds=(-1, 1, -1, 1, -1, 1))
    space.hear({"hello": 1}, [])
    message, buffers = sent[-1]
    assert message["layers"][0]["kind"] == "Surface"
    assert message["bounds"] == (-1, 1, -1, 1, -1, 1)
    assert len(buffers) == 1


def test_a_moved_grip_is_reported() -> None:
    moved: list[Any] = []
    space = Space("t", on_moved=lambda *what: moved.append(what))
    space.hear({"moved": "target", "point": [1, 2, 3]}, [])
    assert moved == [("target", (1.0, 2.0, 3.0))]


WRONG: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "surface": (ShapeError, r"has shape \(4, 3\): expected \(rows, cols, 3\)", lambda: Surface(SHEET[:, 0])),
    "line": (ShapeError, r"Line.points has shape \(2, 2\): expected \(n, 3\)", lambda: Line(ROUTE[:, :2])),
    "labels": (ShapeError, "Dots has 1 labels for 2 points", lambda: Dots(ROUTE, labels=("a",))),
    "grip": (ShapeError, r"Grip.point has shape \(2,\)", lambda: Grip("g", (1, 2))),
    "opacity": (OptionError, "Surface.opacity is 2", lambda: Surface(SHEET, opacity=2)),
    "bounds": (ShapeError, "4 numbers: expected 6", lambda: Space("t").show([], bounds=(0, 1, 0, 1))),  # type: ignore[arg-type]
    "flat layer": (OptionError, "Space got a Points", lambda: Space("t").show([Points(np.ones((1, 2)))])),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_shown_is_refused(case: str) -> None:
    error, text, attempt = WRONG[case]
    with pytest.raises(error, match=text):
        attempt()
