"""Boltzmann distributions: weights, losses and temperature-steerable flows."""

from p4lab.boltzmann.losses import ReducedEnergy, by_energy, by_example, compress, mixed
from p4lab.boltzmann.temperature import SteerableFlow, steerable_flow
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
    "Estimate",
    "Histogram",
    "ReducedEnergy",
    "SteerableFlow",
    "by_energy",
    "by_example",
    "clipped",
    "clipped_ess",
    "compress",
    "ess",
    "free_energy_difference",
    "log_weights",
    "mixed",
    "steerable_flow",
    "weighted_histogram",
    "weighted_share",
]
