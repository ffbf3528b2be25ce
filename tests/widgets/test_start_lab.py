"""The first lab and its equations, without a browser."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from p4lab.errors import ConfigError, ShapeError
from p4lab.plots.layers import Term
from p4lab.training import Snapshot
from p4lab.widgets.formula import Formula
from p4lab.widgets.old_dashboard import Dashboard
from p4lab.widgets.start_lab import CONFIG, phase, start_lab
from p4lab.widgets.start_pictures import ImagePicture, SearchPicture, equations

WAIT = 20.0


@pytest.fixture
def lab() -> Iterator[Dashboard]:
    lab = start_lab(name="test")
    lab.player.limit(None)
    yield lab
    error = lab.error
    lab.close()
    assert error is None


def after(lab: Dashboard, steps: int) -> Snapshot:
    for _ in range(steps):
        lab.player.step()
    end = time.monotonic() + WAIT
    while (snapshot := lab.player.frame(WAIT).snapshot).step < steps:
        assert time.monotonic() < end
    return snapshot


def numbers(term: Any) -> np.ndarray:
    return np.asarray(term.values, float)


@pytest.mark.parametrize("steps", [0, 7, 15, 40], ids=["start", "before a merge", "right after it", "later"])
def test_the_equations_hold(lab: Dashboard, steps: int) -> None:
    weight, inverse, det = equations(after(lab, steps))
    w, a, u, v = (numbers(weight[k]) for k in (0, 2, 4, 5))
    np.testing.assert_allclose(w, a + u @ v, atol=1e-12)
    back, frozen, change = (numbers(inverse[k]) for k in (0, 2, 4))
    np.testing.assert_allclose(back, frozen - change, atol=1e-12)
    np.testing.assert_allclose(back @ w, np.eye(2), atol=1e-10)
    values = [float(numbers(det[k])) for k in (0, 2, 4)]
    assert values[0] == pytest.approx(values[1] * values[2]) == pytest.approx(np.linalg.det(w))


def test_a_merge_keeps_w_and_clears_u(lab: Dashboard) -> None:
    weight = equations(after(lab, CONFIG.merge_every))[0]
    assert np.array_equal(numbers(weight[0]), numbers(weight[2]))
    assert not numbers(weight[4]).any()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, "Frozen"), (1, "Next merge in 14 steps"), (14, "Next merge in 1 step"), (15, "Merged"), (16, "Perturbed")],
    ids=["start", "first step", "last step before a merge", "merge", "step after it"],
)
def test_the_message_tells_what_happens(lab: Dashboard, steps: int, expected: str) -> None:
    assert expected in phase(after(lab, steps))


def test_a_refused_merge_is_told() -> None:
    lab = start_lab(name="refused", target="1 0; 0 0", learning_rate=1.0, merge_every=2, skip=True)
    try:
        told = [phase(after(lab, steps)) for steps in range(1, 13)]
        assert lab.error is None
    finally:
        lab.close()
    assert any(text.startswith("Not merged: ") for text in told)


def test_the_pictures_follow_a_run(lab: Dashboard) -> None:
    images, search = ImagePicture(), SearchPicture()
    for steps in (0, 20, 40):
        after(lab, steps)
        frame = lab.player.frame(WAIT)
        images.draw(frame)
        search.draw(frame)
    (way,) = [
        layer for layer in search.widget._layers if getattr(layer, "color", "") == "purple" and hasattr(layer, "points")
    ]
    u = frame.snapshot.pictures["u"][0]
    np.testing.assert_allclose(np.asarray(way.points)[[0, -1]], [[0, 0], u], atol=1e-6)
    x0, x1, _, _ = search.widget._bounds or (0, 0, 0, 0)
    assert x0 <= u.min() <= u.max() <= x1


def test_a_dragged_column_becomes_the_target(lab: Dashboard) -> None:
    told = []
    images = ImagePicture()
    images.moved = told.append
    images.draw(lab.player.frame(WAIT))
    images.widget._receive(images.widget, {"moved": "1", "point": [0.251, 2.0]}, [])
    assert told == ["0.4 0.25; 1.1 2"]


@pytest.mark.parametrize("change", [{"dim": 3}, {"route": "plain"}, {"rank": 2}], ids=str)
def test_only_rank_one_in_the_plane_is_shown(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected dim=2, route=p4inv and rank=1"):
        start_lab(name="refused", **change)


def test_a_formula_sends_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    formula = Formula()
    sent: list[Any] = []
    monkeypatch.setattr(formula, "send", lambda message, buffers=(): sent.append(message))
    formula._receive(formula, {"hello": 1}, [])
    sent.clear()
    for value in (-1.0, -1.001):
        formula.show([[Term("A", [[value, -0.001]]), "=", Term("det", float("nan"))]])
    (message,) = sent
    row = message["rows"][0]
    assert [part if isinstance(part, str) else part["rows"] for part in row] == [[["−1.00", "0.00"]], "=", [["–"]]]
    assert [part["matrix"] for part in (row[0], row[2])] == [True, False]


def test_a_vector_is_no_term() -> None:
    with pytest.raises(ShapeError, match=r"u has shape \(2,\): expected a matrix"):
        Formula().show([[Term("u", [1, 2])]])
