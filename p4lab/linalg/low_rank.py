"""Rank-k updates of a matrix together with its inverse and determinant.

The k vectors of a perturbation are stored as rows: ``u`` and ``v`` have shape (k, d) and the perturbed matrix is
``A + u^T v``. Everything of size k x k goes through `capacitance`: C = I_k + v A^-1 u^T.
"""

import torch
from torch import Tensor

SMALLEST_BLOCK = 128
"""`wide_residual` converts at least so many rows at a time."""


def capacitance(q: Tensor, u: Tensor) -> Tensor:
    r"""Return the capacitance matrix of a rank-k update, whose determinant is the update's determinant ratio.

    .. math:: C = I_k + q u^T, \qquad q = v A^{-1}, \qquad \det(A + u^T v) = \det A \, \det C

    Args:
        q: rows ``v A^-1``, shape (k, d).
        u: rows of the update, shape (k, d).

    Returns:
        Shape (k, k), differentiable. Cost O(d k^2).

    Source: matrix determinant lemma; for k = 1 arXiv:2010.07033, section 2.2.

    Example:
        >>> capacitance(torch.tensor([[1.0, 0.0]]), torch.tensor([[-2.0, 5.0]]))
        tensor([[-1.]])
    """
    if u.shape[0] == 1:
        return 1 + (q * u).sum().view(1, 1)
    return torch.addmm(torch.eye(u.shape[0], dtype=u.dtype, device=u.device), q, u.t())


def small_inverse(c: Tensor) -> Tensor:
    """Return the inverse of a small matrix, not finite if it is singular; nothing is raised, so no GPU is stalled.

    Args:
        c: shape (k, k).

    Returns:
        Shape (k, k), differentiable. Cost O(k^3).
    """
    return c.reciprocal() if c.shape[0] == 1 else torch.linalg.inv_ex(c).inverse


def small_slogdet(c: Tensor) -> tuple[Tensor, Tensor]:
    """Return sign and log|det| of a small matrix, 0 and -inf if it is singular.

    Args:
        c: shape (k, k).

    Returns:
        ``(sign, log|det c|)``, scalars, the second one differentiable. Cost O(k^3).
    """
    if c.shape[0] == 1:
        f = c.view(())
        return f.sign(), f.abs().log()
    sign, logabsdet = torch.linalg.slogdet(c)
    return sign, logabsdet


def inverse_and_det(c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(c^-1, sign, log|det c|)`` of a small matrix: `small_inverse` and `small_slogdet` together."""
    return small_inverse(c), *small_slogdet(c)


def wide_residual(a: Tensor, p: Tensor, b: Tensor) -> Tensor:
    r"""Return the residual of a linear system, computed in a wider precision because few of its digits survive.

    .. math:: b - A p

    Args:
        a: matrix, shape (d, d).
        p: approximate solution in the wide dtype (float64, or that of ``a``), shape (d, k).
        b: right-hand sides, shape (d, k).

    Returns:
        Shape (d, k), in the dtype of ``p``. Cost O(d^2 k); A is converted by blocks of
        128 rows or more: no d x d temporary for larger d.
    """
    if a.dtype == p.dtype:
        return torch.addmm(b, a, p, alpha=-1)
    size = max(SMALLEST_BLOCK, a.shape[0] // 8)
    if a.shape[0] <= size:
        return torch.addmm(b.to(p.dtype), a.to(p.dtype), p, alpha=-1)
    blocks = zip(b.split(size), a.split(size), strict=True)
    return torch.cat([torch.addmm(rhs.to(p.dtype), rows.to(p.dtype), p, alpha=-1) for rhs, rows in blocks])
