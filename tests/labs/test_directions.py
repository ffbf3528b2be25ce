"""The lab of directions: what is within reach."""

from typing import Any

import numpy as np
import pytest
from lab_tools import as_number, opened, table

from p4lab.labs.directions import DIRECTIONS, NAMES, RANKS, DirectionsConfig, error_of, side_by_side, within_reach


def test_rings_stand_at_the_logarithms_of_the_numbers_of_directions() -> None:
    with opened(DIRECTIONS, dim=32) as lab:
        rings = next(layer for layer in lab.drawings()["reach"].layers if layer.label == "random directions")
    np.testing.assert_allclose(rings.points, [[0, 1 / 32], [2, 4 / 32], [4, 16 / 32]])


@pytest.mark.parametrize("reset", ["gradient", "gaussian"])
def test_within_reach_is_what_the_best_perturbation_takes_away(reset: str) -> None:
    lanes = side_by_side(DirectionsConfig(dim=16, reset=reset))
    lanes.run(4)
    for name, lane in lanes.snapshot().lanes.items():
        if name != "plain":
            error, v = error_of(lane), np.asarray(lane.pictures["v"], np.float64)
            left = error - np.linalg.lstsq(v.T, error.T, rcond=None)[0].T @ v
            share = 1 - np.square(left).sum() / np.square(error).sum()
            assert within_reach(lane) == pytest.approx(share, abs=1e-6)
            assert v.shape == (int(name[1:]), 16)


def test_directions_of_the_gradient_reach_more_than_random_ones_at_first() -> None:
    lanes = side_by_side(DirectionsConfig())
    lanes.run(4)
    shares = {name: within_reach(lane) for name, lane in lanes.snapshot().lanes.items()}
    assert shares["plain"] == 1
    for k in RANKS[1:]:
        assert shares[f"k{k}"] > 1.3 * k / 32


def test_the_table_counts_what_is_trained() -> None:
    with opened(DIRECTIONS, dim=16) as lab:
        lab.touch("step")
        rows: Any = table(lab)
    assert [row[""] for row in rows] == list(NAMES.values())
    assert [as_number(row["trained"]) for row in rows] == [16, 64, 256, 256]
