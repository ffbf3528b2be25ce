"""Directions for the next perturbation, from a sketch of the weight gradient that is never formed."""

from collections.abc import Callable

import torch
from torch import Tensor


def row_space_sketch(x: Tensor, g: Tensor, omega: Tensor, pull: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    r"""Sketch the dominant row space of the weight gradient ``G = g^T x`` of a linear layer.

    One step of randomized subspace iteration, evaluated from right to left so that G is never formed:

    .. math:: Y^T = G^T G\, \Omega^T = x^T \left(g \left(g^T (x\, \Omega^T)\right)\right)

    Args:
        x: inputs of the layer, shape (batch, d).
        g: gradient of the loss at its outputs, shape (batch, d).
        omega: random rows, shape (k, d).
        pull: symmetric positive map of rows (k, d) that stands between ``g^T`` and ``g`` when the outputs were reached
            through another matrix (training through the inverse); None is the identity.

    Returns:
        Rows that span the sketch, shape (k, d). Cost O(batch d k).

    Source: method of p4lab; Halko, Martinsson, Tropp (2011), algorithm 4.4 with one power step.
    """
    z = (omega @ x.t()) @ g
    if pull is not None:
        z = pull(z)
    z = z / torch.linalg.vector_norm(z)  # g may be tiny near convergence: keep g g^T from underflowing
    return (z @ g.t()) @ x


def usable_rows(y: Tensor, fallback: Tensor) -> Tensor:
    """Return rows as they are, or ``fallback`` where they are all zero or not all finite (decided on the device)."""
    norm = torch.linalg.vector_norm(y)
    return torch.where((norm > 0) & (norm < torch.inf), y, fallback)


def orthonormal_rows(y: Tensor, fallback: Tensor) -> Tensor:
    """Orthonormalize rows, taking ``fallback`` instead of ``y`` where ``y`` is not finite (decided on the device).

    Args:
        y: shape (k, d).
        fallback: shape (k, d), finite.

    Returns:
        Shape (k, d) with orthonormal rows; for k > d the last k - d rows are zero. Cost O(d k^2).

    Example:
        >>> orthonormal_rows(torch.full((1, 2), float("nan")), torch.tensor([[3.0, 0.0]]))
        tensor([[1., 0.]])
    """
    y = usable_rows(y, fallback)
    if y.shape[0] == 1:
        return y / torch.linalg.vector_norm(y)
    rows = torch.linalg.qr(y.t()).Q.t()
    missing = y.shape[0] - rows.shape[0]
    return torch.cat([rows, rows.new_zeros(missing, y.shape[1])]) if missing else rows
