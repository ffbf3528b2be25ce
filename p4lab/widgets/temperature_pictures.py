"""The pictures of the lab of temperatures: frames in, layers out."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.boltzmann import Estimate, SteerableFlow, log_weights
from p4lab.plots.layers import Layer, Path, Points
from p4lab.problems.density2d import grid
from p4lab.problems.energies import PlaneEnergy
from p4lab.training import Frame, Snapshot, State
from p4lab.training.temperature_setup import TemperatureConfig
from p4lab.widgets.boltzmann_pictures import (
    COLORS,
    FINE,
    Copies,
    StyledPlane,
    Weighed,
    bars,
    board_row,
    density_layer,
    edges_of,
    estimates_panel,
    exact_profile,
    mean_energy,
    points_of,
    shares_of,
    show_estimates,
)

TEMPERATURES = tuple(2 ** (k / 12) for k in range(-20, 21))
"""What the dial offers: 0.31 to 3.2; 0.5, 1 and 2 among them."""
SAMPLED = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83)
"""Temperatures of the reweighted points."""
LINE = TEMPERATURES[::4]
SPAN = (TEMPERATURES[0] - 0.1, TEMPERATURES[-1] + 0.1)
"""The axis of temperatures: the dial is seen at its ends, too."""
REACH, STEP = 4.4, 0.8
"""Momenta of the quadrature: from -4.4 to 4.4."""
EVALUATIONS = 25_000, 110_000
"""How often a table evaluates the flow, while training and at rest, as long as its pictures are fine enough."""
SIDES = (24, 96)
"""Least and greatest number of cells along a side of a table."""


class Look:
    """What is chosen for the pictures; the lab changes it.

    Attributes:
        temperature: where the dial stands.
        log: whether log-densities are shown.
        samples: whether samples are drawn over them.
    """

    temperature = 1.0
    log = False
    samples = True


def config_of(snapshot: Snapshot) -> TemperatureConfig:
    """Return the config of a snapshot, which is this lab's."""
    return cast(TemperatureConfig, snapshot.config)


@torch.no_grad()
def weigh_steered(model: SteerableFlow, truth: PlaneEnergy, n: int, seed: int, temperature: float) -> Weighed:
    """Draw samples at a temperature, and weigh positions and momenta towards the truth at that temperature."""
    y, log_q = model.sample_with_log_prob(n, torch.Generator().manual_seed(seed), temperature)
    x = y[:, : model.positions]
    log_w = log_weights(model.joint(truth)(y) / temperature, log_q)
    return Weighed(truth, x.cpu(), log_w.double().cpu(), truth(x).cpu(), temperature)


class MarginalTable:
    r"""A flow's density over positions, at any temperature, from one evaluation of the flow at T = 1.

    .. math:: p_T(x) = \int p_T(x, v)\, dv, \qquad \log p_T(x, v) = \log p_1(x, v) / T + c_T

    The integral is a sum over fixed momenta; c_T is known (`SteerableFlow.rescaled`).

    Args:
        model: the flow.
        truth: whose bounds are covered.
        side: cells along a side.
    """

    @torch.no_grad()
    def __init__(self, model: SteerableFlow, truth: PlaneEnergy, side: int) -> None:
        like = next(model.parameters())
        v, self._log_weights = momenta_grid(model.momenta)
        x = grid(truth.bounds, side).flip(0).view(-1, 1, 2).expand(-1, len(v), 2)
        y = torch.cat([x, v.expand(len(x), *v.shape)], -1).to(like)
        self._log_p = model.log_prob(y).view(side, side, len(v)).cpu()
        self._model, self.side, self._bounds = model, side, truth.bounds
        self._law = [float(model.rescaled(torch.zeros(()), t)) for t in (1.0, 2.0)]

    @torch.no_grad()
    def log_density(self, temperature: float) -> NDArray[np.float64]:
        """Return log p_T(x) (nats) in the centres of the cells, the first row at the bottom. No flow is evaluated."""
        log_p = self._model.rescaled(self._log_p, temperature).double()
        return (log_p + self._log_weights).logsumexp(-1).numpy()

    def profile(self, temperature: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x, and -log of the marginal density along x (kT)."""
        x0, x1, y0, y1 = self._bounds
        x = x0 + (x1 - x0) * (np.arange(self.side) + 0.5) / self.side
        density = np.exp(self.log_density(temperature)).sum(0) * (y1 - y0) / self.side
        return x, -np.log(np.maximum(density, 1e-300))

    def difference(self, truth: PlaneEnergy, temperature: float) -> float:
        """Return the free energy of basin b minus a (kT)."""
        density = np.exp(self.log_density(temperature))
        in_b = truth.in_b(grid(truth.bounds, self.side).flip(0)).numpy()
        return float(np.log(density[~in_b].sum()) - np.log(density[in_b].sum()))


@lru_cache(maxsize=8)
def momenta_grid(momenta: int) -> tuple[Tensor, Tensor]:
    """Return nodes, shape (n, momenta), and the logarithms of their weights, shape (n,), for integrals over momenta.

    Up to two momenta the trapezoidal rule, which is exact to 1e-3 for the temperatures of the dial; beyond that, 256
    draws from N(0, 1.5 I), which is rough.
    """
    if momenta == 0:
        return torch.zeros(1, 0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if momenta <= 2:
        line = torch.arange(-REACH, REACH + 1e-6, STEP, dtype=torch.float64)
        nodes = torch.cartesian_prod(*[line] * momenta).view(-1, momenta)
        nodes = nodes[nodes.norm(dim=-1) <= REACH + 1e-6]
        return nodes, torch.full((len(nodes),), momenta * math.log(STEP), dtype=torch.float64)
    nodes = 1.5**0.5 * torch.randn(
        256, momenta, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu"
    )
    log_q = -nodes.square().sum(-1) / 3 - 0.5 * momenta * math.log(3 * math.pi)
    return nodes, -log_q - math.log(len(nodes))


def side_of(momenta: int, running: bool) -> int:
    """Return how fine a table may be."""
    each = EVALUATIONS[0 if running else 1] / len(momenta_grid(momenta)[0])
    return int(min(SIDES[1], max(SIDES[0], each**0.5)))


class SteerableCopies(Copies):
    """Copies with tables of their densities."""

    def __init__(self) -> None:
        super().__init__(weigh_steered)
        self._table: tuple[Any, MarginalTable] | None = None

    def table(self, frame: Frame) -> MarginalTable:
        """Return the table of this frame."""
        model, config = self.model(frame), config_of(frame.snapshot)
        side = side_of(config.momenta, frame.state is State.RUNNING)
        key = self._moment, side
        if self._table is None or self._table[0] != key:
            self._table = key, MarginalTable(model, config.truth(), side)
        return self._table[1]


class ExactPicture:
    """The truth at the dial's temperature.

    Args:
        look: what is chosen.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self.widget = StyledPlane("Exact", "at this temperature", "x", "y", equal=False, height=300)
        self.widget.add_class("p4-boltzmann-first")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth, look = config_of(frame.snapshot).truth(), self._look
        log_p = truth.log_prob(grid(truth.bounds, FINE).flip(0), look.temperature).numpy()
        label = "log p (nats)" if look.log else "density p"
        self.widget.show([density_layer(log_p, truth, look.log, label, look.temperature)], truth.bounds)


class SteeredPicture:
    """The flow at the dial's temperature, from what it is at T = 1.

    Args:
        copies: of the flow.
        look: what is chosen.
    """

    def __init__(self, copies: SteerableCopies, look: Look) -> None:
        self._copies, self._look = copies, look
        self.widget = StyledPlane("Flow", "trained at T = 1", "x", equal=False, height=300)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth, look = config_of(frame.snapshot).truth(), self._look
        log_p = self._copies.table(frame).log_density(look.temperature)
        layers: list[Layer] = [density_layer(log_p, truth, look.log, "", look.temperature)]
        if look.samples:
            layers.append(points_of(self._copies.weighed(frame, look.temperature).x))
        self.widget.show(layers, truth.bounds)


class SteeredProfile:
    """The free energy along x at the dial's temperature.

    Args:
        copies: of the flow.
        look: what is chosen.
    """

    def __init__(self, copies: SteerableCopies, look: Look) -> None:
        self._copies, self._look = copies, look
        self.widget = StyledPlane("Free energy along x", "in units of kT", "x", "", equal=False, height=300)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth, t = config_of(frame.snapshot).truth(), self._look.temperature
        exact = exact_profile(truth, t)
        base = float(exact.min())
        centres = ((edges_of(truth)[1:] + edges_of(truth)[:-1]) / 2).numpy()
        x, raw = self._copies.table(frame).profile(t)
        corrected = self._copies.weighed(frame, t).profile(True)
        error = corrected.free_energy_error.numpy()
        known = error < 1.0
        points = np.stack([centres[known], corrected.free_energy.numpy()[known] - base], -1)
        layers: list[Layer] = [
            Path(
                np.stack([centres, np.where(np.isfinite(exact), exact - base, np.nan)], -1),
                "ink",
                dashed=True,
                label="exact",
            ),
            Path(np.stack([x, raw - base], -1), "blue", label="flow"),
            Path(bars(points[:, 0], points[:, 1], error[known]), "orange", width=1.5),
            Points(points, "orange", size=5, label="reweighted"),
        ]
        x0, x1, _, _ = truth.bounds
        self.widget.show(layers, (x0, x1, -0.5, 14.0))


class OverTemperature:
    """The difference of free energies, and the ESS, over temperature; the dial is the upright line.

    Args:
        copies: of the flow.
        look: what is chosen.
    """

    def __init__(self, copies: SteerableCopies, look: Look) -> None:
        self._copies, self._look = copies, look
        self._sizes: tuple[Any, list[float]] | None = None
        self.differences = StyledPlane("Free-energy difference", "kT", "T", "", equal=False, height=240)
        self.differences.add_class("p4-boltzmann-ess")
        self.sizes = StyledPlane("Effective sample size", "% of samples", "T", "", equal=False, height=240)
        self.sizes.add_class("p4-boltzmann-sizes")

    def draw_differences(self, frame: Frame) -> None:
        """Show a frame."""
        truth, table = config_of(frame.snapshot).truth(), self._copies.table(frame)
        a, b = truth.basins
        exact = np.array([[t, truth.free_energy_difference(t)] for t in LINE])
        raw = np.array([[t, table.difference(truth, t)] for t in LINE])
        found = [self._copies.weighed(frame, t).difference(True) for t in SAMPLED]
        value, error = (np.array([getattr(f, name) for f in found]) for name in ("value", "error"))
        known = error < 1.0
        at, low, high = np.array(SAMPLED)[known], -0.5, 1.08 * float(exact[:, 1].max())
        layers: list[Layer] = [
            self._dial(low, high),
            Path(exact, "ink", dashed=True, label=f"exact, {b} minus {a}"),
            Path(raw, "blue", label="flow"),
            Path(bars(at, value[known], error[known]), "orange", width=1.5),
            Points(np.stack([at, value[known]], -1), "orange", size=7, label="reweighted"),
        ]
        self.differences.show(layers, (*SPAN, low, high))

    def draw_sizes(self, frame: Frame) -> None:
        """Show a frame."""
        shares = np.array([shares_of(self._copies.weighed(frame, t)) for t in SAMPLED])
        layers: list[Layer] = [self._dial(0.0, 105.0)]
        for column, color, label in ((1, "grey", "top 0.1% of weights clipped"), (0, "blue", "raw")):
            points = np.stack([SAMPLED, 100 * shares[:, column]], -1)
            layers += [Path(points, color, label=label), Points(points, color, size=6)]
        self.sizes.show(layers, (*SPAN, 0.0, 105.0))

    def _dial(self, low: float, high: float) -> Path:
        t = self._look.temperature
        return Path([[t, low], [t, high]], "red", width=1.5, label="the dial")


class Board:
    """A table: what is exact at the dial's temperature, what the flow says, and what reweighting makes of it.

    Args:
        copies: of the flow.
        look: what is chosen.
        touched: of `ControlPanel`.
    """

    def __init__(self, copies: SteerableCopies, look: Look, touched: Callable[[str, Any], None]) -> None:
        self._copies, self._look = copies, look
        self.widget = estimates_panel(touched)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        truth, t = config_of(frame.snapshot).truth(), self._look.temperature
        weighed = self._copies.weighed(frame, t)
        a, b = truth.basins
        columns = {
            f"at T = {t:.2f}": "",
            f"ΔF, {b} − {a} (kT)": "Free energy of one basin minus the other's: −log of the ratio of their weights",
            f"share of {b}": "Probability of the basin",
            "mean of u": "Mean energy, in kT of the temperature 1",
            "ESS": "Effective sample size of positions and momenta at this temperature; clipped: without the top 0.1%",
        }
        exact = Estimate(truth.free_energy_difference(t), 0.0)
        raw, clipped = shares_of(weighed)
        size = f"{100 * raw:.1f} %, clipped {100 * clipped:.1f} %"
        rows = [
            board_row(
                "Exact, by quadrature", COLORS["exact"], exact, [truth.share_of_b(t), mean_energy(truth, t)], "–"
            ),
            *(
                board_row(name, COLORS[kind], weighed.difference(kind == "weighted"), averages[:2], said)
                for name, kind, averages, said in (
                    (f"Flow, {len(weighed.x):,} samples", "raw", weighed.averages(False), size),
                    ("Flow, reweighted", "weighted", weighed.averages(True), "–"),
                )
            ),
        ]
        show_estimates(self.widget, columns, rows)
