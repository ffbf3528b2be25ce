"""The loss of a matrix on the plane that its present rank-one perturbation can reach."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p4lab.plots.parameter_space import orthonormal_pair

Array = NDArray[np.float64]

SIDE = 72
"""Pixels along each side of the map."""
ROOM = 1.25
"""How much further the map reaches than what it must show."""
SMALLEST = 0.02
"""Half side of the smallest window."""
LOSSES = (1e-12, 1e12)
"""What the map tells apart."""
FAR = 4.0
"""Beyond so many norms of the matrix, the best point is not shown: through the inverse it may be anywhere."""


@dataclass(frozen=True)
class LossMap:
    """Loss over a plane of matrices ``B + a w^T`` with w = v / |v|, the coordinates being those of a = |v| u.

    So lengths are Frobenius distances of matrices.

    Attributes:
        half: the map reaches from -half to half in both coordinates.
        values: log10 of the loss, shape (72, 72): rows from low to high second coordinate.
        present: coordinates of the present u, shape (2,).
        best: coordinates of the least loss, shape (2,).
        wall: the ends of the line det = 0 within the map, shape (2, 2); (0, 2) if it passes by outside.
        offset: distance of the present matrix from the plane; 0 for d = 2.
    """

    half: float
    values: Array
    present: Array
    best: Array
    wall: Array
    offset: float


def loss_map(frozen: Array, u: Array, v: Array, target: Array, inverse: bool = False) -> LossMap:
    r"""Map the loss over the plane that the first rank-one term of a perturbation can reach, all else staying as it is.

    .. math:: W(a) = B + a w^T, \qquad L = \tfrac{1}{d} |W(a) - T|_F^2 \quad\text{or}\quad
              \tfrac{1}{d} |W(a)^{-1} - T|_F^2, \qquad w = v / |v|

    For d = 2, a = |v| u has two components, and the plane is all that u can reach. For larger d it is the plane of a
    that is spanned by the best a and by the normal of det = 0, so that both the way to the one and the distance to the
    other are seen as they are. (The determinant is an affine function of a.)

    Args:
        frozen: A, shape (d, d), invertible.
        u: shape (k, d).
        v: shape (k, d), not zero.
        target: T, shape (d, d).
        inverse: whether the inverse of W is to become T.

    Cost O(d^3).
    """
    length = float(np.linalg.norm(v[0]))
    w = v[0] / length
    base = frozen + u[1:].T @ v[1:]
    back: Array = np.asarray(np.linalg.inv(base), dtype=np.float64)
    wall: Array = back.T @ w  # det(B + a w^T) = det B (1 + wall . a)
    error = back - target if inverse else base - target
    present, best = length * u[0], _best(error, base, w, wall if inverse else None)
    if len(w) == 2:
        axes = np.eye(2)
    else:
        axes = orthonormal_pair(
            np.stack([best / max(float(np.linalg.norm(best)), SMALLEST), wall / np.linalg.norm(wall)])
        )
    here, there = axes @ present, axes @ best
    half = _window(here, there, 1 + float(np.linalg.norm(base)))
    line = np.linspace(-half, half, SIDE)
    a = np.stack(np.meshgrid(line, line), -1) @ axes
    squares = _squares(error, a, w) if not inverse else _inverse_squares(error, a, back, wall)
    return LossMap(
        half=half,
        values=np.log10(np.clip(squares / len(w), *LOSSES)),
        present=here,
        best=there,
        wall=_wall(axes @ wall, half),
        offset=float(np.linalg.norm(present - here @ axes)),
    )


def _best(error: Array, base: Array, w: Array, wall: Array | None) -> Array:
    """Return the a of least loss: ``-E w``, or through the inverse the a whose inverse moves by the best multiple."""
    if wall is None:
        return -error @ w
    # W^-1 = B^-1 - b wall^T with b = B^-1 a / (1 + wall . a), so that a = B b / (1 - w . b).
    b = error @ wall / (wall @ wall)
    factor = 1 - w @ b
    return base @ b / (factor if factor != 0 else np.finfo(float).tiny)


def _squares(error: Array, a: Array, w: Array) -> Array:
    """Return ``|E + a w^T|_F^2`` for a of shape (..., d) and a unit vector w."""
    return np.square(error).sum() + 2 * a @ (error @ w) + np.square(a).sum(-1)


def _inverse_squares(error: Array, a: Array, back: Array, wall: Array) -> Array:
    """Return ``|E - b wall^T|_F^2`` for ``b = B^-1 a / (1 + wall . a)``, infinite on the wall."""
    with np.errstate(divide="ignore", invalid="ignore"):
        b = a @ back.T / (1 + a @ wall)[..., None]
        squares = np.square(error).sum() - 2 * b @ (error @ wall) + np.square(b).sum(-1) * (wall @ wall)
    return np.where(np.isfinite(squares), squares, np.inf)


def _window(present: Array, best: Array, scale: float) -> float:
    """Return 1, 2 or 5 times a power of ten: a window that holds both points (the best one unless it is far away)."""
    reach = float(np.abs(present).max())
    if np.abs(best).max() < FAR * scale:
        reach = max(reach, float(np.abs(best).max()))
    reach = max(ROOM * reach, SMALLEST)
    power = 10.0 ** math.floor(math.log10(reach))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= reach * (1 - 1e-9))


def _wall(normal: Array, half: float) -> Array:
    """Return the ends of the line ``1 + normal . a = 0`` within the square of a window, shape (2, 2) or (0, 2)."""
    point = -normal / (normal @ normal)
    along = np.array([-normal[1], normal[0]]) / np.linalg.norm(normal)
    low, high = -np.inf, np.inf
    for start, slope in zip(point, along, strict=True):
        if slope == 0:
            if abs(start) > half:
                return np.zeros((0, 2))
            continue
        ends = sorted(((-half - start) / slope, (half - start) / slope))
        low, high = max(low, ends[0]), min(high, ends[1])
    return np.stack([point + low * along, point + high * along]) if low < high else np.zeros((0, 2))
