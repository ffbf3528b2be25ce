"""The shipped data are what they say, and damaged files are named."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from p4lab.errors import DataFileError, OptionError, ShapeError, UnknownAtomsError
from p4lab.molecules import alanine, dataset
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.packages import package
from p4lab.molecules.replica_exchange import Settings, run


@pytest.fixture(scope="module")
def frames() -> dataset.Frames:
    return dataset.load()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(folder, 0.001, Settings(seed=1, replicas=2, sweep=5, equilibration=20, chunk=50), progress=False)
    return folder


def test_shipped_frames_are_natural_and_their_energies_are_those_of_openmm(frames: dataset.Frames) -> None:
    assert frames.x.shape == (dataset.SHIPPED, alanine.N_ATOMS, 3)
    assert frames.temperature == 300
    assert "seed 0" in frames.provenance
    assert dataset.is_natural(frames.x.double()).all()
    some = torch.arange(0, len(frames), 500)
    with OpenMMEnergy() as energy:
        assert torch.allclose(energy.kilojoules(frames.x[some].double()), frames.energy[some], atol=1e-3)


def test_shipped_files_are_small() -> None:
    assert dataset.FRAMES_FILE.stat().st_size < 3e6
    assert dataset.REFERENCE_FILE.stat().st_size < 1e6


def test_reference_and_frames_agree_within_their_errors(frames: dataset.Frames) -> None:
    reference = dataset.reference()
    assert reference.frames >= 10 * 2 * len(frames)  # every second frame of the run is shipped
    assert math.isclose(reference.histogram.sum(), 1.0, rel_tol=1e-9)
    assert math.isclose(reference.blocks.mean(), reference.phi_positive, rel_tol=1e-9)
    assert len(reference.blocks) == dataset.BLOCKS
    rare = dataset.phi_positive(dataset.dihedral(frames.x, alanine.PHI)).double()
    error = rare.view(20, -1).mean(1).std() / math.sqrt(20)
    assert abs(rare.mean() - reference.phi_positive) < 4 * math.hypot(error, reference.phi_positive_error)
    error = frames.energy.view(20, -1).mean(1).std() / math.sqrt(20)
    assert abs(frames.energy.mean() - reference.energy) < 4 * math.hypot(error, reference.energy_error)


def test_split_deals_all_frames_in_blocks_and_repeatably(frames: dataset.Frames) -> None:
    parts = dataset.split(frames)
    assert sum(len(part) for part in parts) == len(frames)
    assert len(parts[0]) == pytest.approx(0.8 * len(frames), rel=0.02)
    assert len({float(e) for part in parts for e in part.energy}) == len(set(frames.energy.tolist()))
    assert all(torch.equal(a.x, b.x) for a, b in zip(parts, dataset.split(frames), strict=True))
    assert not torch.equal(parts[2].x[:100], dataset.split(frames, seed=1)[2].x[:100])
    first = parts[1].x[:100]
    at = int((frames.x == first[0]).all(-1).all(-1).nonzero()[0])
    assert torch.equal(frames.x[at : at + 100], first)  # neighbours stay together


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.0, 0.5), (0.5, -0.1)], ids=str)
def test_shares_that_leave_nothing_are_named(frames: dataset.Frames, shares: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="two above 0 with a sum below 1"):
        dataset.split(frames, shares)


def test_histogram_counts_weights_and_ranges() -> None:
    phi, psi = torch.tensor([-3.14, 0.01, 0.01]), torch.tensor([3.14, 0.01, 0.01])
    shares = dataset.histogram(phi, psi, torch.tensor([2.0, 1.0, 1.0]))
    assert shares[0, -1] == 0.5
    assert shares[32, 32] == 0.5
    assert shares.sum() == 1
    with pytest.raises(ShapeError, match="expected equal ones"):
        dataset.histogram(phi, psi[:2])


def test_frames_and_reference_are_made_from_runs(simulated: Path, tmp_path: Path) -> None:
    dataset.make_frames(simulated, tmp_path / "x.npz", number=40)
    made = dataset.load(tmp_path / "x.npz")
    assert len(made) == 40
    assert "seed 1" in made.provenance
    dataset.make_reference(simulated, tmp_path / "reference.npz")
    again = dataset.reference(tmp_path / "reference.npz")
    assert again.frames == 100
    assert math.isclose(again.histogram.sum(), 1.0, rel_tol=1e-9)
    with pytest.raises(DataFileError, match="expected at least 1000"):
        dataset.make_frames(simulated, tmp_path / "y.npz", number=1000)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def _altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(bytes(data))


def _foreign(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weights=np.zeros(3))


def _of_another_molecule(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.zeros((4, 10, 3)), energy=np.zeros(4), temperature=300.0, provenance="")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "cannot be read"),
        (_altered, "cannot be read"),
        (_foreign, "lacks energy, provenance"),
        (_of_another_molecule, r"positions of shape \(4, 10, 3\)"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
    ids=["cut", "altered", "foreign", "another-molecule", "missing"],
)
def test_bad_files_are_named(simulated: Path, tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "x.npz"
    dataset.make_frames(simulated, path, number=40)
    damage(path)
    with pytest.raises(DataFileError, match=message):
        dataset.load(path)


# --- trajectories of one's own ---------------------------------------------------------------------------------------


@pytest.fixture
def own(frames: dataset.Frames, tmp_path: Path) -> Any:
    """Ten shipped frames as mdtraj reads them from a PDB file."""
    path = tmp_path / "own.pdb"
    path.write_text(alanine.pdb_text(frames.x[:10]))
    return package("mdtraj").load(str(path))


def test_a_trajectory_in_another_order_gives_the_same_frames(frames: dataset.Frames) -> None:
    mdtraj = package("mdtraj")
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for name, atoms in reversed(alanine.RESIDUES.items()):
        residue = topology.add_residue(name, chain)
        for atom in reversed(atoms):
            topology.add_atom(atom, mdtraj.element.get_by_symbol(atom[0]), residue)
    own = dataset.frames_of(mdtraj.Trajectory(frames.x[:10].numpy()[:, ::-1], topology), temperature=310.0)
    assert torch.equal(own.x, frames.x[:10])
    assert torch.allclose(own.energy, frames.energy[:10], atol=1e-3)
    assert (own.temperature, own.provenance) == (310.0, "10 of 10 frames of a trajectory at 310 K")


def test_mirror_images_of_a_trajectory_are_left_out(own: Any) -> None:
    own.xyz[:4, :, 2] *= -1
    assert len(dataset.frames_of(own)) == 6
    own.xyz[4:, :, 2] *= -1
    with pytest.raises(DataFileError, match="none of the 10 frames is of the L form"):
        dataset.frames_of(own)


def test_a_trajectory_that_does_not_fit_is_refused_by_name(own: Any) -> None:
    with pytest.raises(UnknownAtomsError, match="missing: NME-H3"):
        dataset.frames_of(own.atom_slice(range(alanine.N_ATOMS - 1)))
    own.xyz[3, 2, 1] = np.nan
    with pytest.raises(DataFileError, match="not finite"):
        dataset.frames_of(own)
