"""Frames of molecules: those of alanine dipeptide that come with p4lab, simulated ones, and one's own.

What comes with p4lab was made by `p4lab.molecules.replica_exchange`; the files say with what settings. To make it anew:

    python -m p4lab.molecules.replica_exchange run data --nanoseconds 4 --seed 0
    python -m p4lab.molecules.replica_exchange run reference --nanoseconds 120 --seed 1
    python -m p4lab.molecules.dataset data reference
"""

import argparse
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.errors import DataFileError, OptionError, ShapeError
from p4lab.molecules.molecule import LONGEST_BOND, Molecule
from p4lab.molecules.replica_exchange import DAMAGED, Settings, arrays, chunks, described, run
from p4lab.molecules.units import check_temperature
from p4lab.p4.validate import check_tensor

FOLDER = Path(__file__).parent / "data"
FRAMES_FILE, REFERENCE_FILE = FOLDER / "alanine_dipeptide.npz", FOLDER / "alanine_dipeptide_reference.npz"
"""The files that come with p4lab."""
TEMPERATURE = 300.0
"""Temperature of frames and reference (K)."""
BINS = 64
"""Bins of phi and of psi, from -pi to pi."""
BLOCKS = 20
"""Blocks of the long simulation that error bars are made of."""
PHI_POSITIVE = (0.0, 2.4)
"""The range of phi (radians) that counts as the rare state, C7ax and left-handed helix."""
SHIPPED = 20_000
"""Number of frames that come with p4lab."""
SHARES = (0.8, 0.1)
"""Of training and validation; the rest is for the test."""


@dataclass(frozen=True)
class Frames:
    """Frames of a simulation.

    Attributes:
        x: positions, shape (frames, n, 3), nm, float32.
        energy: of the frames, shape (frames,), kJ/mol, float64.
        temperature: K.
        provenance: how they were made.

    Raises:
        ShapeError, DtypeError: not an energy for each frame; no tensors.
        OptionError: a temperature that is not finite and above 0; energies that are not finite.
    """

    x: Tensor = field(repr=False)
    energy: Tensor = field(repr=False)
    temperature: float
    provenance: str

    def __post_init__(self) -> None:
        for given in (self.x, self.energy):
            check_tensor("Frames", given)
        if self.energy.shape != self.x.shape[:-2]:
            raise ShapeError(
                f"positions of shape {tuple(self.x.shape)} and energies of shape {tuple(self.energy.shape)}: expected "
                "(frames, n, 3) and (frames,)"
            )
        check_temperature(self.temperature)
        if count := int((~self.energy.isfinite()).sum()):
            raise OptionError(f"{count} of {len(self)} frames without a finite energy: leave them out")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, chosen: Any) -> "Frames":
        return Frames(self.x[chosen], self.energy[chosen], self.temperature, self.provenance)


@dataclass(frozen=True)
class Reference:
    """What is known of the distribution of phi and psi at 300 K.

    Attributes:
        histogram: shares of the frames, shape (64, 64); the first axis is phi, both run from -pi to pi.
        histogram_error: standard errors of the shares, from blocks, shape (64, 64).
        phi_positive: share of frames with phi in `PHI_POSITIVE`.
        phi_positive_error: its standard error, from blocks.
        blocks: the share in each block, shape (20,).
        energy: mean energy (kJ/mol).
        energy_error: its standard error, from blocks.
        frames: number of frames.
        provenance: how they were made.
    """

    histogram: NDArray[np.float64]
    histogram_error: NDArray[np.float64]
    phi_positive: float
    phi_positive_error: float
    blocks: NDArray[np.float64]
    energy: float
    energy_error: float
    frames: int
    provenance: str


def load(path: Path = FRAMES_FILE, n_atoms: int = 22) -> Frames:
    """Return the frames that come with p4lab: 20,000 of 4 ns at 300 K, L form and trans amides only.

    Positions were stored in 16 bits, centred; their energies are of the stored positions.

    Args:
        path: of a file that `make_frames` wrote.
        n_atoms: of the molecule.

    Raises:
        DataFileError: the file is missing or damaged.
    """
    saved = _read(path, {"x", "energy", "temperature", "provenance"})
    x = saved["x"]
    if x.ndim != 3 or x.shape[1:] != (n_atoms, 3) or saved["energy"].shape != x.shape[:1]:
        raise DataFileError(
            f"{path}: positions of shape {x.shape} and energies of shape {saved['energy'].shape}: expected "
            f"(n, {n_atoms}, 3) and (n,)"
        )
    return Frames(
        torch.from_numpy(x.astype(np.float32)),
        torch.from_numpy(saved["energy"].astype(np.float64)),
        float(saved["temperature"]),
        str(saved["provenance"]),
    )


def frames_of(trajectory: Any, molecule: Molecule, temperature: float = TEMPERATURE) -> Frames:
    """Return the frames of a simulation of one's own that are `Molecule.valid`, with their energies.

    Args:
        trajectory: a ``mdtraj.Trajectory`` of the molecule alone, in one piece, its atoms in any order.
        molecule: what it is of.
        temperature: of the simulation, K.

    Raises:
        UnknownAtomsError: it has other atoms, or calls them by other names.
        DataFileError: no frame is left, or positions are not finite, or a molecule is broken by a periodic box.
        OptionError: the temperature is not positive; positions are not in nm; an energy is not finite; no trajectory.
        MissingPackageError: openmm is not installed.

    Cost: one energy for each frame.

    Example:
        >>> import mdtraj
        >>> molecule = Molecule.from_sequence("A")
        >>> own = mdtraj.Trajectory(load().x[:5].numpy(), mdtraj.Topology.from_openmm(molecule.topology))
        >>> len(frames_of(own, molecule))
        5
    """
    if not (hasattr(trajectory, "xyz") and hasattr(trajectory, "topology")):
        raise OptionError(
            f"a trajectory of type {type(trajectory).__name__}: expected a mdtraj.Trajectory, as mdtraj.load(...) makes"
        )
    x = torch.from_numpy(trajectory.xyz[:, molecule.places(trajectory.topology)])
    if not bool(torch.isfinite(x).all()):
        raise DataFileError("the trajectory has positions that are not finite: leave those frames out")
    return _usable(x, molecule, temperature, f"a trajectory at {temperature:g} K")


def simulate(
    molecule: Molecule,
    nanoseconds: float,
    folder: str | Path | None = None,
    settings: Settings | None = None,
    progress: bool = True,
) -> Frames:
    """Return the frames at the coldest temperature of a replica exchange simulation that are `Molecule.valid`.

    Args:
        molecule: what is simulated.
        nanoseconds: length.
        folder: where the run is kept, and gone on with if it is there already (None: it is not kept).
        settings: of the run, seed and temperatures among them (None: 300 to 1000 K, and files of 500 frames).
        progress: whether to show a progress bar.

    Raises:
        DataFileError: the folder belongs to another run, or is damaged; no frame is left.
        FileError, OptionError, TrainingError: as `p4lab.molecules.replica_exchange.run`.
        MissingPackageError: openmm or tqdm is not installed.

    Cost: on one core of 2026, 2 ns of two alanines (32 atoms) take 4 CPU minutes, of three (42) 7.
    """
    settings = settings or Settings(chunk=500)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(folder or scratch)
        run(place, nanoseconds, settings, progress, molecule)
        x = torch.from_numpy(np.concatenate([frames for frames, _ in chunks(place)]))
        text = _described(place, len(x))
    return _usable(x, molecule, settings.coldest, text)


def _usable(x: Tensor, molecule: Molecule, temperature: float, text: str) -> Frames:
    x = molecule.canonical(x)
    if len(x):
        molecule.check_units(x)
    if count := int((molecule.bond_lengths(x) > LONGEST_BOND).any(1).sum()):
        raise DataFileError(
            f"{count} of {len(x)} frames have bonds longer than {LONGEST_BOND} nm, as a periodic box makes them: make "
            "molecules whole first (make_molecules_whole of mdtraj)"
        )
    valid = molecule.valid(x.double())
    if not bool(valid.any()):
        raise DataFileError(
            f"none of the {len(x)} frames has the hands and amides (cis or trans) of the molecule's start, in which "
            "flows are trained: start from one of the frames, as by from_pdb"
        )
    with molecule.energy(temperature) as energy:
        energies = energy.kilojoules(x[valid].double())
    return Frames(x[valid].float(), energies, temperature, f"{int(valid.sum())} of {len(x)} frames of {text}")


def reference(path: Path = REFERENCE_FILE) -> Reference:
    """Return the reference that comes with p4lab, from a run 30 times longer than that of the frames.

    Raises:
        DataFileError: the file is missing or damaged.
    """
    fields = set(Reference.__dataclass_fields__)
    saved = _read(path, fields)
    if saved["histogram"].shape != (BINS, BINS):
        raise DataFileError(f"{path}: histogram of shape {saved['histogram'].shape}: expected ({BINS}, {BINS})")
    plain: dict[str, Any] = {name: saved[name].item() if saved[name].ndim == 0 else saved[name] for name in fields}
    return Reference(**plain)


def _read(path: Path, names: set[str]) -> dict[str, NDArray[Any]]:
    try:
        content = arrays(path)
    except DAMAGED as error:
        raise DataFileError(f"{path} cannot be read ({error}): install p4lab anew, or make the file again") from error
    if missing := names - set(content):
        raise DataFileError(f"{path} lacks {', '.join(sorted(missing))}: it is not a file of p4lab.molecules.dataset")
    return content


def split(frames: Frames, shares: tuple[float, float] = SHARES, seed: int = 0) -> tuple[Frames, Frames, Frames]:
    """Return training, validation and test frames.

    Neighbours in time are alike, so blocks of 100 frames are dealt, not frames; of fewer than 1,000, tenths of them.

    Args:
        frames: in the order of time.
        shares: of training and validation.
        seed: of the deal.

    Raises:
        OptionError: shares, or so few frames, that leave nothing for one of the three.
    """
    train, validation = shares
    if not min(train, validation, 1 - train - validation) > 0:
        raise OptionError(f"shares={shares}: expected two above 0 with a sum below 1")
    block = torch.arange(len(frames), device="cpu") // max(1, min(100, len(frames) // 10))
    order = torch.randperm(len(block.unique()), generator=torch.Generator().manual_seed(seed), device="cpu")
    place = order.argsort()[block] / len(order)  # where in the deal a frame's block comes
    parts = (
        frames[place < train],
        frames[(place >= train) & (place < train + validation)],
        frames[place >= train + validation],
    )
    if not all(map(len, parts)):
        raise OptionError(
            f"{len(frames)} frames: expected more, so that each part has some (here {[*map(len, parts)]})"
        )
    return parts


def dihedral(x: Tensor, atoms: tuple[int, int, int, int]) -> Tensor:
    """Return a torsion (radians, IUPAC sign) of frames.

    Args:
        x: shape (..., n_atoms, 3).
        atoms: the four atoms.
    """
    a, b, c, d = (x[..., atom, :] for atom in atoms)
    axis = c - b
    before, after = torch.linalg.cross(a - b, axis), torch.linalg.cross(d - c, axis)
    sine = (torch.linalg.cross(before, after) * axis).sum(-1) / axis.norm(dim=-1)
    return torch.atan2(sine, (before * after).sum(-1))


def phi_positive(phi: Tensor) -> Tensor:
    """Return which phi (radians) are in the rare state."""
    low, high = PHI_POSITIVE
    return (phi > low) & (phi < high)


def histogram(phi: Tensor, psi: Tensor, weights: Tensor | None = None) -> NDArray[np.float64]:
    """Return the shares of a histogram of phi and psi (radians), shape (64, 64).

    Raises:
        ShapeError: phi and psi of different shapes.
    """
    if phi.shape != psi.shape:
        raise ShapeError(f"phi of shape {tuple(phi.shape)} and psi of {tuple(psi.shape)}: expected equal ones")
    edges = np.linspace(-np.pi, np.pi, BINS + 1)
    w = None if weights is None else weights.detach().cpu().numpy()
    # pi in float32 is above pi in float64, and would lie in no bin
    x, y = (angle.detach().cpu().double().clamp(-math.pi, math.pi).numpy() for angle in (phi, psi))
    counts, _, _ = np.histogram2d(x, y, (edges, edges), weights=w)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def histogram_kl(p: NDArray[np.float64], q: NDArray[np.float64], floor: float = 1e-6) -> float:
    """Return the divergence of one histogram from another, both of one shape (nats).

    Args:
        p: shares.
        q: shares; ``floor`` is added to each, so that empty bins count as that.
        floor: above 0.
    """
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / (q[seen] + floor))).sum())


def _described(folder: Path, frames: int) -> str:
    settings = described(folder)
    nanoseconds = frames * settings["step"] * settings["sweep"] / 1000
    return (
        f"{nanoseconds:g} ns of replica exchange of {settings['molecule']}, {settings['replicas']} replicas "
        f"from {settings['coldest']:g} to {settings['hottest']:g} K, seed {settings['seed']}, "
        f"{settings['force_field']}: p4lab.molecules.replica_exchange"
    )


def make_frames(
    folder: Path, path: Path = FRAMES_FILE, number: int = SHIPPED, molecule: Molecule | None = None
) -> None:
    """Write the file of `load` from a run: every so many frames of those that are `Molecule.valid`.

    Args:
        folder: of the run.
        path: of the file.
        number: of frames.
        molecule: what was simulated (None: alanine dipeptide).

    Raises:
        DataFileError: the folder holds fewer frames.
    """
    molecule = molecule or Molecule.from_sequence("A")
    frames = torch.from_numpy(np.concatenate([x for x, _ in chunks(folder)]))
    natural = frames[molecule.valid(frames.double())]
    if len(natural) < number:
        raise DataFileError(f"{folder} holds {len(natural)} frames that can be used: expected at least {number}")
    chosen = natural[torch.arange(number, device="cpu") * len(natural) // number].double()
    stored = (chosen - chosen.mean(1, keepdim=True)).half()
    with molecule.energy(TEMPERATURE) as energy:
        energies = energy.kilojoules(stored.double())
    path.parent.mkdir(exist_ok=True)
    text = f"{number} frames of {_described(folder, len(frames))}"
    np.savez_compressed(
        path, x=stored.numpy(), energy=energies.float().numpy(), temperature=TEMPERATURE, provenance=text
    )


def make_reference(folder: Path, path: Path = REFERENCE_FILE) -> Reference:
    """Write the file of `reference` from a run of alanine dipeptide; error bars are from 20 blocks of equal length.

    Raises:
        DataFileError: the folder holds no frames.
    """
    molecule = Molecule.from_sequence("A")
    phi, psi, energy = [], [], []
    for x, energies in chunks(folder):
        frames = torch.from_numpy(x).double()
        natural = molecule.valid(frames)
        phi.append(torch.where(natural, dihedral(frames, molecule.torsions["phi"]), torch.nan))
        psi.append(torch.where(natural, dihedral(frames, molecule.torsions["psi"]), torch.nan))
        energy.append(torch.where(natural, torch.from_numpy(energies[:, 0]), torch.nan))
    total = sum(len(part) for part in phi)
    blocks = [[part[torch.isfinite(part)] for part in torch.cat(series).chunk(BLOCKS)] for series in (phi, psi, energy)]
    rare = np.array([phi_positive(part).double().mean().item() for part in blocks[0]])
    shares = np.stack([histogram(a, b) for a, b in zip(blocks[0], blocks[1], strict=True)])
    means = np.array([part.mean().item() for part in blocks[2]])
    count = math.sqrt(len(rare))
    summary = Reference(
        shares.mean(0),
        shares.std(0, ddof=1) / count,
        float(rare.mean()),
        float(rare.std(ddof=1) / count),
        rare,
        float(means.mean()),
        float(means.std(ddof=1) / count),
        total,
        f"{total} frames of {_described(folder, total)}",
    )
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **vars(summary))
    return summary


def main(arguments: list[str] | None = None) -> None:
    """Make both files from two runs."""
    parser = argparse.ArgumentParser(prog="python -m p4lab.molecules.dataset", description=main.__doc__)
    parser.add_argument("data", type=Path, help="folder of the run for the frames")
    parser.add_argument("reference", type=Path, nargs="?", help="folder of the run for the reference")
    given = parser.parse_args(arguments)
    make_frames(given.data)
    print(load().provenance, f"({FRAMES_FILE.stat().st_size / 1e6:.2f} MB)")
    if given.reference:
        made = make_reference(given.reference)
        print(f"{made.provenance}: phi > 0 {made.phi_positive:.4f} +- {made.phi_positive_error:.4f}")


if __name__ == "__main__":
    main()
