"""Rotations that differ from the identity by low rank: the Cayley map of a low-rank skew-symmetric matrix."""

import torch
from torch import Tensor

from p4lab.linalg.low_rank import small_inverse

LARGEST_SKEW = 2.0


def low_rank_rotation(u: Tensor, v: Tensor, largest: float = LARGEST_SKEW) -> tuple[Tensor, Tensor]:
    r"""Return the two factors of a rotation that turns the span of orthonormal rows ``v`` towards ``u``.

    .. math:: F = (I - K/2)^{-1} (I + K/2) = I - 2 v^T v + l^T m, \qquad K = \hat u^T v - v^T \hat u, \\
              \hat u = u / \sqrt{1 + |u|^2 / s^2} = t v + r, \quad t = \hat u v^T, \\
              m = \left(I_k + \tfrac12 (t - t^T) + \tfrac14 r r^T\right)^{-1} (2 v - r), \quad l = v + \tfrac12 r

    F is orthogonal with determinant 1 for every u, and the identity for u = 0. Because of the bound s on the length of
    :math:`\hat u` the k x k matrix is well conditioned, so F is orthogonal to rounding for every finite u, too.

    Args:
        u: trained rows, shape (k, n).
        v: orthonormal rows, shape (k, n).
        largest: bound s; the angles of one rotation stay below 2 arctan(s / 2).

    Returns:
        ``(l, m)``, both of shape (k, n), differentiable. Cost O(n k^2 + k^3).

    Source: Cayley map by blocks along v and its complement (Schur complement); method of p4lab.

    Example:
        >>> u, v = torch.tensor([[0.3, 5.0]]), torch.tensor([[1.0, 0.0]])
        >>> l, m = low_rank_rotation(u, v)
        >>> f = torch.eye(2) - 2 * v.T @ v + l.T @ m
        >>> torch.allclose(f @ f.T, torch.eye(2), atol=1e-6)
        True
    """
    u = u * torch.rsqrt(1 + u.square().sum() / largest**2)
    t = u @ v.t()
    r = torch.addmm(u, t, v, alpha=-1)
    eye = torch.eye(u.shape[0], dtype=u.dtype, device=u.device)
    z = torch.addmm(eye, r, r.t(), alpha=0.25).add(t - t.t(), alpha=0.5)
    return torch.add(v, r, alpha=0.5), small_inverse(z) @ (2 * v - r)


def complete_frame(block: Tensor) -> Tensor:
    r"""Complete a contraction to a matrix with orthonormal rows.

    .. math:: R = [B,\; (I - B B^T)^{1/2}], \qquad R R^T = I

    Args:
        block: B with spectral norm of at most 1, shape (p, q), float64.

    Returns:
        Shape (p, p + q). Cost O(p^2 (p + q)).

    Source: Halmos dilation.
    """
    left, s, _ = torch.linalg.svd(block, full_matrices=True)
    slack = torch.ones(block.shape[0], dtype=block.dtype, device=block.device)
    slack[: s.shape[0]] = (1 - s.square()).clamp_min(0).sqrt()
    return torch.cat((block, (left * slack) @ left.t()), 1)


def orthonormalize_rows_(frame: Tensor, length: float = 1.0) -> Tensor:
    r"""Bring the rows of a matrix closer to being orthogonal and of one length, in place, by one Newton-Schulz step.

    .. math:: R \leftarrow R + \tfrac12 (I - R R^T / c^2)\, R

    Args:
        frame: shape (p, n), p <= n, changed if the step converges (Frobenius norm of I - R R^T / c^2 below 1).
        length: c.

    Returns:
        Scalar ``max |R R^T / c^2 - I|`` after the step. Cost O(p^2 n).

    Source: Newton-Schulz iteration for the polar factor (Higham 2008, section 8.3).
    """
    defect = row_defect(frame, length)
    converges = torch.linalg.vector_norm(defect) < 1
    frame.add_(torch.where(converges, 0.5 * defect @ frame, torch.zeros((), dtype=frame.dtype, device=frame.device)))
    return row_defect(frame, length).abs().max()


def row_defect(frame: Tensor, length: float = 1.0) -> Tensor:
    """Return ``I - R R^T / c^2`` of a frame R of shape (p, n). Cost O(p^2 n)."""
    eye = torch.eye(frame.shape[0], dtype=frame.dtype, device=frame.device)
    return torch.addmm(eye, frame, frame.t(), alpha=-1 / length**2)
