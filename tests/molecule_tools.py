"""Molecules that tests share."""

from __future__ import annotations

import numpy as np
import torch

from p4lab.molecules.molecule import Molecule
from p4lab.molecules.packages import package


def butane(charge: float = 0.1) -> Molecule:
    """Butane with a small force field of the test's own: bonds, angles, torsions, charges and Lennard-Jones."""
    openmm, app = package("openmm"), package("openmm.app")
    topology, system = app.Topology(), openmm.System()
    residue = topology.addResidue("BUT", topology.addChain())
    carbon, hydrogen = (app.Element.getBySymbol(symbol) for symbol in "CH")
    atoms = [topology.addAtom(f"C{i + 1}", carbon, residue) for i in range(4)]
    pairs = [(0, 1), (1, 2), (2, 3)]
    for i in range(4):
        for k in range(3 if i in (0, 3) else 2):
            atoms.append(topology.addAtom(f"H{i + 1}{k + 1}", hydrogen, residue))
            pairs.append((i, len(atoms) - 1))
    for i, j in pairs:
        topology.addBond(atoms[i], atoms[j])
    near: list[list[int]] = [[] for _ in atoms]
    for i, j in pairs:
        near[i].append(j)
        near[j].append(i)
    bonds, angles, torsions = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    rest = openmm.NonbondedForce()
    for i, j in pairs:
        bonds.addBond(i, j, 0.109 if j > 3 else 0.153, 250_000)
    for j, around in enumerate(near):
        for at, i in enumerate(around):
            for k in around[at + 1 :]:
                angles.addAngle(i, j, k, 1.91, 400)
    for j, k in pairs:
        for i in near[j]:
            for l in near[k]:  # noqa: E741
                if i != k and l != j:
                    torsions.addTorsion(i, j, k, l, 3, 0.0, 0.6)
    for atom in atoms:
        light = atom.element is hydrogen
        system.addParticle(1.0 if light else 12.0)
        rest.addParticle(charge if light else -charge * (len(near[atom.index]) - (1 if atom.index in (0, 3) else 2)),
                         0.25 if light else 0.34, 0.1 if light else 0.4)  # fmt: skip
    rest.createExceptionsFromBonds(pairs, 0.5, 0.5)
    for force in (bonds, angles, torsions, rest):
        system.addForce(force)
    # all carbons in a plane, as a zigzag; the minimizer moves the hydrogens to where they belong
    x = np.array([[0.125 * i, 0.045 * (-1) ** i, 0.0] for i in range(4)])
    turn = torch.Generator().manual_seed(0)
    off = [0.06 * torch.randn(3, generator=turn, dtype=torch.float64).numpy() for _ in range(10)]
    start = np.concatenate([x, [x[pairs[3 + k][0]] + off[k] for k in range(10)]])
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(start)
    openmm.LocalEnergyMinimizer.minimize(context, 0.01)
    return Molecule.from_openmm(topology, system, context.getState(positions=True).getPositions(asNumpy=True))
