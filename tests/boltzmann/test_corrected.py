"""Annealing and chains: weights that are exact, seeds, forbidden places, angles, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from p4lab.boltzmann import Corrected, annealed, chains, ess
from p4lab.errors import DtypeError, OptionError, ShapeError
from p4lab.flows import Flow, Standardize, realnvp
from p4lab.flows.latent import LatentDensity
from p4lab.problems.energies import DoubleWell

WELL = DoubleWell()
BROAD = Flow([Standardize(torch.zeros(2).double(), torch.tensor([1.9, 1.2]).double())], 2)


class Circle(LatentDensity):
    """An angle and a number as they are."""

    dim, turns = 2, 1

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x, x.new_zeros(x.shape[:-1])

    inverse_with_logabsdet = forward

    def draw(self, n: int, **kind: Any) -> Tensor:
        return torch.cat([2 * math.pi * (torch.rand(n, 1, **kind) - 0.5), torch.randn(n, 1, **kind)], -1)


def both(flow: LatentDensity, energy: Any, seed: int = 0) -> list[Corrected]:
    return [
        annealed(flow, energy, 600, levels=4, pilot=64, seed=seed),
        chains(flow, energy, 30, local=1, seed=seed),
    ]


def test_one_level_is_importance_weights_and_more_levels_are_better() -> None:
    plain = annealed(BROAD, WELL, 2000, levels=1, seed=3)
    y, log_q = BROAD.sample_with_log_prob(2000, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(plain.y, y)
    assert torch.allclose(plain.log_weights, -WELL(y) - log_q)
    assert (plain.evaluations, plain.acceptance) == (2000, ())
    better = annealed(BROAD, WELL, 2000, levels=8, moves=3, seed=3)
    assert 1.8 * float(ess(plain.log_weights)) < float(ess(better.log_weights))
    assert float(better.log_weights.logsumexp(0)) - math.log(2000) == pytest.approx(WELL.log_z(), abs=0.1)
    assert all(0.6 < share < 0.9 for share in better.acceptance)


def test_the_same_seed_gives_the_same_and_energies_are_counted() -> None:
    called = 0

    def energy(y: Tensor) -> Tensor:
        nonlocal called
        called += len(y)
        return WELL(y)

    first = both(BROAD, energy)
    assert sum(result.evaluations for result in first) == called
    assert first[0].evaluations == 600 * (1 + 3 * 3) + 64 * (1 + 12 * 3 * 3)
    assert first[1].evaluations == 20 + 20 * (30 + 24) * (1 + 3)
    for one, again, other in zip(first, both(BROAD, WELL), both(BROAD, WELL, 1), strict=True):
        assert torch.equal(one.y, again.y)
        assert torch.equal(one.log_weights, again.log_weights)
        assert not torch.equal(one.y, other.y)
        assert one.y.shape == (600, 2)


def test_chunks_hold_all_samples() -> None:
    result = annealed(BROAD, WELL, 250, levels=2, chunk=100, pilot=8)
    assert result.y.shape == (250, 2)
    assert chains(BROAD, WELL, 33, number=7, chunk=20).y.shape == (33 * 7, 2)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_forbidden_is_left_and_never_entered(bad: float) -> None:
    def energy(y: Tensor) -> Tensor:
        return torch.where(y[:, 1] > 0, WELL(y), bad)

    of_annealing, of_chains = both(BROAD, energy)
    dead = ~torch.isfinite(of_annealing.log_weights)
    assert 0.4 < float(dead.double().mean()) < 0.6
    assert (of_annealing.y[~dead, 1] > 0).all()
    assert (of_chains.log_weights == 0).all()  # the burn-in is long enough to find what is allowed
    assert (of_chains.y[:, 1] > 0).all()


def test_where_all_is_forbidden_nothing_is_known() -> None:
    for result in both(BROAD, lambda y: torch.full_like(y[:, 0], torch.inf)):
        assert result.log_weights.eq(-torch.inf).all()
        assert result.share(result.y[:, 0] > 0) == (0.0, math.inf)


def test_chains_that_are_where_they_began_have_no_error_bars() -> None:
    stuck, moved = chains(BROAD, lambda y: 30 * WELL(y), 30), chains(BROAD, WELL, 100)
    for result, known in ((stuck, False), (moved, True)):
        right = WELL.in_b(result.y)
        assert result.forgotten is known
        assert math.isfinite(result.share(right).error) is known
        assert math.isfinite(result.free_energy_difference(~right, right).error) is known


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
def test_modes_and_devices_of_others_change_nothing(mode: Any) -> None:
    expected = [result.y for result in both(BROAD, WELL)]
    with mode():
        given = [result.y for result in both(BROAD, WELL)]
    assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))


def test_angles_turn_on_the_circle() -> None:
    kappa = 2.0  # von Mises: the mean cosine is I1 / I0
    exact = float(torch.special.i1(torch.tensor(kappa)) / torch.special.i0(torch.tensor(kappa)))
    results = [
        annealed(Circle(), lambda y: -kappa * y[:, 0].cos() + y[:, 1].square() / 2, 4000, levels=4),
        chains(Circle(), lambda y: -kappa * y[:, 0].cos() + y[:, 1].square() / 2, 200, local=1),
    ]
    for result in results:
        assert result.y[:, 0].abs().max() <= math.pi
        w = torch.softmax(result.log_weights, 0)
        assert float((w * result.y[:, 0].cos()).sum()) == pytest.approx(exact, abs=0.04)


def test_parameters_and_global_randomness_are_left_alone() -> None:
    flow = realnvp(2, blocks=2)
    state = torch.random.get_rng_state()
    both(flow, WELL)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in flow.parameters())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: annealed(BROAD, WELL, 1), OptionError, "n=1: expected a whole number of at least 2"),
        (lambda: annealed(BROAD, WELL, 10, levels=0), OptionError, "levels=0"),
        (lambda: annealed(BROAD, WELL, 10, pilot=1), OptionError, "pilot=1"),
        (lambda: chains(BROAD, WELL, 10, number=4), OptionError, "number=4: expected a whole number of at least 5"),
        (lambda: chains(BROAD, WELL, 0), OptionError, "steps=0"),
        (lambda: chains(BROAD, WELL, 5, local=-1), OptionError, "local=-1"),
        (lambda: chains(BROAD, WELL, 5.5), OptionError, "steps=5.5"),
        (lambda: chains(BROAD, lambda y: WELL(y).numpy(), 5), DtypeError, "convert it"),
        (lambda: annealed(BROAD, lambda y: y, 10), ShapeError, r"\(128, 2\): expected \(128,\)"),
        (lambda: annealed(realnvp(2, blocks=2, context=3), WELL, 10), OptionError, "context of length 3"),
    ],
)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
