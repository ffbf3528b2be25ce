"""Energies and forces from OpenMM as a differentiable function of PyTorch tensors."""

import threading
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from p4lab.errors import OptionError, ShapeError, TrainingError
from p4lab.molecules import alanine
from p4lab.molecules.packages import package
from p4lab.molecules.units import BOLTZMANN


class OpenMMEnergy:
    r"""The reduced energy of a molecule, with OpenMM's forces as its gradient.

    .. math:: u(x) = \frac{E(x)}{k_B T}, \qquad \frac{\partial u}{\partial x} = -\frac{F(x)}{k_B T}

    Frames of which positions, energy or forces are not finite get u = inf and gradient 0, and are counted. One context
    of OpenMM is kept and used frame by frame; `close` frees it, and the next call makes another.

    Args:
        system: an ``openmm.System`` (None: alanine dipeptide).
        temperature: T (K).
        platform: name of OpenMM's platform; "Reference" is the fastest for few atoms, and is double precision.

    Attributes:
        n_atoms: number of atoms.
        context: what OpenMM computes with; None before the first call, and when closed.
        not_finite: frames so far that were not finite.

    Raises:
        MissingPackageError: openmm is not installed.
        OptionError: temperature not above 0, or no such platform.

    Cost for a batch of B: B energies (and forces, if x needs a gradient), about 50 microseconds each for 22 atoms.
    Source: arXiv:2010.07033, section 4.3.
    """

    def __init__(self, system: Any = None, temperature: float = 300.0, platform: str = "Reference") -> None:
        openmm = package("openmm")
        if not temperature > 0:
            raise OptionError(f"temperature={temperature}: expected above 0 K")
        names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        if platform not in names:
            raise OptionError(f"platform={platform!r}: OpenMM has {', '.join(names)} here")
        self._system = alanine.system() if system is None else system
        self._platform = platform
        self.context: Any = None
        self._lock = threading.Lock()  # a context must not be used by two threads at once
        self.temperature = temperature
        self.n_atoms = int(self._system.getNumParticles())
        self.not_finite = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return u of shape (...), float64, for positions x of shape (..., n_atoms, 3), nm.

        Raises:
            ShapeError: x has another shape.
            TrainingError: OpenMM failed.
        """
        return _Reduced.apply(x, self)

    def kilojoules(self, x: Tensor) -> Tensor:
        """Return E (kJ/mol) of shape (...), float64, without gradient.

        Raises:
            ShapeError, TrainingError: as `__call__`.
        """
        with torch.no_grad():
            reduced: Tensor = self(x)
        return reduced * BOLTZMANN * self.temperature

    def energies_and_forces(
        self, frames: NDArray[np.float64], forces: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return energies (kJ/mol) of frames of shape (n, n_atoms, 3), and forces (kJ/mol/nm), all 0 if not wanted.

        Raises:
            TrainingError: OpenMM failed.
        """
        energy, force = np.full(len(frames), np.inf), np.zeros_like(frames)
        finite = np.isfinite(frames.reshape(len(frames), -1)).all(axis=1)
        with self._lock:
            try:
                context = self._opened()
                for i in np.flatnonzero(finite):
                    context.setPositions(frames[i])
                    state = context.getState(energy=True, forces=forces)
                    value = state.getPotentialEnergy()._value
                    pull = state.getForces(asNumpy=True)._value if forces else 0.0
                    if np.isfinite(value) and np.isfinite(pull).all():
                        energy[i], force[i] = value, pull
            except Exception as error:  # openmm raises its own class for everything
                self.context = None
                raise TrainingError(
                    f"OpenMM failed on a batch of {len(frames)} frames: {error}. Model and records are as before"
                ) from error
            self.not_finite += int(np.isinf(energy).sum())
        return energy, force

    def _opened(self) -> Any:
        if self.context is None:
            openmm = package("openmm")
            integrator = openmm.VerletIntegrator(0.001)  # a context needs one; it takes no step
            platform = openmm.Platform.getPlatformByName(self._platform)
            self.context = openmm.Context(self._system, integrator, platform)
        return self.context

    def close(self) -> None:
        """Free what OpenMM holds."""
        with self._lock:
            self.context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Reduced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: OpenMMEnergy) -> Tensor:
        if x.ndim < 2 or x.shape[-2:] != (energy.n_atoms, 3):
            raise ShapeError(f"positions of shape {tuple(x.shape)}: expected (..., {energy.n_atoms}, 3), nm")
        frames = x.detach().to("cpu", torch.float64).reshape(-1, energy.n_atoms, 3).numpy()
        energies, forces = energy.energies_and_forces(frames, ctx.needs_input_grad[0])
        scale = BOLTZMANN * energy.temperature
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(torch.from_numpy(forces).view(x.shape).to(x) / -scale)
        return torch.from_numpy(energies / scale).view(x.shape[:-2]).to(x.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient[..., None, None].to(slope.dtype) * slope, None
