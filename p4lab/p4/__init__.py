"""P4: property-preserving parameter perturbations. The contract, one file per property, the merge schedule."""

from p4lab.p4.contract import Check, MergeReport, MergeStatus, P4Module, fold, p4_modules, penalty
from p4lab.p4.invertible import P4Inv
from p4lab.p4.presets import PAPER, PRESETS, RECOMMENDED, Preset
from p4lab.p4.schedule import MergeSchedule

__all__ = [
    "PAPER",
    "PRESETS",
    "RECOMMENDED",
    "Check",
    "MergeReport",
    "MergeSchedule",
    "MergeStatus",
    "P4Inv",
    "P4Module",
    "Preset",
    "fold",
    "p4_modules",
    "penalty",
]
