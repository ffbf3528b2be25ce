"""Replica exchange molecular dynamics of alanine dipeptide: where the data and the reference come from.

    python -m p4lab.molecules.replica_exchange run FOLDER --nanoseconds 4 --seed 0
    python -m p4lab.molecules.replica_exchange run FOLDER --nanoseconds 120 --seed 1

A run that was interrupted goes on where it was when the same command is given again, and gives the same frames.
"""

import argparse
import json
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.errors import DataFileError, OptionError
from p4lab.molecules import alanine
from p4lab.molecules.packages import package
from p4lab.molecules.units import BOLTZMANN

STATE = "state.npz"
"""Name of the file with the state of a run."""
SETTINGS = "settings.json"
"""Name of the file with the settings of a run."""
DAMAGED = (OSError, ValueError, SyntaxError, tokenize.TokenError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a file of arrays raises if it is not there, or not whole; numpy parses a header as Python does."""


@dataclass(frozen=True)
class Settings:
    """A replica exchange run, in full.

    Attributes:
        seed: seed of velocities, thermostats and exchanges.
        coldest, hottest: temperatures at the ends (K); those between are spaced geometrically.
        replicas: how many temperatures.
        step: time step (ps).
        friction: of the Langevin thermostat (1/ps).
        sweep: steps between two exchanges; a frame of the coldest replica is kept after each.
        equilibration: steps before the first frame.
        chunk: frames in a file; what an interruption can cost.
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

    def temperatures(self) -> NDArray[np.float64]:
        """Return the temperatures (K), the coldest first."""
        return np.geomspace(self.coldest, self.hottest, self.replicas)

    def frames(self, nanoseconds: float) -> int:
        """Return how many frames there are in a time (ns)."""
        return round(1000 * nanoseconds / (self.step * self.sweep))


class ReplicaExchange:
    r"""Replicas of the molecule that exchange their temperatures.

    .. math:: P_{ij} = \min(1, e^{(\beta_i - \beta_j)(E_i - E_j)})

    After each sweep so many random pairs are tried that the replicas are as good as dealt anew (Gibbs sampling).

    Args:
        settings: of the run.

    Attributes:
        contexts, integrators: OpenMM's, one for each replica.
        slot: which replica is at each temperature.

    Raises:
        OptionError: fewer than two replicas, or no time steps between exchanges.
        MissingPackageError: openmm is not installed.

    Source: Sugita and Okamoto, Chem. Phys. Lett. 314 (1999) 141; Chodera and Shirts, J. Chem. Phys. 135 (2011) 194110.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.replicas < 2 or settings.sweep < 1 or settings.chunk < 1:
            raise OptionError(
                f"replicas={settings.replicas}, sweep={settings.sweep}, chunk={settings.chunk}: expected >= 2, 1 and 1"
            )
        self.settings, self.temperatures = settings, settings.temperatures()
        self._random = np.random.default_rng(settings.seed)
        self.slot = np.arange(settings.replicas)
        self.sweeps = 0
        self.moves = 0
        openmm = package("openmm")
        platform = openmm.Platform.getPlatformByName("Reference")  # the fastest for so few atoms, and repeatable
        self.contexts, self.integrators = [], []
        system = alanine.system()
        for k, temperature in enumerate(self.temperatures):
            integrator = openmm.LangevinMiddleIntegrator(temperature, settings.friction, settings.step)
            integrator.setRandomNumberSeed(1 + settings.seed * settings.replicas + k)  # 0 would mean: any
            context = openmm.Context(system, integrator, platform)
            context.setPositions(alanine.start().numpy())
            context.setVelocitiesToTemperature(temperature, 1 + settings.seed * settings.replicas + k)
            self.contexts.append(context)
            self.integrators.append(integrator)

    def equilibrate(self) -> None:
        """Run every replica for a while."""
        for integrator in self.integrators:
            integrator.step(self.settings.equilibration)

    def sweep(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Go on to the next frame.

        Returns:
            Positions of the coldest replica, shape (22, 3), nm, and the energies of all, shape (replicas,), kJ/mol.
        """
        energies = np.empty(self.settings.replicas)
        for k, i in enumerate(self.slot.tolist()):
            self.integrators[i].step(self.settings.sweep)
            state = self.contexts[i].getState(energy=True, positions=k == 0)
            energies[k] = state.getPotentialEnergy()._value
            if k == 0:
                frame = np.asarray(state.getPositions(asNumpy=True)._value, np.float32)
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


def run(folder: Path, nanoseconds: float, settings: Settings | None = None, progress: bool = True) -> ReplicaExchange:
    """Simulate into a folder, in files of `Settings.chunk` frames; what is there already is gone on with.

    Args:
        folder: where frames and state go.
        nanoseconds: length of the whole run (ns); the last frames may make it up to a chunk longer.
        settings: of the run (None: the defaults).
        progress: whether to show a progress bar.

    Returns:
        The replicas at the end.

    Raises:
        DataFileError: the folder belongs to a run of other settings, or is damaged.
        MissingPackageError: openmm or tqdm is not installed.
    """
    settings = settings or Settings()
    folder.mkdir(parents=True, exist_ok=True)
    described = folder / SETTINGS
    if described.exists():
        before = json.loads(described.read_text(encoding="utf-8"))
        if before != asdict(settings):
            raise DataFileError(f"{folder} holds a run of {before}, not of {asdict(settings)}: choose another folder")
    described.write_text(json.dumps(asdict(settings)) + "\n", encoding="utf-8")
    replicas = ReplicaExchange(settings)
    if (folder / STATE).exists():
        replicas.load_state(arrays(folder / STATE))
    else:
        replicas.equilibrate()
    total = -(-settings.frames(nanoseconds) // settings.chunk)
    done = replicas.sweeps // settings.chunk
    bar = package("tqdm").tqdm(
        total=total * settings.chunk, initial=replicas.sweeps, unit="frame", disable=not progress, mininterval=1
    )
    with bar:
        for number in range(done, total):
            frames, energies = [], []
            for _ in range(settings.chunk):
                frame, energy = replicas.sweep()
                frames.append(frame)
                energies.append(energy)
                bar.update()
            _save(folder / f"frames_{number:04d}.npz", x=np.array(frames), energy=np.array(energies))
            _save(folder / STATE, **replicas.state())
    return replicas


def _save(path: Path, **arrays: Any) -> None:
    """Write a file as a whole or not at all."""
    draft = path.with_suffix(".part.npz")
    np.savez(draft, **arrays)
    draft.replace(path)


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return what `numpy.savez` has put into a file; a damaged one raises one of `DAMAGED`."""
    with path.open("rb") as file, np.load(file) as saved:  # numpy leaves a damaged file open that it has opened itself
        return {name: saved[name] for name in saved.files}


def chunks(folder: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float64]]]:
    """Yield the frames, shape (chunk, 22, 3), nm, and energies, shape (chunk, replicas), kJ/mol, of a run in order.

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
    given = parser.parse_args(arguments)
    replicas = run(given.folder, given.nanoseconds, Settings(seed=given.seed))
    print(f"{replicas.sweeps} frames; after a sweep {replicas.mobility:.0%} of the replicas changed their temperature")


if __name__ == "__main__":
    main()
