"""The energy of a molecule by term: bonds, angles, torsions, what is not bonded, and the solvent."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p4lab.errors import ShapeError
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.openmm_energy import new_context
from p4lab.p4.validate import check_tensor

TERMS = {
    "bonds": {"HarmonicBondForce"},
    "angles": {"HarmonicAngleForce"},
    "torsions": {"PeriodicTorsionForce", "RBTorsionForce", "CMAPTorsionForce", "CustomTorsionForce"},
    "non-bonded": {"NonbondedForce", "CustomNonbondedForce"},
    "solvent": {"GBSAOBCForce", "CustomGBForce"},
}
"""Terms, and the classes of OpenMM's forces that belong to each."""
OTHER = "other"
"""The term of all other forces that have an energy."""
NONE = {"CMMotionRemover", "AndersenThermostat", "MonteCarloBarostat"}
"""Classes of forces without an energy."""


class EnergyTerms:
    r"""The energies of a molecule's terms, which sum to its energy.

    .. math:: E(x) = \sum_k E_k(x)

    Each term is a force group of a copy of the molecule's system. One context of OpenMM is kept; `close` frees it, and
    the next call makes another. It is for one thread.

    Args:
        molecule: whose energy it is.

    Attributes:
        names: those of `TERMS` that the molecule has, in this order, and `OTHER` if it has forces of other kinds.

    Raises:
        MissingPackageError: openmm is not installed.

    Example:
        >>> molecule = Molecule.from_sequence("A")
        >>> energies = EnergyTerms(molecule)(molecule.start[None])
        >>> list(energies)
        ['bonds', 'angles', 'torsions', 'non-bonded', 'solvent']
    """

    def __init__(self, molecule: Molecule) -> None:
        self._system = copy.deepcopy(molecule.system)
        forces = [(force, type(force).__name__) for force in self._system.getForces()]
        terms = {force: term_of(kind) for force, kind in forces if kind not in NONE}
        self.names = tuple(name for name in (*TERMS, OTHER) if name in terms.values())
        for force, name in terms.items():
            force.setForceGroup(self.names.index(name))
        self._n_atoms, self._context = len(molecule), None

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return the energies (kJ/mol) of frames by term, each of shape (n,), float64; inf where one is not finite.

        Args:
            x: shape (n, n_atoms, 3), nm.

        Raises:
            ShapeError, DtypeError: x has another shape, or is no tensor.

        Cost: about n energies of the molecule.
        """
        check_tensor("EnergyTerms", x)
        if x.ndim != 3 or x.shape[1:] != (self._n_atoms, 3):
            raise ShapeError(f"positions of shape {tuple(x.shape)}: expected (n, {self._n_atoms}, 3), nm")
        frames = x.detach().to("cpu", torch.float64).numpy()
        energies = np.full((len(self.names), len(frames)), np.inf)
        context = self._opened()
        for i in np.flatnonzero(np.isfinite(frames).all(axis=(1, 2))):
            context.setPositions(frames[i])
            for group in range(len(self.names)):
                value = context.getState(energy=True, groups={group}).getPotentialEnergy()._value
                energies[group, i] = value if np.isfinite(value) else np.inf
        return dict(zip(self.names, torch.from_numpy(energies), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_context": None}  # a copy opens a context of its own

    def _opened(self) -> Any:
        if self._context is None:
            self._context = new_context(self._system)
        return self._context

    def close(self) -> None:
        """Free what OpenMM holds."""
        self._context = None


def term_of(kind: str) -> str:
    """Return the term of a class of OpenMM's forces."""
    return next((name for name, kinds in TERMS.items() if kind in kinds), OTHER)
