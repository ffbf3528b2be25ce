"""The canvas to paint on: its end of the conversation, without a browser."""

from typing import Any

import numpy as np
import pytest

from p4lab.errors import OptionError, ShapeError
from p4lab.widgets.sketch import Sketch


class Page:
    """Stands in for a browser page: takes what the sketch sends, and answers as sketch.js does."""

    def __init__(self, sketch: Sketch) -> None:
        self.sketch, self.sent = sketch, list[tuple[dict[str, Any], list[bytes]]]()
        sketch.send = lambda message, buffers=(): self.sent.append((message, [bytes(b) for b in buffers]))
        sketch.hear({"hello": 1}, [])

    def draws(self, ink: Any, why: str = "stroke") -> None:
        self.sketch.hear({"drawn": why}, [memoryview(np.asarray(ink, np.uint8).tobytes())])


@pytest.fixture
def used() -> list[Any]:
    return []


@pytest.fixture
def sketch(used: list[Any]) -> Sketch:
    return Sketch(4, 15, (-2, 2, -1, 1), "Draw", on_use=used.append, on_copy=lambda: used.append("copy"))


def test_a_new_page_gets_the_drawing(sketch: Sketch) -> None:
    ink = np.arange(16).reshape(4, 4)
    sketch.show(ink)
    message, (drawn,) = Page(sketch).sent[0]
    assert message["view"]["size"] == 4
    assert message["view"]["extent"] == [-2, 2, -1, 1]
    assert drawn == ink.astype(np.uint8).tobytes()


def test_a_stroke_is_kept_and_nothing_is_sent_back(sketch: Sketch, used: list[Any]) -> None:
    page = Page(sketch)
    page.draws(np.eye(4) * 15)
    np.testing.assert_array_equal(sketch.ink, np.eye(4) * 15)
    assert len(page.sent) == 1
    assert used == []


def test_the_button_hands_over_a_copy(sketch: Sketch, used: list[Any]) -> None:
    Page(sketch).draws(np.eye(4), "use")
    sketch.ink[:] = 3
    np.testing.assert_array_equal(used[0], np.eye(4))


def test_copy_asks_the_kernel(sketch: Sketch, used: list[Any]) -> None:
    page = Page(sketch)
    sketch.hear({"copy": 1}, [])
    assert used == ["copy"]
    sketch.show(np.full((4, 4), 7))
    assert page.sent[-1][1] == [bytes([7] * 16)]


def test_the_same_drawing_is_not_sent_again(sketch: Sketch) -> None:
    page = Page(sketch)
    for _ in range(2):
        sketch.show(np.ones((4, 4)))
    assert len(page.sent) == 2


@pytest.mark.parametrize(
    ("ink", "error", "message"),
    [
        (np.zeros((4, 3)), ShapeError, r"shape \(4, 3\): expected \(4, 4\)"),
        (np.full((4, 4), 16), OptionError, "expected 0 to 15"),
        (np.full((4, 4), np.nan), OptionError, "expected 0 to 15"),
    ],
    ids=["shape", "too much", "nan"],
)
def test_what_is_no_drawing_is_refused_and_the_old_one_stays(
    sketch: Sketch, ink: Any, error: type[Exception], message: str
) -> None:
    sketch.show(np.ones((4, 4)))
    with pytest.raises(error, match=message):
        sketch.show(ink)
    assert (sketch.ink == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 1}, "size=1"), ({"levels": 256}, "levels=256"), ({"extent": (0, 0, 0, 1)}, "extent=")],
    ids=["size", "levels", "extent"],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Sketch(**options)


def test_what_a_page_may_get_wrong_is_not_kept(sketch: Sketch) -> None:
    page = Page(sketch)
    with pytest.raises(OptionError):
        page.draws(np.full((4, 4), 200))
    assert (sketch.ink == 0).all()
