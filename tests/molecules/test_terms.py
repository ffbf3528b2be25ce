"""Energies by term: they sum to the energy, whatever the molecule is, and each is of its own forces."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from molecule_tools import butane

from p4lab.errors import DtypeError, ShapeError
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.packages import package
from p4lab.molecules.terms import EnergyTerms, term_of

ALL = ["bonds", "angles", "torsions", "non-bonded", "solvent"]


def with_restraint() -> Molecule:
    """Butane with a force of another kind, and one that has no energy."""
    openmm, molecule = package("openmm"), butane()
    restraint = openmm.CustomBondForce("50 * r")
    restraint.addBond(0, 3, [])
    molecule.system.addForce(restraint)
    molecule.system.addForce(openmm.CMMotionRemover())
    return molecule


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Molecule.from_sequence("AS"), ALL),
        (lambda: Molecule.from_sequence("S", True, ("amber14/protein.ff14SB.xml", "implicit/gbn2.xml")), ALL),
        (butane, ALL[:4]),
        (with_restraint, [*ALL[:4], "other"]),
    ],
    ids=["AS", "another force field", "butane", "other forces"],
)
def test_terms_sum_to_the_energy(make: Callable[[], Molecule], names: list[str]) -> None:
    molecule = make()
    noise = torch.randn(6, len(molecule), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = molecule.start + 0.005 * noise
    terms = EnergyTerms(molecule)
    energies = terms(x)
    with molecule.energy() as energy:
        torch.testing.assert_close(sum(energies.values()), energy.kilojoules(x), rtol=1e-9, atol=1e-8)
    assert list(energies) == list(terms.names) == names
    assert all(bool(values.std() > 0.1) for values in energies.values())


def test_a_longer_bond_costs_bonds_alone_and_the_molecule_stays_as_it_was() -> None:
    molecule = butane()
    groups = [force.getForceGroup() for force in molecule.system.getForces()]
    x = molecule.start.clone()
    away = x[4] - x[0]
    x[4] += 0.001 * away / away.norm()  # along its bond: no angle or torsion changes
    before, after = (EnergyTerms(molecule)(frame[None]) for frame in (molecule.start, x))
    changes = {name: float(after[name] - before[name]) for name in before}
    assert abs(changes["bonds"]) > 0.05
    assert max(abs(changes[name]) for name in ("angles", "torsions")) < 1e-6
    assert [force.getForceGroup() for force in molecule.system.getForces()] == groups == [0] * 4


def test_frames_that_are_not_finite_and_of_another_shape() -> None:
    molecule = butane()
    terms = EnergyTerms(molecule)
    x = torch.stack([molecule.start, torch.full_like(molecule.start, torch.nan)])
    assert [bool(values[1].isinf()) for values in terms(x).values()] == [True] * 4
    assert all(bool(values[0].isfinite()) for values in terms(x).values())
    terms.close()
    assert len(terms(x)) == 4  # it is opened again
    assert [values.shape for values in terms(x[:0]).values()] == [(0,)] * 4
    again = copy.deepcopy(terms)(x)
    assert all(torch.equal(again[name], values) for name, values in terms(x).items())
    with pytest.raises(ShapeError, match=r"\(n, 14, 3\)"):
        terms(molecule.start)
    with pytest.raises(DtypeError, match="convert it"):
        terms(x.numpy())  # type: ignore[arg-type]


def test_forces_that_are_not_known_are_the_rest() -> None:
    assert [term_of(kind) for kind in ("CMAPTorsionForce", "CustomGBForce", "AmoebaBondForce")] == [
        "torsions",
        "solvent",
        "other",
    ]
