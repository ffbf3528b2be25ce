"""Boltzmann generators in the plane: a flow learns a potential by example, by energy, or by both."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p4lab import boltzmann, flows
from p4lab.labs import estimates, numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.estimates import BINS, COARSE, FINE, Weighed, comparison, density_layer, energy_range, pairs
from p4lab.labs.lab import BELOW, Axes, Bar, Board, Lab, Number, Picture, Sight, Try, View, diagnostics, weights_of
from p4lab.plots import Loss
from p4lab.plots.format import DASH, number
from p4lab.plots.gallery import finite
from p4lab.plots.layers import Heatmap, Layer, Path, Plot, Rows
from p4lab.problems.density2d import Bounds, grid
from p4lab.problems.energies import PLANE_ENERGIES, SIDE, PlaneEnergy, plane_energy
from p4lab.training import Engine
from p4lab.training.config import POSITIVE, SWITCH, Rule, RunConfig, setting, whole

TEST = 4096
"""Points of the test set."""
DRAWN = 4096
"""Samples of the model that each measurement weighs."""
DEPTH = 14.0
"""How far above the minimum energies are told apart (kT)."""
SHARES = tuple(k / 20 for k in range(21))
"""Shares of the loss by energy that the slider offers."""
LOSS = Loss("KL divergence (nats)", log=True, bits=False)


# --- what is trained --------------------------------------------------------------------------------------------------


def share_text(share: float) -> str:
    """Return how a share of the loss by energy reads."""
    return {0.0: "by example", 1.0: "by energy"}.get(share, f"{100 * share:.0f} % energy")


class PlaneConfig(RunConfig):
    """What the settings of flows that learn a potential in the plane have in common.

    Every subclass declares all of these fields itself, because their order is that of its config texts.
    """

    learning_rate: float = setting(2e-3, choices=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2))
    batch_size: int = setting(256, choices=(64, 128, 256, 512))
    merge_every: int = setting(RunConfig.merge_every, choices=(1, 2, 4, 10, 20, 50, 100))
    energy: str = setting(
        "double_well", "Energy", choices={name: plane_energy(name).label for name in PLANE_ENERGIES}, look="wide"
    )
    share: float = setting(
        0.0,
        "Learn",
        Rule(float, lambda value: 0 <= value <= 1, "a number from 0 (by example) to 1 (by energy)"),
        choices=lambda config: {share: share_text(share) for share in sorted({*SHARES, config.share})},
        live=True,
        help="What the loss is made of: (1 − s) KL(p‖q), learnt from examples, and s KL(q‖p), learnt from the energy",
    )
    path_gradient: bool = setting(
        True,
        "Path gradient",
        SWITCH,
        live=True,
        help="Leave out the part of the gradient by energy whose mean is 0: its noise vanishes where q = p",
    )
    threshold: float = setting(
        100.0,
        "Compress above",
        POSITIVE,
        choices=(10.0, 30.0, 100.0, 300.0, 1000.0),
        own=True,
        live=True,
        unit="kT",
        help="Energies above it grow with their logarithm only",
    )
    blocks: int = setting(6, "Couplings", whole(1, 64), own=True)
    hidden: int = setting(32, "Hidden width", whole(1, 1024), choices=(16, 32, 64), own=True)

    def truth(self) -> PlaneEnergy:
        """Return the potential."""
        return plane_energy(self.energy)

    def update(self, problem: "BoltzmannProblem") -> None:
        """Set what the loss is made of."""
        problem.share, problem.path_gradient, problem.threshold = self.share, self.path_gradient, self.threshold

    def measures(self, problem: "BoltzmannProblem", model: nn.Module, watched: Tensor | None) -> dict[str, Any]:
        """Return what every measurement finds, and ESS and KL(q || p)."""
        return {**super().measures(problem, model, watched), **problem.figures(model)}


@dataclass(frozen=True)
class BoltzmannConfig(PlaneConfig):
    """Learn the Boltzmann distribution of a potential in the plane at T = 1.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "boltzmann"

    rank: int = 2
    learning_rate: float = 2e-3
    batch_size: int = 256
    merge_every: int = RunConfig.merge_every
    measure_every: int = 50
    energy: str = "double_well"
    flow: str = setting(
        "realnvp_p4inv",
        "Architecture",
        choices={
            "realnvp_p4inv": "RealNVP + P4Inv swaps",
            "realnvp": "RealNVP",
            "p4inv_bent": "P4Inv + Bent",
            "spline_p4inv": "Splines + P4Inv",
        },
        look="wide",
    )
    share: float = 0.0
    path_gradient: bool = True
    threshold: float = 100.0
    blocks: int = setting(6, choices=(2, 4, 6, 8, 12))
    hidden: int = 32

    @property
    def width(self) -> int:
        """The plane's 2."""
        return 2

    def parts(self) -> tuple["BoltzmannProblem", nn.Module]:
        """Return the problem, and the flow."""
        return BoltzmannProblem(self.truth(), self.seed, **self.where), self.model()

    def model(self) -> flows.Flow:
        """Return the flow at its start; a fixed layer first brings the picture to [-2, 2] x [-2, 2].

        The networks of its couplings have two hidden layers; P4Inv + Bent has two nonlinearities in place of each.
        """
        options: dict[str, Any] = {"seed": self.seed, **self.where}
        mean, std = (moment.to(options["dtype"]) for moment in middle_and_scale(self.truth().bounds))
        first = flows.Standardize(mean, std).to(options["device"])
        if self.flow == "p4inv_bent":
            p4: dict[str, Any] = {"rank": min(self.rank, 2), "reset": self.reset, "train_v": self.train_v}
            return flows.Flow([first, flows.p4inv_bent(2, 2 * self.blocks, init="identity", **p4, **options)])
        kind, _, mixing = self.flow.partition("_")
        make = flows.spline_flow if kind == "spline" else flows.realnvp
        options |= {"hidden": self.hidden, "preset": self.preset}
        return flows.Flow([first, make(2, self.blocks, mixing or "swap", **options)])


def middle_and_scale(bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Return the middle of a picture and a quarter of its sides, shape (2,) each, float64."""
    x0, x1, y0, y1 = bounds
    double = torch.float64
    return torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2], dtype=double), torch.tensor(
        [(x1 - x0) / 4, (y1 - y0) / 4], dtype=double
    )


class BoltzmannProblem:
    r"""Learn p(x) ~ exp(-u(x)) from exact samples, from u alone, or from both.

    .. math:: L = (1 - s)\, KL(p \| q) + s\, KL(q \| p)

    Both divergences are the losses of `p4lab.boltzmann.mixed` plus what does not depend on the model: -log p of the
    batch, and log Z. So 0 is the end, and noise vanishes on the way to it.

    Args:
        energy: u.
        seed: seed of the test set.
        device: where batches and test set live.
        dtype: their dtype.

    Attributes:
        share, path_gradient, threshold: s, and the settings of `p4lab.boltzmann.by_energy`; may be set at any time.
        test: the test set, shape (4096, dim).
    """

    share, path_gradient, threshold = 0.0, True, 100.0

    def __init__(self, energy: PlaneEnergy, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.energy, self.device, self.dtype = energy, device, dtype
        self._seed = seed
        self.test = _test_set(energy, seed).to(device, dtype)

    @property
    def dim(self) -> int:
        """Width of the model."""
        return 2

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Return points of p, shape (size, 2), and the seed of everything else that the loss draws."""
        x = self.energy.sample(size, generator).to(self.device, self.dtype)
        return x, int(torch.randint(2**62, (), generator=generator, device="cpu"))

    def loss(self, model: Any, batch: tuple[Tensor, int]) -> Tensor:
        """Return the loss of a batch (nats), a differentiable scalar."""
        x, seed = batch
        generator = torch.Generator().manual_seed(seed)
        examples = self.examples(model, x, generator)
        loss = boltzmann.mixed(
            model,
            examples,
            self.target(model),
            self.share,
            generator=generator,
            threshold=self.threshold,
            path_gradient=self.path_gradient,
        )
        return loss + (1 - self.share) * self._log_p(model, examples).mean() + self.share * self.log_z()

    def examples(self, model: Any, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return what the model is shown of points x."""
        return x

    def target(self, model: Any) -> boltzmann.ReducedEnergy:
        """Return the energy of what the model describes."""
        return self.energy

    def log_z(self) -> float:
        """Return log of the partition function of `target`."""
        return self.energy.log_z()

    def _log_p(self, model: Any, x: Tensor) -> Tensor:
        return -self.target(model)(x) - self.log_z()

    @torch.no_grad()
    def test_loss(self, model: Any) -> Tensor:
        """Return KL(p || q) on the test set (nats)."""
        examples = self.examples(model, self.test, torch.Generator().manual_seed(self._seed))
        return (self._log_p(model, examples) - model.log_prob(examples)).mean()

    @torch.no_grad()
    def figures(self, model: Any) -> dict[str, float]:
        """Return ESS (raw and with the top 0.1% of weights clipped; shares) and KL(q || p) (nats), by name."""
        x, log_q = model.sample_with_log_prob(DRAWN, generator=torch.Generator().manual_seed(self._seed))
        log_w = boltzmann.log_weights(self.target(model)(x), log_q)
        finite = torch.isfinite(log_w)
        reverse = torch.where(finite, -log_w, 0.0).sum() / finite.sum() + self.log_z()
        return {
            "ess": float(boltzmann.ess(log_w)),
            "clipped_ess": float(boltzmann.clipped_ess(log_w)),
            "reverse_kl": float(reverse),
        }

    def pictures(self, model: nn.Module, z: Tensor) -> dict[str, Tensor]:
        """Return copies of the model's weights; who looks makes pictures of them. ``z`` is not used."""
        return weights_of(model)


@lru_cache(maxsize=8)
def _test_set(energy: PlaneEnergy, seed: int) -> Tensor:
    return energy.sample(TEST, torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class BoltzmannView(View):
    """What is looked at."""

    view: str = diagnostics("training")
    samples: bool = setting(True, "Samples", SWITCH, live=True, help="Samples of the flow over the energy")
    log: bool = setting(False, "", choices={False: "Density", True: "Log-density"}, kind="segments", live=True)


# --- pictures ---------------------------------------------------------------------------------------------------------

Look = Sight[BoltzmannConfig, BoltzmannView]


def _draw(model: Any, truth: PlaneEnergy, n: int, generator: torch.Generator, _: float) -> tuple[Tensor, Tensor]:
    x, log_q = model.sample_with_log_prob(n, generator=generator)
    return x, boltzmann.log_weights(truth(x), log_q)


def weighed(sight: Look) -> Weighed:
    """Return weighed samples of the flow at this moment."""
    return estimates.weighed(sight, _draw)


@lru_cache(maxsize=8)
def landscape(truth: PlaneEnergy) -> NDArray[np.float64]:
    """Return u minus its minimum (kT), at most `DEPTH`, the first row at the bottom."""
    u = truth(grid(truth.bounds, FINE).flip(0))
    return (u - u.min()).clamp(max=DEPTH).numpy()


def potential(sight: Look) -> Plot:
    """Draw the potential with samples of the flow over it."""
    truth = sight.config.truth()
    layers: list[Layer] = [Heatmap(landscape(truth), truth.bounds, low=0, high=DEPTH, label="u − min u (kT)")]
    if sight.view.samples:
        layers.append(estimates.points_of(weighed(sight).x))
    return Plot(layers, truth.bounds)


@torch.no_grad()
def density(sight: Look) -> Plot:
    """Draw the flow's density."""
    truth, model, side = sight.config.truth(), sight.model(), COARSE if sight.running else FINE
    x = grid(truth.bounds, side).flip(0).to(next(model.parameters()))
    log_density = model.log_prob(x.view(-1, 2)).view(side, side).cpu().double().numpy()
    return Plot([density_layer(log_density, truth, sight.view.log)], truth.bounds)


def profile(sight: Look) -> Plot:
    """Draw the free energy along x."""
    truth, samples = sight.config.truth(), weighed(sight)
    exact, raw = estimates.exact_profile(truth), samples.profile(False)
    base = float(exact.min())
    top = min(14.0, float(np.ceil(np.max(exact[np.isfinite(exact)], initial=6.0) - base)) + 1)
    layers = comparison(
        pairs(raw.centres, finite(exact) - base),
        pairs(raw.centres, finite(raw.free_energy.numpy()) - base),
        *estimates.certain_profile(samples, base),
    )
    x0, x1, _, _ = truth.bounds
    return Plot(layers, (x0, x1, -0.5, top))


@lru_cache(maxsize=8)
def exact_energies(truth: PlaneEnergy) -> NDArray[np.float64]:
    """Return the density of energies under p in the bins of `Weighed.energies` (1 / kT)."""
    points = grid(truth.box(), SIDE)
    low, high = energy_range(truth)
    mass = truth.log_prob(points).exp()
    counts = torch.histogram(truth(points).flatten(), BINS, range=(low, high), weight=(mass / mass.sum()).flatten())
    return (counts.hist / (high - low) * BINS).numpy()


def energies(sight: Look) -> Plot:
    """Draw the histogram of energies."""
    truth, samples = sight.config.truth(), weighed(sight)
    exact, (low, high) = exact_energies(truth), energy_range(truth)
    raw, corrected = samples.energies(False), samples.energies(True)
    x = raw.centres
    layers = comparison(pairs(x, exact), pairs(x, raw.density), pairs(x, corrected.density), corrected.error.numpy())
    return Plot(layers, (low, high, 0.0, 1.35 * float(exact.max())))


def sizes(sight: Look) -> Plot:
    """Draw the effective sample size over the steps."""
    snapshot = sight.snapshot
    layers = []
    for name, color, label in (("clipped_ess", "grey", "top 0.1% of weights clipped"), ("ess", "blue", "raw")):
        steps, values = snapshot.curves[name]
        layers.append(Path(pairs(steps, 100 * values), color, label=label))
    return Plot(layers, (0.0, max(200.0, float(snapshot.step)), 0.0, 105.0))


def board(sight: Look) -> Rows:
    """Return what is exact, what the flow says, and what reweighting makes of it."""
    truth, samples = sight.config.truth(), weighed(sight)
    return estimates.estimates(
        truth,
        samples,
        1.0,
        "",
        ("mean energy (kT)", "Mean of u"),
        ("log Z (nats)", "Logarithm of the partition function: of the flow, log of the mean weight"),
        [number(truth.log_z(), ".3f"), DASH, number(samples.log_z(), ".3f")],
    )


# --- numbers, and the whole -------------------------------------------------------------------------------------------


def _last(name: str, form: str, scale: float = 1.0) -> Callable[[Sight[Any, Any]], str]:
    return lambda sight: number(scale * sight.snapshot.last(name), form)


_SIZE = "Effective sample size of the flow's samples"
NUMBERS = (
    *numbers.steps(),
    Number(
        "forward",
        "KL(p‖q)",
        _last("test_loss", ".3f"),
        "nats",
        "KL(p‖q) on data that is not trained on: sees modes that the flow misses",
    ),
    Number(
        "reverse",
        "KL(q‖p)",
        _last("reverse_kl", ".3f"),
        "nats",
        "KL(q‖p) on the flow's samples: does not see modes that the flow misses",
    ),
    Number("ess", "ESS", _last("ess", ".1f", 100), "%", _SIZE),
    Number("clipped", "ESS, clipped", _last("clipped_ess", ".1f", 100), "%", f"{_SIZE}, the top 0.1% of them clipped"),
    numbers.merges()[0],
)
TRAINING = {
    "Optimizer": ("learning_rate", "batch_size"),
    "P4Inv": ("merge_every",),
    "Run": ("speed",),
}
"""Groups of settings that do not depend on the flow."""
MORE_TRAINING = {"P4Inv": ("skip",), "Run": ("seed", "device", "dtype"), "Diagnostics": ("view",)}
"""Further ones, for the second page."""

BOLTZMANN = Lab(
    name="boltzmann",
    title="Boltzmann generators",
    subtitle="exp(−u) by example, by energy, or by both",
    config=BoltzmannConfig(),
    view=BoltzmannView(),
    trainer=Engine,
    groups={
        "Truth": ("energy",),
        "Flow": ("flow", "blocks"),
        **TRAINING,
    },
    more={"Flow": ("hidden",), "By energy": ("path_gradient", "threshold"), **MORE_TRAINING},
    tries=(
        Try(
            "By example",
            "Press *Start*. The density comes to look like the wells of the energy. In the free energy along "
            "x orange estimates, reweighted and with error bars, meet the dashed truth long before the blue "
            "line of the flow does.",
            {"energy": "double_well", "share": 0.0, "page:pictures": "Samples", "restart": True},
        ),
        Try(
            "By energy",
            "Press *Start*. Within 300 steps the ESS is above 90%, and the right well is gone. KL(p‖q) knows, "
            "KL(q‖p) and ESS do not: so a generator's ESS should never be reported alone.",
            {"energy": "double_well", "share": 1.0, "page:pictures": "Samples", "restart": True},
        ),
        Try(
            "Forget a well",
            "Press *Start*. After 600 steps by example drag *Learn* to the right: KL(q‖p) falls, and the "
            "right well empties. The clipped ESS looks excellent, the raw one sinks to 1%: the last samples "
            "there carry all weight.",
            {"energy": "double_well", "share": 0.0, "page:pictures": "Samples", "restart": True},
        ),
        Try(
            "A mixture",
            "Press *Start*. Energies fit closely, and the rare well is found more slowly than by example: "
            "after 1,000 steps it holds 1.2% of the samples, in truth 3.4%. At 80 % energy it holds 0.2%.",
            {"energy": "double_well", "share": 0.5, "page:pictures": "Energies and sample size", "restart": True},
        ),
        Try(
            "Two runs, compared",
            "Pause, drag *Time travel* back to the first steps, move *Learn*, and press *Branch here* and *Start*.",
        ),
        Try(
            "Another landscape",
            "Press *Start*. Müller–Brown has a bent valley. Try another *Architecture*, too: splines come "
            "closer than RealNVP.",
            {"energy": "mueller_brown", "share": 0.0, "page:pictures": "Samples", "restart": True},
        ),
    ),
    pictures=(
        Picture(Axes("Energy", "and the flow's samples", "x", "y", False, 300), potential, 0.5, "potential", "Samples"),
        Picture(Axes("Flow", "density q(x)", "x", "", False, 300), density, 0.5, "density", "Samples"),
        Picture(Axes("Free energy along x", "kT", "x", "", False, 300), profile, 0.5, "profile", "Samples"),
        Picture(
            Axes("Energies", "of samples, share per kT", "u (kT)", "", False, 240),
            energies,
            0.5,
            "energies",
            "Energies and sample size",
        ),
        Picture(
            Axes("Effective sample size", "% of samples", "step", "", False, 240),
            sizes,
            0.7,
            "sizes",
            "Energies and sample size",
        ),
        Picture(Bar(("share", "samples", "log")), area="bar"),
        Picture(Board("Estimates"), board, 1.0, "board", BELOW),
    ),
    numbers=NUMBERS,
    curves=lambda sight: training_figure(sight, LOSS),
    loss=LOSS,
    style=estimates.THREE,
)
"""The lab of Boltzmann generators in the plane."""
