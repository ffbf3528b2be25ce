"""Energies and forces from OpenMM as a differentiable function of PyTorch tensors."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from p4lab.errors import OptionError, ShapeError, TrainingError
from p4lab.molecules.packages import package
from p4lab.molecules.units import BOLTZMANN, check_temperature
from p4lab.p4.validate import check_tensor

FEWEST = 8
"""Frames that are worth a thread."""


class OpenMMEnergy:
    r"""The reduced energy of a molecule, with OpenMM's forces as its gradient.

    .. math:: u(x) = \frac{E(x)}{k_B T}, \qquad \frac{\partial u}{\partial x} = -\frac{F(x)}{k_B T}

    Frames of which positions, energy or forces are not finite get u = inf and gradient 0, and are counted. Contexts of
    OpenMM are kept, one for each worker, and used frame by frame; `close` frees them, and the next call makes others.

    Workers are threads: OpenMM lets other threads run while it computes, which is seven tenths of the time of a frame
    of 22 atoms, and nine of 42. What comes out is the same, bit for bit, for any number of them. An interrupt stops all
    of them, and the energy can be used again.

    Args:
        system: an ``openmm.System``; see `p4lab.molecules.molecule.Molecule.energy`.
        temperature: T (K).
        platform: name of OpenMM's platform; "Reference" is the fastest for few atoms, and is double precision.
        workers: threads among which a batch is divided, at least 8 frames for each.

    Attributes:
        n_atoms: number of atoms.
        contexts: what OpenMM computes with; empty before the first call, and when closed.
        evaluations: frames so far whose energy OpenMM has computed, with forces or without.
        not_finite: frames so far that were not finite.

    Raises:
        MissingPackageError: openmm is not installed.
        OptionError: temperature not finite and above 0, fewer than 1 worker, or no such platform.
        DtypeError, ShapeError: on calls, with what is no tensor or has another shape.

    Cost for a batch of B: B energies (and forces, if x needs a gradient), about 35 microseconds each for 22 atoms
    and 90 for 42, shared by the workers.
    Source: arXiv:2010.07033, section 4.3.
    """

    def __init__(self, system: Any, temperature: float = 300.0, platform: str = "Reference", workers: int = 1) -> None:
        openmm = package("openmm")
        if workers < 1:
            raise OptionError(f"workers={workers}: expected at least 1")
        names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        if platform not in names:
            raise OptionError(f"platform={platform!r}: OpenMM has {', '.join(names)} here")
        self._system = system
        self._platform = platform
        self.contexts: list[Any] = []
        self._lock = threading.Lock()  # a context must not be used by two threads at once
        self.workers = workers
        self.temperature = temperature
        self.n_atoms = int(self._system.getNumParticles())
        self.evaluations = self.not_finite = 0

    @property
    def temperature(self) -> float:
        """T (K), finite and above 0; it may be changed."""
        return self._temperature

    @temperature.setter
    def temperature(self, kelvin: float) -> None:
        check_temperature(kelvin)
        self._temperature = kelvin

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "contexts": [], "_lock": None}  # a copy opens contexts of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __call__(self, x: Tensor) -> Tensor:
        """Return u of shape (...), float64, for positions x of shape (..., n_atoms, 3), nm.

        Raises:
            ShapeError: x has another shape.
            TrainingError: OpenMM failed.
        """
        check_tensor("OpenMMEnergy", x)
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
        computed = np.zeros(len(frames), bool)
        finite = np.flatnonzero(np.isfinite(frames).all(axis=(1, 2)))
        parts = np.array_split(finite, max(1, min(self.workers, len(finite) // FEWEST)))
        stop = threading.Event()

        def fill(context: Any, part: NDArray[np.intp]) -> None:
            for i in part:
                if stop.is_set():
                    return
                context.setPositions(frames[i])
                state = context.getState(energy=True, forces=forces)
                value = state.getPotentialEnergy()._value
                pull = state.getForces(asNumpy=True)._value if forces else 0.0
                computed[i] = True
                if np.isfinite(value) and np.isfinite(pull).all():
                    energy[i], force[i] = value, pull

        with self._lock:
            try:
                first, *others = self._opened(len(parts))
                if not others:
                    fill(first, parts[0])
                else:
                    with ThreadPoolExecutor(len(others), "p4lab-energy") as pool:
                        try:
                            jobs = [pool.submit(fill, *job) for job in zip(others, parts[1:], strict=True)]
                            fill(first, parts[0])
                            for job in jobs:
                                job.result()
                        finally:
                            stop.set()  # where all went well they have ended; an error or an interrupt ends them
            except Exception as error:  # openmm raises its own class for everything
                self.contexts.clear()
                raise TrainingError(
                    f"OpenMM failed on a batch of {len(frames)} frames: {error}. Model and records are as before"
                ) from error
            finally:
                self.evaluations += int(computed.sum())
            self.not_finite += int(np.isinf(energy).sum())
        return energy, force

    def _opened(self, number: int) -> list[Any]:
        while len(self.contexts) < number:
            self.contexts.append(new_context(self._system, self._platform))
        return self.contexts[:number]

    def close(self) -> None:
        """Free what OpenMM holds."""
        with self._lock:
            self.contexts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def new_context(system: Any, platform: str = "Reference") -> Any:
    """Return an ``openmm.Context`` for energies and forces of a system."""
    openmm = package("openmm")
    integrator = openmm.VerletIntegrator(0.001)  # a context needs one; it takes no step
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(platform))


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
