"""Importance weights and what is estimated with them, against closed forms of Gaussians."""

import math

import numpy as np
import pytest
import torch

from p4lab.boltzmann import Estimate, weights
from p4lab.errors import DtypeError, OptionError, ShapeError

DOUBLE = torch.float64


def gaussian_weights(sigma: float, n: int = 200_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of N(0, sigma^2) and their log-weights towards N(0, 1)."""
    x = sigma * torch.randn(n, dtype=DOUBLE)
    log_q = -0.5 * (x / sigma).square() - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    return x, weights.log_weights(0.5 * x.square(), log_q)


@pytest.mark.parametrize("sigma", [1.0, 1.2, 2.0])
def test_ess_is_that_of_two_gaussians(sigma: float) -> None:
    _, log_w = gaussian_weights(sigma)
    # (E w)^2 / E w^2 for N(0, 1) over N(0, sigma^2)
    assert float(weights.ess(log_w)) == pytest.approx(math.sqrt(2 * sigma**2 - 1) / sigma**2, abs=0.01)


def test_weights_give_the_partition_function() -> None:
    _, log_w = gaussian_weights(1.5)
    assert float(log_w.logsumexp(0)) - math.log(len(log_w)) == pytest.approx(0.5 * math.log(2 * math.pi), abs=0.01)


@pytest.mark.parametrize(
    ("energy", "log_q"), [(math.inf, 0.0), (math.nan, 0.0), (0.0, math.nan), (0.0, -math.inf), (-math.inf, 0.0)]
)
def test_what_is_not_finite_weighs_nothing(energy: float, log_q: float) -> None:
    log_w = weights.log_weights(torch.tensor([0.0, energy]), torch.tensor([0.0, log_q]))
    assert log_w.tolist() == [0.0, -math.inf]
    assert float(weights.ess(log_w)) == 0.5
    assert float(weights.clipped_ess(log_w)) == 0.5


BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)


def spoilt(bad: float, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-weights of which some are not finite, and the same with -inf in their place."""
    log_w = torch.randn(n, dtype=DOUBLE)
    log_w[::7] = bad
    return log_w, torch.where(torch.isfinite(log_w), log_w, -math.inf)


def region(n: int = 200) -> torch.Tensor:
    return torch.arange(n) % 3 == 0


def histogram(log_w: torch.Tensor) -> weights.Histogram:
    return weights.weighted_histogram(torch.linspace(0, 1, len(log_w)), torch.linspace(0, 1, 5), log_w)


@BAD
@pytest.mark.parametrize(
    "of",
    [
        pytest.param(weights.normalized, id="normalized"),
        pytest.param(weights.ess, id="ess"),
        pytest.param(weights.clipped_ess, id="clipped_ess"),
        pytest.param(lambda log_w: weights.clipped(log_w, 0.1), id="clipped"),
        pytest.param(lambda log_w: weights.log_weights(-log_w, torch.zeros_like(log_w)), id="log_weights"),
        pytest.param(lambda log_w: histogram(log_w).density, id="density"),
        pytest.param(lambda log_w: histogram(log_w).error, id="density error"),
        pytest.param(lambda log_w: _pair(weights.free_energy_difference(log_w, region(), ~region())), id="free energy"),
    ],
)
def test_a_weight_that_is_not_finite_counts_as_none(of, bad: float) -> None:
    log_w, clean = spoilt(bad)
    before = log_w.clone()
    result = of(log_w)
    torch.testing.assert_close(result, of(clean), rtol=0, atol=0)
    assert not bool(result.isnan().any())
    assert bool((result > 0).any())
    torch.testing.assert_close(log_w, before, rtol=0, atol=0, equal_nan=True)


def _pair(estimate: Estimate) -> torch.Tensor:
    return torch.tensor([estimate.value, estimate.error])


@BAD
def test_one_bad_weight_costs_its_share_and_no_more(bad: float) -> None:
    _, log_w = gaussian_weights(1.2, 1000)
    rest = float(weights.ess(log_w[1:]))
    log_w[0] = bad
    assert float(weights.ess(log_w)) == pytest.approx(0.999 * rest, rel=1e-12)


@BAD
def test_where_no_weight_is_left_nothing_is_known(bad: float) -> None:
    log_w = torch.full((200,), bad)
    assert not weights.normalized(log_w).any()
    assert float(weights.ess(log_w)) == float(weights.clipped_ess(log_w)) == 0.0
    assert weights.clipped(log_w).eq(-math.inf).all()
    difference = weights.free_energy_difference(log_w, region(), ~region())
    assert math.isnan(difference.value)
    assert difference.error == math.inf
    assert not histogram(log_w).density.any()
    assert histogram(log_w).error.eq(math.inf).all()


def test_clipping_leaves_a_weight_where_few_are_finite() -> None:
    log_w = torch.full((1000,), -math.inf)
    log_w[3] = 2.0
    assert weights.clipped(log_w, 0.01).equal(log_w)
    assert float(weights.clipped_ess(log_w, 0.01)) == pytest.approx(0.001)


def test_ess_of_nothing_is_zero() -> None:
    assert float(weights.ess(torch.full((3,), -math.inf))) == 0.0


def test_clipping_sets_the_largest_share_to_the_smallest_of_them() -> None:
    log_w = torch.arange(1000, dtype=DOUBLE)
    cut = weights.clipped(log_w, share=0.005)
    assert cut[:995].equal(log_w[:995])
    assert cut[995:].eq(995.0).all()


@pytest.mark.parametrize("share", [0.0, 1e-9])
def test_clipping_nothing_changes_nothing(share: float) -> None:
    log_w = torch.randn(100)
    assert weights.clipped(log_w, share).equal(log_w)


def test_clipping_helps_against_an_outlier() -> None:
    log_w = torch.cat([torch.zeros(1999), torch.tensor([20.0])])
    assert float(weights.ess(log_w)) < 0.001
    assert float(weights.clipped_ess(log_w)) == pytest.approx(1.0)


def test_free_energy_difference_of_halves_of_a_gaussian() -> None:
    # Samples of N(0, 4) weighted towards N(1, 1), whose halves weigh Phi(-1) and Phi(1).
    x = 2 * torch.randn(100_000, dtype=DOUBLE)
    log_w = weights.log_weights(0.5 * (x - 1).square(), -x.square() / 8)
    difference = weights.free_energy_difference(log_w, x < 0, x >= 0)
    exact = math.log(0.158655254 / 0.841344746)
    assert 0.003 < difference.error < 0.03
    assert abs(difference.value - exact) < 4 * difference.error


def test_error_bars_are_as_wide_as_the_spread_of_repetitions() -> None:
    differences = [
        weights.free_energy_difference(torch.zeros(1000), in_a, ~in_a) for in_a in (torch.rand(200, 1000) < 0.3)
    ]
    values = torch.tensor([estimate.value for estimate in differences])
    errors = torch.tensor([estimate.error for estimate in differences])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.2)


def test_without_samples_in_a_region_nothing_is_known() -> None:
    nowhere = torch.zeros(100, dtype=torch.bool)
    difference = weights.free_energy_difference(torch.zeros(100), ~nowhere, nowhere)
    assert difference.value == math.inf
    assert difference.error == math.inf
    single = nowhere.clone()
    single[5] = True
    difference = weights.free_energy_difference(torch.zeros(100), ~single, single)
    assert difference.value == pytest.approx(math.log(99))
    assert difference.error == math.inf


def test_weighted_histogram_is_the_density() -> None:
    x, log_w = gaussian_weights(1.5)
    histogram_of_x = weights.weighted_histogram(x, torch.linspace(-2, 2, 9, dtype=DOUBLE), log_w)
    cumulative = 0.5 * (1 + torch.erf(histogram_of_x.edges / math.sqrt(2)))
    exact = cumulative.diff() / 0.5
    assert ((histogram_of_x.density - exact).abs() < 4.5 * histogram_of_x.error).all()
    assert (histogram_of_x.error < 0.02 * histogram_of_x.density).all()
    assert (histogram_of_x.free_energy - -exact.log()).abs().max() < 0.03


def test_histogram_without_weights_counts() -> None:
    x = torch.tensor([0.5, 0.5, 1.5, 7.0, -3.0, math.nan])
    histogram_of_x = weights.weighted_histogram(x, torch.tensor([0.0, 1.0, 2.0, 3.0]), blocks=2)
    assert histogram_of_x.density.tolist() == pytest.approx([2 / 6, 1 / 6, 0.0])
    assert histogram_of_x.free_energy[2] == math.inf
    assert histogram_of_x.free_energy_error[2] == math.inf
    assert histogram_of_x.centres.tolist() == [0.5, 1.5, 2.5]


def test_a_column_of_a_table_can_be_counted() -> None:
    # Not contiguous: torch.searchsorted warns of such, and warnings are errors here.
    table = torch.tensor([[0.5, 9.0], [1.5, 9.0], [0.5, 9.0], [0.5, 9.0]], dtype=DOUBLE)
    histogram_of_x = weights.weighted_histogram(table[:, 0], torch.tensor([0.0, 1.0, 2.0]), blocks=2)
    assert histogram_of_x.density.tolist() == pytest.approx([0.75, 0.25])


def test_an_estimate_reads_with_its_error() -> None:
    assert str(Estimate(1.23456, 0.01)) == "1.235 ± 0.010"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        pytest.param(lambda: weights.log_weights(torch.zeros(2), torch.zeros(3)), ShapeError, id="weights"),
        pytest.param(lambda: weights.ess(torch.zeros(0)), ShapeError, id="empty"),
        pytest.param(lambda: weights.clipped_ess(torch.zeros(0)), ShapeError, id="empty-clipped"),
        pytest.param(
            lambda: weights.free_energy_difference(torch.zeros(0), region(0), region(0)), ShapeError, id="empty-sets"
        ),
        pytest.param(
            lambda: weights.weighted_histogram(torch.zeros(0), torch.arange(3.0)), ShapeError, id="empty-histogram"
        ),
        pytest.param(lambda: weights.ess(np.zeros(5)), DtypeError, id="array"),
        pytest.param(lambda: weights.clipped([0.0]), DtypeError, id="list"),
        pytest.param(lambda: weights.log_weights(np.zeros(5), torch.zeros(5)), DtypeError, id="array-energy"),
        pytest.param(
            lambda: weights.free_energy_difference(torch.zeros(99), np.ones(99, bool), region(99)),
            DtypeError,
            id="array-set",
        ),
        pytest.param(lambda: weights.weighted_histogram(torch.zeros(99), np.arange(3.0)), DtypeError, id="array-edges"),
        pytest.param(lambda: weights.ess(torch.zeros(2, 2)), ShapeError, id="matrix"),
        pytest.param(lambda: weights.clipped(torch.zeros(5), 1.0), OptionError, id="share"),
        pytest.param(
            lambda: weights.free_energy_difference(torch.zeros(9), region(9), region(8)), ShapeError, id="sets"
        ),
        pytest.param(
            lambda: weights.free_energy_difference(torch.zeros(9), region(9), region(9)), ShapeError, id="few"
        ),
        pytest.param(lambda: weights.weighted_share(torch.zeros(9), torch.ones(9)), DtypeError, id="numbers-share"),
        pytest.param(lambda: weights.weighted_share(torch.zeros(9), region(1)), ShapeError, id="one-for-all"),
        pytest.param(lambda: weights.weighted_share(torch.zeros(9), region(9)[:, None]), ShapeError, id="column"),
        pytest.param(lambda: weights.weighted_share(torch.zeros(9), np.ones(9, bool)), DtypeError, id="array-share"),
        pytest.param(
            lambda: weights.weighted_histogram(torch.zeros(99), torch.tensor([0.0, 0.0])), OptionError, id="edges"
        ),
        pytest.param(lambda: weights.weighted_histogram(torch.zeros(99), torch.tensor(0.0)), ShapeError, id="no-edges"),
    ],
)
def test_bad_input_is_refused(call, error) -> None:
    with pytest.raises(error):
        call()
