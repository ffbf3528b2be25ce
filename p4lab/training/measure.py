"""What is measured of a model now and then."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p4lab.p4 import P4Inv


def figures(model: nn.Module, watched: Tensor | None) -> dict[str, float]:
    """Return determinant, its error, inverse residual and condition number of a model.

    Args:
        model: any model; its P4Inv layers are measured, or else the watched matrix.
        watched: a (d, d) matrix, or None.

    Returns:
        logabsdet and sign: of the model's whole linear part (what its own ``logabsdet()`` and ``sign()`` say, if it has
        them); logabsdet_error: largest distance of a layer's carried log|det W| from a factorization of W in float64;
        residual: largest max |A A^-1 - I| of a layer; condition: largest condition number of a layer. NaN where there
        is nothing to measure.

    Cost O(d^3) per layer.
    """
    layers = [module for module in model.modules() if isinstance(module, P4Inv)]
    weights = [layer.weight for layer in layers] or ([] if watched is None else [watched])
    by_size: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        by_size.setdefault(weight.shape, []).append(weight)
    stacks = [torch.stack(same) for same in by_size.values()]
    values = [torch.linalg.svdvals(stack) for stack in stacks]
    logabsdet, sign = _determinant(model, layers, watched)
    return {
        "logabsdet": logabsdet,
        "sign": sign,
        "logabsdet_error": _largest([_determinant_error(layer) for layer in layers]),
        "residual": _largest([layer.violation() for layer in layers]),
        "condition": _largest([(value[:, 0] / value[:, -1]).max() for value in values]),
    }


def eigenvalues(matrix: NDArray[Any]) -> NDArray[Any]:
    """Return the eigenvalues of a matrix, shape (d, d), complex, shape (d,); NaN if it is not finite. Cost O(d^3).

    By torch and not by numpy, whose threads nobody limits: on a busy machine they wait for each other. LAPACK's routine
    may crash the process on NaN, so that it must not see any.
    """
    if not np.isfinite(matrix).all():
        return np.full(len(matrix), np.nan, dtype=np.result_type(matrix, np.complex64))
    return torch.linalg.eigvals(torch.from_numpy(matrix)).numpy()


def _determinant(model: nn.Module, layers: list[P4Inv], watched: Tensor | None) -> tuple[float, float]:
    if layers:
        parts = [layer.logabsdet() for layer in layers]
        own = getattr(model, "logabsdet", None)
        logabsdet = own() if callable(own) else torch.stack(parts).sum()
        sign = torch.stack([layer.sign() for layer in layers]).prod()
        return float(logabsdet), float(sign)
    if watched is None:
        return math.nan, math.nan
    sign, logabsdet = torch.linalg.slogdet(watched.cpu().double())
    return float(logabsdet), float(sign)


def _determinant_error(layer: P4Inv) -> Tensor:
    a, u, v = (tensor.cpu().double() for tensor in (layer.frozen_weight, layer.u, layer.v))
    return (layer.logabsdet().cpu() - torch.linalg.slogdet(a + u.t() @ v)[1]).abs()


def _largest(figures: list[Tensor]) -> float:
    return float(torch.stack(figures).max()) if figures else math.nan
