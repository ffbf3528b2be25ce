"""What comes after the flow of alanine dipeptide, against the long simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from p4lab.boltzmann import Corrected, Estimate, Mbar, annealed, chains
from p4lab.molecules.checkpoint import SHIPPED, load_flow
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import load, phi_positive, reference
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.target import InternalEnergy
from p4lab.molecules.units import BOLTZMANN


@pytest.fixture(scope="module")
def shipped() -> tuple[MoleculeFlow, Coordinates]:
    return load_flow(SHIPPED)[:2]


def close(found: Estimate, exact: float, error: float = 0.0) -> bool:
    """Whether it is within three standard errors, and these are of use."""
    return abs(found.value - exact) < 3 * math.hypot(found.error, error) < 0.5 * abs(exact)


@pytest.mark.parametrize(
    "correct",
    [
        lambda flow, target: annealed(flow, target, 3000, levels=2, leaps=2, pilot=32, seed=1),
        lambda flow, target: chains(flow, target, 800, seed=1),
        lambda flow, target: chains(flow, target, 100, number=40, local=1, leaps=1, seed=3),
    ],
    ids=["annealed", "chains", "chains-local"],
)
def test_the_rare_state_is_as_in_the_long_simulation(
    shipped: tuple[MoleculeFlow, Coordinates], correct: Callable[[MoleculeFlow, InternalEnergy], Corrected]
) -> None:
    flow, coordinates = shipped
    with coordinates.molecule.energy(300.0, workers=2) as energy:
        result = correct(flow, InternalEnergy(coordinates, energy, only_valid=True))
        assert energy.evaluations == result.evaluations
    known = reference()
    assert close(result.share(phi_positive(result.y[:, 0])), known.phi_positive, known.phi_positive_error)
    weighty = result.y[torch.isfinite(result.log_weights)].double()
    assert coordinates.molecule.valid(coordinates.decode(weighty)[0]).all()


@torch.no_grad()
def test_flow_and_frames_together_know_the_rare_state_and_another_temperature(
    shipped: tuple[MoleculeFlow, Coordinates],
) -> None:
    flow, coordinates = shipped
    generator = torch.Generator().manual_seed(0)
    frames, warmer = load()[::10], 303.0
    of_frames = coordinates.augment(coordinates.encode(frames.x.double())[0], generator)
    y = torch.cat([flow.sample(5000, generator=generator), of_frames.float()])
    with coordinates.molecule.energy(300.0) as energy, coordinates.molecule.energy(warmer) as other:
        u, warm = (InternalEnergy(coordinates, one, only_valid=True)(y) for one in (energy, other))
    mbar = Mbar(torch.stack([-flow.log_prob(y).double(), u]), [5000, len(frames)])
    known = reference()
    assert close(mbar.share(u, phi_positive(y[:, 0])), known.phi_positive, known.phi_positive_error)
    # d F/kT is the mean energy times d 1/kT, but for the second order
    step = (1 / warmer - 1 / 300.0) / BOLTZMANN
    expected = known.energy * step - float(frames.energy.var()) * step**2 / 2
    assert close(mbar.difference(u, warm), expected, known.energy_error * step)


def test_frames_that_are_not_valid_have_no_energy_if_wanted(shipped: tuple[MoleculeFlow, Coordinates]) -> None:
    _, coordinates = shipped
    x = load().x[:4].double()
    x[1] *= -1  # a mirror image
    y = coordinates.encode(x)[0]
    with coordinates.molecule.energy() as energy:
        every, some = (InternalEnergy(coordinates, energy, only_valid=only)(y) for only in (False, True))
    assert torch.isfinite(every).all()
    assert some.tolist() == [float(every[0]), math.inf, *every[2:].tolist()]
