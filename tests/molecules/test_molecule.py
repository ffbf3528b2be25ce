"""Ten molecules: positions, volume, energy and symmetry of each; and what is refused, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from molecule_tools import butane
from torch import Tensor

from p4lab.errors import DataFileError, MoleculeError, P4Error, SingularMatrixError
from p4lab.molecules.checkpoint import load_flow, save
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import dihedral, simulate
from p4lab.molecules.evaluate import evaluate
from p4lab.molecules.flow import molecule_flow
from p4lab.molecules.molecule import FORCE_FIELD, HYDROGEN_MASS, Molecule
from p4lab.molecules.packages import package
from p4lab.molecules.replica_exchange import Settings
from p4lab.molecules.target import Examples, InternalEnergy
from p4lab.molecules.train import Stage, train


def reordered(made: Any, order: list[int]) -> Any:
    """A topology with the atoms of each residue in another order."""
    app = package("openmm.app")
    atoms, other, chain, new = list(made.atoms()), app.Topology(), None, {}
    chain = other.addChain()
    for residue in made.residues():
        own = other.addResidue(residue.name, chain)
        for index in order:
            if atoms[index].residue is residue:
                new[index] = other.addAtom(atoms[index].name, atoms[index].element, own)
    for a, b in made.bonds():
        other.addBond(new[a.index], new[b.index])
    return other, list(new)


def pdb(path: Path, sequence: str = "AG", change: Callable[[str], str] = str) -> Path:
    """A PDB file, with the atoms of each residue in an order of its own."""
    molecule, app = Molecule.from_sequence(sequence), package("openmm.app")
    order = torch.randperm(len(molecule), generator=torch.Generator().manual_seed(1)).tolist()
    topology, places = reordered(molecule.topology, order)
    with path.open("w") as file:
        app.PDBFile.writeFile(topology, 10 * molecule.start.numpy()[places], file)
    path.write_text(change(path.read_text()))
    return path


SEQUENCES = ["A", "AA", "AAA", "G", "V", "S", "K", "F"]
"""Of these peptides, and of a file and of a system, the whole is tried."""


@pytest.fixture(scope="module", params=[*SEQUENCES, "file", "butane"])
def molecule(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Molecule:
    if request.param == "butane":
        return butane()
    if request.param == "file":
        return Molecule.from_pdb(pdb(tmp_path_factory.mktemp("pdb") / "own.pdb"))
    return Molecule.from_sequence(request.param)


def frames(molecule: Molecule, n: int = 40, scale: float = 0.002) -> Tensor:
    """Frames near the start with all circular torsions anywhere."""
    generator = torch.Generator().manual_seed(0)
    noise = scale * torch.randn(n, len(molecule), 3, generator=generator, dtype=torch.float64)
    bare = Coordinates(molecule)
    y = bare.encode(molecule.start + noise)[0]
    y[:, : bare.circular] = (
        2 * math.pi * torch.rand(n, bare.circular, generator=generator, dtype=torch.float64) - math.pi
    )
    return bare.decode(y)[0]


def test_coordinates_come_back_and_have_the_volume_of_autograd(molecule: Molecule) -> None:
    x = frames(molecule)
    coordinates = Coordinates.fit(molecule, x)
    y, logabsdet = coordinates.encode(x)
    assert y.shape == (len(x), 3 * len(molecule) - 6)
    back, again = coordinates.decode(y)
    assert (back - x).abs().max() < 1e-5  # both have the first atom at the origin, and the next two in the plane
    assert torch.allclose(again, -logabsdet)

    def move(numbers: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        placed = coordinates.decode(numbers[None])[0][0]
        return (placed + torch.linalg.cross(turn.expand_as(placed), placed) + shift).flatten()

    rigid = torch.zeros(3, dtype=torch.float64)
    jacobian = torch.cat(torch.autograd.functional.jacobian(move, (y[0], rigid, rigid)), 1)
    assert abs(torch.linalg.slogdet(jacobian).logabsdet + logabsdet[0]) < 1e-7


def test_the_energy_is_that_of_openmm_and_does_not_feel_symmetries(molecule: Molecule) -> None:
    x = frames(molecule, 5)
    openmm = package("openmm")
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(molecule.system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(x[0].numpy())
    expected = context.getState(energy=True).getPotentialEnergy()._value
    assert molecule.symmetries
    with molecule.energy() as energy:
        kilojoules = energy.kilojoules(x)
        assert float(kilojoules[0]) == pytest.approx(expected, rel=1e-9)
        for one in molecule.symmetries:
            turned = energy.kilojoules(x[:, list(one.order)])
            assert torch.allclose(turned, kilojoules, rtol=1e-9, atol=1e-7), one


def test_turning_rotors_permutes_atoms_and_keeps_all_that_counts(molecule: Molecule) -> None:
    x = frames(molecule, 20)
    coordinates = Coordinates.fit(molecule, x)
    y, volume = coordinates.encode(x)
    assert molecule.rotors
    for number, one in enumerate(molecule.rotors):
        shifts = torch.zeros(len(x), len(molecule.rotors), dtype=torch.long)
        shifts[:, number] = 1
        turned = coordinates.permute(y, shifts)
        there, _ = coordinates.decode(turned)
        order = list(one.order)
        assert torch.allclose(torch.cdist(there, there), torch.cdist(x, x)[:, order][:, :, order], atol=1e-6)
        if not any(molecule.graph.in_ring(atom) for atom in one.moved):  # a ring is cut open somewhere
            assert torch.allclose(coordinates.encode(there)[1], volume, atol=1e-8)
        assert molecule.valid(there).all()
        same = torch.remainder(turned - y + math.pi, 2 * math.pi) - math.pi
        moved = (same.abs() > 1e-6).any(0).nonzero()[:, 0]
        assert (coordinates.rotor_of_columns()[moved] == number + 1).all()
        for _ in range(one.fold - 1):
            turned = coordinates.permute(turned, shifts)
        assert (torch.remainder(turned - y + 1.0, 2 * math.pi) - 1.0).abs().max() < 1e-8


def test_examples_know_the_slope_of_the_energy_at_every_permutation(molecule: Molecule) -> None:
    x = (
        molecule.start + 0.002 * torch.randn(12, len(molecule), 3, generator=torch.Generator().manual_seed(2))
    ).double()
    with molecule.energy() as energy:
        coordinates = Coordinates.fit(molecule, x)
        examples = Examples.of(coordinates, x, energy)
        y, score = examples.batch(8, torch.Generator().manual_seed(0))
        exact = InternalEnergy(coordinates, energy).score(y.double())
    assert torch.allclose(score.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))
    for counts, message in (
        ([1, 2], "one for each frame"),
        ([0] * 12, "some above"),
        ([0.5] * 12, "expected integers"),
    ):
        with pytest.raises(P4Error, match=message):
            Examples.of(coordinates, x, energy, counts=torch.tensor(counts))


def test_only_rotors_turn_and_the_report_says_what_was_found(molecule: Molecule) -> None:
    graph = molecule.graph
    rows = {row[0]: row for row in graph.rows}
    for atom in graph.circular:
        _, j, k, _ = rows[atom]
        assert graph.turns(j, k)
        assert not graph.in_ring(j, k)
    turning = [bond for bond in graph.bonds if graph.turns(*bond) and min(len(graph.near[end]) for end in bond) > 1]
    assert len(graph.circular) == len(turning)
    said = molecule.report()
    for word in (molecule.name, str(len(molecule)), *molecule.torsions):
        assert word in said
    for name, atoms in molecule.torsions.items():  # a coordinate about the same bond may end at other atoms
        assert ", ".join(molecule.atom_names[atom] for atom in atoms) in said.splitlines()[-1], name


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequence", "capped", "circular", "folds"),
    [
        ("A", True, 5, [3, 3, 3]),
        ("AAA", True, 11, [3] * 5),
        ("AA", False, 6, [3, 3, 3, 2]),  # the ends: NH3+ and a carboxylate
        ("D", True, 6, [3, 3, 2]),
        ("F", True, 6, [3, 3, 2]),
        ("Y", True, 7, [3, 3, 2]),
        ("V", True, 7, [3, 3, 3, 3]),
        ("G", True, 4, [3, 3]),
        ("P", True, 3, [3, 3]),
        ("W", True, 6, [3, 3]),
        ("R", True, 8, [3, 3]),  # a guanidinium's bonds are stiff
    ],
)
def test_torsions_that_turn_and_rotors(sequence: str, capped: bool, circular: int, folds: list[int]) -> None:
    molecule = Molecule.from_sequence(sequence, capped)
    assert len(molecule.graph.circular) == circular
    assert sorted((one.fold for one in molecule.rotors), reverse=True) == folds


@pytest.mark.parametrize("sequence", ["AP", "RNDCQE", "GHILKMF", "PSTWYV"])
def test_all_residues_are_built_with_their_hands_and_trans_amides(sequence: str) -> None:
    molecule = Molecule.from_sequence(sequence)
    x = molecule.start
    at = {name: i for i, name in enumerate(molecule.atom_names)}
    residues = [residue.name for residue in molecule.topology.residues()][1:-1]
    for name in residues:
        label = name if residues.count(name) == 1 else f"{name}1"
        if name != "GLY":
            n, c, cb, ca = (at[f"{label}-{atom}"] for atom in ("N", "C", "CB", "CA"))
            assert torch.linalg.det(torch.stack([x[n] - x[ca], x[c] - x[ca], x[cb] - x[ca]])) > 0  # L
    spine = [[i for i, a in enumerate(molecule.topology.atoms()) if a.residue is residue and a.name in ("CA", "CH3")]
             for residue in molecule.topology.residues()]  # fmt: skip
    bonds = [(a.index, b.index) for a, b in molecule.topology.bonds() if {a.name, b.name} == {"C", "N"}]
    for before, after, (c, n) in zip(spine, spine[1:], bonds, strict=False):
        if before and after:
            four = (before[0], min(c, n), max(c, n), after[0])
            assert abs(float(dihedral(x, four))) > math.radians(150)
    assert bool(molecule.valid(x[None]))


def test_hands_are_told_and_mirror_images_are_not_valid() -> None:
    molecule = Molecule.from_sequence("IT")
    x = torch.stack([molecule.start, -molecule.start])
    names = [molecule.atom_names[center[0]] for center in molecule.graph.stereocenters]
    assert names == ["ILE-CA", "ILE-CB", "THR-CA", "THR-CB"]
    assert molecule.chirality(x)[0].eq(1).all()
    assert molecule.chirality(x)[1].eq(-1).all()
    assert molecule.valid(x).tolist() == [True, False]


def test_atoms_that_changed_places_about_a_stiff_bond_get_their_names_back() -> None:
    molecule = Molecule.from_sequence("R")
    stiff = [one for one in molecule.symmetries if one not in molecule.rotors]
    assert len(stiff) == 3
    for one in stiff:
        turned = molecule.start[None, list(one.order)]
        assert not molecule.valid(turned)
        assert torch.equal(molecule.canonical(turned), molecule.start[None])
    assert torch.equal(molecule.canonical(molecule.start[None]), molecule.start[None])


def test_plotted_torsions_are_those_that_mdtraj_finds() -> None:
    mdtraj = package("mdtraj")
    molecule = Molecule.from_sequence("AFK")
    frames = mdtraj.Trajectory(molecule.start[None].numpy(), mdtraj.Topology.from_openmm(molecule.topology))
    for name, find in {"phi": mdtraj.compute_phi, "psi": mdtraj.compute_psi, "chi1": mdtraj.compute_chi1}.items():
        ours = [atoms for found, atoms in molecule.torsions.items() if found.split()[0] == name]
        assert sorted(ours) == sorted(map(tuple, find(frames)[0].tolist()))
    assert molecule.maps == (("phi 1", "psi 1"), ("phi 2", "psi 2"), ("phi 3", "psi 3"))


def test_four_atoms_without_symmetry_or_hand_are_a_molecule() -> None:
    openmm, app = package("openmm"), package("openmm.app")
    topology, system, bonds = app.Topology(), openmm.System(), openmm.HarmonicBondForce()
    residue = topology.addResidue("PER", topology.addChain())
    atoms = [topology.addAtom(f"X{i}", app.Element.getBySymbol(symbol), residue) for i, symbol in enumerate("HOOH")]
    for i in range(4):
        system.addParticle(1.0)
        if i:
            topology.addBond(atoms[i - 1], atoms[i])
            bonds.addBond(i - 1, i, 0.12, 1e5)
    system.addForce(bonds)
    peroxide = Molecule.from_openmm(topology, system, [[0.0, 0.1, 0.0], [0.0, 0, 0], [0.15, 0, 0], [0.15, 0, 0.1]])
    x = frames(peroxide, 30)
    assert (peroxide.symmetries, peroxide.graph.circular, len(peroxide.torsions)) == ((), (3,), 1)
    assert peroxide.maps[0][0] == peroxide.maps[0][1]
    assert peroxide.valid(x).all()
    assert peroxide.chirality(x).shape == (30, 0)
    coordinates = Coordinates.fit(peroxide, x)
    y, _ = coordinates.encode(x)
    assert (coordinates.decode(coordinates.augment(y))[0] - x).abs().max() < 1e-9
    with peroxide.energy() as energy:
        assert Examples.of(coordinates, x, energy).batch(5)[0].shape == (5, 6)


def test_a_line_of_text_names_a_molecule(tmp_path: Path) -> None:
    assert Molecule.named("AG") is Molecule.from_sequence("AG")
    assert Molecule.named(str(pdb(tmp_path / "own.pdb"))).name == "ACE-ALA-GLY-NME"


def test_a_file_is_the_molecule_of_its_sequence(tmp_path: Path) -> None:
    file, made = Molecule.from_pdb(pdb(tmp_path / "own.pdb")), Molecule.from_sequence("AG")
    assert file.atom_names != made.atom_names
    order = file.places(made.topology)
    with file.energy() as energy, made.energy() as expected:
        x = frames(made, 3)
        assert torch.allclose(energy.kilojoules(x[:, order]), expected.kilojoules(x), atol=0.5)  # impropers
    assert sorted(one.fold for one in file.symmetries) == sorted(one.fold for one in made.symmetries)


def test_a_plain_force_field_and_the_symmetric_one_differ_by_little_and_alanine_not_at_all() -> None:
    app = package("openmm.app")
    for sequence, least, most in (("A", 0.0, 1e-9), ("F", 1e-6, 0.5)):
        molecule = Molecule.from_sequence(sequence)
        plain = app.ForceField(*FORCE_FIELD).createSystem(
            molecule.topology, nonbondedMethod=app.NoCutoff, constraints=None, hydrogenMass=HYDROGEN_MASS
        )
        own = Molecule.from_openmm(molecule.topology, plain, molecule.start)
        x = molecule.start + 0.003 * torch.randn(20, len(molecule), 3, generator=torch.Generator().manual_seed(0))
        with own.energy() as raw, molecule.energy() as symmetric:
            difference = (raw.kilojoules(x) - symmetric.kilojoules(x)).abs().max()
        assert least <= difference <= most
        assert len(own.symmetries) == len(molecule.symmetries) - (
            sequence == "F"
        )  # the flip is felt, so it is left out


# --- simulation, and what is learnt -----------------------------------------------------------------------------------


SHORT = Settings(seed=1, replicas=2, step=0.001, sweep=5, equilibration=200, chunk=100)
"""A frame takes 0.005 ps."""


def test_any_molecule_is_simulated_learnt_and_judged(molecule: Molecule) -> None:
    data = simulate(molecule, 0.002, settings=SHORT, progress=False)
    assert data.x.shape[1:] == (len(molecule), 3)
    assert len(data) > 300
    assert f"of {molecule.name}" in data.provenance
    method = "realnvp" if molecule.name == "ACE-GLY-NME" else "spline_p4"
    with molecule.energy(workers=2) as energy:
        coordinates = Coordinates.fit(molecule, data.x.double())
        examples = Examples.of(coordinates, data.x, energy)
        flow = molecule_flow(method, examples.y[:, 0], circular=coordinates.circular, hidden=32)
        target = InternalEnergy(coordinates, energy)
        stages = [Stage("example", steps=40, examples=64), Stage("mixed", steps=3, examples=64, samples=16)]
        training = train(flow, examples, target, stages)
        losses = [record.loss for record in training.records[:40]]
        assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
        figures = evaluate(training.flow, coordinates, energy, data, data[:50], 100)
        assert energy.evaluations == len(data) + 3 * 16 + 100
    told = {name: value for name, value in vars(figures).items() if name != "phi_positive_weighted_error"}
    assert all(math.isfinite(value) for value in told.values())
    assert figures.phi_positive_weighted_error > 0  # inf where the state was hardly seen


def test_modes_and_devices_of_others_change_nothing_in_a_training() -> None:
    made = butane()
    x = frames(made, 60)

    def losses() -> list[float]:
        with made.energy() as energy:
            coordinates = Coordinates.fit(made, x)
            examples, target = Examples.of(coordinates, x, energy), InternalEnergy(coordinates, energy)
            flow = molecule_flow("spline", coordinates.encode(x)[0].float(), 0, coordinates.circular, hidden=8)
            records = train(flow, examples, target, [Stage("mixed", steps=3, examples=16, samples=16)]).records
        return [record.loss for record in records]

    expected = losses()
    for mode in (torch.inference_mode(), torch.no_grad(), torch.device("meta")):
        with mode:
            assert losses() == expected


def test_a_simulation_goes_on_in_its_folder_and_is_of_one_molecule(tmp_path: Path) -> None:
    molecule = Molecule.from_sequence("G")
    short = simulate(molecule, 0.0005, tmp_path, SHORT, progress=False)
    longer = simulate(molecule, 0.001, tmp_path, SHORT, progress=False)
    assert len(longer) > len(short)
    assert torch.equal(longer.x[: len(short)], short.x)
    with pytest.raises(DataFileError, match=r"ACE-GLY-NME.*not of.*ACE-ALA-NME"):
        simulate(Molecule.from_sequence("A"), 0.001, tmp_path, SHORT, progress=False)


def test_a_flow_of_another_molecule_is_saved_and_loaded(tmp_path: Path) -> None:
    molecule = Molecule.from_sequence("G")
    coordinates = Coordinates.fit(molecule, frames(molecule))
    y = coordinates.encode(frames(molecule, 100))[0].float()
    flow = molecule_flow("spline_p4", y, circular=coordinates.circular)
    with pytest.raises(SingularMatrixError, match="more than 47 different frames"):
        molecule_flow("spline", y[:40], circular=coordinates.circular)
    assert save(str(tmp_path / "flow.pt"), flow, "spline_p4", coordinates) < 0.01
    again, its, _ = load_flow(tmp_path / "flow.pt", molecule)
    y = again.sample(5)
    assert torch.allclose(its.decode(y.double())[0], coordinates.decode(y.double())[0])
    with pytest.raises(DataFileError, match="does not fit"):
        load_flow(tmp_path / "flow.pt")


def test_a_flow_of_an_isomer_is_refused(tmp_path: Path) -> None:
    molecule, isomer = Molecule.from_sequence("AG"), Molecule.from_sequence("GA")
    assert Coordinates(molecule).dim == Coordinates(isomer).dim
    coordinates = Coordinates.fit(molecule, frames(molecule))
    flow = molecule_flow("spline", coordinates.encode(frames(molecule, 100))[0].float(), 0, coordinates.circular)
    save(tmp_path / "flow.pt", flow, "spline", coordinates)
    with pytest.raises(DataFileError, match=r"does not fit ACE-GLY-ALA-NME.*pass its molecule"):
        load_flow(tmp_path / "flow.pt", isomer)


# --- what is refused --------------------------------------------------------------------------------------------------


def _water(text: str) -> str:
    water = "HETATM  900  O   HOH A 100      50.000  50.000  50.000  1.00  0.00           O  \n"
    return text.replace("TER", water + "TER", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(_water, r"2 molecules.*leave out solvent", id="water"),
        pytest.param(
            lambda text: "".join(line for line in text.splitlines(True) if line[76:78].strip() != "H"),
            "are all hydrogens there", id="no-hydrogens",
        ),
        pytest.param(lambda text: text.replace("GLY", "XYZ"), "molecules .*CONECT", id="unknown-residue"),
        pytest.param(lambda _: "hello", "cannot be read as a PDB", id="no-pdb"),
    ],
)  # fmt: skip
def test_files_that_will_not_do_are_named(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    with pytest.raises(MoleculeError, match=message):
        Molecule.from_pdb(pdb(tmp_path / "own.pdb", change=change))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MoleculeError, match=r"nothing\.pdb cannot be read"):
        Molecule.from_pdb(tmp_path / "nothing.pdb")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("AXA",), "'X' not known; expected letters"),
        (("",), "no residue"),
        ((["A", "A"],), "type list: expected one letter"),
        (("A", True, "amber14-all.xml"), "in a tuple, that of the solvent among them"),
        (("A", False), "without caps"),
        (("A", True, ("nonsense.xml",)), "nonsense.xml cannot be read"),
        (("A", True, ("tip3p.xml",)), "no residue ACE"),
        (("A", True, ("amoeba2018.xml",)), "not harmonic"),
    ],
)
def test_sequences_that_will_not_do_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(MoleculeError, match=message):
        Molecule.from_sequence(*arguments)


def test_a_disulfide_is_named() -> None:
    app, made = package("openmm.app"), Molecule.from_sequence("CAC")
    kept = [atom for atom in made.topology.atoms() if not (atom.residue.name == "CYS" and atom.name == "HG")]
    modeller = app.Modeller(made.topology, made.start.numpy() * package("openmm.unit").nanometer)
    modeller.delete([atom for atom in made.topology.atoms() if atom not in kept])
    one, other = [atom for atom in modeller.topology.atoms() if atom.name == "SG"]
    modeller.topology.addBond(one, other)
    system = app.ForceField(*FORCE_FIELD).createSystem(modeller.topology)
    with pytest.raises(MoleculeError, match=r"ring of 11 atoms.*disulfide"):
        Molecule.from_openmm(modeller.topology, system, modeller.positions)


def with_force(system: Any, kind: str, *arguments: Any) -> Any:
    """A system with one more force, on all particles or on the first two."""
    force = getattr(package("openmm"), kind)(*arguments)
    if kind == "CustomBondForce":
        force.addBond(0, 1)
    elif kind == "CustomExternalForce":
        for i in range(system.getNumParticles()):
            force.addParticle(i)
    system.addForce(force)
    return system


def test_positions_may_have_units_one_by_one() -> None:
    made, nm = butane(), package("openmm.unit").nanometer
    positions = [package("openmm").Vec3(*place) * nm for place in made.start.tolist()]
    assert torch.equal(Molecule.from_openmm(made.topology, made.system, positions).start, made.start)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda t, s, x: (t, s, 10 * x), "these are angstrom", id="angstrom"),
        pytest.param(lambda t, s, x: (t, s, x[:-1]), r"shape \(13, 3\).*\(14, 3\)", id="an-atom-less"),
        pytest.param(lambda t, s, x: (t, s, x * np.nan), "all finite", id="nan"),
        pytest.param(lambda t, s, x: (t, Molecule.from_sequence("A").system, x), "22 particles and.*14", id="system"),
        pytest.param(lambda t, s, x: (t, (s.addConstraint(0, 1, 0.15), s)[1], x), "constraints=None", id="constraints"),
        pytest.param(lambda t, s, x: (t, s, x / 10), "nm where angstrom are expected", id="nm-in-a-file"),
        pytest.param(lambda t, s, x: (t, (s.getForce(3).setNonbondedMethod(4), s)[1], x), "periodic", id="periodic"),
        pytest.param(
            lambda t, s, x: (t, s, np.c_[np.arange(14) * 0.1, np.zeros((14, 2))]), "on a line|bonds", id="line"
        ),
        pytest.param(lambda t, s, x: (t, s, "here"), "no numbers", id="text"),
        pytest.param(lambda t, s, x: (t, s, x[0]), "no numbers", id="a-vector"),
        pytest.param(lambda t, s, x: (t, None, x), "expected openmm.app.Topology", id="no-system"),
        pytest.param(lambda t, s, x: (t, (s.setParticleMass(2, 0.0), s)[1], x), "BUT-C3 have no mass", id="mass"),
        pytest.param(lambda t, s, x: (t, with_force(s, "AndersenThermostat", 300, 1), x), "Andersen", id="thermostat"),
        pytest.param(lambda t, s, x: (t, with_force(s, "CustomExternalForce", "x"), x), "turned and moved", id="pull"),
        pytest.param(lambda t, s, x: (t, with_force(s, "CustomBondForce", "sqrt(-r)"), x), "not finite", id="energy"),
        pytest.param(
            lambda t, s, x: (t, (s.getForce(3).setNonbondedMethod(4), s)[1], x), "nonbondedMethod=NoCutoff", id="box"
        ),
    ],
)
def test_systems_that_will_not_do_are_named(change: Any, message: str) -> None:
    made = butane()
    with pytest.raises(P4Error, match=message):
        Molecule.from_openmm(*change(made.topology, made.system, made.start.numpy()))
