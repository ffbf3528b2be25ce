"""Iterative refinement of an approximate inverse."""

import torch
from torch import Tensor

from p4lab.errors import OptionError

ORDERS = (2, 3, 7)
"""`refined_inverse` has formulas for these orders."""


def residual(a: Tensor, x: Tensor) -> Tensor:
    r"""Return the largest entry of ``|A X - I|``.

    Args:
        a: shape (d, d).
        x: approximate inverse, shape (d, d).

    Returns:
        Scalar on the device of ``a``. Cost O(d^3).
    """
    return _defect(a, x).abs().max()


def refined_inverse(a: Tensor, x: Tensor, order: int = 3) -> tuple[Tensor, Tensor]:
    r"""Improve an approximate inverse by one hyperpower iteration, if that converges.

    .. math:: R = I - A X, \qquad X \leftarrow X \sum_{i=0}^{p-1} R^i

    Written as ``X + X (R + R^2 + ...)``: the correction is small, so every order keeps the same rounding floor
    (the published order-7 form with coefficients in the hundreds loses digits in float32).

    Args:
        a: matrix, shape (d, d).
        x: approximate inverse, shape (d, d).
        order: 2 (Newton-Schulz, 2 products of d x d), 3 (3 products) or 7 (Soleymani's order, 5 products).

    Returns:
        The improved inverse, and ``max |A X - I|`` of it (a scalar; one more product of d x d). It is ``x`` itself
        unless the iteration converges, which is certain when some norm of R is below 1 (the largest of row sums, of
        column sums, or Frobenius), and unless rounding makes it worse, as it does near to a singular matrix.

    Raises:
        OptionError: ``order`` is none of 2, 3, 7.

    Cost O(d^3), no host synchronisation. Source: arXiv:2010.07033, section 2.3 (stabilization); Soleymani (2014).

    Example:
        >>> a = torch.diag(torch.tensor([2.0, 4.0])); x = torch.diag(torch.tensor([0.4, 0.3]))
        >>> for _ in range(4): x, error = refined_inverse(a, x, order=2)
        >>> x.diagonal()
        tensor([0.5000, 0.2500])
    """
    if order not in ORDERS:
        raise OptionError(f"refinement of order {order!r} is not known: choose one of {ORDERS}")
    r = _defect(a, x)
    series = r
    if order == 3:
        series = torch.addmm(r, r, r)
    elif order == 7:
        r2 = r @ r
        series = (r + r2).add_(torch.eye(r.shape[0], dtype=r.dtype, device=r.device)) @ torch.addmm(r, r2, r2)
    converges = _smallest_norm(r) < 1
    # An inverse that is not finite gives NaN norms, which compare as false: then x is left alone, too.
    refined = x + torch.where(converges, x @ series, torch.zeros((), dtype=x.dtype, device=x.device))
    return better_of((x, r.abs().max()), (refined, residual(a, refined)))


def better_of(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return that of two pairs (tensor, error) whose error is smaller, decided on the device; the first if they tie."""
    better = second[1] < first[1]
    return torch.where(better, second[0], first[0]), torch.where(better, second[1], first[1])


def factorized(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Return what there is to know of a matrix: inverse, sign and log|det|, and a bound on its condition number.

    Args:
        a: shape (d, d), in the wide dtype.

    Returns:
        ``(A^-1, sign, log|det A|, |A|_F |A^-1|_F)``; not finite if A is singular or not finite, and nothing is raised,
        so no GPU is stalled. Cost O(d^3).
    """
    inverse = torch.linalg.inv_ex(a).inverse
    sign, logabsdet = torch.linalg.slogdet(a)
    return inverse, sign, logabsdet, torch.linalg.vector_norm(a) * torch.linalg.vector_norm(inverse)


def _defect(a: Tensor, x: Tensor) -> Tensor:
    return torch.addmm(torch.eye(a.shape[0], dtype=a.dtype, device=a.device), a, x, alpha=-1)


def _smallest_norm(r: Tensor) -> Tensor:
    absolute = r.abs()
    rows, columns = absolute.sum(0).max(), absolute.sum(1).max()
    return torch.minimum(torch.minimum(rows, columns), torch.linalg.vector_norm(r))
