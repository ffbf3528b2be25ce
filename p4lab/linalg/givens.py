"""Rotations in coordinate planes."""

import torch
from torch import Tensor


def turn_planes(x: Tensor, order: Tensor, place: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    r"""Rotate the last dimension by Givens rotations in disjoint planes.

    .. math:: (y_i, y_j) = (c\, x_i - s\, x_j,\; s\, x_i + c\, x_j)

    Args:
        x: shape (..., d).
        order: permutation of the coordinates, shape (d,): the first ``d // 2`` of them are turned towards the next
            ``d // 2``; for odd d the last one stays.
        place: the inverse permutation ``order.argsort()``, shape (d,), which puts each coordinate back to where it was.
        cos: shape (d // 2,).
        sin: shape (d // 2,); its negative gives the inverse rotation.

    Returns:
        Shape (..., d), differentiable. Cost O(batch d).

    Example:
        >>> order = torch.tensor([2, 1, 0])
        >>> turn_planes(torch.tensor([1.0, 2.0, 3.0]), order, order.argsort(), torch.zeros(1), torch.ones(1))
        tensor([ 1.,  3., -2.])
    """
    half = x.shape[-1] // 2
    first, second, rest = x.index_select(-1, order).split([half, half, x.shape[-1] - 2 * half], dim=-1)
    parts = (cos * first - sin * second, sin * first + cos * second, rest)
    return torch.cat(parts, dim=-1).index_select(-1, place)
