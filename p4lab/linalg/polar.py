"""Back to the orthogonal group: one Newton-Schulz step of the polar decomposition."""

import torch
from torch import Tensor


def orthogonality_error(q: Tensor) -> Tensor:
    """Return ``max |Q^T Q - I|``, a scalar that is 0 for an orthogonal Q, shape (d, d). Cost O(d^3)."""
    return (q.t() @ q - torch.eye(len(q), dtype=q.dtype, device=q.device)).abs().max()


def polar_step(q: Tensor) -> tuple[Tensor, Tensor]:
    r"""Bring a nearly orthogonal matrix closer to the nearest orthogonal one, if that converges.

    .. math:: Q \leftarrow Q + \tfrac{1}{2} Q\, (I - Q^T Q)

    Args:
        q: shape (d, d).

    Returns:
        The improved matrix, and ``max |Q^T Q - I|`` of it. It is ``q`` itself, and the scalar 1 or more, unless
        ``|I - Q^T Q| < 1`` in the Frobenius norm, where the iteration is certain to converge.

    Cost: three products of d x d, no host synchronisation. Source: Bjorck and Bowie (1971); Higham (2008), section 8.3.

    Example:
        >>> q = 1.01 * torch.eye(2)
        >>> for _ in range(3): q, left = polar_step(q)
        >>> bool(left < 1e-6)
        True
    """
    r = torch.addmm(torch.eye(len(q), dtype=q.dtype, device=q.device), q.t(), q, alpha=-1)
    converges = torch.linalg.vector_norm(r) < 1
    q = q + torch.where(converges, 0.5 * (q @ r), torch.zeros((), dtype=q.dtype, device=q.device))
    return q, orthogonality_error(q)


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """Return the orthogonal factor of the polar decomposition of an invertible matrix (d, d). Cost O(d^3)."""
    left, _, right = torch.linalg.svd(matrix)
    return left @ right
