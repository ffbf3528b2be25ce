"""The geometry of 2 x 2 matrices, and the plane that shows most of a path of larger ones."""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

AROUND = 48
"""Vertices around the surface det = 0."""
ALONG = 41
"""Rings of vertices along it; odd, so that one of them is its waist."""
MOST = 256
"""Points of a path that its principal axes are computed from."""
NOISE = 1e-7


@dataclass(frozen=True)
class Slice:
    r"""A three-dimensional slice of the four-dimensional space of 2 x 2 matrices that holds two given ones.

    .. math:: W = \begin{pmatrix} p + q & r - s \\ r + s & p - q \end{pmatrix}, \qquad
              \det W = p^2 + s^2 - q^2 - r^2, \qquad |W|_F^2 = 2 (p^2 + q^2 + r^2 + s^2)

    The plane of (q, r) is turned by an angle :math:`\varphi`, which changes neither formula, until both matrices have
    the same second coordinate c. Then both lie in the slice r' = c with coordinates (p, s, q'). Straight lines stay
    straight, and det = 0 is the surface of revolution :math:`p^2 + s^2 = q'^2 + c^2`: a double cone for c = 0, else a
    hyperboloid of one sheet. Negative determinants are inside of it, around the axis of q'.

    Attributes:
        angle: :math:`\varphi`, radians.
        level: c.
    """

    angle: float
    level: float

    @classmethod
    def through(cls, start: Array, target: Array, previous: Self | None = None, tolerance: float = 1e-3) -> Self:
        """Return the slice through two matrices, shape (2, 2).

        Of two matrices with the same (q, r) there are many slices: then it is the one with c = 0.

        Args:
            start: a matrix.
            target: another one.
            previous: the slice shown before: it is kept if both lie in it, and else the direction of the axis q' is the
                one of the two that is nearer to it, so that a picture does not jump while the target is dragged.
            tolerance: largest `offset` that counts as lying in it.
        """
        if previous is not None and previous.offset(np.stack([start, target])).max() <= tolerance:
            return previous
        (_, _, q0, r0), (_, _, q1, r1) = _pqr(start), _pqr(target)
        q, r = q1 - q0, r1 - r0
        if math.hypot(q, r) <= NOISE * (1 + math.hypot(q0, r0)):
            q, r = q0, r0
        angle = math.atan2(r, q)
        if previous is not None and math.cos(angle - previous.angle) < 0:
            angle -= math.copysign(math.pi, angle)
        return cls(angle, float(r0 * math.cos(angle) - q0 * math.sin(angle)))

    def project(self, matrices: Array) -> Array:
        """Return the coordinates (p, s, q') of matrices, shape (..., 2, 2), wherever they lie: shape (..., 3)."""
        p, s, q, r = _pqr(matrices)
        return np.stack([p, s, q * math.cos(self.angle) + r * math.sin(self.angle)], axis=-1)

    def offset(self, matrices: Array) -> Array:
        """Return the distance (Frobenius) of matrices, shape (..., 2, 2), from the slice: shape (...)."""
        _, _, q, r = _pqr(matrices)
        return math.sqrt(2) * np.abs(r * math.cos(self.angle) - q * math.sin(self.angle) - self.level)

    def lift(self, points: Array) -> Array:
        """Return the matrices in the slice, shape (..., 2, 2), that have coordinates (p, s, q'), shape (..., 3)."""
        p, s, along = np.moveaxis(np.asarray(points, dtype=np.float64), -1, 0)
        q = along * math.cos(self.angle) - self.level * math.sin(self.angle)
        r = along * math.sin(self.angle) + self.level * math.cos(self.angle)
        return np.stack([np.stack([p + q, r - s], -1), np.stack([r + s, p - q], -1)], -2)

    def surface(self, extent: float, along: int = ALONG, around: int = AROUND) -> Array:
        """Return vertices of det = 0 for \\|q'\\| <= ``extent``, both nappes: shape (along, around + 1, 3), closed."""
        axis = np.linspace(-extent, extent, along)[:, None]
        turn = np.linspace(0, 2 * math.pi, around + 1)[None, :]
        radius = np.hypot(axis, self.level)
        return np.stack([radius * np.cos(turn), radius * np.sin(turn), axis + 0 * turn], axis=-1)


def _pqr(matrices: Array) -> tuple[Array, Array, Array, Array]:
    """Return p, s, q and r of matrices of shape (..., 2, 2)."""
    a, b, c, d = (matrices[..., i, j] for i in (0, 1) for j in (0, 1))
    return (a + d) / 2, (c - b) / 2, (a - d) / 2, (b + c) / 2


@dataclass(frozen=True)
class PrincipalPlane:
    """The plane through a target that holds most of a path's way to it.

    Attributes:
        coordinates: of the path, shape (n, 2), in Frobenius distances; the target is at (0, 0).
        explained: share of the squared distances to the target along each axis, shape (2,); 0 if there are none.
        offset: distance of each point of the path from the plane, shape (n,).
        axes: the directions of the axes, shape (2, d, d), orthonormal.
    """

    coordinates: Array
    explained: Array
    offset: Array
    axes: Array


def principal_plane(matrices: Array, target: Array, previous: Array | None = None) -> PrincipalPlane:
    r"""Project a path of matrices on the two principal directions of ``W - T``.

    They come from the Gram matrix of at most 256 of the points, evenly chosen, as :math:`d^2` may be much larger.

    Args:
        matrices: shape (n, d, d), finite, n >= 1.
        target: T, shape (d, d).
        previous: axes of the plane shown before: order and signs of the new ones follow them, so that the picture does
            not flip. Without them, the path begins on the left, and its largest second coordinate is positive.

    Cost O(n d^2).
    """
    points = (matrices - target).reshape(len(matrices), -1)
    few = points[np.linspace(0, len(points) - 1, min(len(points), MOST)).astype(int)]
    _, vectors = np.linalg.eigh(few @ few.T)
    axes = orthonormal_pair(vectors[:, ::-1][:, :2].T @ few)
    if previous is None:
        first = points @ axes.T
        signs = np.array([-first[0, 0], first[np.abs(first[:, 1]).argmax(), 1]])
    else:
        overlap = axes @ previous.reshape(2, -1).T
        if abs(overlap[0, 1]) + abs(overlap[1, 0]) > abs(overlap[0, 0]) + abs(overlap[1, 1]):
            axes, overlap = axes[::-1], overlap[::-1]
        signs = overlap.diagonal()
    axes = np.where(signs < 0, -1.0, 1.0)[:, None] * axes
    coordinates = points @ axes.T
    squares = np.square(coordinates).sum(0)
    total = float(np.square(points).sum())
    return PrincipalPlane(
        coordinates=coordinates,
        explained=squares / total if total > 0 else squares,
        offset=np.linalg.norm(points - coordinates @ axes, axis=1),
        axes=axes.reshape(2, *target.shape),
    )


def orthonormal_pair(rows: Array) -> Array:
    """Return two orthonormal rows, shape (2, m), m >= 3: the span of at most two given ones, else unit vectors.

    What of a row stands out from the rows before it by less than 1e-7 of the longest is noise and not a direction.
    """
    longest = np.linalg.norm(rows, axis=1).max()
    candidates = [(row, NOISE * longest) for row in rows] + [(unit, 0.5) for unit in np.eye(3, rows.shape[1])]
    found: list[Array] = []
    for row, least in candidates:
        rest = row
        for axis in found:
            rest = rest - np.dot(rest, axis) * axis
        length = np.linalg.norm(rest)
        if len(found) < 2 and length > least:
            found.append(rest / length)
    return np.stack(found)
