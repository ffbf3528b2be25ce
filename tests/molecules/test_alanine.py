"""The molecule is alanine dipeptide, for p4lab, OpenMM and mdtraj alike."""

import io

import pytest
import torch

from p4lab.errors import MissingPackageError, UnknownAtomsError
from p4lab.molecules import alanine
from p4lab.molecules.dataset import dihedral, is_natural
from p4lab.molecules.packages import package


def test_every_atom_is_placed_once_and_bonded_to_one_placed_before() -> None:
    placed: set[int] = set()
    for atom, *others in alanine.ROWS:
        assert atom not in placed
        assert {other for other in others if other >= 0} <= placed
        placed.add(atom)
    assert placed == set(range(alanine.N_ATOMS))
    assert len(alanine.bonds()) == alanine.N_ATOMS - 1


def test_openmm_sees_three_residues_and_all_forces_of_the_force_field() -> None:
    assert [residue.name for residue in alanine.topology().residues()] == ["ACE", "ALA", "NME"]
    system = alanine.system()
    names = {force.getName() for force in system.getForces()}
    assert names == {
        "HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "NonbondedForce", "GBSAOBCForce"
    }  # fmt: skip
    hydrogens = [i for i, element in enumerate(alanine.ELEMENTS) if element == "H"]
    assert [system.getParticleMass(i)._value for i in hydrogens] == [alanine.HYDROGEN_MASS] * 12


def test_start_is_of_the_natural_kind_and_its_mirror_image_is_not() -> None:
    x = alanine.start()
    mirrored = x * torch.tensor([1.0, 1.0, -1.0])
    assert is_natural(torch.stack([x, mirrored])).tolist() == [True, False]


def test_a_cis_amide_is_not_natural() -> None:
    x = alanine.start()
    # Turn all that comes after the second amide bond (C-N) by half a turn about it.
    axis = torch.nn.functional.normalize(x[16] - x[14], dim=0)
    arm = x[17:] - x[16]
    x[17:] = x[16] + 2 * (arm @ axis)[:, None] * axis - arm
    assert is_natural(x[None]).tolist() == [False]


def test_places_find_atoms_in_any_order_and_by_other_names() -> None:
    order = torch.randperm(alanine.N_ATOMS, generator=torch.Generator().manual_seed(0)).tolist()
    usual = {name: other for other, name in alanine.OTHER_NAMES.items()}
    names = [usual.get(alanine.ATOM_NAMES[i], alanine.ATOM_NAMES[i]) for i in order]
    assert "NME-CH3" in names
    assert [order[place] for place in alanine.places(names)] == list(range(alanine.N_ATOMS))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [*alanine.ATOM_NAMES, "HOH-O", "HOH-H1", "HOH-H2"],
            "these 25 atoms .*unknown: HOH-O, HOH-H1, HOH-H2.*solvent",
        ),
        (alanine.ATOM_NAMES[:-1], "missing: NME-H3"),
        ([*alanine.ATOM_NAMES, "NME-CH3"], "more than once: NME-C"),
        (["GLY-CA"], "unknown: GLY-CA; missing: ACE-HH31, .* and 16 more"),
        ([], "these 0 atoms"),
    ],
)
def test_other_atoms_are_named(names: list[str], message: str) -> None:
    with pytest.raises(UnknownAtomsError, match=message):
        alanine.places(names)


@pytest.mark.parametrize("atoms", [alanine.PHI, alanine.PSI, (1, 4, 6, 8)], ids=["phi", "psi", "omega"])
def test_torsions_have_the_value_and_sign_of_mdtraj(atoms: tuple[int, int, int, int]) -> None:
    mdtraj = package("mdtraj")
    x = torch.randn(30, alanine.N_ATOMS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frames = mdtraj.Trajectory(x.numpy(), mdtraj.Topology.from_openmm(alanine.topology()))
    expected = torch.from_numpy(mdtraj.compute_dihedrals(frames, [atoms])[:, 0]).double()
    difference = torch.remainder(dihedral(x, atoms) - expected + torch.pi, 2 * torch.pi) - torch.pi
    assert difference.abs().max() < 1e-5  # mdtraj computes in float32


def test_pdb_text_is_read_back_by_openmm() -> None:
    x = torch.stack([alanine.start(), alanine.start() + 0.1])
    read = package("openmm.app").PDBFile(io.StringIO(alanine.pdb_text(x)))
    assert read.getNumFrames() == 2
    assert [atom.element.symbol for atom in read.topology.atoms()] == list(alanine.ELEMENTS)
    assert len(list(read.topology.bonds())) == 21
    back = torch.tensor(read.getPositions(asNumpy=True, frame=1)._value)
    assert torch.allclose(back, x[1], atol=1e-4)


def test_missing_package_says_what_to_install() -> None:
    with pytest.raises(MissingPackageError, match=r"no_such_engine is not installed.*p4lab\[molecules\]"):
        package("no_such_engine.app")
