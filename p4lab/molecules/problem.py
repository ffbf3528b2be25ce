"""What flows of a molecule train on: frames, divided, in coordinates that fit them, with their forces."""

import time
from dataclasses import dataclass

from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import Frames, Reference, load, reference, split
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.target import Examples, InternalEnergy


@dataclass(frozen=True)
class Problem:
    """Data, coordinates and energy of a molecule, as all that train on it share them.

    Attributes:
        data: all frames.
        parts: of them for training, validation and test.
        coordinates: fitted to the training frames.
        examples: the training frames in these coordinates, with forces.
        energy: OpenMM's.
        reference: of a longer simulation; None where there is none.
        minutes: CPU minutes that all this took.
    """

    data: Frames
    parts: tuple[Frames, Frames, Frames]
    coordinates: Coordinates
    examples: Examples
    energy: OpenMMEnergy
    reference: Reference | None
    minutes: float

    @classmethod
    def of(cls, data: Frames | None = None, molecule: Molecule | None = None) -> "Problem":
        """Return the problem of frames of a molecule.

        Args:
            data: the frames, in the order of time (None: those of alanine dipeptide that come with p4lab).
            molecule: what they are of (None: alanine dipeptide).

        Raises:
            OptionError: too few frames to train, validate and test.
            MissingPackageError: openmm is not installed.

        Cost: an energy with forces for each training frame.
        """
        start = time.process_time()
        known = molecule is None
        molecule = molecule or Molecule.from_sequence("A")
        data = load() if data is None else data
        parts = split(data)
        energy = molecule.energy(data.temperature)
        coordinates = Coordinates.fit(molecule, parts[0].x.double())
        examples = Examples.of(coordinates, parts[0].x, energy)
        minutes = (time.process_time() - start) / 60
        return cls(data, parts, coordinates, examples, energy, reference() if known else None, minutes)

    def target(self) -> InternalEnergy:
        """Return the reduced energy of internal coordinates."""
        return InternalEnergy(self.coordinates, self.energy)
