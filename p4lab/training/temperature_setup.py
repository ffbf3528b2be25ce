"""Temperature-steerable flows: trained at T = 1, used at any temperature."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from p4lab import boltzmann
from p4lab.boltzmann import SteerableFlow, steerable_flow
from p4lab.flows import MIXINGS
from p4lab.problems.energies import PLANE_ENERGIES, PlaneEnergy, plane_energy
from p4lab.training.boltzmann_setup import SHARE, BoltzmannProblem, middle_and_scale, preset_of
from p4lab.training.config import POSITIVE, SWITCH, Rule, RunConfig, one_of, whole


@dataclass(frozen=True)
class TemperatureConfig(RunConfig):
    """Learn the Boltzmann distribution of a potential in the plane at T = 1 with a flow that has a temperature.

    Attributes:
        energy: a name of `p4lab.problems.energies.PLANE_ENERGIES`.
        momenta: number of auxiliary momenta.
        mixing: what stands between the couplings, a name of `p4lab.flows.MIXINGS`.
        share: of the loss by energy; 0 is by example alone, 1 by energy alone.
        path_gradient, threshold: as in `p4lab.training.boltzmann_setup.BoltzmannConfig`.
        blocks: couplings.
        hidden: width of the couplings' networks, which have two hidden layers.
    """

    problem: ClassVar[str] = "temperature"
    rules: ClassVar[dict[str, Rule]] = {
        "energy": one_of(*PLANE_ENERGIES),
        "momenta": whole(0, 16),
        "mixing": one_of(*MIXINGS),
        "share": SHARE,
        "path_gradient": SWITCH,
        "threshold": POSITIVE,
        "blocks": whole(1, 64),
        "hidden": whole(1, 1024),
    }
    live: ClassVar[tuple[str, ...]] = (*RunConfig.live, "share", "path_gradient", "threshold")

    learning_rate: float = 5e-3
    batch_size: int = 256
    measure_every: int = 50
    energy: str = "double_well"
    momenta: int = 1
    mixing: str = "p4inv"
    share: float = 0.0
    path_gradient: bool = True
    threshold: float = 100.0
    blocks: int = 8
    hidden: int = 32

    @property
    def width(self) -> int:
        """Positions and momenta."""
        return 2 + self.momenta

    def truth(self) -> PlaneEnergy:
        """Return the potential."""
        return plane_energy(self.energy)

    def parts(self) -> tuple["SteerableProblem", nn.Module]:
        """Return the problem, and the flow."""
        where = torch.device(self.device), getattr(torch, self.dtype)
        return SteerableProblem(self.truth(), self.seed, *where, momenta=self.momenta), self.model()

    def update(self, problem: BoltzmannProblem) -> None:
        """Set what the loss is made of."""
        problem.share, problem.path_gradient, problem.threshold = self.share, self.path_gradient, self.threshold

    @property
    def architecture(self) -> tuple[Any, ...]:
        """What decides which weights there are; flows that agree in it can take over each other's."""
        names = ("energy", "momenta", "mixing", "blocks", "hidden", "rank", "train_v", "dtype", "device")
        return tuple(getattr(self, name) for name in names)

    def model(self) -> SteerableFlow:
        """Return the flow at its start."""
        mean, std = middle_and_scale(self.truth().bounds)
        return steerable_flow(
            2,
            self.momenta,
            self.blocks,
            self.mixing,
            self.hidden,
            mean=mean,
            std=std,
            seed=self.seed,
            preset=preset_of(self),
            dtype=getattr(torch, self.dtype),
            device=torch.device(self.device),
        )


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

    def target(self, model: SteerableFlow) -> boltzmann.ReducedEnergy:
        """Return the energy of positions and momenta."""
        return model.joint(self.energy)

    def log_z(self) -> float:
        """Return log of the partition function of positions and momenta."""
        return super().log_z() + 0.5 * self.momenta * math.log(2 * math.pi)
