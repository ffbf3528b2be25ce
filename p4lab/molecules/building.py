"""Topologies of peptides from the templates of a force field, and positions from its ideal bonds and angles."""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.errors import MoleculeError
from p4lab.molecules.graph import Graph, Symmetry, hand
from p4lab.molecules.packages import package
from p4lab.molecules.zmatrix import Internal, ZMatrix

_NAMES = "ALA CYS ASP GLU PHE GLY HIE ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR"
LETTERS = dict(zip("ACDEFGHIKLMNPQRSTVWY", _NAMES.split(), strict=True))
"""The residues that are known, by letter; charged as in water, histidine with its hydrogen at the epsilon nitrogen."""
CAPS = ("ACE", "NME")
"""What blocks the ends of a capped peptide."""
OTHER_NAMES = {
    **{f"ACE-H{i}": f"ACE-HH3{i}" for i in (1, 2, 3)},
    **{f"NME-HH3{i}": f"NME-H{i}" for i in (1, 2, 3)},
    "NME-CH3": "NME-C",
}
"""What some programs call atoms of the caps."""
RIGHT = {"CA": ("N", "C", "CB"), "THR-CB": ("CA", "OG1", "CG2"), "ILE-CB": ("CA", "CG1", "CG2")}
"""Neighbours of the centres of natural amino acids that span a positive volume, in this order."""
PHI, PSI = math.radians(-78.0), math.radians(-14.0)
"""Torsions of the backbone that positions are made with: where all residues but glycine are at ease."""


def templates(files: Sequence[str]) -> dict[str, Any]:
    """Return the residues of OpenMM's force field files by name, as elements of XML.

    Raises:
        MoleculeError: there is no such file.
    """
    folder = Path(str(package("openmm.app").__file__)).parent / "data"

    def read(path: Path) -> Iterator[tuple[str, Any]]:
        try:
            tree = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise MoleculeError(f"force field {path.name} cannot be read ({error}): name a file of OpenMM's") from error
        for part in tree.iter("Include"):
            yield from read(path.parent / part.get("file", ""))
        for residue in tree.iterfind("Residues/Residue"):
            yield residue.get("name", ""), residue

    return {name: residue for file in files for name, residue in read(folder / file)}


def topology(sequence: str, capped: bool, files: Sequence[str]) -> Any:
    """Return the ``openmm.app.Topology`` of a peptide, its atoms in the order of the force field's templates.

    Raises:
        MoleculeError: a residue that is unknown, or that the force field does not have.
    """
    if not sequence or (unknown := sorted(set(sequence) - set(LETTERS))):
        said = f"{', '.join(map(repr, unknown))} not known" if sequence else "no residue"
        raise MoleculeError(f"sequence {sequence!r}: {said}; expected letters of {''.join(LETTERS)}")
    if len(sequence) == 1 and not capped:
        raise MoleculeError(
            f"sequence {sequence!r} without caps: force fields know no single residue with two charged ends"
        )
    names = [LETTERS[letter] for letter in sequence]
    chosen = [CAPS[0], *names, CAPS[1]] if capped else [f"N{names[0]}", *names[1:-1], f"C{names[-1]}"]
    known = templates(files)
    if missing := [name for name in chosen if name not in known]:
        raise MoleculeError(
            f"{', '.join(files)} has no residue {missing[0]}: choose another force field, such as Amber's"
        )
    app = package("openmm.app")
    made, before = app.Topology(), None
    chain = made.addChain()
    for name in chosen:
        template = known[name]
        residue = made.addResidue(name if len(name) == 3 else name[1:], chain)
        atoms = {}
        for atom in template.iterfind("Atom"):
            called = atom.get("name")
            own = OTHER_NAMES.get(f"{name}-{called}", f"{name}-{called}").partition("-")[2]
            atoms[called] = made.addAtom(own, app.Element.getBySymbol(own.lstrip("123")[0]), residue)
        order = list(atoms.values())
        for bond in template.iterfind("Bond"):
            if bond.get("from") is None:
                made.addBond(atoms[bond.get("atomName1")], atoms[bond.get("atomName2")])
            else:
                made.addBond(order[int(bond.get("from"))], order[int(bond.get("to"))])
        if before is not None:
            made.addBond(before, atoms["N"])
        before = atoms.get("C")
    return made


def positions(made: Any, system: Any) -> NDArray[np.float64]:
    """Return positions of a peptide near a minimum of its energy, shape (n, 3), nm.

    Bonds and angles are the force field's, torsions of the backbone those of a helix. What that leaves, such as the
    closing of rings, the minimizer does: first with the bonded forces alone.

    Raises:
        MoleculeError: a centre ends in the wrong hand; bonds that are not harmonic, as in AMOEBA.
    """
    atoms = list(made.atoms())
    graph = Graph(
        tuple(atom.element.symbol for atom in atoms), tuple((bond[0].index, bond[1].index) for bond in made.bonds())
    )
    at = {(atom.residue.index, atom.name): atom.index for atom in atoms}
    wanted = []
    for atom in atoms:
        names = RIGHT.get(f"{atom.residue.name}-{atom.name}") or RIGHT.get(atom.name)
        if names and all((atom.residue.index, name) in at for name in names):
            wanted.append((atom.index, [at[atom.residue.index, name] for name in names]))
    known = {atoms: PHI if name.startswith("phi") else PSI for name, atoms in backbone(made).items()} | _amides(made)
    known |= {atoms[::-1]: value for atoms, value in known.items()}
    x = _ideal(graph, system, known, {})
    x = _ideal(graph, system, known, {center: hand(x, center, three) for center, three in wanted})
    bonded = copy.deepcopy(system)
    for number in reversed(range(bonded.getNumForces())):
        if bonded.getForce(number).getName() not in ("HarmonicBondForce", "HarmonicAngleForce", "PeriodicTorsionForce"):
            bonded.removeForce(number)
    x = minimized(system, minimized(bonded, x))
    if wrong := [atoms[center] for center, three in wanted if hand(x, center, three) < 0]:
        raise MoleculeError(f"no positions with the right hand of {wrong[0]} were found: give some, with from_openmm")
    return x


def minimized(system: Any, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions at a minimum of the energy near others."""
    openmm = package("openmm")
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(x)
    openmm.LocalEnergyMinimizer.minimize(context, 0.5)
    return np.asarray(context.getState(positions=True).getPositions(asNumpy=True)._value, np.float64)


def backbone(made: Any) -> dict[str, tuple[int, int, int, int]]:
    """Return the atoms of phi and psi of each residue that has them, by name: "phi 2" is that of the second one."""
    found, residues = {}, [{atom.name: atom.index for atom in residue.atoms()} for residue in made.residues()]
    named = [residue.name for residue in made.residues()]
    number = 0
    bonds = {frozenset((bond[0].index, bond[1].index)) for bond in made.bonds()}
    for place, own in enumerate(residues):
        if named[place] in CAPS or not {"N", "CA", "C"} <= set(own):
            continue
        number += 1
        before = residues[place - 1] if place else {}
        after = residues[place + 1] if place + 1 < len(residues) else {}
        if "C" in before and frozenset((before["C"], own["N"])) in bonds:
            found[f"phi {number}"] = (before["C"], own["N"], own["CA"], own["C"])
        if "N" in after and frozenset((own["C"], after["N"])) in bonds:
            found[f"psi {number}"] = (own["N"], own["CA"], own["C"], after["N"])
    return found


def _amides(made: Any) -> dict[tuple[int, ...], float]:
    """Return the torsions about the amide bonds of the backbone, all of them trans, by their atoms."""
    found: dict[tuple[int, ...], float] = {}
    residues = [{atom.name: atom.index for atom in residue.atoms()} for residue in made.residues()]
    for one, other in itertools.pairwise(residues):
        for a, b in itertools.product(("CA", "CH3", "O"), ("CA", "CH3", "C", "H", "CD")):
            if a in one and b in other:
                trans = (a == "O") == (b in ("H", "CD"))
                found[one[a], one["C"], other["N"], other[b]] = math.pi if trans else 0.0
    return found


def _ideal(
    graph: Graph, system: Any, known: dict[tuple[int, ...], float], signs: dict[int, int]
) -> NDArray[np.float64]:
    """Return positions with the force field's bonds and angles.

    Args:
        graph: of the molecule.
        system: of the force field.
        known: torsions (radians) by their atoms.
        signs: for some atoms the side, 1 or -1, on which they place what comes after the first.
    """
    bonds: dict[frozenset[int], float] = {}
    angles: dict[tuple[int, frozenset[int]], float] = {}
    for force in system.getForces():
        if force.getName() == "HarmonicBondForce":
            for number in range(force.getNumBonds()):
                i, j, length, _ = force.getBondParameters(number)
                bonds[frozenset((i, j))] = length._value
        elif force.getName() == "HarmonicAngleForce":
            for number in range(force.getNumAngles()):
                i, j, k, angle, _ = force.getAngleParameters(number)
                angles[j, frozenset((i, k))] = angle._value
    if not {frozenset(bond) for bond in graph.bonds} <= set(bonds):
        raise MoleculeError(
            "a force field with bonds that are not harmonic: expected one of Amber's; with positions it can be used by "
            "from_pdb or from_openmm"
        )
    turns = []
    for row in graph.rows[3:]:
        i, j, _, l = row  # noqa: E741
        if l in graph.children(j):  # a sibling
            later = [
                child for child in graph.children(j) if child != l and (j != graph.root or child != graph.rows[1][0])
            ]
            side = signs.get(j, 1) * (1 if later.index(i) == 0 else -1)
            turns.append(math.pi if len(graph.near[j]) == 3 else side * 2 * math.pi / 3)
        else:
            turns.append(known.get(row, _along(graph, row)))
    rows = graph.rows
    parts = (
        [bonds[frozenset(row[:2])] for row in rows[1:]],
        [angles.get((row[1], frozenset((row[0], row[2]))), 1.91) for row in rows[2:]],
        turns,
    )
    internal = Internal(*(torch.tensor([part], dtype=torch.float64, device="cpu") for part in parts))
    return np.asarray(ZMatrix(rows).cartesian(internal)[0].numpy())


def _along(graph: Graph, row: tuple[int, int, int, int]) -> float:
    i, j, k, l = row  # noqa: E741
    if graph.turns(j, k):
        return math.radians(100) if graph.in_ring(j) or graph.in_ring(k) else math.pi
    if graph.in_ring(j, k):
        inside = graph.in_ring(i, j, k), graph.in_ring(l, k, j)
        flat = 0.0 if graph.in_ring(i, j, k, l) or not any(inside) else math.pi
        return flat if graph.planar(j) else flat + 2 * math.pi / 3 * (not inside[0])
    return math.pi if (len(graph.near[i]) == 1) == (len(graph.near[l]) == 1) else 0.0


def symmetrized(system: Any, graph: Graph, symmetries: Sequence[Symmetry]) -> None:
    """Make a system's energy exactly symmetric: put the mean over all permutations in place of improper torsions.

    Amber's improper torsions depend on the order of the atoms about a planar one, so that the two oxygens of a
    carboxylate, or the two sides of a ring, differ by some 0.1 kJ/mol where they are bent. All else is symmetric.

    Args:
        system: is changed.
        graph: of the molecule.
        symmetries: of the molecule.
    """
    bonds = {frozenset(bond) for bond in graph.bonds}
    for force in system.getForces():
        if force.getName() != "PeriodicTorsionForce":
            continue
        for number in range(force.getNumTorsions()):
            *four, period, phase, k = force.getTorsionParameters(number)
            if all(frozenset(pair) in bonds for pair in itertools.pairwise(four)):
                continue
            images = [tuple(four)]
            for one in symmetries:
                if {*one.moved}.isdisjoint(itertools.chain(*images)):
                    continue
                images = [other for image in images for other in one.images(image)]
            shares = Counter(images)
            if len(shares) > 1:
                force.setTorsionParameters(number, *four, period, phase, k * shares.pop(tuple(four)) / len(images))
                for image, share in shares.items():
                    force.addTorsion(*image, period, phase, k * share / len(images))
