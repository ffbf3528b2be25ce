"""Iterative refinement of an approximate inverse."""

import torch
from torch import Tensor

from p4lab.errors import OptionError

ORDERS = (2, 3, 7)


def residual(a: Tensor, x: Tensor) -> Tensor:
    r"""Return the largest entry of ``|A X - I|``.

    Args:
        a: shape (d, d).
        x: approximate inverse, shape (d, d).

    Returns:
        Scalar on the device of ``a``. Cost O(d^3).
    """
    return _defect(a, x).abs().max()


def refine_inverse_(a: Tensor, x: Tensor, order: int = 3) -> Tensor:
    r"""Improve an approximate inverse in place by one hyperpower iteration, if that converges.

    .. math:: R = I - A X, \qquad X \leftarrow X \sum_{i=0}^{p-1} R^i

    Written as ``X + X (R + R^2 + ...)``: the correction is small, so every order keeps the same rounding floor
    (the published order-7 form with coefficients in the hundreds loses digits in float32).

    Args:
        a: matrix, shape (d, d).
        x: approximate inverse, shape (d, d), changed only if the iteration converges, which is certain when
            some norm of R is below 1 (the largest of row sums, of column sums, or Frobenius).
        order: 2 (Newton-Schulz, 2 products of d x d), 3 (3 products) or 7 (Soleymani's order, 5 products).

    Returns:
        Scalar ``max |A X - I|`` after the step; 1 or more says that nothing was done. One more product of d x d.

    Raises:
        OptionError: ``order`` is none of 2, 3, 7.

    Cost O(d^3), no host synchronisation. Source: arXiv:2010.07033, section 2.3 (stabilization); Soleymani (2014).

    Example:
        >>> a = torch.diag(torch.tensor([2.0, 4.0])); x = torch.diag(torch.tensor([0.4, 0.3]))
        >>> for _ in range(4): last = refine_inverse_(a, x, order=2)
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
    x.add_(torch.where(converges, x @ series, torch.zeros((), dtype=x.dtype, device=x.device)))
    return residual(a, x)


def _defect(a: Tensor, x: Tensor) -> Tensor:
    return torch.addmm(torch.eye(a.shape[0], dtype=a.dtype, device=a.device), a, x, alpha=-1)


def _smallest_norm(r: Tensor) -> Tensor:
    absolute = r.abs()
    rows, columns = absolute.sum(0).max(), absolute.sum(1).max()
    return torch.minimum(torch.minimum(rows, columns), torch.linalg.vector_norm(r))
