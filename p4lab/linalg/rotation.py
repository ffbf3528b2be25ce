"""Rotations that differ from the identity by low rank: the Cayley map of a low-rank skew-symmetric matrix."""

import torch
from torch import Tensor

from p4lab.linalg.low_rank import small_inverse


def low_rank_rotation(u: Tensor, v: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the rows and the core of a rotation that turns the span of orthonormal rows ``v`` towards ``u``.

    .. math:: F = (I - K/2)^{-1} (I + K/2) = I + P^T C P, \qquad K = 2 (\tilde u^T v - v^T \tilde u), \\
              P = \binom{\tilde u}{v}, \quad \tilde u = u / \sqrt{4 + |u|^2}, \quad
              C = -2 \left( \begin{pmatrix} 0 & I_k \\ -I_k & 0 \end{pmatrix} + P P^T \right)^{-1}

    F is orthogonal with determinant 1 for every u, and the identity for u = 0. Because :math:`\tilde u` is shorter than
    1 the 2k x 2k matrix is well conditioned, so F is orthogonal to rounding for every finite u, too, and all angles of
    one rotation stay below a right angle.

    Args:
        u: trained rows, shape (k, n).
        v: orthonormal rows, shape (k, n).
        pairs: `pairing` of k.

    Returns:
        ``(P, C)``, shapes (2k, n) and (2k, 2k), differentiable. Cost O(n k^2 + k^3).

    Source: Woodbury's identity for the Cayley map; the bound on the length is p4lab's.

    Example:
        >>> u, v = torch.tensor([[0.3, 5.0]]), torch.tensor([[1.0, 0.0]])
        >>> p, c = low_rank_rotation(u, v, pairing(1))
        >>> f = torch.eye(2) + p.T @ c @ p
        >>> torch.allclose(f @ f.T, torch.eye(2), atol=1e-6)
        True
    """
    p = torch.cat((u * (u.square().sum() + 4).rsqrt(), v))
    return p, small_inverse(torch.addmm(pairs, p, p.t(), alpha=-0.5))


def pairing(k: int, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """Return the constant ``[[0, -I], [I, 0]] / 2`` of `low_rank_rotation`, shape (2k, 2k)."""
    half = 0.5 * torch.eye(2 * k, dtype=dtype, device=device)
    return torch.cat((-half[k:], half[:k]))


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


def orthonormalized_rows(frame: Tensor, length: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""Bring the rows of a matrix closer to being orthogonal and of one length by one Newton-Schulz step.

    .. math:: R \leftarrow R + \tfrac12 (I - R R^T / c^2)\, R

    Args:
        frame: shape (p, n), p <= n.
        length: c.

    Returns:
        The improved matrix, and ``max |R R^T / c^2 - I|`` of it. It is ``frame`` itself unless the step converges
        (Frobenius norm of I - R R^T / c^2 below 1). Cost O(p^2 n).

    Source: Newton-Schulz iteration for the polar factor (Higham 2008, section 8.3).
    """
    defect = row_defect(frame, length)
    converges = torch.linalg.vector_norm(defect) < 1
    zero = torch.zeros((), dtype=frame.dtype, device=frame.device)
    frame = frame + torch.where(converges, 0.5 * defect @ frame, zero)
    return frame, row_defect(frame, length).abs().max()


def row_defect(frame: Tensor, length: float = 1.0) -> Tensor:
    """Return ``I - R R^T / c^2`` of a frame R of shape (p, n). Cost O(p^2 n)."""
    eye = torch.eye(frame.shape[0], dtype=frame.dtype, device=frame.device)
    return torch.addmm(eye, frame, frame.t(), alpha=-1 / length**2)
