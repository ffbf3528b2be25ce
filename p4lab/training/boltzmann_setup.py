"""Boltzmann generators in the plane: a flow learns a potential by example, by energy, or by both."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from p4lab import boltzmann, flows
from p4lab.p4 import RECOMMENDED, Preset
from p4lab.problems.density2d import Bounds
from p4lab.problems.energies import PLANE_ENERGIES, PlaneEnergy, plane_energy
from p4lab.training.config import POSITIVE, SWITCH, Rule, RunConfig, one_of, whole
from p4lab.training.engine import Engine
from p4lab.training.measure import figures

TEST = 4096
"""Points of the test set."""
DRAWN = 4096
"""Samples of the model that each measurement weighs."""
FLOWS = ("realnvp_p4inv", "realnvp", "p4inv_bent", "spline_p4inv")
"""Architectures; see `BoltzmannConfig.model`."""
COLUMNS = ("ess", "clipped_ess", "reverse_kl")
"""What is measured beside what every engine measures."""
SHARE = Rule(float, lambda value: 0 <= value <= 1, "a number from 0 (by example) to 1 (by energy)")


@dataclass(frozen=True)
class BoltzmannConfig(RunConfig):
    """Learn the Boltzmann distribution of a potential in the plane at T = 1.

    Attributes:
        energy: a name of `p4lab.problems.energies.PLANE_ENERGIES`.
        flow: "realnvp_p4inv" (P4Inv swaps), "realnvp", "p4inv_bent" or "spline_p4inv".
        share: of the loss by energy; 0 is by example alone, 1 by energy alone.
        path_gradient: whether training by energy takes the path gradient.
        threshold: energies above it are compressed (nats).
        blocks: couplings; P4Inv + Bent has twice as many nonlinearities.
        hidden: width of the couplings' networks, which have two hidden layers.
    """

    problem: ClassVar[str] = "boltzmann"
    rules: ClassVar[dict[str, Rule]] = {
        "energy": one_of(*PLANE_ENERGIES),
        "flow": one_of(*FLOWS),
        "share": SHARE,
        "path_gradient": SWITCH,
        "threshold": POSITIVE,
        "blocks": whole(1, 64),
        "hidden": whole(1, 1024),
    }
    live: ClassVar[tuple[str, ...]] = (*RunConfig.live, "share", "path_gradient", "threshold")

    rank: int = 2
    learning_rate: float = 2e-3
    batch_size: int = 256
    measure_every: int = 50
    energy: str = "double_well"
    flow: str = "realnvp_p4inv"
    share: float = 0.0
    path_gradient: bool = True
    threshold: float = 100.0
    blocks: int = 6
    hidden: int = 32

    @property
    def width(self) -> int:
        """The plane's 2."""
        return 2

    def truth(self) -> PlaneEnergy:
        """Return the potential."""
        return plane_energy(self.energy)

    def parts(self) -> tuple["BoltzmannProblem", nn.Module]:
        """Return the problem, and the flow."""
        problem = BoltzmannProblem(self.truth(), self.seed, torch.device(self.device), getattr(torch, self.dtype))
        return problem, self.model()

    def update(self, problem: "BoltzmannProblem") -> None:
        """Set what the loss is made of."""
        problem.share, problem.path_gradient, problem.threshold = self.share, self.path_gradient, self.threshold

    @property
    def architecture(self) -> tuple[Any, ...]:
        """What decides which weights there are; flows that agree in it can take over each other's."""
        names = ("energy", "flow", "blocks", "hidden", "rank", "train_v", "dtype", "device")
        return tuple(getattr(self, name) for name in names)

    def model(self) -> flows.Flow:
        """Return the flow at its start; a fixed layer first brings the picture to [-2, 2] x [-2, 2]."""
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        first = standardize(self.truth().bounds, dtype, device)
        options: dict[str, Any] = {"seed": self.seed, "dtype": dtype, "device": device}
        if self.flow == "p4inv_bent":
            p4: dict[str, Any] = {"rank": min(self.rank, 2), "reset": self.reset, "train_v": self.train_v}
            return flows.Flow([first, flows.p4inv_bent(2, 2 * self.blocks, init="identity", **p4, **options)])
        kind, _, mixing = self.flow.partition("_")
        make = flows.spline_flow if kind == "spline" else flows.realnvp
        options |= {"hidden": self.hidden, "preset": preset_of(self)}
        return flows.Flow([first, make(2, self.blocks, mixing or "swap", **options)])


def preset_of(config: RunConfig) -> Preset:
    """Return the settings of P4 layers that a config stands for."""
    return dataclasses.replace(
        RECOMMENDED, rank=config.rank, reset=config.reset, train_v=config.train_v, every=config.merge_every
    )


def standardize(bounds: Bounds, dtype: torch.dtype, device: torch.device) -> flows.Standardize:
    """Return the fixed layer that brings a picture to [-2, 2] x [-2, 2]."""
    mean, std = middle_and_scale(bounds)
    return flows.Standardize(mean.to(dtype), std.to(dtype)).to(device)


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
        x, log_q = model.sample_with_log_prob(DRAWN, torch.Generator().manual_seed(self._seed))
        log_w = boltzmann.log_weights(self.target(model)(x), log_q)
        seen = torch.isfinite(log_w)
        reverse = torch.where(seen, -log_w, 0.0).sum() / seen.sum() + self.log_z()
        return {
            "ess": float(boltzmann.ess(log_w)),
            "clipped_ess": float(boltzmann.clipped_ess(log_w)),
            "reverse_kl": float(reverse),
        }

    @torch.no_grad()
    def pictures(self, model: nn.Module, z: Tensor) -> dict[str, Tensor]:
        """Return copies of the model's weights, on the CPU; who looks makes pictures of them. ``z`` is not used."""
        return {
            name: value.detach().to("cpu", copy=True)
            for name, value in model.state_dict().items()
            if torch.is_tensor(value)
        }


@lru_cache(maxsize=8)
def _test_set(energy: PlaneEnergy, seed: int) -> Tensor:
    return energy.sample(TEST, torch.Generator().manual_seed(seed))


class BoltzmannEngine(Engine):
    """An engine that also records ESS and KL(q || p); see `COLUMNS`."""

    @torch.no_grad()
    def _measure(self) -> None:
        self.records.measures.append(
            step=self.step,
            test_loss=float(self.problem.test_loss(self.model)),
            **figures(self.model, self._watched()),
            **self.problem.figures(self.model),
        )
