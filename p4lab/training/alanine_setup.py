"""Alanine dipeptide: a flow learns its Boltzmann distribution from frames, from its energy, or from both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.boltzmann import clipped_ess, ess
from p4lab.boltzmann.weights import normalized
from p4lab.errors import ConfigError
from p4lab.molecules.checkpoint import SHIPPED, SHIPPED_METHOD, load_flow, start_at
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import Frames, load, phi_positive, split
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.evaluate import LARGEST_ENERGY, draw
from p4lab.molecules.flow import ARCHITECTURES, molecule_flow
from p4lab.molecules.losses import by_energy
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.target import InternalEnergy
from p4lab.training.config import Rule, RunConfig, one_of

SHARE = Rule(float, lambda value: math.isfinite(value) and 0 <= value <= 1, "a number from 0 to 1")
STARTS = ("pretrained", "new")
TEST = 512
"""Test frames that a measurement looks at."""


@dataclass(frozen=True)
class Prepared:
    """The data in the coordinates of the flows.

    Attributes:
        coordinates: the map.
        train: training frames as coordinates, shape (n, 60), float32.
        test: test frames, likewise.
        frames: all of them, with their energies.
        mean: mean energy of the data (kJ/mol).
    """

    coordinates: Coordinates
    train: Tensor
    test: Tensor
    frames: Frames
    mean: float


@lru_cache(maxsize=1)
def prepared() -> Prepared:
    """Return the data that come with p4lab, ready for training; made once.

    Raises:
        DataFileError: the file is missing or damaged.
    """
    frames = load()
    train, _, test = split(frames)
    coordinates = Coordinates.fit(train.x.double())
    with torch.no_grad():
        trained, tested = (coordinates.encode(part.x.double())[0].float() for part in (train, test))
    return Prepared(coordinates, trained, tested, frames, float(frames.energy.mean()))


class AlanineProblem:
    r"""Learn p(x) ~ exp(-E(x) / kT) of alanine dipeptide at 300 K.

    .. math:: L = (1 - s)\, E_\text{data}[-\log q(y)]
              + s\, E_{y \sim q}\left[u(y) - \log\left|\det \frac{\partial x}{\partial y}\right| + \log q(y)\right]

    What is shown of a run is made of the model's weights by whoever looks (`AlanineView`), so that looking costs the
    training no more than a copy of them.

    Args:
        by_energy: s, 0 (by example) to 1 (by energy).
        device: where the model lives.
        dtype: of the model.
    """

    name = "alanine"
    dim = Coordinates.dim

    def __init__(self, by_energy: float, device: torch.device | str, dtype: torch.dtype) -> None:
        data = prepared()
        self.by_energy, self.device, self.dtype = by_energy, torch.device(device), dtype
        self._coordinates, self._train = data.coordinates, data.train
        self._test = data.test[:TEST].to(self.device, dtype)
        self._energy = OpenMMEnergy()
        self._target = InternalEnergy(data.coordinates, self._energy)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Draw training frames, with their methyl hydrogens permuted at random, and a seed for samples of the model."""
        rows = torch.randint(len(self._train), (size,), generator=generator, device="cpu")
        seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))
        y = self._coordinates.augment(self._train[rows], generator)
        return y.to(self.device, self.dtype), seed

    def loss(self, model: MoleculeFlow, x: tuple[Tensor, int]) -> Tensor:
        """Return the mixed loss (nats), a differentiable scalar.

        Raises:
            TrainingError: OpenMM failed.
        """
        y, seed = x
        loss = y.new_zeros(())
        if self.by_energy < 1:
            loss = loss - (1 - self.by_energy) * model.log_prob(y).mean()
        if self.by_energy > 0:
            samples = torch.Generator().manual_seed(seed)
            loss = loss + self.by_energy * by_energy(model, self._target, len(y), samples)
        return loss

    @torch.no_grad()
    def test_loss(self, model: MoleculeFlow) -> Tensor:
        """Return the mean negative log-likelihood of 512 test frames (nats)."""
        return -model.log_prob(self._test).mean()

    @torch.no_grad()
    def pictures(self, model: MoleculeFlow, z: Tensor) -> dict[str, Tensor]:
        """Return copies of the model's weights, on the CPU. ``z`` is not used."""
        return {name: value.detach().to("cpu", copy=True) for name, value in tensors(model).items()}

    def release(self) -> None:
        """Free what OpenMM holds; training on opens it again."""
        self._energy.close()


def tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a model's state without what is not a tensor."""
    return {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}


@dataclass(frozen=True)
class AlanineConfig(RunConfig):
    """Learn alanine dipeptide at 300 K.

    Attributes:
        architecture: a name of `p4lab.molecules.flow.ARCHITECTURES`.
        initial: "pretrained" (the flow that comes with p4lab, for its own architecture only) or "new".
        by_energy: share of the loss that comes from the energy, 0 to 1; live.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "alanine"
    rules: ClassVar[dict[str, Rule]] = {
        "architecture": one_of(*ARCHITECTURES),
        "initial": one_of(*STARTS),
        "by_energy": SHARE,
    }
    live: ClassVar[tuple[str, ...]] = (*RunConfig.live, "by_energy")

    learning_rate: float = 5e-4
    batch_size: int = 256
    measure_every: int = 20
    architecture: str = "spline_p4"
    initial: str = "new"
    by_energy: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial == "pretrained" and self.architecture != SHIPPED_METHOD:
            raise ConfigError(
                f"initial='pretrained', architecture={self.architecture!r}: the flow that comes with p4lab is "
                f"{SHIPPED_METHOD!r}; choose that, or initial='new'"
            )

    @property
    def width(self) -> int:
        """The 60 coordinates."""
        return Coordinates.dim

    def model(self) -> MoleculeFlow:
        """Return the flow at its start.

        Raises:
            DataFileError: the data, or the flow that comes with p4lab, is missing or damaged.
        """
        flow = molecule_flow(self.architecture, prepared().train, self.seed)
        if self.initial == "pretrained":
            start_at(flow, load_flow(SHIPPED)[0])
        return flow.to(self.device, getattr(torch, self.dtype))

    def parts(self) -> tuple[AlanineProblem, MoleculeFlow]:
        """Return the problem, and the flow."""
        return AlanineProblem(self.by_energy, self.device, getattr(torch, self.dtype)), self.model()

    def update(self, problem: AlanineProblem) -> None:
        """Set the share of the energy."""
        problem.by_energy = self.by_energy


@dataclass(frozen=True)
class View:
    """Samples of a flow, and what they say.

    Attributes:
        phi, psi: torsions of the samples (radians), shape (n,).
        energy: their energies (kJ/mol), shape (n,); inf where there is none.
        weights: importance weights, shape (n,), their sum is 1.
        ess, clipped: effective sample size as a share of n, raw and with the top 0.1 % of the weights clipped.
        rare: share of phi > 0, raw and reweighted.
        shift: mean energy of the samples above that of the data (kJ/mol), raw.
        below: share of samples below the data's highest energy.
        positions: a few samples, shape (m, 22, 3), nm.
    """

    phi: NDArray[np.float32]
    psi: NDArray[np.float32]
    energy: NDArray[np.float64]
    weights: NDArray[np.float64]
    ess: float
    clipped: float
    rare: tuple[float, float]
    shift: float
    below: float
    positions: NDArray[np.float32]


SHOWN_POSITIONS = 8


class AlanineView:
    """Looks at flows of alanine dipeptide through their weights, with a copy of the flow and an energy of its own.

    Args:
        samples: how many are drawn at a time.
    """

    def __init__(self, samples: int = 1000) -> None:
        self.samples = samples
        self._energy = OpenMMEnergy()
        self._kind: Any = None
        self._model: MoleculeFlow | None = None

    @torch.no_grad()
    def look(self, config: AlanineConfig, weights: Mapping[str, NDArray[Any]]) -> View:
        """Return samples of the flow with these weights; the latent variables are always the same.

        Args:
            config: what the flow is like.
            weights: `AlanineProblem.pictures`.
        """
        kind = (config.architecture, config.seed, config.dtype)
        if self._model is None or kind != self._kind:
            self._model, self._kind = config.replace(device="cpu", initial="new").model(), kind
        for name, value in tensors(self._model).items():
            value.copy_(torch.from_numpy(weights[name]))
        data = prepared()
        found = draw(self._model, data.coordinates, self._energy, self.samples, config.seed, chunk=self.samples)
        normal = normalized(found.log_weights)
        rare = phi_positive(found.phi).double()
        positions, _ = data.coordinates.decode(found.y[:SHOWN_POSITIONS].double())
        return View(
            found.phi.numpy(),
            found.psi.numpy(),
            found.energy.numpy(),
            normal.numpy(),
            float(ess(found.log_weights)),
            float(clipped_ess(found.log_weights)),
            (float(rare.mean()), float((normal * rare).sum())),
            float(found.energy.clamp(max=LARGEST_ENERGY).mean()) - data.mean,
            float((found.energy < data.frames.energy.max()).double().mean()),
            positions.float().numpy(),
        )

    def close(self) -> None:
        """Free what OpenMM holds."""
        self._energy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
