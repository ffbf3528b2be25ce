"""Congruences with low-rank factors: updates that keep a symmetric positive definite matrix as it is."""

import torch
from torch import Tensor


def congruence(a: Tensor, u: Tensor, v: Tensor) -> Tensor:
    r"""Return rows ``w`` that express a congruence with ``F = I + u^T v`` as a symmetric rank-2k update.

    .. math:: F^T A F = A + v^T w + w^T v, \qquad w = u A + \tfrac12 (u A u^T)\, v

    Args:
        a: symmetric matrix, shape (d, d).
        u: shape (k, d).
        v: shape (k, d).

    Returns:
        Shape (k, d), differentiable. Cost O(d^2 k).

    Example:
        >>> u, v = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> symmetric_update(torch.eye(2), v, congruence(torch.eye(2), u, v))
        tensor([[2., 1.],
                [1., 1.]])
    """
    ua = u @ a
    return torch.addmm(ua, ua @ u.t(), v, alpha=0.5)


def symmetric_update(a: Tensor, v: Tensor, w: Tensor, alpha: int = 1) -> Tensor:
    """Return ``a + alpha (v^T w + w^T v)``, differentiable.

    Args:
        a: symmetric matrix, shape (d, d).
        v: shape (k, d).
        w: shape (k, d).
        alpha: factor of the update.

    Returns:
        Shape (d, d). Cost O(d^2 k).
    """
    return torch.addmm(a, torch.cat((v, w)).t(), torch.cat((w, v)), alpha=alpha)


def symmetrized(a: Tensor) -> Tensor:
    """Return the symmetric part of a matrix of shape (d, d), symmetric to the last bit. Cost O(d^2)."""
    a = torch.lerp(a, a.t(), 0.5)
    return torch.triu(a) + torch.triu(a, 1).t()  # both halves rounded alike


def definiteness_defect(a: Tensor, inverse: Tensor) -> Tensor:
    """Return how far two matrices are from being symmetric positive definite and each other's inverse.

    Args:
        a: shape (d, d).
        inverse: shape (d, d).

    Returns:
        Scalar: the largest entry of ``|A - A^T|``, ``|A^-1 - A^-T|`` and ``|A A^-1 - I|``; infinite if A has no
        Cholesky factor. Cost O(d^3).
    """
    eye = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    parts = (a - a.t(), inverse - inverse.t(), torch.addmm(eye, a, inverse, alpha=-1))
    largest = torch.stack([part.abs().max() for part in parts]).max()
    factored = torch.linalg.cholesky_ex(a).info == 0
    return torch.where(factored, largest, torch.full_like(largest, torch.inf))


def definite(a: Tensor, least: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what there is to know of a positive definite matrix, and make it one if rounding has taken that away.

    Args:
        a: matrix, shape (d, d), of which the symmetric part is taken.
        least: smallest eigenvalue that is left, as a part of the largest; smaller ones are lifted to it.

    Returns:
        ``(A, A^-1, ln det A, condition number)``, both matrices symmetric to the last bit; all NaN if ``a`` is not
        finite. Cost O(d^3): an eigendecomposition.
    """
    finite = torch.isfinite(a).all()
    eye = torch.eye(a.shape[0], dtype=a.dtype, device=a.device)
    values, vectors = torch.linalg.eigh(symmetrized(torch.where(finite, a, eye)))
    lifted = torch.maximum(values, least * values[-1])
    nothing = torch.where(finite, 0.0, torch.nan).to(a.dtype)
    # Without a small eigenvalue the matrix itself is kept, to its last digit.
    whole = torch.where((lifted == values).all(), symmetrized(a), symmetrized((vectors * lifted) @ vectors.t()))
    inverse = symmetrized((vectors / lifted) @ vectors.t())
    return whole + nothing, inverse + nothing, lifted.log().sum() + nothing, lifted[-1] / lifted[0] + nothing
