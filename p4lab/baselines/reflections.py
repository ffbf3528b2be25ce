"""Products of Householder reflections, applied in blocks."""

import torch
from torch import Tensor

from p4lab.baselines.layer import outside
from p4lab.errors import OptionError
from p4lab.p4.orthogonal import LARGEST_ERROR

BLOCK = 32
"""So many reflections are applied together: enough for fast products, and few enough to stay far below O(d^3)."""


def reflect(x: Tensor, vectors: Tensor, transposed: bool = False) -> Tensor:
    r"""Return rows multiplied by a product of Householder reflections, ``x Q^T`` (or ``x Q``).

    .. math:: Q = H_1 \cdots H_k, \qquad H_i = I - 2 \frac{v_i v_i^T}{|v_i|^2}, \qquad
              H_1 \cdots H_m = I - V^T T V, \quad T^{-1} = \mathrm{striu}(V V^T) + \tfrac{1}{2} \mathrm{diag}(V V^T)

    Args:
        x: rows, shape (n, d).
        vectors: the v_i as rows, shape (k, d), none of them 0.
        transposed: whether Q^T is applied to each row instead of Q.

    Returns:
        Shape (n, d), differentiable. Cost O(n d k + d k BLOCK).

    Source: Joffrain et al. (2006) for T; Mathiasen et al., arXiv:2009.13977, for blocks in training.

    Example:
        >>> reflect(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
        tensor([[-1.,  2.]])
    """
    blocks = vectors.split(BLOCK)
    for v in blocks if transposed else reversed(blocks):
        gram = v @ v.t()
        t_inverse = gram.triu(1) + (0.5 * gram.diagonal()).diag()
        z = x @ v.t()
        if transposed:
            z = torch.linalg.solve_triangular(t_inverse, z, upper=True, left=False)
        else:
            z = torch.linalg.solve_triangular(t_inverse, z.t(), upper=True).t()
        x = torch.addmm(x, z, v, alpha=-1)
    return x


def factorize(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` Householder vectors and the rest of a matrix: ``matrix = H_1 ... H_count rest``.

    Args:
        matrix: shape (d, d).
        count: at most d; with d of them the rest is upper triangular for any matrix.

    Returns:
        ``(vectors, rest)`` of shapes (count, d) and (d, d); no vector is 0. Cost O(d^3).
    """
    vectors = torch.geqrf(matrix)[0].tril(-1)
    # Each v_i has a 1 at i. Where LAPACK skips a reflection, ours is by e_i: the rest then has row i negated.
    vectors = (vectors + torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)).t()[:count].contiguous()
    return vectors, reflect(matrix.t(), vectors, transposed=True).t()


def count_reflections(reflections: int | None, dim: int) -> int:
    """Return a number of reflections, ``dim`` where it is None.

    Raises:
        OptionError: outside of 1 ... dim.
    """
    if reflections is not None and not 1 <= reflections <= dim:
        raise OptionError(f"reflections={reflections!r}: expected a whole number from 1 to dim = {dim}")
    return dim if reflections is None else reflections


def check_rest(rest: Tensor, count: int) -> None:
    """Raise OptionError unless ``rest``, what ``count`` reflections left of a start, is 0 to rounding."""
    error = float(rest.abs().max())
    if not error <= LARGEST_ERROR:
        outside(f"{count} reflections", f"they leave an error of {error:.3g}", "give the layer more of them")
