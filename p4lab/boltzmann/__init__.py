"""Boltzmann distributions: weights, losses, temperature-steerable flows, and what comes after the flow."""

from p4lab.boltzmann.average import GroupAverage, representatives
from p4lab.boltzmann.corrected import Corrected, annealed, chains
from p4lab.boltzmann.losses import ReducedEnergy, by_energy, by_example, compress, mixed
from p4lab.boltzmann.mbar import Mbar
from p4lab.boltzmann.temperature import SteerableFlow, steerable_flow
from p4lab.boltzmann.tempered import (
    PULL,
    AtTemperature,
    Steered,
    TemperedFlow,
    by_consistency,
    mean_energy,
    of_temperature,
    self_consistency,
    spread_out,
    widening,
)
from p4lab.boltzmann.weights import (
    Histogram,
    clipped,
    clipped_ess,
    ess,
    free_energy_difference,
    log_weights,
    weighted_histogram,
    weighted_share,
)
from p4lab.problems.metrics import Estimate

__all__ = [
    "PULL",
    "AtTemperature",
    "Corrected",
    "Estimate",
    "GroupAverage",
    "Histogram",
    "Mbar",
    "ReducedEnergy",
    "SteerableFlow",
    "Steered",
    "TemperedFlow",
    "annealed",
    "by_consistency",
    "by_energy",
    "by_example",
    "chains",
    "clipped",
    "clipped_ess",
    "compress",
    "ess",
    "free_energy_difference",
    "log_weights",
    "mean_energy",
    "mixed",
    "of_temperature",
    "representatives",
    "self_consistency",
    "spread_out",
    "steerable_flow",
    "weighted_histogram",
    "weighted_share",
    "widening",
]
