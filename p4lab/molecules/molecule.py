"""A molecule as a value: atoms, bonds, energy, and all that coordinates and flows need to know, from its topology."""

import hashlib
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p4lab.errors import MoleculeError, OptionError, TrainingError, UnknownAtomsError
from p4lab.molecules import building
from p4lab.molecules.building import OTHER_NAMES
from p4lab.molecules.graph import Graph, Row, Symmetry
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.packages import package
from p4lab.molecules.zmatrix import check_frames

FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")
"""OpenMM's files of the force field and of the implicit solvent that are taken if nothing is said."""
HYDROGEN_MASS = 3.0
"""What a hydrogen weighs (Da): this changes the dynamics and not the distribution."""
EXACT = 1e-4
"""Energies (kJ/mol) that differ by less are the same."""
LARGEST_RING = 7
"""Larger rings turn in themselves, which narrow torsions do not cover."""
SHORTEST_BOND, LONGEST_BOND = 0.05, 0.3
"""Other bonds (nm) are a mistake of units, as a rule."""
KEEPS = re.compile("Thermostat|Barostat")
"""What forces are called that keep a temperature or a pressure of their own."""
SIDE_CHAINS = {
    "CG CG1 OG OG1 SG": ("N", "CA", "CB"),
    "CD CD1 OD1 ND1 SD": ("CA", "CB", "CG CG1"),
}  # fmt: skip
"""Last atom of the torsions chi 1 and chi 2, and the three before."""


@dataclass(frozen=True, eq=False)
class Molecule:
    """One molecule with its force field; `report` says what was found of it.

    Make one by `from_sequence`, `from_pdb` or `from_openmm`. Lengths are in nm, energies in kJ/mol.

    Attributes:
        topology: ``openmm.app.Topology``.
        system: ``openmm.System``, without constraints.
        start: positions with a low energy, shape (n, 3), float64.
        force_field: what the energy is.

    Raises:
        MoleculeError: not one molecule of four atoms and more; large rings; three atoms on a line; constraints, virtual
            sites or atoms without mass; a thermostat or barostat; an energy that is not finite at the start, or changes
            when the molecule is turned and moved, as in a periodic box; positions that do not fit.
        MissingPackageError: openmm is not installed.

    Example:
        >>> molecule = Molecule.from_sequence("A")
        >>> molecule.name, len(molecule), molecule.graph.circular
        ('ACE-ALA-NME', 22, (4, 16, 11, 0, 19))
    """

    topology: Any
    system: Any
    start: Tensor
    force_field: str

    # --- where molecules come from -----------------------------------------------------------------------------------

    @classmethod
    def from_sequence(
        cls, sequence: str, capped: bool = True, force_field: tuple[str, ...] = FORCE_FIELD
    ) -> "Molecule":
        """Return a peptide.

        Args:
            sequence: its residues, one letter each: "AAA" is trialanine.
            capped: whether its ends are ACE and NME; else they are charged.
            force_field: OpenMM's files of the force field (one of Amber's) and of the solvent.

        Raises:
            MoleculeError: an unknown residue; a single one without caps; a file that is not there.
            MissingPackageError: openmm is not installed.

        Cost: a second for a few residues, once in a process.
        """
        if not isinstance(sequence, str):
            raise MoleculeError(f"a sequence of type {type(sequence).__name__}: expected one letter for each residue")
        return _peptide(sequence, capped, _files(force_field))

    @classmethod
    def from_pdb(cls, path: str | Path, force_field: tuple[str, ...] = FORCE_FIELD) -> "Molecule":
        """Return the molecule in a PDB file, its atoms in the order of the file.

        Args:
            path: of the file; with all hydrogens, without water and ions.
            force_field: OpenMM's files of the force field and of the solvent.

        Raises:
            MoleculeError: the file cannot be read; the force field does not know its residues, as where hydrogens are
                missing; and what `Molecule` refuses.
            MissingPackageError: openmm is not installed.
        """
        app, force_field = package("openmm.app"), _files(force_field)
        try:
            file = app.PDBFile(str(path))
        except Exception as error:  # what OpenMM's parser raises is not limited
            raise MoleculeError(f"{path} cannot be read as a PDB file ({error})") from error
        pieces = _graph(file.topology).pieces()
        if len(pieces) > 1:
            raise MoleculeError(_several(pieces, file.topology))
        system = _system(file.topology, force_field, f"{path}: ")
        return _of_force_field(file.topology, system, np.array(file.getPositions(asNumpy=True)._value), force_field)

    @classmethod
    def from_openmm(
        cls, topology: Any, system: Any, positions: Any, force_field: str = "an OpenMM system"
    ) -> "Molecule":
        """Return the molecule of a topology, with the energy of a system; it need not be a peptide.

        Args:
            topology: ``openmm.app.Topology``; its bonds count.
            system: ``openmm.System`` of the same atoms, made with ``constraints=None``.
            positions: shape (n, 3): with a unit of OpenMM, or numbers in nm.
            force_field: what is said of it.

        Raises:
            MoleculeError: as `Molecule`.
        """
        kinds = package("openmm.app").Topology, package("openmm").System
        if not (isinstance(topology, kinds[0]) and isinstance(system, kinds[1])):
            raise MoleculeError(
                f"a {type(topology).__name__} of {type(topology).__module__} and a {type(system).__name__}: expected "
                "openmm.app.Topology (mdtraj's has to_openmm()) and openmm.System"
            )
        nm = package("openmm.unit").nanometer

        def numbers(given: Any) -> Any:
            return given.value_in_unit(nm) if hasattr(given, "value_in_unit") else given

        if isinstance(positions, Tensor):
            positions = positions.detach().cpu().numpy()
        try:
            x = np.array([list(numbers(place)) for place in numbers(positions)], np.float64)
        except (TypeError, ValueError) as error:
            raise MoleculeError(f"positions that are no numbers ({error}): expected shape (n, 3), in nm") from error
        return cls(topology, system, torch.from_numpy(x), force_field)

    @classmethod
    def named(cls, text: str) -> "Molecule":
        """Return what a person writes in a line: the path of a PDB file, or a sequence, capped.

        Raises:
            MoleculeError: as `from_pdb` and `from_sequence`.
        """
        return cls.from_pdb(text) if str(text).lower().endswith(".pdb") else cls.from_sequence(text)

    def __post_init__(self) -> None:
        graph, pieces = self.graph, self.graph.pieces()
        if len(pieces) != 1:
            raise MoleculeError(_several(pieces, self.topology))
        if len(graph) < 4:
            raise MoleculeError(f"a molecule of {len(graph)} atoms: expected 4 or more, so that there is a torsion")
        if self.system.getNumParticles() != len(graph):
            raise MoleculeError(
                f"a system of {self.system.getNumParticles()} particles and a topology of {len(graph)} atoms: expected "
                "the same number"
            )
        if self.system.getNumConstraints() or any(self.system.isVirtualSite(i) for i in range(len(graph))):
            raise MoleculeError("the system has constraints or virtual sites: make it with constraints=None")
        if still := [i for i in range(len(graph)) if not self.system.getParticleMass(i)._value > 0]:
            raise MoleculeError(f"{self._names(still)} have no mass, and would not move: give them one")
        if kinds := [force.getName() for force in self.system.getForces() if KEEPS.search(type(force).__name__)]:
            raise MoleculeError(f"the system has a {kinds[0]}, and temperatures are p4lab's to keep: remove that force")
        if large := [ring for ring in graph.rings if len(ring) > LARGEST_RING]:
            raise MoleculeError(
                f"a ring of {len(large[0])} atoms, such as one that a disulfide closes ({self._names(large[0])}): no "
                f"tree of torsions covers rings of more than {LARGEST_RING}"
            )
        if self.start.shape != (len(graph), 3) or not bool(self.start.isfinite().all()):
            raise MoleculeError(f"positions of shape {tuple(self.start.shape)}: expected ({len(graph)}, 3), all finite")
        x = self.start.numpy()
        lengths = self.bond_lengths(self.start[None])[0].numpy()
        if lengths.max() > LONGEST_BOND or lengths.min() < SHORTEST_BOND:
            longest, usual = graph.bonds[int(lengths.argmax())], np.median(lengths)
            hint = "look at the positions, and whether a periodic box cuts the molecule"
            if usual > LONGEST_BOND:
                hint = "these are angstrom: divide by 10"
            if usual < SHORTEST_BOND:
                hint = "these were nm where angstrom are expected, as in PDB files: multiply by 10"
            raise MoleculeError(
                f"bonds from {lengths.min():.3g} to {lengths.max():.3g} nm ({self._names(longest)}): expected "
                f"{SHORTEST_BOND} to {LONGEST_BOND} nm; {hint}"
            )
        for i, j, k, _ in graph.rows[2:]:
            a, b = x[i] - x[j], x[k] - x[j]
            if abs(a @ b) > 0.995 * np.linalg.norm(a) * np.linalg.norm(b):
                raise MoleculeError(f"{self._names((i, j, k))} lie on a line: torsions about it have no meaning")
        self._check_energy()

    def _check_energy(self) -> None:
        if self.system.usesPeriodicBoundaryConditions():
            raise MoleculeError("the system is periodic: make it with nonbondedMethod=NoCutoff, of one molecule alone")
        turned = self.start @ self.start.new_tensor([[0.36, 0.48, -0.8], [-0.8, 0.6, 0.0], [0.48, 0.64, 0.6]]) + 1.0
        try:
            with self.energy() as energy:
                here, there = energy.kilojoules(torch.stack([self.start, turned])).tolist()
        except TrainingError as error:
            raise MoleculeError(f"the energy of the start cannot be computed: {error}") from error
        if not math.isfinite(here):
            raise MoleculeError("the energy of the start is not finite: look at its positions, and at the forces")
        if not abs(here - there) < EXACT + 1e-8 * abs(here):
            raise MoleculeError(
                f"an energy of {here:.6g} kJ/mol that is {there:.6g} when the molecule is turned and moved: expected "
                "one that depends on internal coordinates alone; remove forces such as restraints to places"
            )

    # --- atoms -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.graph)

    @cached_property
    def graph(self) -> Graph:
        """Elements and bonds, and what follows from them: Z-matrix, circular torsions, rings."""
        return _graph(self.topology)

    @cached_property
    def name(self) -> str:
        """The residues, such as "ACE-ALA-NME"."""
        return "-".join(residue.name for residue in self.topology.residues())

    @cached_property
    def digest(self) -> str:
        """Eight letters for what a simulation depends on: forces, masses, the order of the atoms, hands and sides."""
        forces = re.sub(r'openmmVersion="[^"]*"', "", package("openmm").XmlSerializer.serialize(self.system))
        text = "\n".join([forces, *self.atom_names, f"{self._hands.tolist()} {self._sides.tolist()}"])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @cached_property
    def atom_names(self) -> tuple[str, ...]:
        """Each atom as "residue-atom"; residues that are there more than once are numbered: "ALA2-CA"."""
        return tuple(_labels(self.topology))

    @cached_property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """Kind of each coordinate, and the atom that it places: circular torsions first, then the others."""
        rows, circular = self.graph.rows, self.graph.circular
        return (
            *(("torsion", atom) for atom in circular),
            *(("bond", row[0]) for row in rows[1:]),
            *(("angle", row[0]) for row in rows[2:]),
            *(("torsion", row[0]) for row in rows[3:] if row[0] not in circular),
        )

    @cached_property
    def torsions(self) -> dict[str, Row]:
        """The torsions that are plotted, by name: phi, psi and chi of residues, or those along heavy atoms."""
        found = building.backbone(self.topology)
        if found and max(int(name.split()[1]) for name in found) == 1:
            found = {name.split()[0]: atoms for name, atoms in found.items()}
        if found:
            return {**found, **self._side_chains()}
        heavy = [
            row for row in self.graph.rows[3:]
            if row[0] in self.graph.circular and all(self.graph.elements[atom] != "H" for atom in row)
        ]  # fmt: skip
        rows = heavy or [row for row in self.graph.rows[3:] if row[0] in self.graph.circular]
        return {self._names(row): row for row in rows}

    @cached_property
    def maps(self) -> tuple[tuple[str, str], ...]:
        """Pairs of `torsions` that are plotted together: phi and psi of a residue, or a torsion and the next."""
        names = list(self.torsions)
        pairs = tuple((name, name.replace("phi", "psi")) for name in names if name.startswith("phi"))
        found = tuple(pair for pair in pairs if pair[1] in self.torsions)
        return found or tuple(itertools.pairwise(names)) or tuple((name, name) for name in names)

    def _side_chains(self) -> dict[str, Row]:
        found: dict[str, Row] = {}
        number = 0
        for residue in self.topology.residues():
            own = {atom.name: atom.index for atom in residue.atoms()}
            if not {"N", "CA", "C"} <= set(own) or residue.name in building.CAPS:
                continue
            number += 1
            for chi, (last, before) in enumerate(SIDE_CHAINS.items(), start=1):
                four = [next((own[a] for a in names.split() if a in own), -1) for names in (*before, last)]
                if min(four) >= 0 and self.graph.turns(four[1], four[2]):
                    found[f"chi{chi} {number}"] = (four[0], four[1], four[2], four[3])
        return found

    def _names(self, atoms: Sequence[int]) -> str:
        names = tuple(_labels(self.topology))
        return ", ".join(names[atom] for atom in atoms)

    # --- symmetry and handedness -------------------------------------------------------------------------------------

    @cached_property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """Permutations of atoms that rotations about single bonds bring about, in the order of the circular torsions.

        First come those about bonds that turn, then those about bonds that do not, such as an amide's. Of those that
        bonds allow, only those are here that the energy does not feel.
        """
        found = self.graph.symmetries(self.start.numpy())
        place = {self._turned_by(atom): at for at, atom in enumerate(self.graph.circular)}
        found = sorted(found, key=lambda one: (place.get(frozenset(one.axis), len(place)), -len(one.moved)))
        noise = torch.randn(len(self), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
        bent = self.start + 0.002 * noise
        frames = torch.stack([bent, *(bent[list(one.order)] for one in found)])
        with self.energy() as energy:
            plain, *turned = energy.kilojoules(frames).tolist()
        return tuple(one for one, value in zip(found, turned, strict=True) if abs(value - plain) < EXACT)

    @cached_property
    def rotors(self) -> tuple[Symmetry, ...]:
        """Those of `symmetries` that frames are permuted by: about bonds that turn, no two of the same atoms."""
        chosen: list[Symmetry] = []
        taken: set[int] = set()
        for one in sorted(self.symmetries, key=lambda one: len(one.moved)):
            stays, turns = one.axis
            below = {*self.graph.below(turns)}
            if self.graph.turns(*one.axis) and self.graph.parents.get(turns) == stays and not taken & below:
                chosen.append(one)
                taken |= below
        return tuple(one for one in self.symmetries if one in chosen)

    def _turned_by(self, atom: int) -> frozenset[int]:
        _, j, k, _ = next(row for row in self.graph.rows if row[0] == atom)
        return frozenset((j, k))

    def bond_lengths(self, x: Tensor) -> Tensor:
        """Return the lengths of the bonds of frames, shape (B, bonds), in the order of ``graph.bonds``.

        Args:
            x: shape (B, n, 3).
        """
        ends = torch.tensor(self.graph.bonds, device=x.device)
        return (x[:, ends[:, 0]] - x[:, ends[:, 1]]).norm(dim=-1)

    def check_units(self, x: Tensor) -> None:
        """Raise unless the bonds of frames are about as long as those of the start, in the median.

        Args:
            x: shape (B, n, 3), nm.

        Raises:
            OptionError: they are less than a half, or more than twice as long.
        """
        ratio = float((self.bond_lengths(x.double()) / self.bond_lengths(self.start.to(x.device)[None])).nanmedian())
        if ratio < 0.5 or ratio > 2:
            raise OptionError(
                f"frames of {self.name} with bonds {ratio:.3g} times as long as those of its start: expected positions "
                "in nm (those in angstrom are 10 times as long)"
            )

    def chirality(self, x: Tensor) -> Tensor:
        """Return the hands of frames: +1 where a centre is as in `start`, -1 where it is its mirror image.

        Args:
            x: shape (B, n, 3), nm.

        Returns:
            Shape (B, centres), int64, a column for each of ``graph.centers``: those with four different neighbours, and
            those whose two hydrogens differ by their names alone.
        """
        check_frames(x, len(self))
        return torch.where(self._volumes(x) * self._hands.to(x) > 0, 1, -1)

    def _volumes(self, x: Tensor) -> Tensor:
        centers = torch.tensor(self.graph.centers, device=x.device, dtype=torch.long).view(-1, 4)
        a, b, c = (x[:, centers[:, at]] - x[:, centers[:, 0]] for at in (1, 2, 3))
        return (torch.linalg.cross(a, b) * c).sum(-1)

    @cached_property
    def _hands(self) -> Tensor:
        return self._volumes(self.start[None])[0].sign()

    @cached_property
    def _sides(self) -> Tensor:
        return _cosines(self.start[None], self.graph.stiff)[0].sign()

    def valid(self, x: Tensor) -> Tensor:
        """Return which frames are finite, with all hands and amides (cis or trans) as in `start`, shape (B,), bool.

        Args:
            x: shape (B, n, 3).
        """
        check_frames(x, len(self))
        sides = (_cosines(x, self.graph.stiff) * self._sides.to(x) > 0).all(1)
        return (self.chirality(x) > 0).all(1) & sides & x.isfinite().all(2).all(1)

    def canonical(self, x: Tensor) -> Tensor:
        """Return frames with new names for atoms that changed places about a stiff bond, as in a guanidinium group.

        Args:
            x: shape (B, n, 3).
        """
        for one in self.symmetries:
            if not self.graph.turns(*one.axis):
                row = next(row for row in self.graph.stiff if {*row[1:3]} == {*one.axis})
                side = _cosines(self.start[None], [row])[0, 0].sign().to(x)
                other = _cosines(x, [row])[:, 0] * side < 0
                x = torch.where(other[:, None, None], x[:, list(one.order)], x)
        return x

    # --- energy, names, text -----------------------------------------------------------------------------------------

    def energy(self, temperature: float = 300.0, workers: int = 1) -> OpenMMEnergy:
        """Return the reduced energy E / kT of positions.

        Args:
            temperature: T (K).
            workers: threads that share a batch.
        """
        return OpenMMEnergy(self.system, temperature, workers=workers)

    def places(self, topology: Any) -> list[int]:
        """Return where in another topology each of the atoms stands.

        Args:
            topology: of OpenMM or mdtraj; residues of one name are told apart by their order along the chain.

        Raises:
            UnknownAtomsError: an atom is not known, missing, or there twice.
        """
        ours = _labels(topology)
        counts = Counter(ours)
        known = set(self.atom_names)
        wrong = {
            "unknown": [name for name in ours if name not in known],
            "missing": [name for name in self.atom_names if name not in counts],
            "more than once": [name for name in self.atom_names if counts[name] > 1],
        }
        if any(wrong.values()):
            said = "; ".join(f"{kind}: {_few(names)}" for kind, names in wrong.items() if names)
            raise UnknownAtomsError(
                f"these {len(ours)} atoms are not the {len(self)} of {self.name} ({said}): leave out solvent and ions, "
                "and name atoms as in its atom_names"
            )
        return [ours.index(name) for name in self.atom_names]

    def pdb_text(self, x: Tensor) -> str:
        """Return frames as PDB text, for a viewer.

        Args:
            x: shape (n, 3) or (frames, n, 3), nm.
        """
        file, app = io.StringIO(), package("openmm.app")
        nm = package("openmm.unit").nanometer
        app.PDBFile.writeHeader(self.topology, file)
        for number, frame in enumerate(x.detach().to("cpu", torch.float64).reshape(-1, len(self), 3).numpy(), start=1):
            app.PDBFile.writeModel(self.topology, frame * nm, file, number, keepIds=True)
        app.PDBFile.writeFooter(self.topology, file)
        return file.getvalue()

    def report(self) -> str:
        """Return what was found, as text for a person."""
        graph, counts = self.graph, Counter(self.graph.elements)
        order = sorted(counts, key=lambda element: (element != "C", element != "H", element))
        formula = "".join(f"{element}{counts[element] if counts[element] > 1 else ''}" for element in order)
        with self.energy() as energy:
            kilojoules = float(energy.kilojoules(self.start))
        rings = ", ".join(str(len(ring)) for ring in graph.rings) or "none"
        n = len(self)

        def turning(atom: int) -> str:
            row = next(row for row in graph.rows if row[0] == atom)
            plotted = (name for name, atoms in self.torsions.items() if {*atoms[1:3]} == {*row[1:3]})
            own = self._names(row)
            return f"  {own}" + "".join(f"  (about {name}'s bond)" * (name != own) for name in plotted)

        sides = [
            f"{self._names(row[1:3])} ({'trans' if side < 0 else 'cis'})"
            for row, side in zip(graph.stiff, self._sides.tolist(), strict=True)
        ]
        plotted = (
            name if (own := self._names(atoms)) == name else f"{name} = {own}" for name, atoms in self.torsions.items()
        )
        lines = [
            f"{self.name}: {n} atoms ({formula}), {len(graph.bonds)} bonds; atoms of each ring: {rings}",
            f"energy: {self.force_field}; {kilojoules:.1f} kJ/mol at the start",
            f"{3 * n - 6} coordinates: {n - 1} bonds, {n - 2} angles, {n - 3} torsions",
            f"torsions that turn: {len(graph.circular)}",
            *map(turning, graph.circular),
            f"groups of atoms that may change places: {len(self.symmetries)}; of these {len(self.rotors)} turn, with "
            f"{math.prod(one.fold for one in self.rotors)} permutations",
            *(f"  {one.fold}-fold about {self._names(one.axis)}: {self._names(one.moved)}" for one in self.symmetries),
            f"stereocentres: {self._names([center[0] for center in graph.stereocenters]) or 'none'}",
            f"bonds that keep their side: {'; '.join(sides) or 'none'}",
            f"plotted: {'; '.join(plotted) or 'nothing'}",
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Molecule({self.name}, {len(self)} atoms)"


@lru_cache(maxsize=32)
def _peptide(sequence: str, capped: bool, force_field: tuple[str, ...]) -> Molecule:
    topology = building.topology(sequence, capped, force_field)
    system = _system(topology, force_field)
    start = building.positions(topology, system)
    return _of_force_field(topology, system, start, force_field)


def _of_force_field(topology: Any, system: Any, x: Any, force_field: Sequence[str]) -> Molecule:
    graph = _graph(topology)
    building.symmetrized(system, graph, graph.symmetries(x))
    return Molecule(topology, system, torch.from_numpy(x), ", ".join(force_field))


def _files(force_field: Sequence[str]) -> tuple[str, ...]:
    if isinstance(force_field, str):
        raise MoleculeError(
            f"force_field={force_field!r}: expected OpenMM's files in a tuple, that of the solvent among them, as in "
            f"{FORCE_FIELD}; without one the molecule is in vacuum"
        )
    return tuple(force_field)


def _system(topology: Any, force_field: Sequence[str], where: str = "") -> Any:
    app = package("openmm.app")
    try:
        return app.ForceField(*force_field).createSystem(
            topology, nonbondedMethod=app.NoCutoff, constraints=None, removeCMMotion=False, hydrogenMass=HYDROGEN_MASS
        )
    except ValueError as error:
        raise MoleculeError(
            f"{where}{', '.join(force_field)} cannot describe these atoms ({error}): are all hydrogens there, and are "
            "the residues known? OpenMM's Modeller.addHydrogens adds them; for other molecules use Molecule.from_openmm"
        ) from error


def _graph(topology: Any) -> Graph:
    elements = tuple(atom.element.symbol if atom.element else "?" for atom in topology.atoms())
    return Graph(elements, tuple((bond[0].index, bond[1].index) for bond in topology.bonds()))


def _several(pieces: Sequence[Sequence[int]], topology: Any) -> str:
    names = _labels(topology)
    some = _few([names[piece[0]].partition("-")[0] for piece in pieces])
    return (
        f"{len(pieces)} molecules ({some}): expected one; leave out solvent and ions, and see that the topology has "
        "all bonds (a PDB file needs CONECT records for residues that are not standard)"
    )


def _labels(topology: Any) -> list[str]:
    # mdtraj has properties where OpenMM has methods
    atoms, residues = (part() if callable(part) else part for part in (topology.atoms, topology.residues))
    residues = sorted(residues, key=lambda residue: (residue.chain.index, _number(residue), residue.index))
    total, seen, label = Counter(residue.name for residue in residues), Counter[str](), {}
    for residue in residues:
        seen[residue.name] += 1
        label[residue.index] = residue.name + (str(seen[residue.name]) if total[residue.name] > 1 else "")
    named = []
    for atom in atoms:
        full = f"{atom.residue.name}-{atom.name}"
        own = OTHER_NAMES.get(full, full).partition("-")[2]
        usual = "H" if own == "HN" else own
        named.append(f"{label[atom.residue.index]}-{usual}")
    return named


def _number(residue: Any) -> int:
    text = str(getattr(residue, "resSeq", None) if hasattr(residue, "resSeq") else residue.id)
    return int(text) if text.lstrip("-").isdigit() else residue.index


def _cosines(x: Tensor, torsions: Sequence[Row]) -> Tensor:
    """Return the cosines of torsions times some positive number, shape (B, torsions)."""
    atoms = torch.tensor(torsions, device=x.device, dtype=torch.long).view(-1, 4)
    a, b, c, d = (x[:, atoms[:, at]] for at in range(4))
    axis = c - b
    return (torch.linalg.cross(a - b, axis) * torch.linalg.cross(d - c, axis)).sum(-1)


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)
