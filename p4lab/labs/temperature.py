"""Temperature-steerable flows: trained at T = 1, used at any temperature."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p4lab.boltzmann import ReducedEnergy, SteerableFlow, log_weights, steerable_flow
from p4lab.flows import MIXINGS
from p4lab.labs import estimates
from p4lab.labs.boltzmann import LOSS, NUMBERS, TRAINING, BoltzmannProblem, BoltzmannView, PlaneConfig, middle_and_scale
from p4lab.labs.curves import training_figure
from p4lab.labs.estimates import CERTAIN, FINE, Weighed, comparison, density_layer, pairs
from p4lab.labs.lab import Axes, Bar, Board, Lab, Picture, Sight
from p4lab.plots.format import DASH
from p4lab.plots.gallery import finite
from p4lab.plots.layers import Layer, Path, Plot, Points, Rows
from p4lab.problems.density2d import grid
from p4lab.problems.energies import PlaneEnergy
from p4lab.training import Engine
from p4lab.training.config import POSITIVE, RunConfig, one_of, setting, whole

TEMPERATURES = tuple(2 ** (k / 12) for k in range(-20, 21))
"""What the dial offers: 0.31 to 3.2; 0.5, 1 and 2 among them."""
SAMPLED = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83)
"""Temperatures of the reweighted points."""
LINE = TEMPERATURES[::4]
"""Temperatures of the lines."""
SPAN = (TEMPERATURES[0] - 0.1, TEMPERATURES[-1] + 0.1)
"""The axis of temperatures: the dial is seen at its ends, too."""
REACH, STEP = 4.4, 0.8
"""Momenta of the quadrature: from -4.4 to 4.4."""
EVALUATIONS = 25_000, 110_000
"""How often a table evaluates the flow, while training and at rest, as long as its pictures are fine enough."""
SIDES = (24, 96)
"""Least and greatest number of cells along a side of a table."""
MIXING_TEXTS = {"p4inv": "P4Inv", "swap": "swap", "permutation": "permutation", "p4orthogonal": "P4Orthogonal"}
"""What may stand between the couplings, and how it reads; other mixings are offered only if they are set."""


# --- what is trained --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TemperatureConfig(PlaneConfig):
    """Learn the Boltzmann distribution of a potential in the plane at T = 1 with a flow that has a temperature.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "temperature"

    learning_rate: float = 5e-3
    batch_size: int = 256
    merge_every: int = RunConfig.merge_every
    measure_every: int = 50
    energy: str = "double_well"
    momenta: int = setting(
        1,
        "Momenta",
        whole(0, 16),
        choices=(0, 1, 2, 4),
        own=True,
        help="Auxiliary coordinates with the energy v²/2, with which the flow trades volume",
    )
    mixing: str = setting(
        "p4inv",
        "Mixing",
        one_of(*MIXINGS),
        choices=lambda config: {**MIXING_TEXTS, config.mixing: MIXING_TEXTS.get(config.mixing, config.mixing)},
        look="wide",
    )
    share: float = 0.0
    path_gradient: bool = True
    threshold: float = 100.0
    blocks: int = setting(8, choices=(4, 8, 12, 16))
    hidden: int = 32

    @property
    def width(self) -> int:
        """Positions and momenta."""
        return 2 + self.momenta

    def parts(self) -> tuple["SteerableProblem", nn.Module]:
        """Return the problem, and the flow."""
        return SteerableProblem(self.truth(), self.seed, **self.where, momenta=self.momenta), self.model()

    def model(self) -> SteerableFlow:
        """Return the flow at its start; the networks of its couplings have two hidden layers."""
        mean, std = middle_and_scale(self.truth().bounds)
        sizes = 2, self.momenta, self.blocks, self.mixing, self.hidden
        return steerable_flow(*sizes, mean=mean, std=std, seed=self.seed, preset=self.preset, **self.where)


class SteerableProblem(BoltzmannProblem):
    """As `BoltzmannProblem`, for positions and momenta: p(x) N(v; 0, I).

    Args:
        momenta: their number; further arguments as for `BoltzmannProblem`.
    """

    def __init__(
        self, energy: PlaneEnergy, seed: int, device: torch.device, dtype: torch.dtype, momenta: int = 0
    ) -> None:
        super().__init__(energy, seed, device, dtype)
        self.momenta = momenta

    @property
    def dim(self) -> int:
        """Positions and momenta."""
        return 2 + self.momenta

    def examples(self, model: SteerableFlow, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return points with momenta drawn for them."""
        return model.augment(x, generator)

    def target(self, model: SteerableFlow) -> ReducedEnergy:
        """Return the energy of positions and momenta."""
        return model.joint(self.energy)

    def log_z(self) -> float:
        """Return log of the partition function of positions and momenta."""
        return super().log_z() + 0.5 * self.momenta * math.log(2 * math.pi)


@dataclass(frozen=True)
class TemperatureView(BoltzmannView):
    """What is looked at, and at which temperature."""

    temperature: float = setting(
        1.0,
        "Temperature",
        POSITIVE,
        choices={temperature: f"T = {temperature:.2f}" for temperature in TEMPERATURES},
        live=True,
        help="Of everything below; the flow is trained at T = 1, whatever it says here",
    )
    samples: bool = setting(True, help="Samples of the flow over its density")


# --- the flow at any temperature --------------------------------------------------------------------------------------

Look = Sight[TemperatureConfig, TemperatureView]


def _draw(
    model: SteerableFlow, truth: PlaneEnergy, n: int, generator: torch.Generator, temperature: float
) -> tuple[Tensor, Tensor]:
    y, log_q = model.sample_with_log_prob(n, generator=generator, temperature=temperature)
    return y[:, : model.positions], log_weights(model.joint(truth)(y) / temperature, log_q)


def weighed(sight: Look, temperature: float) -> Weighed:
    """Return samples at a temperature, with the weights of their positions and momenta towards the truth there."""
    return estimates.weighed(sight, _draw, temperature)


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


def table(sight: Look) -> MarginalTable:
    """Return the table of densities at this moment."""
    model, side = sight.model(), side_of(sight.config.momenta, sight.running)
    key = id(model), sight.moment(), side
    return sight.keep("table", key, lambda: MarginalTable(model, sight.config.truth(), side))


# --- pictures ---------------------------------------------------------------------------------------------------------


def exact(sight: Look) -> Plot:
    """Draw the truth at the dial's temperature."""
    truth, view = sight.config.truth(), sight.view
    log_p = truth.log_prob(grid(truth.bounds, FINE).flip(0), view.temperature).numpy()
    label = "log p (nats)" if view.log else "density p"
    return Plot([density_layer(log_p, truth, view.log, label, view.temperature)], truth.bounds)


def steered(sight: Look) -> Plot:
    """Draw the flow at the dial's temperature, from what it is at T = 1."""
    truth, view = sight.config.truth(), sight.view
    log_p = table(sight).log_density(view.temperature)
    layers: list[Layer] = [density_layer(log_p, truth, view.log, temperature=view.temperature)]
    if view.samples:
        layers.append(estimates.points_of(weighed(sight, view.temperature).x))
    return Plot(layers, truth.bounds)


def profile(sight: Look) -> Plot:
    """Draw the free energy along x at the dial's temperature."""
    truth, temperature = sight.config.truth(), sight.view.temperature
    free, edges = estimates.exact_profile(truth, temperature), estimates.edges_of(truth)
    base = float(free.min())
    x, raw = table(sight).profile(temperature)
    layers = comparison(
        pairs((edges[1:] + edges[:-1]) / 2, finite(free) - base),
        pairs(x, raw - base),
        *estimates.certain_profile(weighed(sight, temperature), base),
    )
    x0, x1, _, _ = truth.bounds
    return Plot(layers, (x0, x1, -0.5, 14.0))


def dial(sight: Look, low: float, high: float) -> Path:
    """Return an upright line at the dial's temperature."""
    temperature = sight.view.temperature
    return Path([[temperature, low], [temperature, high]], "red", width=1.5, label="the dial")


def differences(sight: Look) -> Plot:
    """Draw the difference of free energies over temperature."""
    truth, densities = sight.config.truth(), table(sight)
    a, b = truth.basins
    lines = np.array([[t, truth.free_energy_difference(t), densities.difference(truth, t)] for t in LINE])
    reweighted = [weighed(sight, t).difference(True) for t in SAMPLED]
    points = pairs(SAMPLED, [estimate.value for estimate in reweighted])
    error = np.array([estimate.error for estimate in reweighted])
    certain = error < CERTAIN
    low, high = -0.5, 1.08 * float(lines[:, 1].max())
    layers = comparison(
        lines[:, [0, 1]], lines[:, [0, 2]], points[certain], error[certain], f"exact, {b} minus {a}", size=7
    )
    return Plot([dial(sight, low, high), *layers], (*SPAN, low, high))


def sizes(sight: Look) -> Plot:
    """Draw the effective sample size over temperature."""
    shares = np.array([weighed(sight, t).sizes() for t in SAMPLED])
    layers: list[Layer] = [dial(sight, 0.0, 105.0)]
    for column, color, label in ((1, "grey", "top 0.1% of weights clipped"), (0, "blue", "raw")):
        points = pairs(SAMPLED, 100 * shares[:, column])
        layers += [Path(points, color, label=label), Points(points, color, size=6)]
    return Plot(layers, (*SPAN, 0.0, 105.0))


def board(sight: Look) -> Rows:
    """Return what is exact at the dial's temperature, what the flow says, and what reweighting makes of it."""
    truth, temperature = sight.config.truth(), sight.view.temperature
    samples = weighed(sight, temperature)
    raw, clipped = samples.sizes()
    return estimates.estimates(
        truth,
        samples,
        temperature,
        f"at T = {temperature:.2f}",
        ("mean of u", "Mean energy, in kT of the temperature 1"),
        ("ESS", "Effective sample size of positions and momenta at this temperature; clipped: without the top 0.1%"),
        [DASH, f"{100 * raw:.1f} %, clipped {100 * clipped:.1f} %", DASH],
    )


TEMPERATURE = Lab(
    name="temperature",
    title="One flow for all temperatures",
    subtitle="Trained at T = 1, steered by its prior N(0, T I)",
    config=TemperatureConfig(),
    view=TemperatureView(),
    trainer=Engine,
    groups={
        "Truth": ("energy",),
        "Flow": ("momenta", "mixing", "blocks", "hidden"),
        "Loss at T = 1": ("share",),
        **TRAINING,
    },
    pictures=(
        Picture(Axes("Exact", "at this temperature", "x", "y", False, 300), exact, 0.3, "exact"),
        Picture(Axes("Flow", "trained at T = 1", "x", "", False, 300), steered, 0.5, "steered"),
        Picture(Axes("Free energy along x", "in units of kT", "x", "", False, 300), profile, 0.5, "profile"),
        Picture(Axes("Effective sample size", "% of samples", "T", "", False, 240), sizes, 2.2, "sizes"),
        Picture(Axes("Free-energy difference", "kT", "T", "", False, 240), differences, 2.0, "differences"),
        Picture(Bar(("temperature", "samples", "log")), area="bar"),
        Picture(Board("Estimates"), board, 1.0, "board"),
    ),
    numbers=NUMBERS,
    curves=lambda sight: training_figure(sight, LOSS),
    loss=LOSS,
    layout="wide",
    style=estimates.style("temperature", "differences"),
)
"""The lab of temperatures."""
