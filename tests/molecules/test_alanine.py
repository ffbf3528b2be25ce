"""Alanine dipeptide is what it was when p4lab knew no other molecule; for p4lab, OpenMM and mdtraj alike."""

import io

import pytest
import torch

from p4lab.errors import MissingPackageError, UnknownAtomsError
from p4lab.molecules.building import OTHER_NAMES
from p4lab.molecules.dataset import dihedral
from p4lab.molecules.molecule import HYDROGEN_MASS, Molecule
from p4lab.molecules.packages import package

MOLECULE = Molecule.from_sequence("A")
ROWS = """
    8 -1 -1 -1, 6 8 -1 -1, 14 8 6 -1, 4 6 8 14,
    16 14 8 6, 10 8 6 14, 9 8 6 14, 7 6 8 4,
    5 4 6 8, 15 14 8 16, 17 16 14 8, 11 10 8 6,
    1 4 6 5, 18 16 14 17, 12 10 8 11, 13 10 8 11,
    0 1 4 6, 19 18 16 14, 2 1 4 0, 3 1 4 0,
    20 18 16 19, 21 18 16 19
"""
"""The Z-matrix that the flow that comes with p4lab was trained in."""
NAMES = """
    ACE-HH31 ACE-CH3 ACE-HH32 ACE-HH33 ACE-C ACE-O ALA-N ALA-H ALA-CA ALA-HA ALA-CB ALA-HB1 ALA-HB2 ALA-HB3 ALA-C ALA-O
    NME-N NME-H NME-C NME-H1 NME-H2 NME-H3
"""


def test_atoms_z_matrix_and_symmetries_are_those_of_the_flow_that_comes_with_p4lab() -> None:
    assert MOLECULE.atom_names == tuple(NAMES.split())
    assert MOLECULE.graph.rows == tuple(tuple(map(int, row.split())) for row in ROWS.split(","))
    assert MOLECULE.graph.circular == (4, 16, 11, 0, 19)
    assert [one.moved for one in MOLECULE.rotors] == [(11, 12, 13), (0, 2, 3), (19, 20, 21)]
    assert MOLECULE.torsions == {"phi": (4, 6, 8, 14), "psi": (6, 8, 14, 16)}
    assert MOLECULE.maps == (("phi", "psi"),)


def test_openmm_sees_three_residues_and_all_forces_of_the_force_field() -> None:
    assert [residue.name for residue in MOLECULE.topology.residues()] == ["ACE", "ALA", "NME"]
    names = {force.getName() for force in MOLECULE.system.getForces()}
    assert names == {
        "HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce", "NonbondedForce", "GBSAOBCForce"
    }  # fmt: skip
    hydrogens = [i for i, element in enumerate(MOLECULE.graph.elements) if element == "H"]
    assert [MOLECULE.system.getParticleMass(i)._value for i in hydrogens] == [HYDROGEN_MASS] * 12


def test_start_is_of_the_natural_kind_and_its_mirror_image_is_not() -> None:
    x = MOLECULE.start
    mirrored = x * torch.tensor([1.0, 1.0, -1.0])
    assert MOLECULE.valid(torch.stack([x, mirrored])).tolist() == [True, False]
    assert MOLECULE.chirality(torch.stack([x, mirrored])).tolist() == [[1], [-1]]


def test_a_cis_amide_is_not_natural() -> None:
    x = MOLECULE.start.clone()
    # Turn all that comes after the second amide bond (C-N) by half a turn about it.
    axis = torch.nn.functional.normalize(x[16] - x[14], dim=0)
    arm = x[17:] - x[16]
    x[17:] = x[16] + 2 * (arm @ axis)[:, None] * axis - arm
    assert MOLECULE.valid(x[None]).tolist() == [False]


def topology(names: list[str]) -> object:
    """What mdtraj calls a topology, of these atoms."""
    made = package("mdtraj").Topology()
    chain, residue = made.add_chain(), None
    for name in names:
        kind, _, atom = name.partition("-")
        if residue is None or residue.name != kind:
            residue = next((r for r in made.residues if r.name == kind), None) or made.add_residue(kind, chain)
        made.add_atom(atom, None, residue)
    return made


def test_places_find_atoms_in_any_order_and_by_other_names() -> None:
    order = torch.randperm(len(MOLECULE), generator=torch.Generator().manual_seed(0)).tolist()
    usual = {name: other for other, name in OTHER_NAMES.items()} | {"ALA-H": "ALA-HN"}
    names = [usual.get(MOLECULE.atom_names[i], MOLECULE.atom_names[i]) for i in order]
    assert "NME-CH3" in names
    made = topology(names)
    found = MOLECULE.places(made)
    sorted_names = [f"{atom.residue.name}-{atom.name}" for atom in made.atoms]  # type: ignore[attr-defined]
    assert [sorted_names[place] for place in found] == [usual.get(name, name) for name in MOLECULE.atom_names]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [*MOLECULE.atom_names, "HOH-O", "HOH-H1", "HOH-H2"],
            "these 25 atoms .*unknown: HOH-O, HOH-H1, HOH-H2.*solvent",
        ),
        (MOLECULE.atom_names[:-1], "missing: NME-H3"),
        ([*MOLECULE.atom_names, "NME-CH3"], "more than once: NME-C"),
        (["GLY-CA"], "unknown: GLY-CA; missing: ACE-HH31, .* and 16 more"),
        ([], "these 0 atoms"),
    ],
)
def test_other_atoms_are_named(names: list[str], message: str) -> None:
    with pytest.raises(UnknownAtomsError, match=message):
        MOLECULE.places(topology(names))


@pytest.mark.parametrize("atoms", [*MOLECULE.torsions.values(), (1, 4, 6, 8)], ids=["phi", "psi", "omega"])
def test_torsions_have_the_value_and_sign_of_mdtraj(atoms: tuple[int, int, int, int]) -> None:
    mdtraj = package("mdtraj")
    x = torch.randn(30, len(MOLECULE), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frames = mdtraj.Trajectory(x.numpy(), mdtraj.Topology.from_openmm(MOLECULE.topology))
    expected = torch.from_numpy(mdtraj.compute_dihedrals(frames, [atoms])[:, 0]).double()
    difference = torch.remainder(dihedral(x, atoms) - expected + torch.pi, 2 * torch.pi) - torch.pi
    assert difference.abs().max() < 1e-5  # mdtraj computes in float32


def test_pdb_text_is_read_back_by_openmm() -> None:
    x = torch.stack([MOLECULE.start, MOLECULE.start + 0.1])
    read = package("openmm.app").PDBFile(io.StringIO(MOLECULE.pdb_text(x)))
    assert read.getNumFrames() == 2
    assert [atom.element.symbol for atom in read.topology.atoms()] == list(MOLECULE.graph.elements)
    assert len(list(read.topology.bonds())) == 21
    back = torch.tensor(read.getPositions(asNumpy=True, frame=1)._value)
    assert torch.allclose(back, x[1], atol=1e-4)


def test_missing_package_says_what_to_install() -> None:
    with pytest.raises(MissingPackageError, match=r"no_such_engine is not installed.*p4lab\[molecules\]"):
        package("no_such_engine.app")
