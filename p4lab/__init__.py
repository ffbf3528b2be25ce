"""p4lab: train neural networks whose weights keep a property by perturbing them instead of re-deriving them."""

from importlib.metadata import PackageNotFoundError, version

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

try:
    __version__ = version("p4lab")
except PackageNotFoundError:  # a checkout on the path that nobody installed
    __version__ = "0+unknown"

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
