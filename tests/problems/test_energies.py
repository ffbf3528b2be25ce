"""Potentials in the plane against independent quadrature, finite differences and their own samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.problems.energies import PLANE_ENERGIES, DoubleWell, MuellerBrown, PlaneEnergy, plane_energy

DOUBLE = torch.float64
ENERGIES = pytest.mark.parametrize("name", PLANE_ENERGIES)
TEMPERATURES = pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])


def well(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The double well along x, as method and literature state it."""
    return x**4 - 6 * x**2 + x


def gauss(name: str, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Points, log of quadrature weights and u, by Gauss-Legendre panels over a box of its own."""
    x0, x1, y0, y1 = {"double_well": (-5, 5, -16, 16), "mueller_brown": (-6, 5, -6, 7)}[name]
    nodes, weights = np.polynomial.legendre.leggauss(20)

    def line(low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        edges = np.linspace(low, high, 31)
        half = np.diff(edges)[:, None] / 2
        return (edges[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()

    (x, wx), (y, wy) = line(x0, x1), line(y0, y1)
    points = torch.cartesian_prod(torch.from_numpy(x), torch.from_numpy(y))
    log_w = torch.from_numpy(np.log(np.outer(wx, wy).ravel()))
    return points, log_w, plane_energy(name)(points)


# --- quadrature -------------------------------------------------------------------------------------------------------


@ENERGIES
@TEMPERATURES
def test_partition_function_entropy_and_basins_are_those_of_another_quadrature(name: str, temperature: float) -> None:
    energy = plane_energy(name)
    points, log_w, u = gauss(name, temperature)
    log_z = float((log_w - u / temperature).logsumexp(0))
    assert energy.log_z(temperature) == pytest.approx(log_z, abs=1e-6)
    mass = (log_w - u / temperature - log_z).exp()
    assert energy.entropy(temperature) == pytest.approx(float((mass * u).sum()) / temperature + log_z, abs=1e-5)
    in_b = float(mass[energy.in_b(points)].sum())
    # Where the border of the basins cuts cells, each rule has its own error.
    assert energy.share_of_b(temperature) == pytest.approx(in_b, rel=5e-3)
    expected = math.log((1 - in_b) / in_b)
    assert energy.free_energy_difference(temperature) == pytest.approx(expected, abs=6e-3)


@TEMPERATURES
def test_the_double_well_is_a_product_of_one_dimensional_integrals(temperature: float) -> None:
    x = np.linspace(-5, 5, 200_001)
    density = np.exp(-well(x) / temperature)
    step = x[1] - x[0]
    total, right = density.sum() * step, density[x > DoubleWell.barrier].sum() * step
    exact = math.log(total) + 0.5 * math.log(2 * math.pi * temperature)
    assert DoubleWell().log_z(temperature) == pytest.approx(exact, abs=1e-6)
    difference = math.log((total - right) / right)
    assert DoubleWell().free_energy_difference(temperature) == pytest.approx(difference, abs=1e-3)


def test_free_energy_differences_grow_as_it_gets_colder() -> None:
    differences = [DoubleWell().free_energy_difference(t) for t in (2.0, 1.0, 0.5, 0.25)]
    assert differences == sorted(differences)
    # Two wells of one width: the difference goes to that of their depths.
    assert 0.25 * differences[-1] == pytest.approx(well(np.array([1.6913]))[0] - well(np.array([-1.7722]))[0], abs=0.1)


@ENERGIES
def test_log_densities_integrate_to_one_at_any_temperature(name: str) -> None:
    for temperature in (0.3, 1.0, 2.0):
        points, log_w, _ = gauss(name, temperature)
        log_p = plane_energy(name).log_prob(points, temperature)
        assert float((log_w + log_p).exp().sum()) == pytest.approx(1.0, abs=1e-6)


@TEMPERATURES
def test_profiles_are_free_energies_of_bins(temperature: float) -> None:
    edges = torch.linspace(-3, 3, 25)
    profile = DoubleWell().profile(edges, temperature).numpy()
    total = DoubleWell().log_z(temperature) - 0.5 * math.log(2 * math.pi * temperature)
    x = np.linspace(edges[:-1].numpy(), edges[1:].numpy(), 2001)
    exact = total - np.log(np.trapezoid(np.exp(-well(x) / temperature), x, axis=0) / (x[-1] - x[0]))
    # 12 points a bin: where the density falls by orders of magnitude within one, they do not tell it well.
    seen = exact < 12
    assert seen.sum() >= 4
    np.testing.assert_allclose(profile[seen], exact[seen], atol=0.05)


def test_profiles_of_all_bins_make_one() -> None:
    for energy in (DoubleWell(), MuellerBrown()):
        edges = torch.linspace(-5, 5, 201, dtype=DOUBLE)
        density = (-energy.profile(edges)).exp()
        assert float((density * edges.diff()).sum()) == pytest.approx(1.0, abs=1e-4)


# --- values and forces ------------------------------------------------------------------------------------------------


@ENERGIES
def test_gradients_are_finite_differences(name: str) -> None:
    energy = plane_energy(name)
    x = energy.sample(20, torch.Generator().manual_seed(0), 2.0).requires_grad_()
    assert torch.autograd.gradcheck(energy, x)
    assert torch.autograd.gradgradcheck(energy, x)


@pytest.mark.parametrize(
    ("name", "minimum", "basin"),
    [
        ("double_well", (-1.7724, 0.0), False),
        ("double_well", (1.6899, 0.0), True),
        ("mueller_brown", (-0.5582, 1.4417), False),
        ("mueller_brown", (0.6235, 0.0280), True),
    ],
)
def test_minima_are_where_they_are_said_to_be(name: str, minimum: tuple[float, float], basin: bool) -> None:
    energy = plane_energy(name)
    x = torch.tensor([minimum], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(energy(x).sum(), x)
    hessian = torch.autograd.functional.hessian(lambda x: energy(x).sum(), x.detach()).view(2, 2)
    assert float((torch.linalg.solve(hessian, slope[0])).norm()) < 2e-3  # a Newton step away at most
    assert float(torch.linalg.eigvalsh(hessian)[0]) > 0
    assert bool(energy.in_b(x)[0]) is basin


def test_the_barrier_is_a_maximum_along_x() -> None:
    x = torch.linspace(-0.5, 0.7, 12_001, dtype=DOUBLE)
    u = DoubleWell()(torch.stack([x, torch.zeros_like(x)], -1))
    assert float(x[u.argmax()]) == pytest.approx(DoubleWell.barrier, abs=2e-4)


def test_mueller_and_browns_values_are_known() -> None:
    # In the units of the original: -146.70 and -108.17 at the two deep minima.
    x = torch.tensor([[-0.558224, 1.441726], [0.623499, 0.028038]], dtype=DOUBLE)
    assert (20 * MuellerBrown()(x)).tolist() == pytest.approx([-146.6995, -108.1667], abs=1e-3)


@ENERGIES
@pytest.mark.parametrize("shape", [(2,), (3, 2), (4, 3, 2), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_shapes_and_dtypes_are_kept(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    u = plane_energy(name)(torch.zeros(shape, dtype=dtype))
    assert (u.shape, u.dtype) == (shape[:-1], dtype)


# --- samples ----------------------------------------------------------------------------------------------------------


@ENERGIES
@TEMPERATURES
def test_samples_have_the_density(name: str, temperature: float) -> None:
    energy, n = plane_energy(name), 100_000
    x = energy.sample(n, torch.Generator().manual_seed(1), temperature)
    edges = torch.linspace(energy.bounds[0], energy.bounds[1], 31, dtype=DOUBLE)
    expected = n * (-energy.profile(edges, temperature)).exp() * edges.diff()
    counts = torch.histogram(x[:, 0].contiguous(), edges).hist
    seen = expected > 50
    z = (counts - expected)[seen] / expected[seen].sqrt()
    assert int(seen.sum()) >= 4
    assert float(z.square().mean()) < 2.5  # chi-square per bin
    # Both coordinates at once: the mean of u is -d log Z / d(1 / T).
    h = 1e-4
    mean = -(energy.log_z(1 / (1 / temperature + h)) - energy.log_z(1 / (1 / temperature - h))) / (2 * h)
    u = energy(x)
    assert float(u.mean()) == pytest.approx(mean, abs=5 * float(u.std()) / math.sqrt(n))
    share = energy.share_of_b(temperature)
    assert float(energy.in_b(x).double().mean()) == pytest.approx(
        share, abs=5 * math.sqrt(share * (1 - share) / n) + 1e-3 * share
    )


@ENERGIES
def test_samples_follow_their_seed(name: str) -> None:
    energy = plane_energy(name)
    one, same, other = (energy.sample(50, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    single = energy.sample(50, torch.Generator().manual_seed(3), dtype=torch.float32)
    assert torch.equal(single, one.float())
    assert energy.sample(0, torch.Generator()).shape == (0, 2)


def test_the_grid_covers_the_bounds_from_the_top() -> None:
    points = DoubleWell().grid(4)
    assert points.shape == (4, 4, 2)
    assert points[0, 0].tolist() == [-2.25, 3.0]
    assert points[-1, -1].tolist() == [2.25, -3.0]


def test_energies_of_one_kind_are_equal() -> None:
    assert plane_energy("double_well") == DoubleWell()
    assert hash(plane_energy("double_well")) == hash(DoubleWell())
    assert DoubleWell() != MuellerBrown()
    assert repr(MuellerBrown()) == "MuellerBrown()"


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="'triple_well' is not known: choose one of double_well, mueller_brown"):
        plane_energy("triple_well")


@ENERGIES
@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3), ()], ids=str)
def test_points_outside_of_the_plane_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 2\)"):
        plane_energy(name)(torch.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(PlaneEnergy.log_z, id="log_z"),
        pytest.param(PlaneEnergy.entropy, id="entropy"),
        pytest.param(PlaneEnergy.share_of_b, id="share"),
        pytest.param(PlaneEnergy.free_energy_difference, id="difference"),
        pytest.param(lambda e, t: e.log_prob(torch.zeros(1, 2), t), id="log_prob"),
        pytest.param(lambda e, t: e.profile(torch.tensor([0.0, 1.0]), t), id="profile"),
        pytest.param(lambda e, t: e.sample(1, torch.Generator(), t), id="sample"),
    ],
)
def test_temperatures_that_are_none_are_refused(call, temperature: float) -> None:
    with pytest.raises(OptionError, match="expected a number above 0"):
        call(DoubleWell(), temperature)


def test_a_negative_number_of_samples_is_refused() -> None:
    with pytest.raises(OptionError, match="n=-1"):
        DoubleWell().sample(-1, torch.Generator())
