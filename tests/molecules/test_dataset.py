"""The shipped data are what they say, and damaged files are named."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from p4lab.errors import DataFileError, OptionError, P4Error, ShapeError, UnknownAtomsError
from p4lab.molecules import dataset
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.packages import package
from p4lab.molecules.replica_exchange import Settings, run

MOLECULE = Molecule.from_sequence("A")


@pytest.fixture(scope="module")
def frames() -> dataset.Frames:
    return dataset.load()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(folder, 0.001, Settings(seed=1, replicas=2, sweep=5, equilibration=20, chunk=50), progress=False)
    return folder


def test_shipped_frames_are_natural_and_their_energies_are_those_of_openmm(frames: dataset.Frames) -> None:
    assert frames.x.shape == (dataset.SHIPPED, len(MOLECULE), 3)
    assert frames.temperature == 300
    assert "seed 0" in frames.provenance
    assert MOLECULE.valid(frames.x.double()).all()
    some = torch.arange(0, len(frames), 500)
    with MOLECULE.energy() as energy:
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
    rare = dataset.phi_positive(dataset.dihedral(frames.x, MOLECULE.torsions["phi"])).double()
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


@pytest.mark.parametrize("number", [0, 1, 5])
def test_too_few_frames_to_divide_are_named(frames: dataset.Frames, number: int) -> None:
    with pytest.raises(OptionError, match=f"{number} frames: expected more"):
        dataset.split(frames[:number])


def test_an_angle_of_pi_is_counted_whatever_its_rounding() -> None:
    ends = torch.tensor([math.pi, -math.pi, 0.0, 1.0])  # float32, in which pi is above that of float64
    assert dataset.histogram(ends, ends)[[0, -1], [0, -1]].tolist() == [0.25, 0.25]


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
    path.write_text(MOLECULE.pdb_text(frames.x[:10]))
    return package("mdtraj").load(str(path))


def test_a_trajectory_in_another_order_gives_the_same_frames(frames: dataset.Frames) -> None:
    mdtraj = package("mdtraj")
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for own in reversed(list(MOLECULE.topology.residues())):
        residue = topology.add_residue(own.name, chain)
        for atom in reversed(list(own.atoms())):
            topology.add_atom(atom.name, mdtraj.element.get_by_symbol(atom.element.symbol), residue)
    own = dataset.frames_of(mdtraj.Trajectory(frames.x[:10].numpy()[:, ::-1], topology), MOLECULE, temperature=310.0)
    assert torch.equal(own.x, frames.x[:10])
    assert torch.allclose(own.energy, frames.energy[:10], atol=1e-3)
    assert (own.temperature, own.provenance) == (310.0, "10 of 10 frames of a trajectory at 310 K")


def test_mirror_images_of_a_trajectory_are_left_out(own: Any) -> None:
    own.xyz[:4, :, 2] *= -1
    assert len(dataset.frames_of(own, MOLECULE)) == 6
    own.xyz[4:, :, 2] *= -1
    with pytest.raises(DataFileError, match="none of the 10 frames has the hands"):
        dataset.frames_of(own, MOLECULE)


def test_a_trajectory_that_does_not_fit_is_refused_by_name(own: Any) -> None:
    with pytest.raises(UnknownAtomsError, match="missing: NME-H3"):
        dataset.frames_of(own.atom_slice(range(len(MOLECULE) - 1)), MOLECULE)
    own.xyz[3, 21] += 5.0  # a hydrogen beyond the side of a box
    with pytest.raises(DataFileError, match="1 of 10 frames have bonds longer"):
        dataset.frames_of(own, MOLECULE)
    own.xyz[:] *= 10
    with pytest.raises(OptionError, match="10 times as long"):
        dataset.frames_of(own, MOLECULE)
    with pytest.raises(OptionError, match=r"expected a mdtraj\.Trajectory"):
        dataset.frames_of(own.xyz, MOLECULE)
    own.xyz[3, 2, 1] = np.nan
    with pytest.raises(DataFileError, match="not finite"):
        dataset.frames_of(own, MOLECULE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": torch.zeros(4)}, "expected"),
        ({"energy": torch.tensor([0.0, torch.nan, 0.0])}, "1 of 3 frames without a finite energy"),
        ({"temperature": math.inf}, "above 0 K"),
        ({"temperature": -300.0}, "above 0 K"),
        ({"x": np.zeros((3, 22, 3))}, "convert it"),
    ],
    ids=["number", "nan", "infinite", "negative", "numpy"],
)
def test_frames_that_do_not_fit_together_are_named(change: dict[str, Any], message: str) -> None:
    parts = {"x": torch.zeros(3, 22, 3), "energy": torch.zeros(3), "temperature": 300.0, "provenance": ""}
    with pytest.raises(P4Error, match=message):
        dataset.Frames(**(parts | change))
