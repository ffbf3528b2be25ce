"""How good a learned density is, in numbers: likelihood, distance to the truth, modes and the bridges between them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.problems.density2d import SHARE, Density2D
from p4lab.problems.density_problem import DensityProblem

WIDTHS = (0.1, 0.3, 1.0, 3.0)
"""Widths of the kernels of `mmd`."""
DIRECTIONS = 128
"""Number of directions of `sliced_wasserstein`."""
BLOCK = 2048
"""Rows and columns of a kernel matrix at a time."""
SAMPLES = 10_000
"""Samples of a model that `density_metrics` looks at."""


class Estimate(NamedTuple):
    """A number with its error bar.

    Attributes:
        value: the estimate.
        error: its standard error; inf if there is too little to tell.
    """

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


def estimate(values: Tensor) -> Estimate:
    """Return the mean of independent values, shape (n,), and its standard error s / sqrt(n).

    Raises:
        ShapeError: not a vector with at least two entries.
    """
    if values.ndim != 1 or len(values) < 2:
        raise ShapeError(f"values of shape {tuple(values.shape)}: expected (n,) with n >= 2")
    values = values.detach().to("cpu", torch.float64)
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))


def nll(log_prob: Tensor) -> Estimate:
    """Return the mean negative log-likelihood (nats) from log q(x_i) of shape (n,).

    Raises:
        ShapeError: as `estimate`.
    """
    return estimate(-log_prob)


def bits_per_dim(nats: float, dim: int) -> float:
    """Convert nats per point to bits per dimension.

    Example:
        >>> bits_per_dim(2 * math.log(2), 2)
        1.0
    """
    return nats / (dim * math.log(2))


def kl(true_log_prob: Tensor, model_log_prob: Tensor) -> Estimate:
    r"""Return the Kullback-Leibler divergence (nats) of the model q from the truth p.

    .. math:: KL(p \| q) = E_{x \sim p} [\log p(x) - \log q(x)]

    Args:
        true_log_prob, model_log_prob: log p(x_i) and log q(x_i) at the same samples x_i of p, each of shape (n,).

    Raises:
        ShapeError: different shapes, or as `estimate`.
    """
    if true_log_prob.shape != model_log_prob.shape:
        raise ShapeError(f"shapes {tuple(true_log_prob.shape)} and {tuple(model_log_prob.shape)}: expected equal ones")
    return estimate(true_log_prob.to("cpu", torch.float64) - model_log_prob.to("cpu", torch.float64))


def sliced_wasserstein(x: Tensor, y: Tensor, directions: int = DIRECTIONS, seed: int = 0) -> float:
    r"""Return the sliced 2-Wasserstein distance of two samples of the same size.

    .. math:: SW_2^2 = E_\theta \frac1n \sum_i \left((\theta^T x)_{(i)} - (\theta^T y)_{(i)}\right)^2

    with theta uniform on the unit sphere and (i) the i-th smallest. In the plane the directions are equally spaced
    angles, else they are random. The length unit is that of x.

    Args:
        x, y: shape (n, d).
        directions: number of theta.
        seed: seed of random directions.

    Raises:
        ShapeError: not two samples of one shape (n, d).
        OptionError: directions < 1.

    Cost O(n (d + log n)) per direction.
    """
    _check_pair(x, y)
    if x.shape != y.shape:
        raise ShapeError(f"samples of shapes {tuple(x.shape)} and {tuple(y.shape)}: expected as many of each")
    if directions < 1:
        raise OptionError(f"directions={directions}: expected at least 1")
    x, y = (points.detach().to("cpu", torch.float64) for points in (x, y))
    if x.shape[1] == 2:
        angle = torch.arange(directions, dtype=torch.float64, device="cpu") * (math.pi / directions)
        theta = torch.stack([angle.cos(), angle.sin()])
    else:
        generator = torch.Generator().manual_seed(seed)
        theta = torch.randn(x.shape[1], directions, generator=generator, dtype=torch.float64, device="cpu")
        theta /= theta.norm(dim=0)
    return ((x @ theta).sort(0).values - (y @ theta).sort(0).values).square().mean().sqrt().item()


def mmd(x: Tensor, y: Tensor, widths: Sequence[float] = WIDTHS) -> float:
    r"""Return the unbiased estimate of the squared maximum mean discrepancy; it may be slightly below 0.

    .. math:: MMD^2 = E\,k(x, x') + E\,k(y, y') - 2\, E\,k(x, y), \qquad
              k(x, y) = \frac{1}{|S|} \sum_{s \in S} \exp\left(-\frac{|x - y|^2}{2 s^2}\right)

    Args:
        x, y: shapes (n, d) and (m, d).
        widths: S, in the unit of x.

    Raises:
        ShapeError: not two samples of the same dimension, or fewer than two points.
        OptionError: no width, or one that is not positive.

    Cost O((n + m)^2 d).

    Source: Gretton et al., A kernel two-sample test, JMLR 13 (2012), equation 3.
    """
    _check_pair(x, y)
    if not widths or min(widths) <= 0:
        raise OptionError(f"widths={tuple(widths)}: expected at least one, all above 0")
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ShapeError(f"samples of {n} and {m} points: expected at least 2 of each")
    x, y = (points.detach().to("cpu", torch.float64) for points in (x, y))
    # k(x, x) = 1 on the diagonal is what makes the plain mean biased.
    within = (_kernel_sum(x, x, widths) - n) / (n * (n - 1)) + (_kernel_sum(y, y, widths) - m) / (m * (m - 1))
    return within - 2 * _kernel_sum(x, y, widths) / (n * m)


def _kernel_sum(x: Tensor, y: Tensor, widths: Sequence[float]) -> float:
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for rows in x.split(BLOCK):
        for columns in y.split(BLOCK):
            square = (rows[:, None] - columns).square().sum(-1) if x.shape[1] <= 2 else torch.cdist(rows, columns) ** 2
            for width in widths:
                total += (square / (-2 * width**2)).exp().sum()
    return total.item() / len(widths)


def _check_pair(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ShapeError(f"samples of shapes {tuple(x.shape)} and {tuple(y.shape)}: expected (n, d) and (m, d)")


def bridge_mass(samples: Tensor, density: Density2D, share: float = SHARE) -> Estimate:
    r"""Return the share of a model's samples that lie where the truth is negligible, above the truth's own share.

    .. math:: P_q(\log p(x) < l) - P_p(\log p(x) < l), \qquad l \text{ with } P_p(\log p(x) \ge l) = 0.999

    0 is perfect, as is anything within the error of 0; a model that joins separate modes has the mass of its bridges
    here, and that of halos around the modes. Samples that are not finite count as misplaced.

    Args:
        samples: shape (n, 2), n >= 2.
        density: the truth p.
        share: of the true mass that is not negligible.

    Raises:
        ShapeError: samples of another shape.
        OptionError: share is not in (0, 1).

    Source: makes arXiv:2010.07033, section 4.2 ("cleanly separated modes") a number.
    """
    level = density.level(share)
    outside = ~(density.log_prob(samples.detach().double()) >= level.log_density)
    mean, error = estimate(outside.double())
    return Estimate(mean - level.outside, error)


def mode_coverage(samples: Tensor, density: Density2D, least: float = 0.5) -> float:
    """Return the share of the truth's pieces that get at least half of their true mass.

    A sample counts for the piece that it most probably comes from, if it lies where the truth is not negligible (see
    `bridge_mass`).

    Args:
        samples: shape (n, 2), n >= 1.
        density: the truth.
        least: the part of its mass that a piece must get.

    Raises:
        ShapeError: samples of another shape.
    """
    if not len(samples):
        raise ShapeError("no samples: expected at least one")
    pieces = density.piece_log_prob(samples.detach().double())
    inside = pieces.logsumexp(-1) >= density.level().log_density
    shares = pieces[inside].argmax(-1).bincount(minlength=pieces.shape[-1]).double().cpu() / len(samples)
    return (shares >= least * density.piece_shares).double().mean().item()


@torch.no_grad()
def round_trip_error(model: Any, x: Tensor) -> float:
    """Return the largest entry of |F^-1(F(x)) - x| for a flow F and data x of shape (n, d)."""
    z, _ = model(x)
    return (model.inverse(z) - x).abs().max().item()


@torch.no_grad()
def density_metrics(model: Any, problem: DensityProblem, n: int = SAMPLES, seed: int = 0) -> dict[str, float]:
    """Return all metrics of a flow on a density in the plane.

    Args:
        model: the flow.
        problem: the density, with its test set.
        n: number of samples of the model; as many fresh ones of the truth are compared with them.
        seed: seed of both.

    Returns:
        "test_nll", "train_nll" (on as many fresh points as the test set has; nats), "bits_per_dim", "kl" and "kl_error"
        (nats), "sliced_wasserstein", "mmd" (of at most 2000 points), "mode_coverage", "bridge_mass" and
        "bridge_mass_error", "round_trip".

    Raises:
        OptionError: the problem is something else, such as a density.
    """
    if not isinstance(problem, DensityProblem):
        raise OptionError(
            f"problem={problem!r:.80}: expected a p4lab.problems.DensityProblem, which adds a test set to a density: "
            "DensityProblem(density)"
        )
    truth = problem.density
    generator = torch.Generator().manual_seed(seed)
    samples = model.sample(n, generator=generator).to("cpu", torch.float64)
    real = truth.sample(n, generator)
    fresh = real[: len(problem.test)].to(problem.test)
    log_q = model.log_prob(problem.test)
    test = nll(log_q).value
    divergence = kl(truth.log_prob(problem.test.double()), log_q)
    bridges = bridge_mass(samples, truth)
    return {
        "test_nll": test,
        "train_nll": nll(model.log_prob(fresh)).value,
        "bits_per_dim": bits_per_dim(test, problem.dim),
        "kl": divergence.value,
        "kl_error": divergence.error,
        "sliced_wasserstein": sliced_wasserstein(samples, real),
        "mmd": mmd(samples[:2000], real[:2000]),
        "mode_coverage": mode_coverage(samples, truth),
        "bridge_mass": bridges.value,
        "bridge_mass_error": bridges.error,
        "round_trip": round_trip_error(model, fresh),
    }
