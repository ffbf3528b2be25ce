"""The pictures of the lab of Boltzmann generators: frames in, layers out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.boltzmann import (
    Estimate,
    Histogram,
    clipped_ess,
    ess,
    free_energy_difference,
    log_weights,
    weighted_histogram,
)
from p4lab.plots.layers import Heatmap, Layer, Path, Points
from p4lab.problems.density2d import grid
from p4lab.problems.energies import SIDE, PlaneEnergy
from p4lab.training import Frame, Snapshot, State
from p4lab.training.boltzmann_setup import BoltzmannConfig
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.plane import Plane

COARSE, FINE = 72, 120
"""Cells along a side of a density, while training and at rest."""
FEW, MANY = 4000, 20_000
"""Samples that are weighed, while training and at rest."""
SHOWN = 300
"""Samples that are drawn as points."""
DEPTH = 14.0
"""How far above the minimum energies are told apart (kT)."""
BINS = 48
FLOOR = 1e-4
"""Bins of the energies with less weight than this are not drawn."""
DASH = "–"
COLORS = {"exact": "var(--jp-ui-font-color1, #222)", "raw": "var(--p4-blue)", "weighted": "var(--p4-orange)"}
"""Of the table's rows: those of the curves, in every theme."""


class StyledPlane(Plane):
    """A plane that brings the lab's look along."""

    _css: Any = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("pictures.css", "boltzmann_lab.css"))


class Look:
    """What is chosen for the pictures; the lab changes it.

    Attributes:
        log: whether log-densities are shown.
        samples: whether samples are drawn over them.
    """

    log = False
    samples = True


def config_of(snapshot: Snapshot) -> BoltzmannConfig:
    """Return the config of a snapshot, which is this lab's."""
    return cast(BoltzmannConfig, snapshot.config)


@dataclass(frozen=True)
class Weighed:
    """Samples of a model with their weights, and what follows from them.

    Attributes:
        x: shape (n, 2), on the CPU.
        log_w: log-weights towards the truth, shape (n,).
        energy: u(x) in kT, shape (n,).
    """

    truth: PlaneEnergy
    x: Tensor
    log_w: Tensor
    energy: Tensor
    temperature: float = 1.0

    def difference(self, weighted: bool) -> Estimate:
        """Return the free energy of basin b minus a (kT)."""
        in_b = self.truth.in_b(self.x)
        return free_energy_difference(self.log_w if weighted else torch.zeros_like(self.log_w), ~in_b, in_b)

    def profile(self, weighted: bool) -> Histogram:
        """Return the histogram along x."""
        return weighted_histogram(self.x[:, 0].double(), edges_of(self.truth), self.log_w if weighted else None)

    def energies(self, weighted: bool) -> Histogram:
        """Return the histogram of energies."""
        low, high = energy_range(self.truth)
        edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
        return weighted_histogram(self.energy.double(), edges, self.log_w if weighted else None)

    def averages(self, weighted: bool) -> list[float]:
        """Return the share of basin b, the mean energy (kT), and log Z (nats; NaN without weights)."""
        log_w = self.log_w if weighted else torch.zeros_like(self.log_w)
        seen = torch.isfinite(self.energy) & torch.isfinite(log_w)
        shares = torch.softmax(torch.where(seen, log_w, -torch.inf), 0)
        energy = float((shares * torch.where(seen, self.energy, 0.0)).sum())
        log_z = float(log_w.logsumexp(0)) - math.log(len(log_w)) if weighted else math.nan
        return [float((shares * self.truth.in_b(self.x)).sum()), energy, log_z]


def weigh_at_one(model: Any, truth: PlaneEnergy, n: int, seed: int) -> Weighed:
    """Draw samples of a model and weigh them towards p at T = 1."""
    with torch.no_grad():
        x, log_q = model.sample_with_log_prob(n, torch.Generator().manual_seed(seed))
        energy = truth(x)
        return Weighed(truth, x.cpu(), log_weights(energy, log_q).double().cpu(), energy.cpu())


Weigh = Callable[[Any, PlaneEnergy, int, int, float], Weighed]
"""Model, truth, number of samples, seed and temperature to weighed samples."""


class Copies:
    """A copy of the flow with the weights of the frame that is drawn; for the pump's thread alone.

    Args:
        weigh: draws and weighs samples.
    """

    def __init__(self, weigh: Weigh | None = None) -> None:
        self._weigh = weigh or (lambda model, truth, n, seed, temperature: weigh_at_one(model, truth, n, seed))
        self._kind: Any = None
        self._model: Any = None
        self._moment: Any = None
        self._weighed: dict[Any, Weighed] = {}

    def model(self, frame: Frame) -> Any:
        """Return the model of this frame."""
        snapshot = frame.snapshot
        config = config_of(snapshot)
        if self._kind != config.architecture:
            self._kind, self._model, self._moment = config.architecture, config.model().eval(), None
        now = moment_of(frame)
        if self._moment != now:
            state = {name: value for name, value in self._model.state_dict().items() if torch.is_tensor(value)}
            with torch.no_grad():
                for name, value in state.items():
                    value.copy_(torch.from_numpy(snapshot.pictures[name]))
            self._moment, self._weighed = now, {}
        return self._model

    def weighed(self, frame: Frame, temperature: float = 1.0) -> Weighed:
        """Return weighed samples of this frame; as many as there is time for."""
        model, config = self.model(frame), config_of(frame.snapshot)
        n = FEW if frame.state is State.RUNNING else MANY
        key = n, temperature
        if key not in self._weighed:
            self._weighed[key] = self._weigh(model, config.truth(), n, config.seed, temperature)
        return self._weighed[key]


def moment_of(frame: Frame) -> tuple[Any, ...]:
    """Return what changes whenever the weights do."""
    return frame.run, frame.snapshot.step, frame.snapshot.config


# --- the truth, by quadrature -----------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def edges_of(truth: PlaneEnergy) -> Tensor:
    """Return the bins of profiles along x."""
    x0, x1, _, _ = truth.bounds
    return torch.linspace(x0, x1, BINS + 1, dtype=torch.float64)


@lru_cache(maxsize=8)
def landscape(truth: PlaneEnergy) -> NDArray[np.float64]:
    """Return u minus its minimum (kT), at most `DEPTH`, the first row at the bottom."""
    u = truth(grid(truth.bounds, FINE).flip(0))
    return (u - u.min()).clamp(max=DEPTH).numpy()


@lru_cache(maxsize=64)
def exact_profile(truth: PlaneEnergy, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the free energy along x in the bins of `edges_of` (kT)."""
    return truth.profile(edges_of(truth), temperature).numpy()


@lru_cache(maxsize=8)
def energy_range(truth: PlaneEnergy) -> tuple[float, float]:
    """Return the range of energies that is shown (kT)."""
    lowest = float(truth(grid(truth.bounds, 400)).min())
    return lowest - 0.25, lowest + 7.75


@lru_cache(maxsize=8)
def exact_energies(truth: PlaneEnergy) -> NDArray[np.float64]:
    """Return the density of energies under p in the bins of `Weighed.energies` (1 / kT)."""
    points = grid(truth.box(), SIDE)
    low, high = energy_range(truth)
    mass = truth.log_prob(points).exp()
    counts = torch.histogram(truth(points).flatten(), BINS, range=(low, high), weight=(mass / mass.sum()).flatten())
    return (counts.hist / (high - low) * BINS).numpy()


@lru_cache(maxsize=256)
def mean_energy(truth: PlaneEnergy, temperature: float = 1.0) -> float:
    """Return the mean of u under p_T (kT at T = 1)."""
    points = grid(truth.box(temperature), SIDE)
    mass = truth.log_prob(points, temperature).exp()
    return float((mass * truth(points)).sum() / mass.sum())


# --- pictures ---------------------------------------------------------------------------------------------------------


def points_of(x: Tensor) -> Points:
    """Return the first samples as small points."""
    shown = x[:SHOWN].numpy()
    return Points(np.where(np.isfinite(shown) & (np.abs(shown) < 50), shown, np.nan), "orange", size=3)


def density_layer(
    log_density: NDArray[Any], truth: PlaneEnergy, log: bool, label: str = "", temperature: float = 1.0
) -> Heatmap:
    """Return the heatmap of a log-density (nats) in colours that fit the truth's, the first row at the bottom."""
    lowest = energy_range(truth)[0] + 0.25
    top = -lowest / temperature - truth.log_z(temperature)
    if log:
        shown = np.maximum(np.nan_to_num(log_density, nan=np.nan, neginf=top - 12, posinf=top), top - 12)
        return Heatmap(shown, truth.bounds, low=top - 12, high=top, label=label)
    shown = np.exp(np.minimum(log_density, top + 3))
    return Heatmap(shown, truth.bounds, low=0.0, high=1.1 * math.exp(top), label=label)


class LandscapePicture:
    """The potential with samples of the flow over it.

    Args:
        copies: of the flow.
        look: what is chosen.
    """

    def __init__(self, copies: Copies, look: Look) -> None:
        self._copies, self._look = copies, look
        self.widget = StyledPlane("Energy", "and the flow's samples", "x", "y", equal=False, height=300)
        self.widget.add_class("p4-boltzmann-first")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth = config_of(frame.snapshot).truth()
        layers: list[Layer] = [Heatmap(landscape(truth), truth.bounds, low=0, high=DEPTH, label="u − min u (kT)")]
        if self._look.samples:
            layers.append(points_of(self._copies.weighed(frame).x))
        self.widget.show(layers, truth.bounds)


class DensityPicture:
    """The flow's density.

    Args:
        copies: of the flow.
        look: what is chosen.
    """

    def __init__(self, copies: Copies, look: Look) -> None:
        self._copies, self._look = copies, look
        self.widget = StyledPlane("Flow", "density q(x)", "x", equal=False, height=300)

    @torch.no_grad()
    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth, model = config_of(frame.snapshot).truth(), self._copies.model(frame)
        side = COARSE if frame.state is State.RUNNING else FINE
        like = next(model.parameters())
        x = grid(truth.bounds, side).flip(0).to(like)
        log_density = model.log_prob(x.view(-1, 2)).view(side, side).cpu().double().numpy()
        self.widget.show([density_layer(log_density, truth, self._look.log)], truth.bounds)


def bars(x: NDArray[Any], y: NDArray[Any], error: NDArray[Any]) -> NDArray[np.float64]:
    """Return the path of upright error bars, shape (3 n, 2); bars that are not finite are left out."""
    error = np.where(np.isfinite(error), error, np.nan)
    rows = np.stack([np.stack([x, y - error], -1), np.stack([x, y + error], -1), np.full((len(x), 2), np.nan)], 1)
    return rows.reshape(-1, 2)


def profile_layers(truth: PlaneEnergy, weighed: Weighed, temperature: float = 1.0) -> tuple[list[Layer], float]:
    """Return the free energy along x, exact, raw and reweighted, and the top of the picture (kT)."""
    exact = exact_profile(truth, temperature)
    base = float(exact.min())
    top = min(14.0, float(np.ceil(np.max(exact[np.isfinite(exact)], initial=6.0) - base)) + 1)
    raw, corrected = weighed.profile(False), weighed.profile(True)
    x = raw.centres.numpy()

    def shown(values: Any) -> NDArray[np.float64]:
        return np.where(np.isfinite(values), np.asarray(values) - base, np.nan)

    reweighted = shown(corrected.free_energy.numpy())
    error = corrected.free_energy_error.numpy()
    known = error < 1.0  # in bins with a sample or two the bar says more than the point
    layers: list[Layer] = [
        Path(np.stack([x, shown(exact)], -1), "ink", width=2, dashed=True, label="exact"),
        Path(np.stack([x, shown(raw.free_energy.numpy())], -1), "blue", width=2, label="flow"),
        Path(bars(x[known], reweighted[known], error[known]), "orange", width=1.5),
        Points(np.stack([x[known], reweighted[known]], -1), "orange", size=5, label="reweighted"),
    ]
    return layers, top


class ProfilePicture:
    """The free energy along x.

    Args:
        copies: of the flow.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self.widget = StyledPlane("Free energy along x", "kT", "x", "", equal=False, height=300)
        self.widget.add_class("p4-boltzmann-wide")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth = config_of(frame.snapshot).truth()
        layers, top = profile_layers(truth, self._copies.weighed(frame))
        x0, x1, _, _ = truth.bounds
        self.widget.show(layers, (x0, x1, -0.5, top))


class EnergyPicture:
    """The histogram of energies.

    Args:
        copies: of the flow.
    """

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self.widget = StyledPlane("Energies", "of samples, share per kT", "u (kT)", "", equal=False, height=240)
        self.widget.add_class("p4-boltzmann-energies")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth, weighed = config_of(frame.snapshot).truth(), self._copies.weighed(frame)
        exact, (low, high) = exact_energies(truth), energy_range(truth)
        raw, corrected = weighed.energies(False), weighed.energies(True)
        x = raw.centres.numpy()
        layers: list[Layer] = [
            Path(np.stack([x, exact], -1), "ink", width=2, dashed=True, label="exact"),
            Path(np.stack([x, raw.density.numpy()], -1), "blue", width=2, label="flow"),
            Path(bars(x, corrected.density.numpy(), corrected.error.numpy()), "orange", width=1.5),
            Points(np.stack([x, corrected.density.numpy()], -1), "orange", size=5, label="reweighted"),
        ]
        self.widget.show(layers, (low, high, 0.0, 1.35 * float(exact.max())))


class EssPicture:
    """The effective sample size over the steps."""

    def __init__(self) -> None:
        self.widget = StyledPlane("Effective sample size", "% of samples", "step", "", equal=False, height=240)
        self.widget.add_class("p4-boltzmann-ess")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        layers: list[Layer] = []
        curves, end = frame.snapshot.curves, max(200.0, float(frame.snapshot.step))
        for name, color, label in (("clipped_ess", "grey", "top 0.1% of weights clipped"), ("ess", "blue", "raw")):
            steps, values = curves[name]
            layers.append(Path(np.stack([steps, 100 * values], -1), color, width=2, label=label))
        self.widget.show(layers, (0.0, end, 0.0, 105.0))


class Board:
    """A table: what is exact, what the flow says, and what reweighting makes of it.

    Args:
        copies: of the flow.
        touched: of `ControlPanel`.
    """

    def __init__(self, copies: Copies, touched: Callable[[str, Any], None]) -> None:
        self._copies = copies
        self.widget = estimates_panel(touched)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth, weighed = config_of(frame.snapshot).truth(), self._copies.weighed(frame)
        a, b = truth.basins
        columns = {
            "": "",
            f"ΔF, {b} − {a} (kT)": "Free energy of one basin minus the other's: −log of the ratio of their weights",
            f"share of {b}": "Probability of the basin",
            "mean energy (kT)": "Mean of u",
            "log Z (nats)": "Logarithm of the partition function: of the flow, log of the mean weight",
        }
        exact = [truth.share_of_b(), mean_energy(truth)]
        rows = [
            board_row(
                "Exact, by quadrature",
                COLORS["exact"],
                Estimate(truth.free_energy_difference(), 0.0),
                exact,
                number(truth.log_z(), ".3f"),
            )
        ]
        for name, kind in ((f"Flow, {len(weighed.x):,} samples", "raw"), ("Flow, reweighted", "weighted")):
            *averages, log_z = weighed.averages(kind == "weighted")
            difference = weighed.difference(kind == "weighted")
            rows.append(board_row(name, COLORS[kind], difference, averages, number(log_z, ".3f")))
        show_estimates(self.widget, columns, rows)


def estimates_panel(touched: Callable[[str, Any], None]) -> ControlPanel:
    """Return a panel for `show_estimates`."""
    panel = ControlPanel([Group("", (Item("table", "board", "Estimates"),))], touched, direction="row")
    panel.add_class("p4-boltzmann-board")
    return panel


def show_estimates(panel: ControlPanel, columns: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """Show rows of `board_row`; ``columns`` are headings with what explains them."""
    board = {"columns": list(columns), "help": list(columns.values()), "rows": rows, "label": "Estimates"}
    panel.show({"board": board})


def board_row(name: str, color: str, difference: Estimate, averages: list[float], last: str) -> dict[str, Any]:
    """Return a row of a table: name, free-energy difference, share of basin b, mean energy, and a last cell."""
    share, energy = averages
    return {
        "color": color,
        "cells": [name, estimate_text(difference), f"{100 * share:.2f} %", number(energy, ".3f"), last],
    }


def number(value: float, form: str) -> str:
    """Return a number as text, a dash if there is none."""
    return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else DASH


def estimate_text(estimate: Estimate) -> str:
    """Return an estimate as text."""
    value = number(estimate.value, ".3f")
    if estimate.error == 0:
        return value
    return value if not math.isfinite(estimate.error) else f"{value} ± {estimate.error:.3f}"


def shares_of(weighed: Weighed) -> tuple[float, float]:
    """Return ESS, raw and clipped, as shares."""
    return float(ess(weighed.log_w)), float(clipped_ess(weighed.log_w))
