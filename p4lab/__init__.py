"""p4lab: train neural networks whose weights keep a property by perturbing them instead of re-deriving them."""

from p4lab.errors import P4Error
from p4lab.p4 import (
    EVERYTHING,
    PAPER,
    RECOMMENDED,
    RELATIVE,
    RIEMANNIAN,
    AveragedWeights,
    Conversion,
    MergeReport,
    MergeSchedule,
    P4Inv,
    P4Module,
    P4Relative,
    P4Riemannian,
    convert,
    fold,
    penalty,
)

__version__ = "0.1.0"

__all__ = [
    "EVERYTHING",
    "PAPER",
    "RECOMMENDED",
    "RELATIVE",
    "RIEMANNIAN",
    "AveragedWeights",
    "Conversion",
    "MergeReport",
    "MergeSchedule",
    "P4Error",
    "P4Inv",
    "P4Module",
    "P4Relative",
    "P4Riemannian",
    "convert",
    "fold",
    "penalty",
]
