"""Weighed samples of flows in the plane, what follows from them, and how it looks: what two labs share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from p4lab.boltzmann import Estimate, Histogram, clipped_ess, ess, free_energy_difference, weighted_histogram
from p4lab.labs.lab import Sight
from p4lab.plots.format import number
from p4lab.plots.gallery import error_bars
from p4lab.plots.layers import Heatmap, Layer, Path, Points, Row, Rows
from p4lab.problems.density2d import grid
from p4lab.problems.energies import SIDE, PlaneEnergy

COARSE, FINE = 72, 120
"""Cells along a side of a density, while training and at rest."""
FEW, MANY = 4000, 20_000
"""Samples that are weighed, while training and at rest."""
SHOWN = 300
"""Samples that are drawn as points."""
BINS = 48
"""Bins of histograms."""
CERTAIN = 1.0
"""Reweighted free energies with a larger error (kT) are not drawn: the bar would say more than the point."""
COLORS = ("var(--jp-ui-font-color1, #222)", "var(--p4-blue)", "var(--p4-orange)")
"""Of the table's rows: those of the curves, in every theme."""


THREE = ".p4-pictures { grid-template-columns: calc((100% - 40px - 94px) / 3 + 94px); }"
"""The style of a lab with three pictures in a row: the first has room for an axis title and a colour bar."""


# --- samples ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weighed:
    """Samples of a model with their weights, and what follows from them.

    Attributes:
        truth: the potential.
        x: positions, shape (n, 2), on the CPU.
        log_w: log-weights towards the truth, shape (n,).
        energy: u(x) in kT, shape (n,).
    """

    truth: PlaneEnergy
    x: Tensor
    log_w: Tensor
    energy: Tensor

    def difference(self, weighted: bool) -> Estimate:
        """Return the free energy of basin b minus a (kT)."""
        in_b = self.truth.in_b(self.x)
        return free_energy_difference(self._log_w(weighted), ~in_b, in_b)

    def profile(self, weighted: bool) -> Histogram:
        """Return the histogram along x."""
        return weighted_histogram(self.x[:, 0].double(), edges_of(self.truth), self.log_w if weighted else None)

    def energies(self, weighted: bool) -> Histogram:
        """Return the histogram of energies."""
        low, high = energy_range(self.truth)
        edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
        return weighted_histogram(self.energy.double(), edges, self.log_w if weighted else None)

    def averages(self, weighted: bool) -> tuple[float, float]:
        """Return the share of basin b, and the mean energy (kT)."""
        log_w = self._log_w(weighted)
        finite = torch.isfinite(self.energy) & torch.isfinite(log_w)
        shares = torch.softmax(torch.where(finite, log_w, -torch.inf), 0)
        energy = (shares * torch.where(finite, self.energy, 0.0)).sum()
        return float((shares * self.truth.in_b(self.x)).sum()), float(energy)

    def log_z(self) -> float:
        """Return log of the mean weight (nats)."""
        return float(self.log_w.logsumexp(0)) - math.log(len(self.log_w))

    def sizes(self) -> tuple[float, float]:
        """Return the effective sample size, raw and with the top 0.1% of weights clipped, as shares."""
        return float(ess(self.log_w)), float(clipped_ess(self.log_w))

    def _log_w(self, weighted: bool) -> Tensor:
        return self.log_w if weighted else torch.zeros_like(self.log_w)


Draw = Callable[[Any, PlaneEnergy, int, torch.Generator, float], tuple[Tensor, Tensor]]
"""Model, truth, number of samples, generator and temperature to positions (n, 2) and log-weights (n,)."""


def weighed(sight: Sight[Any, Any], draw: Draw, temperature: float = 1.0) -> Weighed:
    """Return samples of the flow at this moment, as many as there is time for; each moment draws them once."""
    config, n = sight.config, FEW if sight.running else MANY
    samples: dict[Any, Weighed] = sight.keep("weighed", sight.moment(), dict)
    if (n, temperature) not in samples:
        truth, generator = config.truth(), torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            x, log_w = draw(sight.model(), truth, n, generator, temperature)
            samples[n, temperature] = Weighed(truth, x.cpu(), log_w.double().cpu(), truth(x).cpu())
    return samples[n, temperature]


# --- the truth, by quadrature -----------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def edges_of(truth: PlaneEnergy) -> Tensor:
    """Return the bins of profiles along x."""
    x0, x1, _, _ = truth.bounds
    return torch.linspace(x0, x1, BINS + 1, dtype=torch.float64)


@lru_cache(maxsize=64)
def exact_profile(truth: PlaneEnergy, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the free energy along x in the bins of `edges_of` (kT)."""
    return truth.profile(edges_of(truth), temperature).numpy()


@lru_cache(maxsize=8)
def energy_range(truth: PlaneEnergy) -> tuple[float, float]:
    """Return the range of energies that is shown (kT)."""
    lowest = float(truth(grid(truth.bounds, 400)).min())
    return lowest - 0.25, lowest + 7.75


@lru_cache(maxsize=256)
def mean_energy(truth: PlaneEnergy, temperature: float = 1.0) -> float:
    """Return the mean of u under p_T (kT at T = 1)."""
    points = grid(truth.box(temperature), SIDE)
    mass = truth.log_prob(points, temperature).exp()
    return float((mass * truth(points)).sum() / mass.sum())


# --- pictures ---------------------------------------------------------------------------------------------------------


def points_of(x: Tensor) -> Points:
    """Return the first samples as small points."""
    first = x[:SHOWN].numpy()
    return Points(np.where(np.isfinite(first) & (np.abs(first) < 50), first, np.nan), "orange", size=3)


def density_layer(
    log_density: NDArray[Any], truth: PlaneEnergy, log: bool, label: str = "", temperature: float = 1.0
) -> Heatmap:
    """Return the heatmap of a log-density (nats) in colours that fit the truth's, the first row at the bottom."""
    lowest = energy_range(truth)[0] + 0.25
    top = -lowest / temperature - truth.log_z(temperature)
    if log:
        values = np.maximum(np.nan_to_num(log_density, nan=np.nan, neginf=top - 12, posinf=top), top - 12)
        return Heatmap(values, truth.bounds, low=top - 12, high=top, label=label)
    return Heatmap(
        np.exp(np.minimum(log_density, top + 3)), truth.bounds, low=0.0, high=1.1 * math.exp(top), label=label
    )


def pairs(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return points, shape (n, 2)."""
    return np.stack([np.asarray(x), np.asarray(y)], -1)


def comparison(
    exact: NDArray[Any],
    flow: NDArray[Any],
    reweighted: NDArray[Any],
    error: NDArray[Any],
    label: str = "exact",
    size: float = 5,
) -> list[Layer]:
    """Return what is exact, what the flow says, and what reweighting makes of it, with its error.

    Args:
        exact, flow, reweighted: points, shape (n, 2) each, of any length.
        error: of the reweighted ones, shape (n,).
        label: of the exact line.
        size: of the points.
    """
    return [
        Path(exact, "ink", dashed=True, label=label),
        Path(flow, "blue", label="flow"),
        Path(error_bars(reweighted[:, 0], reweighted[:, 1], error), "orange", width=1.5),
        Points(reweighted, "orange", size=size, label="reweighted"),
    ]


def certain_profile(weighed: Weighed, base: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the reweighted free energy along x above ``base`` (kT), shape (n, 2), with errors, where it is certain."""
    histogram = weighed.profile(True)
    error = histogram.free_energy_error.numpy()
    certain = error < CERTAIN
    return pairs(histogram.centres, histogram.free_energy - base)[certain], error[certain]


# --- the table --------------------------------------------------------------------------------------------------------


def estimates(
    truth: PlaneEnergy,
    weighed: Weighed,
    temperature: float,
    heading: str,
    energy: tuple[str, str],
    last: tuple[str, str],
    cells: Sequence[str],
) -> Rows:
    """Return a table of what is exact, what the flow says, and what reweighting makes of it.

    Args:
        truth: the potential.
        weighed: samples of the flow.
        temperature: at which all this is meant.
        heading: of the names.
        energy: heading of the mean energy, and what explains it.
        last: likewise of a last column.
        cells: the three texts of that column.
    """
    a, b = truth.basins
    columns = {
        heading: "",
        f"ΔF, {b} − {a} (kT)": "Free energy of one basin minus the other's: −log of the ratio of their weights",
        f"share of {b}": "Probability of the basin",
        **dict([energy, last]),
    }
    exact = Estimate(truth.free_energy_difference(temperature), 0.0)
    rows = [
        ("Exact, by quadrature", exact, (truth.share_of_b(temperature), mean_energy(truth, temperature))),
        (f"Flow, {len(weighed.x):,} samples", weighed.difference(False), weighed.averages(False)),
        ("Flow, reweighted", weighed.difference(True), weighed.averages(True)),
    ]
    return Rows(
        columns,
        [
            Row([name, estimate_text(difference), f"{100 * share:.2f} %", number(mean, ".3f"), cell], color)
            for (name, difference, (share, mean)), cell, color in zip(rows, cells, COLORS, strict=True)
        ],
        "Estimates",
    )


def estimate_text(estimate: Estimate) -> str:
    """Return how an estimate reads; an error of 0 or of unknown size is left out."""
    value = number(estimate.value, ".3f")
    return f"{value} ± {estimate.error:.3f}" if 0 < estimate.error < math.inf else value
