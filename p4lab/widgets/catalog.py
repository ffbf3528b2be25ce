"""The labs of the notebooks, ready to be shown."""

from pathlib import Path
from typing import Any, Protocol

from p4lab.errors import P4Error
from p4lab.labs.boltzmann import BOLTZMANN
from p4lab.labs.break_it import BREAK
from p4lab.labs.characters import CHARACTERS
from p4lab.labs.density import DENSITIES_2D
from p4lab.labs.digits import DIGITS
from p4lab.labs.directions import DIRECTIONS
from p4lab.labs.images import IMAGES
from p4lab.labs.lab import Lab
from p4lab.labs.linear import LINEAR
from p4lab.labs.molecule import MOLECULE, lab_of
from p4lab.labs.molecule_data import NANOSECONDS, prepare
from p4lab.labs.parameter import PARAMETER
from p4lab.labs.property import PROPERTY
from p4lab.labs.race import RACE
from p4lab.labs.rnn import RNN
from p4lab.labs.start import START
from p4lab.labs.swaps import SWAPS
from p4lab.labs.temperature import TEMPERATURE
from p4lab.molecules.dataset import Frames
from p4lab.molecules.molecule import Molecule
from p4lab.training import RunConfig
from p4lab.widgets.dashboard import Dashboard


class Opener(Protocol):
    """Shows a lab: takes settings of the first run, a name, and changes, as `Dashboard` does."""

    def __call__(self, config: Any = None, name: str | None = None, **changes: Any) -> Dashboard:
        """Return the lab, which is shown when it is displayed."""


def opener(lab: Lab[Any, Any]) -> Opener:
    """Return a function that shows a lab."""

    def show(config: RunConfig | str | None = None, name: str | None = None, **changes: Any) -> Dashboard:
        return Dashboard(lab, config, name, **changes)

    show.__name__ = show.__qualname__ = f"{lab.name}_lab"
    show.__doc__ = f"""Return the lab "{lab.title}": {lab.subtitle[:1].lower()}{lab.subtitle[1:]}.

    Args:
        config: settings of the first run (None: the lab's own).
        name: see `Dashboard`.
        changes: settings over those of ``config``, by name: {", ".join(lab.config.settings)}.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    return show


def molecule_lab(
    molecule: Molecule | str | Path | None = None,
    frames: Frames | None = None,
    nanoseconds: float = NANOSECONDS,
    folder: str | Path | None = None,
    config: RunConfig | str | None = None,
    name: str | None = None,
    **changes: Any,
) -> Dashboard:
    """Return the lab of a molecule: a Boltzmann generator that learns by example, by energy, or by both.

    Alanine dipeptide comes with frames, a reference and a trained flow. Of any other molecule the frames are given, or
    simulated first, with a progress bar; the simulation is kept, so that it is not made twice.

    Args:
        molecule: a sequence such as "AAA", the path of a PDB file, or a `Molecule` (None: alanine dipeptide).
        frames: examples, as `p4lab.molecules.dataset.frames_of` and `simulate` make them (None: those that come with
            p4lab, or a simulation).
        nanoseconds: length of the simulation, which is of replica exchange from 300 to 1000 K, with the seed 0. For
            training by energy alone (``by_energy=1``) a short one will do.
        folder: where the simulation is kept, and gone on with (None: one of its own in ``simulations``, where Python
            works).
        config: settings of the first run (None: the lab's own).
        name: see `Dashboard`.
        changes: settings over those of ``config``, by name.

    Raises:
        MoleculeError: not a molecule that can be described, or one in which nothing turns.
        OptionError: too few frames, or a length that is not above 0.
        ShapeError: frames of another molecule.
        ConfigError: unknown setting, or a value out of range.
        MissingPackageError: openmm is not installed.

    Example:
        >>> lab = molecule_lab("AAA", nanoseconds=1.0)  # doctest: +SKIP
    """
    if molecule is None and frames is None:
        return Dashboard(MOLECULE, config, name, **changes)
    try:
        data = prepare(molecule, frames, nanoseconds, folder)
    except P4Error as error:
        raise error.with_traceback(None) from None  # in a cell the message stands below the way to it, which is long
    return Dashboard(lab_of(data), config, name, **changes)


boltzmann_lab = opener(BOLTZMANN)
break_lab = opener(BREAK)
characters_lab = opener(CHARACTERS)
density_lab = opener(DENSITIES_2D)
digits_lab = opener(DIGITS)
images_lab = opener(IMAGES)
linear_lab = opener(LINEAR)
parameter_lab = opener(PARAMETER)
directions_lab = opener(DIRECTIONS)
race_lab = opener(RACE)
rnn_lab = opener(RNN)
start_lab = opener(START)
property_lab = opener(PROPERTY)
swaps_lab = opener(SWAPS)
temperature_lab = opener(TEMPERATURE)
