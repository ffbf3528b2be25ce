"""Matrices of determinant 1 and -1."""

import torch
from torch import Tensor


def unit_determinant(a: Tensor, a_inv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Bring ``|det A|`` back to 1, with the inverse, by scaling one row of A and that column of A^-1.

    .. math:: a_i \leftarrow a_i / |\det A|, \qquad i = \arg\min_i |a_i|\,|A^{-1} e_i|

    A common factor ``|det A|^{-1/d}`` of all rows would be lost to rounding once it differs from 1 by less than the
    dtype can tell; one row takes it d times as strong. It is the row whose own rounding moves the determinant least.

    Args:
        a: matrix, shape (d, d).
        a_inv: its inverse, shape (d, d).

    Returns:
        The scaled matrix and inverse, and ``|log|det A||`` of it, in float64 (float32 on mps); not finite, with nothing
        done, where A is singular or not finite.

    Cost O(d^3): two factorizations in the wide dtype. No host synchronisation.

    Example:
        >>> a = torch.diag(torch.tensor([2.0, 3.0])); a_inv = a.inverse()
        >>> a, a_inv, error = unit_determinant(a, a_inv)
        >>> bool(error < 1e-6), a.diagonal()
        (True, tensor([0.3333, 3.0000]))
    """
    logabsdet = _logabsdet(a)
    factor = torch.where(torch.isfinite(logabsdet), -logabsdet, torch.zeros_like(logabsdet)).exp()
    gain = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(a_inv, dim=0)
    chosen = torch.arange(a.shape[0], device=a.device) == gain.argmin()
    scale = torch.where(chosen, factor, torch.ones_like(factor)).to(a.dtype)
    a, a_inv = a * scale[:, None], a_inv / scale
    return a, a_inv, _logabsdet(a).abs()


def _logabsdet(a: Tensor) -> Tensor:
    return torch.linalg.slogdet(a.to(torch.float32 if a.device.type == "mps" else torch.float64)).logabsdet
