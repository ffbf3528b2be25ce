"""Replica exchange molecular dynamics of a molecule: where data and references come from.

    python -m p4lab.molecules.replica_exchange run FOLDER --nanoseconds 4 --seed 0
    python -m p4lab.molecules.replica_exchange run FOLDER --nanoseconds 120 --seed 1 --molecule AAA

A run that was interrupted goes on where it was when the same command is given again, and gives the same frames.
"""

import argparse
import io
import json
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.errors import DataFileError, OptionError, TrainingError
from p4lab.files import writable, write_whole
from p4lab.molecules.molecule import FORCE_FIELD, Molecule
from p4lab.molecules.packages import package
from p4lab.molecules.units import BOLTZMANN

STATE = "state.npz"
"""Name of the file with the state of a run."""
SETTINGS = "settings.json"
"""Name of the file with the settings of a run."""
DAMAGED = (OSError, ValueError, SyntaxError, tokenize.TokenError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a file of arrays raises if it is not there, or not whole; numpy parses a header as Python does."""

STEEP = 5e3
"""Forces (kJ/mol/nm) above this are those of atoms that overlap: the start is relaxed first."""
APART = 1e6
"""Energy (kJ/mol) above which a molecule has come apart."""
FASTEST = 1.1
"""Largest angle (radians) that a bond may swing through in a step. Energies of butane are 1 % too high at this one, and
5 % at 1.3."""


@dataclass(frozen=True)
class Settings:
    """A replica exchange run of a molecule, in full.

    Attributes:
        seed: seed of velocities, thermostats and exchanges.
        coldest, hottest: temperatures at the ends (K); those between are spaced geometrically.
        replicas: how many temperatures.
        step: time step (ps).
        friction: of the Langevin thermostat (1/ps).
        sweep: steps between two exchanges; a frame of the coldest replica is kept after each.
        equilibration: steps before the first frame.
        chunk: frames in a file; what an interruption can cost.

    Raises:
        OptionError: something is out of range.
    """

    seed: int = 0
    coldest: float = 300.0
    hottest: float = 1000.0
    replicas: int = 5
    step: float = 0.002
    friction: float = 1.0
    sweep: int = 50
    equilibration: int = 5000
    chunk: int = 5000

    def __post_init__(self) -> None:
        least = {"seed": 0, "replicas": 2, "sweep": 1, "equilibration": 0, "chunk": 1}
        for name, smallest in least.items():
            if not isinstance(value := getattr(self, name), int) or value < smallest:
                raise OptionError(f"{name}={value}: expected a whole number of at least {smallest}")
        if (self.seed + 1) * self.replicas >= 2**31:
            raise OptionError(f"seed={self.seed}: expected one for which (seed + 1) replicas is below 2^31, for OpenMM")
        for name in ("coldest", "hottest", "step", "friction"):
            if not (math.isfinite(value := getattr(self, name)) and value > 0):
                raise OptionError(f"{name}={value}: expected a finite number above 0")
        if self.hottest < self.coldest:
            raise OptionError(f"coldest={self.coldest}, hottest={self.hottest}: expected them in this order")

    def temperatures(self) -> NDArray[np.float64]:
        """Return the temperatures (K), the coldest first."""
        return np.geomspace(self.coldest, self.hottest, self.replicas)

    def frames(self, nanoseconds: float) -> int:
        """Return how many frames there are in a time (ns).

        Raises:
            OptionError: not a time, or too short for one frame.
        """
        if not (math.isfinite(nanoseconds) and 1000 * nanoseconds >= self.step * self.sweep / 2):
            raise OptionError(
                f"nanoseconds={nanoseconds}: expected a number above 0, enough for a frame of "
                f"{self.step * self.sweep / 1000:g} ns"
            )
        return round(1000 * nanoseconds / (self.step * self.sweep))


class ReplicaExchange:
    r"""Replicas of the molecule that exchange their temperatures.

    .. math:: P_{ij} = \min(1, e^{(\beta_i - \beta_j)(E_i - E_j)})

    After each sweep so many random pairs are tried that the replicas are as good as dealt anew (Gibbs sampling).

    Args:
        settings: of the run.
        molecule: what is simulated (None: alanine dipeptide).

    Attributes:
        contexts, integrators: OpenMM's, one for each replica.
        slot: which replica is at each temperature.

    Raises:
        OptionError: steps that are too long for the fastest bond.
        MissingPackageError: openmm is not installed.

    Source: Sugita and Okamoto, Chem. Phys. Lett. 314 (1999) 141; Chodera and Shirts, J. Chem. Phys. 135 (2011) 194110.
    """

    def __init__(self, settings: Settings, molecule: Molecule | None = None) -> None:
        self.settings, self.temperatures = settings, settings.temperatures()
        self._random = np.random.default_rng(settings.seed)
        self.slot = np.arange(settings.replicas)
        self.sweeps = 0
        self.moves = 0
        openmm = package("openmm")
        platform = openmm.Platform.getPlatformByName("Reference")  # the fastest for so few atoms, and repeatable
        self.contexts, self.integrators = [], []
        molecule = molecule or Molecule.from_sequence("A")
        fastest = fastest_bond(molecule.system)
        if (turn := settings.step * fastest) > FASTEST:
            raise OptionError(
                f"step={settings.step} ps: the fastest bond of {molecule.name} swings through {turn:.2g} radians, "
                f"and energies come out too high; take at most {FASTEST / fastest:.2g} ps, or heavier hydrogens "
                "(hydrogenMass of createSystem)"
            )
        for k, temperature in enumerate(self.temperatures):
            integrator = openmm.LangevinMiddleIntegrator(temperature, settings.friction, settings.step)
            integrator.setRandomNumberSeed(1 + settings.seed * settings.replicas + k)  # 0 would mean: any
            context = openmm.Context(molecule.system, integrator, platform)
            context.setPositions(molecule.start.numpy())
            self.contexts.append(context)
            self.integrators.append(integrator)
            self._give_velocities(k)

    def equilibrate(self) -> None:
        """Run every replica for a while, from a start that is relaxed first if atoms overlap there."""
        for k, context in enumerate(self.contexts):
            forces = context.getState(forces=True).getForces(asNumpy=True)._value
            if np.linalg.norm(forces, axis=1).max() > STEEP:
                package("openmm").LocalEnergyMinimizer.minimize(context)
                self._give_velocities(k)  # OpenMM shifts them by half a step of the forces
            self._step(k, self.settings.equilibration)

    def _step(self, replica: int, steps: int) -> None:
        try:
            self.integrators[replica].step(steps)
        except package("openmm").OpenMMException as error:
            raise self._failed(str(error)) from error

    def _failed(self, what: str) -> TrainingError:
        return TrainingError(
            f"the simulation failed with steps of {self.settings.step} ps ({what}): take shorter ones, make hydrogens "
            "heavier, or minimize the start. Files of frames before are kept"
        )

    def _give_velocities(self, k: int) -> None:
        seed = 1 + self.settings.seed * self.settings.replicas + k  # 0 would mean: any
        self.contexts[k].setVelocitiesToTemperature(self.temperatures[k], seed)

    def sweep(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Go on to the next frame.

        Returns:
            Positions of the coldest replica, shape (n, 3), nm, and the energies of all, shape (replicas,), kJ/mol.

        Raises:
            TrainingError: OpenMM failed, or the molecule has come apart, as with steps that are too long.
        """
        energies = np.empty(self.settings.replicas)
        for k, i in enumerate(self.slot.tolist()):
            self._step(i, self.settings.sweep)
            state = self.contexts[i].getState(energy=True, positions=k == 0)
            energies[k] = state.getPotentialEnergy()._value
            if k == 0:
                frame = np.asarray(state.getPositions(asNumpy=True)._value, np.float32)
        if not (energies < APART).all():
            raise self._failed(f"the molecule came apart: energies of {energies.max():.3g} kJ/mol")
        self.exchange(deal(self.slot, energies, 1 / (BOLTZMANN * self.temperatures), self._random))
        self.sweeps += 1
        return frame, energies

    def exchange(self, slot: NDArray[np.int_]) -> None:
        """Put replicas at temperatures anew, and give them velocities and thermostats of these.

        Args:
            slot: the replica at each temperature.
        """
        before, self.slot = self.slot, slot
        for k in np.flatnonzero(before != self.slot).tolist():
            i = int(self.slot[k])
            old = self.temperatures[np.flatnonzero(before == i)[0]]
            velocities = self.contexts[i].getState(velocities=True).getVelocities(asNumpy=True)._value
            self.contexts[i].setVelocities(np.sqrt(self.temperatures[k] / old) * velocities)
            self.integrators[i].setTemperature(self.temperatures[k])
            self.moves += 1

    def state(self) -> dict[str, Any]:
        """Return everything that the next frame depends on, as arrays."""
        return {
            "random": np.array(json.dumps(self._random.bit_generator.state)),
            "slot": self.slot,
            "sweeps": np.array(self.sweeps),
            "moves": np.array(self.moves),
            **{
                f"context_{i}": np.frombuffer(context.createCheckpoint(), np.uint8)
                for i, context in enumerate(self.contexts)
            },
        }

    def load_state(self, state: Any) -> None:
        """Go to a state of `state`, of a run with the same settings on the same kind of machine."""
        self._random.bit_generator.state = json.loads(str(state["random"]))
        self.slot, self.sweeps, self.moves = state["slot"].copy(), int(state["sweeps"]), int(state["moves"])
        for i, context in enumerate(self.contexts):
            context.loadCheckpoint(state[f"context_{i}"].tobytes())
        for k, i in enumerate(self.slot.tolist()):
            self.integrators[i].setTemperature(self.temperatures[k])

    @property
    def mobility(self) -> float:
        """Share of the replicas that come to another temperature after a sweep."""
        return self.moves / max(1, self.sweeps * self.settings.replicas)


def fastest_bond(system: Any) -> float:
    r"""Return the largest frequency of a system's harmonic bonds, :math:`\sqrt{k (1 / m_i + 1 / m_j)}` (radians/ps)."""
    largest = 0.0
    for force in system.getForces():
        if force.getName() == "HarmonicBondForce":
            for number in range(force.getNumBonds()):
                i, j, _, k = force.getBondParameters(number)
                largest = max(largest, k._value * sum(1 / system.getParticleMass(atom)._value for atom in (i, j)))
    return math.sqrt(largest)


def deal(
    slot: NDArray[np.int_], energies: NDArray[np.float64], beta: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.int_]:
    """Return which replica is at which temperature after so many tries that it is as good as drawn anew.

    All replicas have one force field, so that trying pairs costs nothing.

    Args:
        slot: the replica at each temperature, shape (k,).
        energies: of these replicas (kJ/mol), shape (k,).
        beta: 1 / (k_B T) of each temperature (mol/kJ), shape (k,).
        random: to draw from.
    """
    slot, energies, size = slot.copy(), energies.copy(), len(slot)
    for i, j in random.integers(size, size=(size**3, 2)):
        if np.log(random.random()) < (beta[i] - beta[j]) * (energies[i] - energies[j]):
            energies[[i, j]], slot[[i, j]] = energies[[j, i]], slot[[j, i]]
    return slot


def run(
    folder: Path,
    nanoseconds: float,
    settings: Settings | None = None,
    progress: bool = True,
    molecule: Molecule | None = None,
) -> ReplicaExchange:
    """Simulate into a folder, in files of `Settings.chunk` frames; what is there already is gone on with.

    Args:
        folder: where frames and state go.
        nanoseconds: length of the whole run (ns); the last frames may make it up to a chunk longer.
        settings: of the run (None: the defaults).
        progress: whether to show a progress bar.
        molecule: what is simulated (None: alanine dipeptide).

    Returns:
        The replicas at the end.

    Raises:
        DataFileError: the folder belongs to a run of another molecule or of other settings, or is damaged.
        FileError: it cannot be written to.
        OptionError: not a time, or too short for one frame.
        TrainingError: the simulation left the finite numbers.
        MissingPackageError: openmm or tqdm is not installed.
    """
    if not nanoseconds > 0:
        raise OptionError(f"nanoseconds={nanoseconds}: expected a number above 0")
    settings, molecule = settings or Settings(), molecule or Molecule.from_sequence("A")
    total = -(-settings.frames(nanoseconds) // settings.chunk)
    now = {
        "molecule": molecule.name,
        "force_field": molecule.force_field,
        "digest": molecule.digest,
        **asdict(settings),
    }
    writable(folder / SETTINGS, folders=True)
    if (folder / SETTINGS).exists() and (before := {"digest": molecule.digest} | described(folder)) != now:
        raise DataFileError(
            f"{folder} holds a run of {before}, not of {now} (a digest is of atoms, forces and start): choose another "
            "folder"
        )
    write_whole(folder / SETTINGS, (json.dumps(now) + "\n").encode())
    replicas = ReplicaExchange(settings, molecule)
    if (folder / STATE).exists():
        try:
            replicas.load_state(arrays(folder / STATE))
        except (*DAMAGED, package("openmm").OpenMMException) as error:
            raise DataFileError(
                f"{folder / STATE} is damaged, or of another machine ({error}): delete the folder, and simulate anew"
            ) from error
    else:
        replicas.equilibrate()
    done = replicas.sweeps // settings.chunk
    if missing := [number for number in range(done) if not _frames_file(folder, number).exists()]:
        raise DataFileError(f"{_frames_file(folder, missing[0])} is missing: delete the folder, and simulate anew")
    bar = package("tqdm.auto").tqdm(
        total=total * settings.chunk,
        initial=replicas.sweeps,
        unit="frame",
        disable=not progress or done >= total,
        mininterval=1,
    )
    with bar:
        for number in range(done, total):
            frames, energies = [], []
            for _ in range(settings.chunk):
                frame, energy = replicas.sweep()
                frames.append(frame)
                energies.append(energy)
                bar.update()
            _save(_frames_file(folder, number), x=np.array(frames), energy=np.array(energies))
            _save(folder / STATE, **replicas.state())
    return replicas


def _frames_file(folder: Path, number: int) -> Path:
    return folder / f"frames_{number:04d}.npz"


def described(folder: Path) -> dict[str, Any]:
    """Return molecule, force field and settings of the run in a folder; early ones were of alanine dipeptide.

    Raises:
        DataFileError: they are damaged.
    """
    early = {"molecule": "ACE-ALA-NME", "force_field": ", ".join(FORCE_FIELD)}
    try:
        return early | dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataFileError(
            f"{folder / SETTINGS} is damaged ({error}): delete the folder, and simulate anew"
        ) from error


def _save(path: Path, **arrays: Any) -> None:
    """Write a file as a whole or not at all."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    write_whole(path, stream.getvalue())


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return what `numpy.savez` has put into a file; a damaged one raises one of `DAMAGED`."""
    with path.open("rb") as file, np.load(file) as saved:  # numpy leaves a damaged file open that it has opened itself
        return {name: saved[name] for name in saved.files}


def chunks(folder: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Yield the frames, shape (chunk, n, 3), nm, and energies, shape (chunk, replicas), kJ/mol, of a run in order.

    Raises:
        DataFileError: nothing there, or a file is damaged.
    """
    files = sorted(folder.glob("frames_[0-9]*.npz"))
    if not files:
        raise DataFileError(f"{folder} holds no frames: simulate some with p4lab.molecules.replica_exchange run")
    for path in files:
        try:
            content = arrays(path)
            frames, energies = content["x"], content["energy"]
        except DAMAGED as error:
            raise DataFileError(f"{path} is damaged ({error}): delete the folder, and simulate anew") from error
        yield frames, energies


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m p4lab.molecules.replica_exchange", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    simulate = commands.add_parser("run", help="simulate, or go on")
    simulate.add_argument("folder", type=Path)
    simulate.add_argument("--nanoseconds", type=float, default=4.0)
    simulate.add_argument("--seed", type=int, default=0)
    simulate.add_argument("--molecule", default="A", help="a sequence, or a PDB file")
    given = parser.parse_args(arguments)
    replicas = run(given.folder, given.nanoseconds, Settings(seed=given.seed), molecule=Molecule.named(given.molecule))
    print(f"{replicas.sweeps} frames; after a sweep {replicas.mobility:.0%} of the replicas changed their temperature")


if __name__ == "__main__":
    main()
