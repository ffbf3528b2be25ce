"""P4: property-preserving parameter perturbations. The contract, one file per property, the merge schedule."""

from p4lab.p4.average import AveragedWeights
from p4lab.p4.changes import Changes
from p4lab.p4.circulant import P4Circulant
from p4lab.p4.contract import P4Module, Total, alone, fold, fold_inside, p4_modules, penalty
from p4lab.p4.convert import Conversion, Converted, convert
from p4lab.p4.families import FAMILIES, Family
from p4lab.p4.givens import P4Givens
from p4lab.p4.invertible import P4Inv
from p4lab.p4.linear import NOT_FINITE, P4Linear
from p4lab.p4.lipschitz import P4Lipschitz, lipschitz_bound
from p4lab.p4.orthogonal import P4Orthogonal
from p4lab.p4.permutation import MeanPool, P4Permutation
from p4lab.p4.positive_definite import P4PositiveDefinite
from p4lab.p4.presets import EVERYTHING, ORTHOGONAL, PAPER, PRESETS, RECOMMENDED, RELATIVE, RIEMANNIAN, Preset
from p4lab.p4.reflections import P4Reflections
from p4lab.p4.relative import P4Relative
from p4lab.p4.report import Check, MergeReport, MergeStatus
from p4lab.p4.riemannian import P4Riemannian
from p4lab.p4.schedule import MergeSchedule
from p4lab.p4.special_linear import P4SpecialLinear
from p4lab.p4.spectrum import P4Spectrum
from p4lab.p4.stiefel import P4Stiefel

__all__ = [
    "EVERYTHING",
    "FAMILIES",
    "NOT_FINITE",
    "ORTHOGONAL",
    "PAPER",
    "PRESETS",
    "RECOMMENDED",
    "RELATIVE",
    "RIEMANNIAN",
    "AveragedWeights",
    "Changes",
    "Check",
    "Conversion",
    "Converted",
    "Family",
    "MeanPool",
    "MergeReport",
    "MergeSchedule",
    "MergeStatus",
    "P4Circulant",
    "P4Givens",
    "P4Inv",
    "P4Linear",
    "P4Lipschitz",
    "P4Module",
    "P4Orthogonal",
    "P4Permutation",
    "P4PositiveDefinite",
    "P4Reflections",
    "P4Relative",
    "P4Riemannian",
    "P4SpecialLinear",
    "P4Spectrum",
    "P4Stiefel",
    "Preset",
    "Total",
    "alone",
    "convert",
    "fold",
    "fold_inside",
    "lipschitz_bound",
    "p4_modules",
    "penalty",
]
