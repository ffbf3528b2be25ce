"""The first lab: its equations, its message, its pictures."""

from typing import Any

import numpy as np
import pytest
from lab_tools import opened, train

from p4lab.errors import ConfigError
from p4lab.labs.start import CONFIG, START, moved
from p4lab.plots.layers import Arrow, Path


def values(term: Any) -> np.ndarray:
    return np.asarray(term.values, float)


@pytest.mark.parametrize("steps", [0, 7, 15, 40], ids=["start", "before a merge", "right after it", "later"])
def test_the_equations_hold(steps: int) -> None:
    with opened(START) as lab:
        train(lab, steps)
        drawing: Any = lab.drawings()["equations"]
    weight, inverse, det = drawing
    w, a, u, v = (values(weight[k]) for k in (0, 2, 4, 5))
    np.testing.assert_allclose(w, a + u @ v, atol=1e-12)
    back, frozen, change = (values(inverse[k]) for k in (0, 2, 4))
    np.testing.assert_allclose(back, frozen - change, atol=1e-12)
    np.testing.assert_allclose(back @ w, np.eye(2), atol=1e-10)
    one, two, three = (float(values(det[k])) for k in (0, 2, 4))
    assert one == pytest.approx(two * three) == pytest.approx(np.linalg.det(w))
    if steps == CONFIG.merge_every:  # a merge keeps W and clears u
        assert np.array_equal(w, a)
        assert not u.any()


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(0, "Frozen"), (1, "Next merge in 14 steps"), (14, "Next merge in 1 step"), (15, "Merged"), (16, "Perturbed")],
    ids=["start", "first step", "last step before a merge", "merge", "step after it"],
)
def test_the_message_tells_what_happens(steps: int, expected: str) -> None:
    with opened(START) as lab:
        train(lab, steps)
        lab.player.pause()
        assert expected in lab.message()


def test_a_refused_merge_is_told() -> None:
    with opened(START, target="1 0; 0 0", learning_rate=1.0, merge_every=2, skip=True) as lab:
        messages = []
        for _ in range(12):
            lab.touch("step")
            messages.append(lab.message())
    assert any(text.startswith("Not merged: ") for text in messages)


def test_the_search_picture_follows_u() -> None:
    with opened(START) as lab:
        for steps in (0, 20, 20):
            train(lab, steps)
            plot: Any = lab.drawings()["search"]
        u = lab.sight().snapshot.pictures["u"][0]
    (way,) = [layer for layer in plot.layers if isinstance(layer, Path) and layer.color == "purple"]
    (arrow,) = [layer for layer in plot.layers if isinstance(layer, Arrow)]
    np.testing.assert_allclose(np.asarray(way.points)[[0, -1]], [[0, 0], u], atol=1e-6)
    np.testing.assert_allclose(np.asarray(arrow.end), u, atol=1e-6)
    x0, x1, _, _ = plot.bounds
    assert x0 <= u.min() <= u.max() <= x1


def test_a_dragged_column_becomes_the_target() -> None:
    with opened(START) as lab:
        assert moved(lab.sight(), "1", (0.251, 2.0)) == {"target": "0.4 0.25; 1.1 2"}


@pytest.mark.parametrize("change", [{"dim": 3}, {"route": "plain"}, {"rank": 2}], ids=str)
def test_only_rank_one_in_the_plane_is_shown(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected dim=2, route=p4inv and rank=1"), opened(START, **change):
        pass


def test_a_target_that_moved_while_the_run_rests_has_its_loss_in_the_header() -> None:
    with opened(START) as lab:
        lab.touch("step")
        before = lab.numbers()["train"]["value"]
        lab.touch("target", "5 0; 0 5")
        weight = lab.sight().snapshot.pictures["weight"]
        moved = lab.numbers()["train"]["value"]
    assert moved == f"{np.square(weight - 5 * np.eye(2)).sum() / 2:.2e}" != before


def test_every_thing_to_try_begins_alike() -> None:
    with opened(START) as lab:
        for number, one in enumerate(START.tries):
            lab.touch("target", "5 0; 0 5")
            lab.touch("try", number)
            assert lab.config.target == one.changes["target"]
            assert lab.sight().snapshot.step == 0
