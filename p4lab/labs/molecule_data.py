"""What the lab of molecules trains on: a molecule, frames of it, and the coordinates of its flows."""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.errors import ConfigError, MoleculeError, OptionError, ShapeError
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import Frames, Reference, load, reference, simulate, split
from p4lab.molecules.evaluate import torsions_of
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.replica_exchange import Settings
from p4lab.molecules.terms import EnergyTerms

ALANINE = "A"
"""The key of alanine dipeptide with the frames that come with p4lab."""
NANOSECONDS = 0.2
"""Length of the simulation where there are no frames: 2,000 of them."""
SIMULATIONS = Path("simulations")
"""Folder of simulations, where Python works: beside the notebook."""
CHUNK = 100
"""Frames that an interruption of a simulation can cost."""
FEWEST = 10
"""Fewer frames cannot be divided into training and test."""
OF_TERMS = 500
"""Frames whose energies are told by term."""
ENERGIES = (-2.62, 8.36)
"""Which energies are shown: from so many standard deviations above the mean to so many."""
STEP = 5.0
"""Ends of axes of energies are multiples of it (kJ/mol)."""
INSIDE = 0.95
"""Share of the frames that fit into the box that is drawn, whichever way they are turned."""

_PREPARED: dict[str, "Prepared"] = {}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A molecule, and frames of it in the coordinates of flows.

    Attributes:
        key: what configs of runs call it; other frames have another key.
        molecule: the molecule.
        coordinates: the map, fitted to the training frames.
        train: training frames as coordinates, shape (n, d), float32.
        test: test frames, likewise.
        frames: all of them, with energies and temperature.
        reference: of a longer simulation; None where there is none.
    """

    key: str
    molecule: Molecule
    coordinates: Coordinates
    train: Tensor
    test: Tensor
    frames: Frames
    reference: Reference | None = None

    @classmethod
    def of(cls, key: str, molecule: Molecule, frames: Frames, known: Reference | None = None) -> "Prepared":
        """Return frames ready for training.

        Raises:
            OptionError: too few frames, or some of other hands or amides than the molecule's start.
        """
        train, _, test = split(frames)
        coordinates = Coordinates.fit(molecule, train.x.double())
        with torch.no_grad():
            trained, tested = (coordinates.encode(part.x.double())[0].float() for part in (train, test))
        return cls(key, molecule, coordinates, trained, tested, frames, known)

    def energy(self) -> OpenMMEnergy:
        """Return the reduced energy at the temperature of the frames."""
        return self.molecule.energy(self.frames.temperature)

    @cached_property
    def mean(self) -> float:
        """Mean energy of the frames (kJ/mol)."""
        return float(self.frames.energy.mean())

    @cached_property
    def energy_edges(self) -> NDArray[np.float64]:
        """Bins of energies (kJ/mol), shape (51,)."""
        deviation = max(float(self.frames.energy.std()), STEP)
        low, high = (STEP * round((self.mean + far * deviation) / STEP) for far in ENERGIES)
        return np.linspace(low, high, 51)

    @cached_property
    def torsions(self) -> dict[str, NDArray[np.float64]]:
        """`Molecule.torsions` of all frames (degrees), by name."""
        found = torsions_of(self.molecule, self.frames.x.double())
        return {name: np.degrees(values.numpy()) for name, values in found.items()}

    @cached_property
    def terms(self) -> dict[str, Tensor]:
        """Energies of some frames by term (kJ/mol)."""
        places = torch.linspace(0, len(self.frames) - 1, min(OF_TERMS, len(self.frames)), device="cpu").long()
        terms = EnergyTerms(self.molecule)
        try:
            return terms(self.frames.x[places])
        finally:
            terms.close()

    @cached_property
    def upright(self) -> NDArray[np.float64]:
        """The molecule's start about its centre, its long axis along x, shape (n, 3)."""
        x = self.molecule.start.numpy()
        x = x - x.mean(0)
        axes = np.linalg.svd(x, full_matrices=False)[2]
        return cast(NDArray[np.float64], x @ (axes * np.linalg.det(axes)).T)

    @cached_property
    def reach(self) -> float:
        """Half the side of a box for the molecule (nm)."""
        x = self.frames.x
        return float((x - x.mean(1, keepdim=True)).norm(dim=-1).amax(1).quantile(INSIDE))


def prepared(key: str = ALANINE) -> Prepared:
    """Return what `prepare` made, by its key; alanine dipeptide is always there.

    Raises:
        ConfigError: there is no such molecule here.
        DataFileError: the data that come with p4lab are missing or damaged.
    """
    if key == ALANINE and key not in _PREPARED:
        _PREPARED[key] = Prepared.of(key, Molecule.from_sequence("A"), load(), reference())
    if key not in _PREPARED:
        raise ConfigError(
            f"molecule={key!r}: not known here; make it with p4lab.labs.molecule_data.prepare, or open its lab by "
            "molecule_lab, with the same frames"
        )
    return _PREPARED[key]


def prepare(
    molecule: Molecule | str | Path | None = None,
    frames: Frames | None = None,
    nanoseconds: float = NANOSECONDS,
    folder: str | Path | None = None,
) -> Prepared:
    """Return a molecule with frames, ready for training; where there are none, it is simulated.

    Args:
        molecule: a sequence, the path of a PDB file, or a `Molecule` (None: alanine dipeptide, the frames of which come
            with p4lab).
        frames: of it (None: a simulation).
        nanoseconds: length of the simulation.
        folder: where the simulation is kept, and read from the next time (None: one of its own in ``simulations``).

    Raises:
        MoleculeError: not a molecule that can be described, or one in which nothing turns.
        OptionError: too few frames, or a length that is not above 0.
        ShapeError: frames of another molecule.
        DataFileError: the folder holds another simulation.
        MissingPackageError: openmm is not installed.

    Cost: on one core of 2026 the simulation takes half a minute for two residues, and 50 seconds for three.
    """
    made = _molecule_of(molecule)
    if not made.maps:
        raise MoleculeError(f"{made.name}: no torsion of it turns, so that there is nothing for a flow to find")
    if frames is None:
        if made is Molecule.from_sequence("A"):
            return prepared()
        frames = _simulated(made, nanoseconds, folder)
    _check(frames, made)
    numbers = (frames.x.numpy(), frames.energy.numpy(), np.float64(frames.temperature))
    frames_digest = hashlib.sha256(b"".join(part.tobytes() for part in numbers)).hexdigest()[:8]
    key = f"{made.name}.{made.digest}.{frames_digest}"
    if key not in _PREPARED:
        _PREPARED[key] = Prepared.of(key, made, frames)
    return _PREPARED[key]


def _molecule_of(given: Molecule | str | Path | None) -> Molecule:
    if given is None or isinstance(given, Molecule):
        return given or Molecule.from_sequence("A")
    if not isinstance(given, str | Path):
        raise MoleculeError(
            f"a molecule of type {type(given).__name__}: expected a sequence such as 'AAA', the path of a PDB file, or "
            "a Molecule"
        )
    return Molecule.named(str(given))


def _simulated(molecule: Molecule, nanoseconds: float, folder: str | Path | None) -> Frames:
    if not (math.isfinite(nanoseconds) and nanoseconds > 0):
        raise OptionError(f"nanoseconds={nanoseconds}: expected a number above 0; by_energy=1 trains without examples")
    place = Path(folder or SIMULATIONS / f"{molecule.name}-{molecule.digest}")
    print(f"{molecule.name}: its examples are a simulation of {nanoseconds:g} ns, kept in {place}")
    return simulate(molecule, nanoseconds, place, Settings(chunk=CHUNK))


def _check(frames: Frames, molecule: Molecule) -> None:
    if not isinstance(frames, Frames):
        raise OptionError(
            f"frames of type {type(frames).__name__}: expected Frames, as frames_of(trajectory, molecule) and simulate "
            "of p4lab.molecules.dataset make them"
        )
    if frames.x.ndim != 3 or frames.x.shape[1:] != (len(molecule), 3):
        raise ShapeError(
            f"frames of shape {tuple(frames.x.shape)}: expected (n, {len(molecule)}, 3) for {molecule.name}"
        )
    if len(frames) < FEWEST:
        raise OptionError(f"{len(frames)} frames: expected at least {FEWEST}, better thousands")
