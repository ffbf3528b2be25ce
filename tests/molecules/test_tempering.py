"""Flows of molecules that read log T: densities, scores that are carried along, and how they are trained."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from p4lab.boltzmann.tempered import KINDS
from p4lab.errors import OptionError
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import load
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.flow import molecule_flow
from p4lab.molecules.losses import by_energy, by_forces
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.target import Examples
from p4lab.molecules.tempering import temper
from p4lab.molecules.train import Training

DIM = 8
SMALL: dict[str, Any] = {"blocks": 2, "hidden": 8, "bins": (0, 4), "rank": 2, "tempered": True}


def data(circular: int, n: int = 200) -> Tensor:
    y = torch.randn(n, DIM, generator=torch.Generator().manual_seed(3))
    y[:, :circular] = y[:, :circular].clamp(-3, 3)
    return y


def flow_of(circular: int, away: bool = True) -> MoleculeFlow:
    flow = molecule_flow("spline_p4", data(circular), 0, circular, **SMALL).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.05 * away * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return flow


def log_t(*temperatures: float) -> Tensor:
    return torch.tensor(temperatures, dtype=torch.float64).log()[:, None]


CIRCULAR = pytest.mark.parametrize("circular", [0, 1, 3])


@CIRCULAR
def test_there_and_back_at_each_temperature(circular: int) -> None:
    flow, y = flow_of(circular), data(circular, 4).double()
    context = log_t(0.5, 1.0, 2.0, 3.0)
    z, logabsdet = flow(y, context)
    back, minus = flow.inverse_with_logabsdet(z, context)
    torch.testing.assert_close(back, y)
    torch.testing.assert_close(minus, -logabsdet)
    for row, one, wanted in zip(y, context, logabsdet, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda row, one=one: flow(row[None], one)[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, wanted)
        torch.testing.assert_close(flow(row, one)[1], wanted)


@CIRCULAR
def test_scores_are_carried_along(circular: int) -> None:
    flow, (at,) = flow_of(circular), log_t(1.7)
    y, log_q, score = flow.sample_with_score(20, torch.Generator().manual_seed(1), at)
    again = y.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(flow.log_prob(again, at).sum(), again)
    torch.testing.assert_close(score, wanted)
    torch.testing.assert_close(log_q, flow.log_prob(y, at))
    # Where p is q, the score that data bring to the latent space is 0.
    _, _, left = flow.latent_with_score(y.detach(), wanted, at)
    assert float(left.abs().max()) < 1e-9


def test_path_gradients_vanish_where_the_flow_is_the_target() -> None:
    flow, (at,) = flow_of(3), log_t(1.7)

    class Target:
        def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
            y = y.detach().requires_grad_()
            log_q = flow.log_prob(y, at)
            return -log_q.detach(), torch.autograd.grad(log_q.sum(), y)[0]

    y = flow.sample(64, at, torch.Generator().manual_seed(0))
    losses = (
        by_energy(flow, Target(), 64, torch.Generator().manual_seed(0), at),  # type: ignore[arg-type]
        by_forces(flow, y, Target().value_and_score(y)[1], at),
    )
    for loss in losses:
        slopes = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
        assert max(float(slope.abs().max()) for slope in slopes if slope is not None) < 1e-8


def test_a_flow_starts_with_deviations_that_grow_as_the_root_of_the_temperature() -> None:
    flow = flow_of(3, away=False)
    cold, hot = (flow.sample(1000, one, torch.Generator().manual_seed(0))[:, 3:] for one in log_t(1.0, 4.0))
    torch.testing.assert_close(hot, 2 * cold)


def test_a_flow_without_angles_starts_at_the_mean_of_the_data() -> None:
    y = data(0) + 5.0
    flow = molecule_flow("spline_p4", y, 0, 0, **SMALL)
    sample = flow.sample(4000, torch.zeros(1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample.mean(0), y.mean(0), atol=0.1, rtol=0)


@pytest.fixture(scope="module")
def dipeptide() -> tuple[Coordinates, Tensor]:
    x = load().x[::200].double()
    return Coordinates.fit(Molecule.from_sequence("A"), x), x


def trained(dipeptide: tuple[Coordinates, Tensor], seed: int = 0, **options: Any) -> Training:
    coordinates, x = dipeptide
    with coordinates.molecule.energy(300.0) as energy:
        examples = Examples.of(coordinates, x, energy)
        flow = molecule_flow("spline_p4", examples.y[:, 0], seed, coordinates.circular, **SMALL)
        settings = {"kind": "energy", "hottest": 1000.0, "first_steps": 2, "steps": 3, "rows": 16, **options}
        training = temper(flow, examples, coordinates, energy, seed=seed, **settings)
        assert energy.temperature == 300.0
    return training


@pytest.mark.parametrize("kind", KINDS)
def test_training_follows_its_seed_and_says_what_it_did(kind: str, dipeptide: tuple[Coordinates, Tensor]) -> None:
    one, same, other = (trained(dipeptide, seed, kind=kind) for seed in (0, 0, 1))
    losses = [[record.loss for record in training.records] for training in (one, same, other)]
    assert len(losses[0]) == 5
    assert all(map(math.isfinite, losses[0]))
    assert losses[0] == losses[1] != losses[2]
    assert one.flow.context == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({"kind": "heat"}, "kind='heat' is not known: choose one of", id="kind"),
        pytest.param({"hottest": 250.0}, "hottest=250.0 K: expected a number above", id="hottest"),
        pytest.param({"hottest": math.inf}, "hottest=inf K: expected a number above", id="infinitely-hot"),
        pytest.param({"kind": "trade", "rows": 1}, "rows=1: expected at least 2", id="rows"),
    ],
)
def test_errors(options: dict[str, Any], said: str, dipeptide: tuple[Coordinates, Tensor]) -> None:
    with pytest.raises(OptionError, match=said):
        trained(dipeptide, **options)


def test_a_flow_without_a_context_is_refused(dipeptide: tuple[Coordinates, Tensor]) -> None:
    coordinates, x = dipeptide
    with coordinates.molecule.energy(300.0) as energy:
        examples = Examples.of(coordinates, x[:80], energy)
        flow = molecule_flow("realnvp", examples.y[:, 0], 0, coordinates.circular, hidden=4)
        with pytest.raises(OptionError, match="length 0: expected 1"):
            temper(flow, examples, coordinates, energy, "energy", 1000.0)
