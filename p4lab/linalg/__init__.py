"""Tensors in, tensors out: low-rank updates, inverse refinement, gradient sketches, initial matrices."""

from p4lab.linalg.initial import initial_matrix, inverse_and_logabsdet
from p4lab.linalg.low_rank import (
    capacitance,
    inverse_and_det,
    small_inverse,
    small_slogdet,
    wide_residual,
    woodbury_update_,
)
from p4lab.linalg.refine import refine_inverse_, residual
from p4lab.linalg.sketch import orthonormal_rows, row_space_sketch

__all__ = [
    "capacitance",
    "initial_matrix",
    "inverse_and_det",
    "inverse_and_logabsdet",
    "orthonormal_rows",
    "refine_inverse_",
    "residual",
    "row_space_sketch",
    "small_inverse",
    "small_slogdet",
    "wide_residual",
    "woodbury_update_",
]
