"""Alanine dipeptide (ACE-ALA-NME): atoms, bonds, force field, and a minimum of its energy to start from.

Lengths are in nm, energies in kJ/mol, temperatures in K. The force field is AMBER ff99SB-ILDN with the OBC implicit
solvent, without cutoff and constraints; hydrogens weigh 3 Da, which changes the dynamics and not the distribution.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from p4lab.errors import UnknownAtomsError
from p4lab.molecules.packages import package

RESIDUES = {
    "ACE": ("HH31", "CH3", "HH32", "HH33", "C", "O"),
    "ALA": ("N", "H", "CA", "HA", "CB", "HB1", "HB2", "HB3", "C", "O"),
    "NME": ("N", "H", "C", "H1", "H2", "H3"),
}
"""Atom names by residue, in the order of the coordinates."""
ATOM_NAMES = tuple(f"{residue}-{name}" for residue, names in RESIDUES.items() for name in names)
N_ATOMS = len(ATOM_NAMES)
"""There are 22 atoms."""
OTHER_NAMES = {
    **{f"ACE-H{i}": f"ACE-HH3{i}" for i in (1, 2, 3)},
    **{f"NME-HH3{i}": f"NME-H{i}" for i in (1, 2, 3)},
    "NME-CH3": "NME-C",
    "ALA-HN": "ALA-H",
    "NME-HN": "NME-H",
}
"""What some programs call these atoms."""
ELEMENTS = tuple(name.partition("-")[2][0] for name in ATOM_NAMES)
"""The chemical elements of the atoms, in their order."""

_ROWS = """
    8 -1 -1 -1, 6 8 -1 -1, 14 8 6 -1, 4 6 8 14,
    16 14 8 6, 10 8 6 14, 9 8 6 14, 7 6 8 4,
    5 4 6 8, 15 14 8 16, 17 16 14 8, 11 10 8 6,
    1 4 6 5, 18 16 14 17, 12 10 8 11, 13 10 8 11,
    0 1 4 6, 19 18 16 14, 2 1 4 0, 3 1 4 0,
    20 18 16 19, 21 18 16 19
"""
ROWS = tuple(tuple(map(int, row.split())) for row in _ROWS.split(","))
"""Z-matrix: atom, and those that its bond, angle and torsion are measured from (-1: none).

Torsions are taken from a sibling where there is one, so that all but five are narrow: phi (of atom 4), psi (16) and
those of the methyl groups (11, 0 and 19).
"""
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
"""The atoms of the two torsions of the backbone."""
METHYLS = ((11, 12, 13), (0, 2, 3), (19, 20, 21))
"""Hydrogens that rotate into each other: of CB, ACE and NME."""
FORCE_FIELD = ("amber99sbildn.xml", "amber99_obc.xml")
"""OpenMM's files of the force field and of the solvent."""
HYDROGEN_MASS = 3.0
"""What a hydrogen weighs (Da)."""

_START = """
     0.3212 -0.0884 -0.2088   0.2863 -0.0783 -0.1061   0.3153  0.0192 -0.0671   0.3307 -0.1566 -0.0448
     0.1357 -0.0911 -0.1022   0.0724 -0.1079 -0.2063   0.0784 -0.0823  0.0181   0.1385 -0.0699  0.0986
    -0.0660 -0.0971  0.0414  -0.1023 -0.1792 -0.0208  -0.0863 -0.1373  0.1880  -0.0528 -0.0571  0.2539
    -0.1921 -0.1565  0.2064  -0.0300 -0.2282  0.2098  -0.1500  0.0277  0.0044  -0.2728  0.0183 -0.0057
    -0.0860  0.1440 -0.0161   0.0146  0.1441 -0.0060  -0.1511  0.2700 -0.0522  -0.0766  0.3489 -0.0636
    -0.2051  0.2585 -0.1464  -0.2219  0.2992  0.0256
"""
"""Positions near a minimum of the energy, atom by atom (nm)."""


def start(dtype: torch.dtype = torch.float64) -> Tensor:
    """Return positions near a minimum of the energy (phi -78, psi -14 degrees), shape (22, 3), nm."""
    return torch.tensor([float(number) for number in _START.split()], dtype=dtype).view(N_ATOMS, 3)


def places(names: Sequence[str]) -> list[int]:
    """Return where in another order of the atoms each of `ATOM_NAMES` stands.

    Args:
        names: of all atoms as "residue-atom"; `OTHER_NAMES` are understood, too.

    Raises:
        UnknownAtomsError: an atom is not known, missing, or there twice.

    Example:
        >>> places(ATOM_NAMES[::-1])[:3]
        [21, 20, 19]
    """
    ours = [OTHER_NAMES.get(name, name) for name in names]
    counts = Counter(ours)
    unknown = [name for name, said in zip(names, ours, strict=True) if said not in ATOM_NAMES]
    wrong = {
        "unknown": unknown,
        "missing": [name for name in ATOM_NAMES if name not in counts],
        "more than once": [name for name in ATOM_NAMES if counts[name] > 1],
    }
    if any(wrong.values()):
        said = "; ".join(f"{kind}: {_few(wrong_names)}" for kind, wrong_names in wrong.items() if wrong_names)
        raise UnknownAtomsError(
            f"these {len(ours)} atoms are not the {N_ATOMS} of ACE-ALA-NME ({said}): leave out solvent and ions, and "
            "name atoms as in p4lab.molecules.alanine.RESIDUES"
        )
    return [ours.index(name) for name in ATOM_NAMES]


def _few(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def bonds() -> list[tuple[int, int]]:
    """Return the 21 bonds as pairs of atoms."""
    return [(row[0], row[1]) for row in ROWS if row[1] >= 0]


def topology() -> Any:
    """Return the ``openmm.app.Topology``.

    Raises:
        MissingPackageError: openmm is not installed.
    """
    app = package("openmm.app")
    made = app.Topology()
    chain, atoms = made.addChain(), []
    for name, names in RESIDUES.items():
        residue = made.addResidue(name, chain)
        atoms += [made.addAtom(atom, app.Element.getBySymbol(atom[0]), residue) for atom in names]
    for i, j in bonds():
        made.addBond(atoms[i], atoms[j])
    return made


def system() -> Any:
    """Return the ``openmm.System``: forces and masses.

    Raises:
        MissingPackageError: openmm is not installed.
    """
    app = package("openmm.app")
    field = app.ForceField(*FORCE_FIELD)
    return field.createSystem(
        topology(), nonbondedMethod=app.NoCutoff, constraints=None, removeCMMotion=False, hydrogenMass=HYDROGEN_MASS
    )


def pdb_text(x: Tensor) -> str:
    """Return frames as PDB text, for a viewer.

    Args:
        x: shape (22, 3) or (frames, 22, 3), nm.
    """
    lines = []
    frames = x.detach().to("cpu", torch.float64).reshape(-1, N_ATOMS, 3) * 10  # PDB files are in angstrom
    for number, frame in enumerate(frames.tolist(), start=1):
        lines.append(f"MODEL     {number:4d}")
        for i, (label, (a, b, c)) in enumerate(zip(ATOM_NAMES, frame, strict=True)):
            residue, _, name = label.partition("-")
            order = list(RESIDUES).index(residue) + 1
            column = name if len(name) == 4 else f" {name:<3}"
            place = f"    {a:8.3f}{b:8.3f}{c:8.3f}  1.00  0.00          {ELEMENTS[i]:>2}"
            lines.append(f"HETATM{i + 1:5d} {column} {residue} A{order:4d}{place}")
        lines.append("ENDMDL")
    partners: dict[int, list[int]] = {}
    for i, j in bonds():
        partners.setdefault(i, []).append(j)
        partners.setdefault(j, []).append(i)
    lines += [f"CONECT{i + 1:5d}" + "".join(f"{j + 1:5d}" for j in sorted(partners[i])) for i in sorted(partners)]
    return "\n".join([*lines, "END", ""])
