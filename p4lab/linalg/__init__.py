"""Tensors in, tensors out: low-rank updates, inverse refinement, gradient sketches, initial matrices."""

from p4lab.linalg.cayley import cayley_core, cayley_pairs_core, moved_momentum, reflections_core, skew_sketch
from p4lab.linalg.givens import turn_planes
from p4lab.linalg.initial import initial_frame, initial_matrix, inverse_and_logabsdet
from p4lab.linalg.low_rank import (
    capacitance,
    inverse_and_det,
    small_inverse,
    small_slogdet,
    wide_residual,
)
from p4lab.linalg.operators import gradient_rows, operator_sketch
from p4lab.linalg.polar import nearest_orthogonal, orthogonality_error, polar_step, with_singular_values
from p4lab.linalg.refine import better_of, factorized, refined_inverse, residual
from p4lab.linalg.rotation import (
    complete_frame,
    low_rank_rotation,
    orthonormalized_rows,
    pairing,
    row_defect,
)
from p4lab.linalg.sketch import orthonormal_rows, row_space_sketch, usable_rows
from p4lab.linalg.symmetric import (
    congruence,
    definite,
    definiteness_defect,
    symmetric_update,
    symmetrized,
)
from p4lab.linalg.transforms import autocasts, is_exporting, is_transforming
from p4lab.linalg.turning import cayley_turn
from p4lab.linalg.unimodular import unit_determinant

__all__ = [
    "autocasts",
    "better_of",
    "capacitance",
    "cayley_core",
    "cayley_pairs_core",
    "cayley_turn",
    "complete_frame",
    "congruence",
    "definite",
    "definiteness_defect",
    "factorized",
    "gradient_rows",
    "initial_frame",
    "initial_matrix",
    "inverse_and_det",
    "inverse_and_logabsdet",
    "is_exporting",
    "is_transforming",
    "low_rank_rotation",
    "moved_momentum",
    "nearest_orthogonal",
    "operator_sketch",
    "orthogonality_error",
    "orthonormal_rows",
    "orthonormalized_rows",
    "pairing",
    "polar_step",
    "refined_inverse",
    "reflections_core",
    "residual",
    "row_defect",
    "row_space_sketch",
    "skew_sketch",
    "small_inverse",
    "small_slogdet",
    "symmetric_update",
    "symmetrized",
    "turn_planes",
    "unit_determinant",
    "usable_rows",
    "wide_residual",
    "with_singular_values",
]
