"""Eigenvalues on their way through the complex plane."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Complex = NDArray[np.complex128]


def eigenvalue_paths(values: Complex) -> Complex:
    """Order eigenvalues so that each column follows one of them: from moment to moment, nearest ones first.

    Args:
        values: shape (n, d), in any order within a row.

    Returns:
        Shape (n, d); the first row as it came. Cost O(n d^2 log d).

    Example:
        >>> eigenvalue_paths(np.array([[1 + 0j, -1], [-1.1, 0.9]])).real
        array([[ 1. , -1. ],
               [ 0.9, -1.1]])
    """
    ordered = np.array(values)
    for before, row in pairwise(ordered):
        row[:] = row[_nearest(np.abs(before[:, None] - row[None, :]))]
    return ordered


def _nearest(distances: NDArray[np.float64]) -> list[int]:
    """Return for each row its own column, the closest pairs first; NaN is far."""
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for pair in distances.argsort(axis=None).tolist():
        row, column = divmod(pair, distances.shape[1])
        if row not in partner and column not in taken:
            partner[row] = column
            taken.add(column)
    return [partner[row] for row in range(len(distances))]
