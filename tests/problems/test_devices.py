"""Problems under another default device: the same data on the device that was asked for, the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from drawing import default_device
from torch import Tensor
from torch.utils._pytree import tree_leaves

from p4lab import flows
from p4lab.baselines import METHODS
from p4lab.baselines.properties import PROPERTIES
from p4lab.problems.densities import DENSITIES
from p4lab.problems.density_problem import DensityProblem
from p4lab.problems.digits import Digits
from p4lab.problems.energies import PLANE_ENERGIES, plane_energy
from p4lab.problems.linear_maps import LinearProblem, linear_target
from p4lab.problems.matrix import NAMES, MatrixProblem, matrix, matrix_model
from p4lab.problems.metrics import density_metrics
from p4lab.problems.particles import DoubleWellParticles, metropolis
from p4lab.problems.property_targets import PropertyProblem, property_target, violation
from p4lab.problems.recurrent import CELLS, recurrent_net, start_of
from p4lab.problems.sequences import KINDS, sequence_task
from p4lab.problems.sources import photo_patches
from p4lab.problems.tables import table_problem
from p4lab.problems.tasks import TASKS, task


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def of_density(name: str) -> list[Any]:
    problem = DensityProblem(DENSITIES[name]())  # made anew: `density` remembers
    truth = problem.density
    x = truth.sample(50, seeded())
    return [x, truth.log_prob(x), truth.grid(8), problem.batch(5, seeded()), problem.test, truth.level().log_density]


def of_energy(name: str) -> list[Any]:
    energy = plane_energy(name)
    x = energy.sample(50, seeded())
    profile = energy.profile(torch.linspace(-2, 2, 4, device="cpu"))
    run = metropolis(energy, x[:4], 20, seeded(), (1.0, 2.0))
    return [x, energy.log_prob(x), energy.share_of_b(), profile, energy.grid(8), *run[:2]]


def of_property(name: str) -> list[Any]:
    target = property_target(name, 8)
    pool = PropertyProblem(target, samples=9)
    return [target, violation(name, target), PropertyProblem(target).batch(3, seeded()), pool.batch(3, seeded())]


def of_task(name: str) -> list[Any]:
    photo_patches.cache_clear()  # made anew: it remembers
    problem: Any = task(name, 4)
    model = problem.model(METHODS["plu"], 0, device="cpu")
    x = problem.batch(5, seeded())
    return [x, problem.loss(model, x).detach(), problem.test_loss(model)]


def of_matrix(name: str) -> list[Any]:
    start = matrix(name, 2)
    problem = MatrixProblem(start, start, sampled=True, dtype=torch.float64)
    model = matrix_model("p4inv", start, dtype=torch.float64)
    x = problem.batch(5, seeded())
    return [start, x, problem.loss(model, x).detach(), problem.test_loss(model)]


def of_sequences(kind: str) -> list[Any]:
    problem = sequence_task(kind, 12)
    return [*problem.batch(3, seeded()), *problem.test]


def of_particles() -> list[Any]:
    energy = DoubleWellParticles(3)
    x = torch.ones(4, energy.dim, device="cpu").cumsum(1)
    return [energy(x), metropolis(energy, x, 20, seeded()).x]


def of_cell(name: str) -> list[Any]:
    net = recurrent_net(name, 6, 3, 2, device="cpu")
    x = torch.ones(4, 2, 3, device="cpu")
    return [net(x).detach(), net.layer.weight.detach(), *net.through_time(lambda states: states.sum(), x)]


def of_metrics() -> list[Any]:
    flow = flows.p4inv_bent(2, 2, device="cpu").requires_grad_(False)
    return list(density_metrics(flow, DensityProblem(DENSITIES["two_moons"]()), n=200).values())


PROBLEMS: dict[str, Callable[[], list[Any]]] = {
    **{f"density-{name}": lambda name=name: of_density(name) for name in DENSITIES},
    **{f"energy-{name}": lambda name=name: of_energy(name) for name in PLANE_ENERGIES},
    **{f"property-{name}": lambda name=name: of_property(name) for name in PROPERTIES},
    **{f"task-{name}": lambda name=name: of_task(name) for name in TASKS},
    **{f"cell-{name}": lambda name=name: of_cell(name) for name in CELLS},
    **{f"start-{name}": lambda name=name: [start_of(name, 5)] for name in ("rotations", "orthogonal", "identity")},
    **{f"matrix-{name}": lambda name=name: of_matrix(name) for name in NAMES},
    **{f"sequences-{name}": lambda name=name: of_sequences(name) for name in KINDS},
    "particles": of_particles,
    "metrics": of_metrics,
    "digits": lambda: [Digits().train, Digits().batch(5, seeded()), Digits().dequantized],
    "wine": lambda: [table_problem("wine").test, table_problem("wine").batch(5, seeded())],
    "linear": lambda: [linear_target("so", 4), *LinearProblem(linear_target("so", 4), 8).sample(seeded())],
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_default_device_changes_nothing(name: str) -> None:
    plain = tree_leaves(PROBLEMS[name]())
    with default_device():
        leaves = tree_leaves(PROBLEMS[name]())
    assert {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)} <= {"cpu"}
    torch.testing.assert_close(leaves, plain, rtol=0, atol=0, equal_nan=True)
