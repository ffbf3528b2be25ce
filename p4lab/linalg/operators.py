"""Dominant directions of a matrix that is known by what it does to a few rows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def operator_sketch(operator: Callable[[Tensor], Tensor], omega: Tensor) -> Tensor:
    r"""Sketch the dominant range of a symmetric or skew-symmetric matrix S that is never formed.

    .. math:: Y = S^2\, \Omega

    one step of randomized subspace iteration, with the length taken out in between, so that small gradients do not
    underflow.

    Args:
        operator: applies S to each row, shape (k, d) to (k, d).
        omega: random rows, shape (k, d).

    Returns:
        Rows that span the sketch, shape (k, d); not finite if S is zero. Cost: the operator twice.

    Source: Halko, Martinsson, Tropp (2011), algorithm 4.4 with one power step.
    """
    rows = operator(omega)
    return operator(rows / torch.linalg.vector_norm(rows))


def gradient_rows(x: Tensor, g: Tensor, rows: Tensor) -> Tensor:
    """Apply the weight gradient ``G = g^T x`` of a linear layer to rows: ``G r`` for each row r.

    Args:
        x: inputs, shape (batch, d_in).
        g: gradient of the loss at the outputs, shape (batch, d_out).
        rows: shape (k, d_in); swap x and g for ``G^T r``.

    Returns:
        Shape (k, d_out). Cost O(batch d k).
    """
    return nn.functional.linear(rows, x) @ g
