"""Back to orthonormal columns, or to known singular values: Newton-Schulz, polar and singular value decompositions."""

import torch
from torch import Tensor

from p4lab.errors import SingularMatrixError

SMALLEST_SINGULAR_VALUE = 1e-7
"""A matrix has a nearest orthogonal one if no singular value is smaller than this part of the largest one."""


def orthogonality_error(q: Tensor) -> Tensor:
    """Return ``max |Q^T Q - I|``, a scalar that is 0 for orthonormal columns, shape (n, d). Cost O(n d^2)."""
    return (q.t() @ q - torch.eye(q.shape[1], dtype=q.dtype, device=q.device)).abs().max()


def polar_step(q: Tensor) -> tuple[Tensor, Tensor]:
    r"""Bring nearly orthonormal columns closer to the nearest orthonormal ones, if that converges.

    .. math:: Q \leftarrow Q + \tfrac{1}{2} Q\, (I - Q^T Q)

    Args:
        q: shape (n, d).

    Returns:
        The improved matrix, and ``max |Q^T Q - I|`` of it. It is ``q`` itself, and the scalar 1 or more, unless
        ``|I - Q^T Q| < 1`` in the Frobenius norm, where the iteration is certain to converge.

    Cost: three products, O(n d^2); no host synchronisation.
    Source: Bjorck and Bowie (1971); Higham (2008), section 8.3.

    Example:
        >>> q = 1.01 * torch.eye(2)
        >>> for _ in range(3): q, left = polar_step(q)
        >>> bool(left < 1e-6)
        True
    """
    r = torch.addmm(torch.eye(q.shape[1], dtype=q.dtype, device=q.device), q.t(), q, alpha=-1)
    converges = torch.linalg.vector_norm(r) < 1
    q = q + torch.where(converges, 0.5 * (q @ r), torch.zeros((), dtype=q.dtype, device=q.device))
    return q, orthogonality_error(q)


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with orthonormal columns nearest to a given one, shape (n, d), n >= d (polar decomposition).

    Raises:
        SingularMatrixError: its rank is not full, up to what is the rounding of float32, or not all is finite.

    Cost O(n d^2); waits for the device.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise SingularMatrixError("no orthogonal matrix is nearest to one with entries that are nan or infinite")
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    largest, smallest = float(values[0]), float(values[-1])
    if not smallest > SMALLEST_SINGULAR_VALUE * largest:
        raise SingularMatrixError(
            f"no orthogonal matrix is nearest: the smallest singular value is {smallest:.3g} (of the largest, "
            f"{largest:.3g}, at least {SMALLEST_SINGULAR_VALUE} is needed); take one of full rank, or average over a "
            "shorter time"
        )
    return left @ right


def with_singular_values(matrix: Tensor, values: Tensor) -> Tensor:
    r"""Return the matrix nearest to a given one of those with given singular values.

    .. math:: U \operatorname{diag}(s) V^T, \qquad M = U \operatorname{diag}(\sigma) V^T

    Args:
        matrix: M, shape (m, n).
        values: s, descending, shape (min(m, n),).

    Returns:
        Shape (m, n). Cost O(m n min(m, n)): a singular value decomposition.

    Source: von Neumann's trace inequality (Mirsky 1975).

    Example:
        >>> with_singular_values(torch.tensor([[3.0, 0.0], [0.0, 0.1]]), torch.tensor([2.0, 1.0])).abs()
        tensor([[2., 0.],
                [0., 1.]])
    """
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left * values) @ right
