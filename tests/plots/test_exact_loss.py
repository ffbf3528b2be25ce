"""Curves of an exact loss: no running mean, merges marked, labels that fit."""

from typing import Any

import numpy as np
import pytest

from p4lab.plots import Loss, Shown, training_curves
from p4lab.plots.exact_loss import exact_loss

NAMES = ("loss", "smooth_loss", "grad_norm", "test_loss", "logabsdet", "sign", "residual", "condition")


def shown(loss: np.ndarray[Any, Any], name: str = "run 1") -> Shown:
    steps = np.arange(1.0, len(loss) + 1)
    return Shown(name, "#123456", {key: (steps, loss if key == "loss" else loss + 1) for key in NAMES})


def drawn(*runs: Shown, merges: tuple[int, ...] | None = None) -> dict[str, Any]:
    figure = training_curves(runs, loss=Loss("loss", log=True, bits=False, test=False))
    return exact_loss(figure, None if merges is None else np.array(merges))


def named(figure: dict[str, Any], name: str) -> dict[str, Any]:
    return next(trace for trace in figure["data"] if trace.get("name") == name)


def test_the_loss_itself_is_the_line() -> None:
    figure = drawn(shown(np.geomspace(1, 0.1, 30)))
    assert not [trace for trace in figure["data"] if "running mean" in trace.get("name", "")]
    loss = named(figure, "loss")
    np.testing.assert_array_equal(loss["y"], np.geomspace(1, 0.1, 30))
    assert (loss["opacity"], loss["line"]["width"]) == (1, 2.2)


def test_a_lane_keeps_its_name() -> None:
    figure = drawn(shown(np.ones(5), "P4Inv"), shown(np.ones(5), "plain"))
    assert named(figure, "P4Inv")["yaxis"] == "y"


def test_a_merge_is_marked_at_the_first_loss_after_it() -> None:
    marks = named(drawn(shown(np.geomspace(1, 0.1, 30)), merges=(10, 20, 30)), "merge")
    np.testing.assert_array_equal(marks["x"], [11, 21])
    np.testing.assert_array_equal(marks["y"], np.geomspace(1, 0.1, 30)[[10, 20]])


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (np.geomspace(1, 0.1, 9), {"dtick": "D2"}),
        (np.geomspace(1, 1e-12, 9), {"dtick": 2}),
        (np.zeros(0), {"dtick": 1, "range": [-2.5, 0.5]}),
        (np.array([0.0, np.nan]), {"dtick": 1, "range": [-2.5, 0.5]}),
    ],
    ids=["one decade", "twelve decades", "no step yet", "nothing that a logarithm has"],
)
def test_labels_fit_the_range(loss: np.ndarray[Any, Any], expected: dict[str, Any]) -> None:
    axis = drawn(shown(loss))["layout"]["yaxis"]
    assert {key: axis[key] for key in expected} == expected
    assert ("range" in axis) == ("range" in expected)
