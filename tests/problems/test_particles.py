"""Particles in the plane against naive loops, and Metropolis walkers against averages that are known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.problems.energies import DoubleWell
from p4lab.problems.particles import DoubleWellParticles, Trajectory, metropolis

DOUBLE = torch.float64
OPTIONS: dict[str, Any] = {"tilt": 0.3, "square": -2.0, "quartic": 0.7, "distance": 3.0, "trap": 1.5}


def naive(x: list[float], particles: int) -> float:
    """The energy of one frame, pair by pair."""
    at = [(x[2 * i], x[2 * i + 1]) for i in range(particles)]
    total = 0.0
    for i, j in itertools.combinations(range(particles), 2):
        off = math.dist(at[i], at[j]) - OPTIONS["distance"]
        total += OPTIONS["tilt"] * off + OPTIONS["square"] * off**2 + OPTIONS["quartic"] * off**4
    centre = [sum(p[k] for p in at) / particles for k in (0, 1)]
    return total + 0.5 * OPTIONS["trap"] * particles * (centre[0] ** 2 + centre[1] ** 2)


def frames(particles: int, n: int = 10, dtype: torch.dtype = DOUBLE) -> Tensor:
    return 2 * torch.randn(n, 2 * particles, generator=torch.Generator().manual_seed(0), dtype=dtype)


class Harmonic:
    """u = sum k x^2 / 2: N(0, T / k) in each direction."""

    dim = 2
    k = torch.tensor([1.0, 4.0], dtype=DOUBLE)

    def __call__(self, x: Tensor) -> Tensor:
        return 0.5 * (self.k * x.square()).sum(-1)


# --- energies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [2, 3, 4, 7])
def test_energies_are_sums_over_pairs(particles: int) -> None:
    energy, x = DoubleWellParticles(particles, **OPTIONS), frames(particles)
    assert energy(x).tolist() == pytest.approx([naive(row, particles) for row in x.tolist()])
    assert energy.dim == 2 * particles
    assert energy.distances(x).shape == (10, particles * (particles - 1) // 2)


def test_forces_are_finite_differences() -> None:
    energy = DoubleWellParticles(3, **OPTIONS)
    assert torch.autograd.gradcheck(energy, frames(3, 4).requires_grad_())


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_particles_are_alike(order: tuple[int, ...]) -> None:
    energy, x = DoubleWellParticles(3, **OPTIONS), frames(3)
    other = x.view(-1, 3, 2)[:, list(order)].reshape(-1, 6)
    torch.testing.assert_close(energy(other), energy(x))


@pytest.mark.parametrize("mirror", [1.0, -1.0], ids=["turn", "mirror"])
@pytest.mark.parametrize("angle", [0.3, 2.0])
def test_turning_and_mirroring_changes_nothing(angle: float, mirror: float) -> None:
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [mirror * s, mirror * c]], dtype=DOUBLE)
    energy, x = DoubleWellParticles(4, **OPTIONS), frames(4)
    torch.testing.assert_close(energy((x.view(-1, 4, 2) @ turn.T).reshape(-1, 8)), energy(x))


def test_shifting_costs_what_the_trap_says() -> None:
    energy, x = DoubleWellParticles(4, **OPTIONS), frames(4)
    x = (x.view(-1, 4, 2) - x.view(-1, 4, 2).mean(1, keepdim=True)).reshape(-1, 8)
    shift = torch.tensor([0.7, -0.2], dtype=DOUBLE)
    cost = energy((x.view(-1, 4, 2) + shift).reshape(-1, 8)) - energy(x)
    torch.testing.assert_close(cost, torch.full((10,), 0.5 * 1.5 * 4 * float(shift.square().sum()), dtype=DOUBLE))


def test_particles_in_one_place_have_finite_forces() -> None:
    x = torch.zeros(1, 8, dtype=DOUBLE, requires_grad=True)
    (force,) = torch.autograd.grad(DoubleWellParticles(4)(x).sum(), x)
    assert torch.isfinite(force).all()


@pytest.mark.parametrize("shape", [(8,), (2, 8), (2, 3, 8), (0, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_shapes_and_dtypes_are_kept(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    u = DoubleWellParticles(4)(torch.ones(shape, dtype=dtype))
    assert (u.shape, u.dtype) == (shape[:-1], dtype)


def test_a_pair_prefers_two_distances() -> None:
    energy = DoubleWellParticles(2)
    r = torch.linspace(1.5, 6.5, 5001, dtype=DOUBLE)
    x = torch.stack([-r / 2, torch.zeros_like(r), r / 2, torch.zeros_like(r)], -1)
    u = energy(x)
    minima = [float(r[k]) for k in range(1, 5000) if u[k] < u[k - 1] and u[k] <= u[k + 1]]
    off = math.sqrt(4 / (2 * 0.9))
    assert minima == pytest.approx([4 - off, 4 + off], abs=2e-3)
    assert repr(energy) == "DoubleWellParticles(particles=2)"


# --- Metropolis -------------------------------------------------------------------------------------------------------


def walk(energy: Any, steps: int = 400, walkers: int = 400, seed: int = 0, **options: Any) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(walkers, energy.dim, generator=generator, dtype=DOUBLE)
    return metropolis(energy, start, steps, generator, **options)


def test_a_harmonic_well_has_the_variance_of_its_temperature() -> None:
    run = walk(Harmonic(), temperatures=(0.5, 2.0), width=1.0)
    for k, t in enumerate((0.5, 2.0)):
        x = run.x[10:, k].reshape(-1, 2)
        torch.testing.assert_close(x.var(0), t / Harmonic.k, rtol=0.06, atol=0)
        assert float(x.mean(0).abs().max()) < 0.05


def test_exchanging_replicas_cross_barriers_that_single_ones_do_not() -> None:
    truth, t = DoubleWell(), 0.4
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([[1.69, 0.0]], dtype=DOUBLE).expand(300, 2)  # all in the shallow well
    alone = metropolis(truth, start, 600, generator, (t,), 0.4)
    ladder = (t, 0.6, 0.9, 1.4, 2.2, 3.5)
    together = metropolis(truth, start, 600, generator, ladder, 0.4, swap_every=2)
    exact = truth.share_of_b(t)
    stuck = float(truth.in_b(alone.x[-1, 0]).double().mean())
    share = float(truth.in_b(together.x[-10:, 0]).double().mean())
    assert exact < 0.01
    assert stuck > 0.5
    assert share < 0.15
    assert math.isnan(alone.swapped)
    assert 0.1 < together.swapped < 1.0


def test_samples_of_the_double_well_have_its_mean_energy() -> None:
    truth = DoubleWell()
    run = walk(truth, 1000, temperatures=(1.0, 2.0, 4.0), width=0.5)
    for k, t in ((0, 1.0), (2, 4.0)):
        exact = truth(truth.sample(200_000, torch.Generator().manual_seed(1), t)).mean()
        assert float(truth(run.x[50:, k]).mean()) == pytest.approx(float(exact), abs=0.1 * t)


def test_the_centre_of_particles_is_gaussian_at_each_temperature() -> None:
    energy = DoubleWellParticles(2, trap=2.0)
    run = walk(energy, 600, 600, temperatures=(1.0, 1.8), width=0.5)
    for k, t in enumerate((1.0, 1.8)):
        centre = run.x[15:, k].reshape(-1, 2, 2).mean(1)
        torch.testing.assert_close(centre.var(0), torch.full((2,), t / 4.0, dtype=DOUBLE), rtol=0.1, atol=0)


def test_small_moves_are_accepted_more_often_than_large_ones() -> None:
    small, large = (float(walk(DoubleWell(), 100, 100, width=width).accepted[0]) for width in (0.01, 2.0))
    assert small > 0.95
    assert large < 0.4


def test_a_run_follows_its_seed_and_leaves_the_start_alone() -> None:
    one, same, other = (walk(DoubleWell(), 30, 5, seed, temperatures=(1.0, 2.0)) for seed in (1, 1, 2))
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, other.x)
    start = torch.zeros(3, 2)
    run = metropolis(DoubleWell(), start, 25, torch.Generator().manual_seed(0), (1.0, 2.0, 3.0), keep_every=4)
    assert run.x.shape == (6, 3, 3, 2)
    assert run.x.dtype == torch.float32
    assert run.accepted.shape == (3,)
    assert torch.equal(start, torch.zeros(3, 2))


def test_without_a_frame_to_keep_there_is_none() -> None:
    run = metropolis(DoubleWell(), torch.zeros(3, 2), 5, torch.Generator().manual_seed(0), keep_every=10)
    assert run.x.shape == (0, 1, 3, 2)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"particles": 1}, {"trap": 0.0}, {"trap": -1.0}, {"quartic": 0.0}], ids=str)
def test_systems_without_a_distribution_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected at least 2, above 0, above 0"):
        DoubleWellParticles(**options)


@pytest.mark.parametrize("shape", [(7,), (2, 4, 2), ()], ids=str)
def test_positions_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 8\)"):
        DoubleWellParticles(4)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        pytest.param({"temperatures": ()}, OptionError, "temperatures=", id="no-temperature"),
        pytest.param({"temperatures": (1.0, 0.0)}, OptionError, "all above 0", id="zero"),
        pytest.param({"temperatures": (math.nan,)}, OptionError, "all above 0", id="nan"),
        pytest.param({"steps": 0}, OptionError, "steps=0", id="steps"),
        pytest.param({"keep_every": 0}, OptionError, "keep_every=0", id="keep"),
        pytest.param({"swap_every": 0}, OptionError, "swap_every=0", id="swap"),
        pytest.param({"width": 0.0}, OptionError, "width=0.0", id="width"),
        pytest.param({"start": torch.zeros(3)}, ShapeError, r"expected \(walkers, 2\)", id="vector"),
        pytest.param({"start": torch.zeros(3, 3)}, ShapeError, r"expected \(walkers, 2\)", id="dim"),
    ],
)
def test_bad_runs_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"start": torch.zeros(3, 2), "steps": 5, "generator": torch.Generator(), **options}
    with pytest.raises(error, match=message):
        metropolis(DoubleWell(), **given)
