"""Posteriors with a known density, against samples, grids and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from p4lab.errors import DtypeError, OptionError, P4Error, ShapeError
from p4lab.problems.posteriors import POSTERIORS, LinearGaussian, Posterior, TwoMoons

names = pytest.mark.parametrize("name", POSTERIORS)
OBSERVED = [(0.0, 0.0), (0.2, 0.0), (0.32, -0.04), (-0.6, 0.55), (-1.0, 0.02)]
"""Of two moons: both crescents whole, cut at a = 0 in halves and almost wholly, and cut by a side and a corner."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@names
def test_pairs_are_those_of_prior_and_posterior(name: str) -> None:
    """Under the joint distribution posterior samples of its observations are prior samples again."""
    problem = POSTERIORS[name]()
    theta, x = problem.pairs(400, seeded())
    assert (theta.shape, x.shape) == ((400, problem.dim), (400, problem.context))
    again = torch.cat([problem.sample(one, 5, seeded(i)) for i, one in enumerate(x)])
    prior = problem.prior(20_000, seeded(1))
    for moment in (lambda t: t, torch.square, lambda t: t * t.roll(1, -1)):
        error = 5 * (moment(again).std(0) / math.sqrt(400) + moment(prior).std(0) / math.sqrt(20_000))
        assert (moment(again).mean(0) - moment(prior).mean(0)).abs().le(error).all()


def test_a_linear_gaussian_posterior_is_bayes_rule() -> None:
    problem = LinearGaussian(dim=3, context=2, noise=0.7)
    theta, x = problem.pairs(50, seeded())
    joint = torch.eye(5, dtype=torch.float64)
    joint[3:, 3:] = problem.matrix @ problem.matrix.t() + 0.7**2 * torch.eye(2, dtype=torch.float64)
    joint[3:, :3] = problem.matrix
    joint[:3, 3:] = problem.matrix.t()
    both, evidence = (
        torch.distributions.MultivariateNormal(torch.zeros(len(cov), dtype=torch.float64), cov)
        for cov in (joint, joint[3:, 3:])
    )
    expected = both.log_prob(torch.cat([theta, x], -1)) - evidence.log_prob(x)
    torch.testing.assert_close(problem.log_prob(theta, x), expected, rtol=1e-10, atol=1e-10)
    samples = problem.sample(x[0], 100_000, seeded(1))
    torch.testing.assert_close(samples.t().cov(), problem.covariance, rtol=0.03, atol=0.003)
    torch.testing.assert_close(samples.mean(0), problem.gain @ x[0], rtol=0, atol=0.01)


@pytest.mark.parametrize("observed", OBSERVED, ids=str)
def test_two_moons_density_against_its_samples(observed: tuple[float, float]) -> None:
    """Shares of samples in small squares about some of them, against the density's integral over these."""
    problem, n = TwoMoons(), 40_000
    x = torch.tensor(observed, dtype=torch.float64)
    samples = problem.sample(x, n, seeded())
    log_p = problem.log_prob(samples, x)
    assert torch.isfinite(log_p).all()
    h, side = 0.02, (torch.arange(200, dtype=torch.float64) + 0.5) / 200 - 0.5
    for centre in samples[:4]:
        share = ((samples - centre).abs() < h / 2).all(-1).double().mean()
        cells = centre + h * torch.cartesian_prod(side, side)
        mass = problem.log_prob(cells, x).exp().mean() * h**2
        assert float(share) == pytest.approx(float(mass), abs=5 * math.sqrt(float(mass) / n))


def test_two_moons_evidence_is_that_of_its_pairs() -> None:
    """The mean of the evidence's density over a box is the share of observations in the box."""
    problem, n = TwoMoons(), 200_000
    x = problem.pairs(n, seeded()).x
    side = (torch.arange(30, dtype=torch.float64) + 0.5) / 30
    for left, right, low, high in ((-1.3, -0.9, -0.3, 0.3), (0.15, 0.36, -0.5, 0.5), (-0.5, 0.0, 0.4, 1.0)):
        inside = (x[:, 0] > left) & (x[:, 0] < right) & (x[:, 1] > low) & (x[:, 1] < high)
        grid = torch.cartesian_prod(left + (right - left) * side, low + (high - low) * side)
        mass = float(problem.log_evidence(grid).exp().mean()) * (right - left) * (high - low)
        share = float(inside.double().mean())
        assert share == pytest.approx(mass, abs=5 * math.sqrt(mass / n))
    assert problem.log_evidence(torch.zeros(1, 2)).item() == pytest.approx(math.log(0.5), abs=1e-12)


def test_two_moons_density_is_zero_where_the_prior_is() -> None:
    outside = torch.tensor([[1.001, 0.0], [0.0, -1.5]])
    assert (TwoMoons().log_prob(outside, torch.zeros(2, 2)) == -math.inf).all()
    assert TwoMoons().log_prob(torch.zeros(0, 2), torch.zeros(0, 2)).shape == (0,)


@names
def test_shapes_and_types(name: str) -> None:
    problem = POSTERIORS[name]()
    theta, x = problem.pairs(3, seeded())
    single = problem.log_prob(theta.float(), x.float())
    assert single.dtype is torch.float64
    assert torch.isfinite(single).all()
    assert problem.sample(x[0], 0, seeded()).shape == (0, problem.dim)
    assert torch.equal(problem.pairs(3, seeded()).x, x)


REFUSED: dict[str, tuple[Callable[[Posterior, Tensor, Tensor], object], type[P4Error], str]] = {
    "width": (lambda p, theta, x: p.log_prob(theta[:, :1], x), ShapeError, "the parameters of"),
    "observation": (lambda p, theta, x: p.log_prob(theta, x[:, :1]), ShapeError, "the observations of"),
    "number": (lambda p, theta, x: p.log_prob(theta, x[:2]), ShapeError, "2 observations of 3 parameters"),
    "array": (lambda p, theta, x: p.log_prob(np.zeros((3, 2)), x), DtypeError, "expected a torch.Tensor"),
    "several": (lambda p, theta, x: p.sample(x, 4, seeded()), ShapeError, "an observation of shape"),
    "pairs": (lambda p, theta, x: p.pairs(-1, seeded()), ShapeError, "n=-1"),
}


@names
@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused(name: str, what: str) -> None:
    problem = POSTERIORS[name]()
    call, error, text = REFUSED[what]
    with pytest.raises(error, match=text):
        call(problem, *problem.pairs(3, seeded()))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(OptionError, match="noise=0"):
        LinearGaussian(noise=0.0)
    with pytest.raises(OptionError, match="points of a crescent leads there"):
        TwoMoons().sample(torch.tensor([5.0, 0.0]), 1, seeded())
