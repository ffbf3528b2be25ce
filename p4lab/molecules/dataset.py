"""The data of alanine dipeptide that come with p4lab, and the reference that flows are judged by.

Both were made by `p4lab.molecules.replica_exchange`; the files say with what settings. To make them anew:

    python -m p4lab.molecules.replica_exchange run data --nanoseconds 4 --seed 0
    python -m p4lab.molecules.replica_exchange run reference --nanoseconds 120 --seed 1
    python -m p4lab.molecules.dataset data reference
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.errors import DataFileError, OptionError, ShapeError
from p4lab.molecules import alanine
from p4lab.molecules.replica_exchange import DAMAGED, SETTINGS, arrays, chunks

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
        x: positions, shape (n, 22, 3), nm, float32.
        energy: of the frames, shape (n,), kJ/mol, float64.
        temperature: K.
        provenance: how they were made.
    """

    x: Tensor
    energy: Tensor
    temperature: float
    provenance: str

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


def load(path: Path = FRAMES_FILE) -> Frames:
    """Return the frames that come with p4lab: 20,000 of 4 ns at 300 K, L form and trans amides only.

    Positions were stored in 16 bits, centred; their energies are of the stored positions.

    Raises:
        DataFileError: the file is missing or damaged.
    """
    saved = _read(path, {"x", "energy", "temperature", "provenance"})
    x = saved["x"]
    if x.ndim != 3 or x.shape[1:] != (alanine.N_ATOMS, 3) or saved["energy"].shape != x.shape[:1]:
        raise DataFileError(
            f"{path}: positions of shape {x.shape} and energies of shape {saved['energy'].shape}: expected "
            f"(n, {alanine.N_ATOMS}, 3) and (n,)"
        )
    return Frames(
        torch.from_numpy(x.astype(np.float32)),
        torch.from_numpy(saved["energy"].astype(np.float64)),
        float(saved["temperature"]),
        str(saved["provenance"]),
    )


def frames_of(trajectory: Any, temperature: float = TEMPERATURE) -> Frames:
    """Return the frames of a simulation of one's own, of the L form and with trans amides, with their energies.

    Args:
        trajectory: a ``mdtraj.Trajectory`` of alanine dipeptide alone, its atoms in any order.
        temperature: of the simulation, K.

    Raises:
        UnknownAtomsError: it has other atoms, or calls them by other names.
        DataFileError: no frame is left, or positions are not finite.
        OptionError: the temperature is not positive.
        MissingPackageError: openmm is not installed.

    Cost: one energy for each frame.

    Example:
        >>> import mdtraj
        >>> own = mdtraj.Trajectory(load().x[:5].numpy(), mdtraj.Topology.from_openmm(alanine.topology()))
        >>> len(frames_of(own))
        5
    """
    from p4lab.molecules.openmm_energy import OpenMMEnergy

    names = [f"{atom.residue.name}-{atom.name}" for atom in trajectory.topology.atoms]
    x = torch.from_numpy(trajectory.xyz[:, alanine.places(names)])
    if not bool(torch.isfinite(x).all()):
        raise DataFileError("the trajectory has positions that are not finite: leave those frames out")
    natural = is_natural(x.double())
    if not bool(natural.any()):
        raise DataFileError(
            f"none of the {len(x)} frames is of the L form with both amides trans, in which flows are trained"
        )
    with OpenMMEnergy(temperature=temperature) as energy:
        energies = energy.kilojoules(x[natural].double())
    text = f"{int(natural.sum())} of {len(x)} frames of a trajectory at {temperature:g} K"
    return Frames(x[natural].float(), energies, temperature, text)


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

    Neighbours in time are alike, so blocks of 100 frames are dealt, not frames.

    Args:
        frames: in the order of time.
        shares: of training and validation.
        seed: of the deal.

    Raises:
        OptionError: shares that leave nothing for one of the three.
    """
    train, validation = shares
    if min(train, validation, 1 - train - validation) <= 0:
        raise OptionError(f"shares={shares}: expected two above 0 with a sum below 1")
    block = torch.arange(len(frames), device="cpu") // 100
    order = torch.randperm(int(block[-1]) + 1, generator=torch.Generator().manual_seed(seed), device="cpu")
    place = order.argsort()[block] / len(order)  # where in the deal a frame's block comes
    return (
        frames[place < train],
        frames[(place >= train) & (place < train + validation)],
        frames[place >= train + validation],
    )


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


def is_natural(x: Tensor) -> Tensor:
    """Return which frames of shape (n, 22, 3) are of the L form with both amides trans, shape (n,)."""
    n, ca, c, cb = 6, 8, 14, 10
    left = (torch.linalg.cross(x[:, n] - x[:, ca], x[:, c] - x[:, ca]) * (x[:, cb] - x[:, ca])).sum(-1) > 0
    amides = ((1, 4, 6, 8), (8, 14, 16, 18))
    trans = torch.stack([dihedral(x, atoms).abs() > math.pi / 2 for atoms in amides]).all(0)
    return left & trans


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
    counts, _, _ = np.histogram2d(phi.detach().cpu().numpy(), psi.detach().cpu().numpy(), (edges, edges), weights=w)
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


def _described(folder: Path, frames: int, what: str) -> str:
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    nanoseconds = frames * settings["step"] * settings["sweep"] / 1000
    return (
        f"{what} of {nanoseconds:g} ns of replica exchange, {settings['replicas']} replicas from "
        f"{settings['coldest']:g} to {settings['hottest']:g} K, seed {settings['seed']}, "
        "ff99SB-ILDN with OBC: p4lab.molecules.replica_exchange"
    )


def make_frames(folder: Path, path: Path = FRAMES_FILE, number: int = SHIPPED) -> None:
    """Write the file of `load` from a run: every so many frames, of the L form and with trans amides.

    Raises:
        DataFileError: the folder holds fewer frames.
    """
    from p4lab.molecules.openmm_energy import OpenMMEnergy

    frames = torch.from_numpy(np.concatenate([x for x, _ in chunks(folder)]))
    natural = frames[is_natural(frames.double())]
    if len(natural) < number:
        raise DataFileError(f"{folder} holds {len(natural)} frames that can be used: expected at least {number}")
    chosen = natural[torch.arange(number, device="cpu") * len(natural) // number].double()
    stored = (chosen - chosen.mean(1, keepdim=True)).half()
    with OpenMMEnergy() as energy:
        energies = energy.kilojoules(stored.double())
    path.parent.mkdir(exist_ok=True)
    text = _described(folder, len(frames), f"{number} frames")
    np.savez_compressed(
        path, x=stored.numpy(), energy=energies.float().numpy(), temperature=TEMPERATURE, provenance=text
    )


def make_reference(folder: Path, path: Path = REFERENCE_FILE) -> Reference:
    """Write the file of `reference` from a run; error bars are from 20 blocks of equal length.

    Raises:
        DataFileError: the folder holds no frames.
    """
    phi, psi, energy = [], [], []
    for x, energies in chunks(folder):
        frames = torch.from_numpy(x).double()
        natural = is_natural(frames)
        phi.append(torch.where(natural, dihedral(frames, alanine.PHI), torch.nan))
        psi.append(torch.where(natural, dihedral(frames, alanine.PSI), torch.nan))
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
        _described(folder, total, f"{total} frames"),
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
