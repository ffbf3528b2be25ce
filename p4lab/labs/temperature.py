"""Flows with a dial for the temperature: shown data of T = 1, used at any temperature."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab import boltzmann, flows
from p4lab.boltzmann import ReducedEnergy, SteerableFlow, Steered, TemperedFlow
from p4lab.flows import MIXINGS
from p4lab.labs import estimates
from p4lab.labs.boltzmann import (
    LOSS,
    MORE_TRAINING,
    NUMBERS,
    TRAINING,
    BoltzmannProblem,
    BoltzmannView,
    PlaneConfig,
    middle_and_scale,
)
from p4lab.labs.curves import training_figure
from p4lab.labs.estimates import CERTAIN, FINE, Weighed, comparison, density_layer, pairs
from p4lab.labs.lab import BELOW, Axes, Bar, Board, Lab, Picture, Sight, Try
from p4lab.plots.format import DASH
from p4lab.plots.gallery import finite
from p4lab.plots.layers import Layer, Path, Plot, Points, Rows
from p4lab.problems.density2d import grid
from p4lab.problems.energies import PlaneEnergy
from p4lab.training import Engine
from p4lab.training.config import Rule, RunConfig, one_of, setting, whole

TEMPERATURES = tuple(2 ** (k / 12) for k in range(-20, 21))
"""What the dial offers: 0.31 to 3.2; 0.5, 1 and 2 among them."""
ON_THE_DIAL = Rule(float, lambda value: 0.3 <= value <= 3.2, "a number from 0.3 to 3.2, the ends of the dial")
"""Beyond it the quadrature over momenta is not what it says."""
SAMPLED = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83)
"""Temperatures of the reweighted points."""
LINE = TEMPERATURES[::4]
"""Temperatures of the lines."""
SPAN = (TEMPERATURES[0] - 0.1, TEMPERATURES[-1] + 0.1)
"""The axis of temperatures: the dial is seen at its ends, too."""
REACH, STEP = 5.4, 0.9
"""Momenta of the quadrature: from -5.4 to 5.4."""
EVALUATIONS = 25_000, 110_000
"""How often a table evaluates the flow, while training and at rest, as long as its pictures are fine enough."""
SIDES = (24, 96)
"""Least and greatest number of cells along a side of a table."""
DRAWN = 128
"""Samples of a step at another temperature than that of the data."""
DIALS = {"prior": "by prior", "trade": "TRADE", "energy": "by energy"}
"""What makes a flow follow the temperature: a constant determinant, consistency in T, or the energy at each T."""
MIXING_TEXTS = {"p4inv": "P4Inv", "swap": "swap", "permutation": "permutation", "p4orthogonal": "P4Orthogonal"}
"""What may stand between the couplings, and how it reads; other mixings are offered only if they are set."""


# --- what is trained --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TemperatureConfig(PlaneConfig):
    """Learn the Boltzmann distribution of a potential in the plane at T = 1 with a flow that has a temperature.

    What the dial does is exact where the determinant is constant; other flows read log T, and have to learn it.

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
    dial: str = setting(
        "prior",
        "Dial",
        choices=DIALS,
        help="What makes the flow follow T. By prior: N(0, T I), with a constant determinant. Others are splines that "
        "read log T and learn other temperatures: TRADE by consistency in T, from energies alone; the last one from "
        "energies and forces",
    )

    @property
    def width(self) -> int:
        """Positions, and momenta if there are any."""
        return 2 + self.momenta * (self.dial == "prior")

    def parts(self) -> tuple[BoltzmannProblem, SteerableFlow | TemperedFlow]:
        """Return the problem, and the flow."""
        if self.dial == "prior":
            return SteerableProblem(self.truth(), self.seed, **self.where, momenta=self.momenta), self.model()
        return TemperedProblem(self.truth(), self.seed, **self.where, dial=self.dial), self.model()

    def model(self) -> SteerableFlow | TemperedFlow:
        """Return the flow at its start; the networks of its couplings have two hidden layers."""
        mean, std = middle_and_scale(self.truth().bounds)
        options: dict[str, Any] = {"seed": self.seed, "preset": self.preset, **self.where}
        if self.dial == "prior":
            sizes = 2, self.momenta, self.blocks, self.mixing, self.hidden
            return boltzmann.steerable_flow(*sizes, mean=mean, std=std, **options)
        first = flows.Standardize(mean.to(options["dtype"]), std.to(options["dtype"])).to(options["device"])
        couplings = flows.spline_flow(2, self.blocks, self.mixing, hidden=self.hidden, context=1, **options)
        return TemperedFlow(flows.Flow([first, couplings]))


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


class TemperedProblem(BoltzmannProblem):
    r"""As `BoltzmannProblem`, and at each step also at a random temperature of the dial's.

    .. math:: L = (1 - s)\, KL(p_1 \| q_1) + s\, KL(q_1 \| p_1) + L_T, \qquad
              L_T = KL(q_T \| p_T) \text{ or } \tfrac{3}{10}\, L_{\text{TRADE}}(T)

    Args:
        dial: "energy" or "trade" (`p4lab.boltzmann.self_consistency`); further arguments as for `BoltzmannProblem`.
    """

    def __init__(
        self, energy: PlaneEnergy, seed: int, device: torch.device, dtype: torch.dtype, dial: str = "energy"
    ) -> None:
        super().__init__(energy, seed, device, dtype)
        self.dial = dial

    def loss(self, model: TemperedFlow, batch: tuple[Tensor, int]) -> Tensor:
        """Return the loss of a batch (nats), a differentiable scalar."""
        generator = torch.Generator().manual_seed(batch[1] + 1)
        # Of the dial's own stops, for each of which log Z is computed once: it is a sum over a million cells.
        t = TEMPERATURES[int(torch.randint(len(TEMPERATURES), (), generator=generator, device="cpu"))]
        total, options = super().loss(model, batch), (self.threshold, self.path_gradient)
        more = boltzmann.of_temperature(self.dial, model, self.energy, t, DRAWN, generator, *options)
        return total + (more + (self.energy.log_z(t) if self.dial == "energy" else 0.0))


@dataclass(frozen=True)
class TemperatureView(BoltzmannView):
    """What is looked at, and at which temperature."""

    temperature: float = setting(
        1.0,
        "Temperature",
        ON_THE_DIAL,
        choices={temperature: f"T = {temperature:.2f}" for temperature in TEMPERATURES},
        live=True,
        help="Of everything below; training does not look at it",
    )
    samples: bool = setting(True, help="Samples of the flow over its density")


# --- the flow at any temperature --------------------------------------------------------------------------------------

Look = Sight[TemperatureConfig, TemperatureView]


def _draw(
    model: Steered, truth: PlaneEnergy, n: int, generator: torch.Generator, temperature: float
) -> tuple[Tensor, Tensor]:
    y, log_q = model.sample_with_log_prob(n, generator=generator, temperature=temperature)
    energy = model.joint(truth) if isinstance(model, SteerableFlow) else truth
    return y[:, :2], boltzmann.log_weights(energy(y) / temperature, log_q)


def weighed(sight: Look, temperature: float) -> Weighed:
    """Return samples at a temperature, with the weights of their positions and momenta towards the truth there."""
    return estimates.weighed(sight, _draw, temperature)


@dataclass(frozen=True)
class Table:
    """A density in the cells of a grid.

    Attributes:
        log_p: log p(x) (nats) in the centres of the cells, shape (side, side), the first row at the bottom.
        truth: whose bounds are covered.
    """

    log_p: NDArray[np.float64]
    truth: PlaneEnergy

    def profile(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x, and -log of the marginal density along x (kT)."""
        (x0, x1, y0, y1), side = self.truth.bounds, len(self.log_p)
        x = x0 + (x1 - x0) * (np.arange(side) + 0.5) / side
        density = np.exp(self.log_p).sum(0) * (y1 - y0) / side
        return x, -np.log(np.maximum(density, 1e-300))

    def difference(self) -> float:
        """Return the free energy of basin b minus a (kT)."""
        log_p, in_b = torch.from_numpy(self.log_p), self.truth.in_b(centres(self.truth, len(self.log_p)))
        return float(log_p[~in_b].logsumexp(0) - log_p[in_b].logsumexp(0))


def centres(truth: PlaneEnergy, side: int) -> Tensor:
    """Return the centres of cells, shape (side, side, 2), the first row at the bottom."""
    return grid(truth.bounds, side).flip(0)


class Marginals:
    r"""A steerable flow's density over positions, at any temperature, from one evaluation of the flow at T = 1.

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
        x = centres(truth, side).view(-1, 1, 2).expand(-1, len(v), 2)
        y = torch.cat([x, v.expand(len(x), *v.shape)], -1).to(like)
        self._log_p = model.log_prob(y).view(side, side, len(v)).cpu()
        self._model, self._truth = model, truth

    @torch.no_grad()
    def at(self, temperature: float) -> Table:
        """Return the density at a temperature. No flow is evaluated."""
        log_p = self._model.rescaled(self._log_p, temperature).double()
        return Table((log_p + self._log_weights).logsumexp(-1).numpy(), self._truth)


@torch.no_grad()
def read(model: TemperedFlow, truth: PlaneEnergy, side: int, temperature: float) -> Table:
    """Return the density at a temperature of a flow that reads it."""
    log_p = model.log_prob(centres(truth, side).reshape(-1, 2).to(model.like()), temperature=temperature)
    return Table(log_p.view(side, side).double().cpu().numpy(), truth)


@lru_cache(maxsize=8)
def momenta_grid(momenta: int) -> tuple[Tensor, Tensor]:
    """Return nodes, shape (n, momenta), and the logarithms of their weights, shape (n,), for integrals over momenta.

    Up to two momenta the trapezoidal rule, for the temperatures of the dial exact to 1e-3 for one, and to 1e-2 for two
    where it is hottest; beyond that, 256 draws from N(0, 1.5 I), which is rough.
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


def side_of(config: TemperatureConfig, running: bool) -> int:
    """Return how fine a table may be: a flow with momenta is evaluated for each of them, others at each temperature."""
    number = len(momenta_grid(config.momenta)[0]) if config.dial == "prior" else 1 + len(LINE)
    each = EVALUATIONS[0 if running else 1] / number
    return int(min(SIDES[1], max(SIDES[0], each**0.5)))


def table(sight: Look, temperature: float) -> Table:
    """Return the flow's density at this moment and a temperature."""
    config, model = sight.config, sight.model()
    truth, side = config.truth(), side_of(config, sight.running)
    key = id(model), sight.moment(), side
    if isinstance(model, SteerableFlow):
        return sight.keep("marginals", key, lambda: Marginals(model, truth, side)).at(temperature)
    tables: dict[float, Table] = sight.keep("tables", key, dict)
    if temperature not in tables:
        tables[temperature] = read(model, truth, side, temperature)
    return tables[temperature]


# --- pictures ---------------------------------------------------------------------------------------------------------


def exact(sight: Look) -> Plot:
    """Draw the truth at the dial's temperature."""
    truth, view = sight.config.truth(), sight.view
    log_p = truth.log_prob(grid(truth.bounds, FINE).flip(0), view.temperature).numpy()
    label = "log p (nats)" if view.log else "density p"
    return Plot([density_layer(log_p, truth, view.log, label, view.temperature)], truth.bounds)


def steered(sight: Look) -> Plot:
    """Draw the flow at the dial's temperature."""
    truth, view = sight.config.truth(), sight.view
    layers: list[Layer] = [
        density_layer(table(sight, view.temperature).log_p, truth, view.log, temperature=view.temperature)
    ]
    if view.samples:
        layers.append(estimates.points_of(weighed(sight, view.temperature).x))
    return Plot(layers, truth.bounds)


def profile(sight: Look) -> Plot:
    """Draw the free energy along x at the dial's temperature."""
    truth, temperature = sight.config.truth(), sight.view.temperature
    free, edges = estimates.exact_profile(truth, temperature), estimates.edges_of(truth)
    base = float(free.min())
    x, raw = table(sight, temperature).profile()
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
    truth = sight.config.truth()
    a, b = truth.basins
    lines = np.array([[t, truth.free_energy_difference(t), table(sight, t).difference()] for t in LINE])
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


AT_ONE = {"forward", "reverse", "ess", "clipped"}
"""Numbers of the header that do not turn with the dial, and say so when the mouse is over them."""
STEERED = {"dial": "prior", "blocks": 8}
"""The flow that the lab opens with."""

TEMPERATURE = Lab(
    name="temperature",
    title="One flow for all temperatures",
    subtitle="Shown data of T = 1, used at any T",
    config=TemperatureConfig(),
    view=TemperatureView(),
    trainer=Engine,
    groups={
        "Truth": ("energy",),
        "Flow": ("dial", "momenta", "mixing", "blocks"),
        "Loss at T = 1": ("share",),
        **TRAINING,
    },
    more={"Flow": ("hidden",), **MORE_TRAINING},
    tries=(
        Try(
            "Turn the dial",
            "Press *Start*, wait some seconds, and drag *Temperature*. Below T = 1 the right well empties, "
            "above it the barrier fills, and the flow follows, though it saw neither. Nothing is trained for "
            "it, nothing is fitted.",
            {**STEERED, "momenta": 1, "mixing": "p4inv", "page:pictures": "At one temperature", "restart": True},
        ),
        Try(
            "Over temperatures",
            "The difference of free energies against temperature: blue is the flow as it is, orange "
            "reweighted at each temperature. Beside it is the ESS, which falls where it is hot.",
            {"page:pictures": "Over temperatures"},
        ),
        Try(
            "A flow that reads T",
            "Press *Start*, and compare the ESS. Splines change volumes, so that this flow has to learn what T does: "
            "by TRADE it is made to change with T as a Boltzmann distribution does, from energies alone. "
            "*by energy* needs forces, too.",
            {"dial": "trade", "blocks": 4, "mixing": "p4inv", "page:pictures": "Over temperatures", "restart": True},
        ),
        Try(
            "Without mixing",
            "Press *Start*. With the plain swap the couplings alone keep volume 1 for 1, so that not even the "
            "scale can be learnt: KL(p‖q) stays above 1.",
            {**STEERED, "momenta": 1, "mixing": "swap", "page:pictures": "At one temperature", "restart": True},
        ),
        Try(
            "Without momenta",
            "Press *Start*. A map that keeps all volumes can only bend the levels of one Gaussian. The law "
            "holds exactly, for a distribution that is nearly right: KL(p‖q) 0.10 after 1,000 steps, with two "
            "*Momenta* 0.08.",
            {**STEERED, "momenta": 0, "mixing": "p4inv", "page:pictures": "At one temperature", "restart": True},
        ),
    ),
    pictures=(
        Picture(Axes("Exact", "at this temperature", "x", "y", False, 300), exact, 0.3, "exact", "At one temperature"),
        Picture(
            Axes("Flow", "shown data of T = 1", "x", "", False, 300), steered, 0.5, "steered", "At one temperature"
        ),
        Picture(
            Axes("Free energy along x", "kT", "x", "", False, 300),
            profile,
            0.5,
            "profile",
            "At one temperature",
        ),
        Picture(
            Axes("Effective sample size", "% of samples", "T", "", False, 240), sizes, 2.2, "sizes", "Over temperatures"
        ),
        Picture(
            Axes("Free-energy difference", "kT", "T", "", False, 240),
            differences,
            2.0,
            "differences",
            "Over temperatures",
        ),
        Picture(Bar(("temperature", "samples", "log")), area="bar"),
        Picture(Board("Estimates"), board, 1.0, "board", BELOW),
    ),
    numbers=tuple(
        replace(number, help=f"At T = 1: {number.help}") if number.name in AT_ONE else number for number in NUMBERS
    ),
    curves=lambda sight: training_figure(sight, LOSS),
    loss=LOSS,
    disabled=lambda config: [] if config.dial == "prior" else ["momenta"],
    style=estimates.THREE,
)
"""The lab of temperatures."""
