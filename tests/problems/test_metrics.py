"""The metrics against cases whose value is known."""

import math

import pytest
import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.flows import p4inv_bent
from p4lab.problems import metrics
from p4lab.problems.densities import DensityProblem, density

N = 2000


def normal(n: int, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_normal(x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return -((x - mean) / std).square().sum(-1) / 2 - x.shape[-1] * math.log(std * math.sqrt(2 * math.pi))


def test_estimate_is_mean_and_standard_error() -> None:
    estimate = metrics.estimate(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert estimate.value == 3
    assert estimate.error == pytest.approx(math.sqrt(14 / 3) / 2)


def test_kl_of_two_gaussians() -> None:
    x = normal(N)
    divergence = metrics.kl(log_normal(x), log_normal(x, mean=0.5, std=2.0))
    exact = 2 * (math.log(2) + (1 + 0.25) / 8 - 0.5)
    assert abs(divergence.value - exact) < 4 * divergence.error < 0.1
    assert metrics.kl(log_normal(x), log_normal(x)) == (0, 0)


def test_nll_is_the_cross_entropy() -> None:
    nll = metrics.nll(log_normal(normal(N)))
    assert abs(nll.value - math.log(2 * math.pi * math.e)) < 4 * nll.error


@pytest.mark.parametrize("dim", [2, 5])
def test_sliced_wasserstein_of_a_shift(dim: int) -> None:
    x = normal(N, dim)
    shift = torch.arange(1, dim + 1, dtype=torch.float64)
    # A shift m moves the projection on theta by theta.m, and E (theta.m)^2 = |m|^2 / d.
    exact = shift.norm().item() / math.sqrt(dim)
    assert metrics.sliced_wasserstein(x, x + shift, directions=400) == pytest.approx(exact, rel=0.1)
    assert metrics.sliced_wasserstein(x, x[torch.randperm(N)]) == pytest.approx(0, abs=1e-12)


def test_sliced_wasserstein_in_the_plane_is_exact_for_a_shift() -> None:
    x = normal(100)
    assert metrics.sliced_wasserstein(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5 / math.sqrt(2))


def test_sliced_wasserstein_of_two_widths() -> None:
    # W_2 of N(0, 1) and N(0, 4) in one dimension is 1.
    assert metrics.sliced_wasserstein(normal(10_000), 2 * normal(10_000, seed=1)) == pytest.approx(1, abs=0.05)


def exact_mmd(mean: float, widths: tuple[float, ...]) -> float:
    """Return MMD^2 of N(0, I) and N((mean, 0), I): E exp(-|x - y|^2 / 2 s^2) is that of a Gaussian of variance 2."""
    return sum(2 * s**2 / (s**2 + 2) * (1 - math.exp(-(mean**2) / (2 * (s**2 + 2)))) for s in widths) / len(widths)


@pytest.mark.parametrize("mean", [0.0, 1.0, 5.0])
def test_mmd_of_two_gaussians(mean: float) -> None:
    distance = metrics.mmd(normal(N), normal(N, seed=1) + torch.tensor([mean, 0.0]), widths=(0.5, 2.0))
    assert distance == pytest.approx(exact_mmd(mean, (0.5, 2.0)), abs=0.01)


def test_mmd_is_unbiased() -> None:
    distances = [metrics.mmd(normal(20, seed=i), normal(20, seed=1000 + i)) for i in range(200)]
    assert abs(metrics.estimate(torch.tensor(distances)).value) < 4 * metrics.estimate(torch.tensor(distances)).error
    assert min(distances) < 0


def test_mmd_in_blocks_is_mmd(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, dim=3), normal(70, dim=3, seed=1)
    whole = metrics.mmd(x, y)
    monkeypatch.setattr(metrics, "BLOCK", 16)
    assert metrics.mmd(x, y) == pytest.approx(whole, abs=1e-12)


def test_bridge_mass_of_the_truth_is_zero() -> None:
    truth = density("eight_gaussians")
    mass = metrics.bridge_mass(truth.sample(20_000, torch.Generator().manual_seed(5)), truth)
    assert abs(mass.value) < 4 * mass.error + 1e-4


def test_bridge_mass_counts_what_lies_between_modes() -> None:
    truth = density("eight_gaussians")
    x = truth.sample(1000, torch.Generator().manual_seed(0))
    x[:200] = 0.0
    x[200:250] = math.nan
    mass = metrics.bridge_mass(x, truth)
    assert mass.value == pytest.approx(0.25, abs=0.003)
    assert mass.error == pytest.approx(math.sqrt(0.25 * 0.75 / 1000), rel=0.02)


def test_mode_coverage_counts_modes_with_half_of_their_mass() -> None:
    truth = density("eight_gaussians")
    x = truth.sample(8000, torch.Generator().manual_seed(0))
    assert metrics.mode_coverage(x, truth) == 1
    which = truth.piece_log_prob(x).argmax(-1)
    assert metrics.mode_coverage(x[which < 6], truth) == 6 / 8
    # Twelve points in a mode of a thousand are not half of its mass.
    few = torch.cat([x[which > 0], x[which == 0][:12]])
    assert metrics.mode_coverage(few, truth) == 7 / 8
    assert metrics.mode_coverage(torch.zeros(10, 2), truth) == 0


def test_pieces_need_not_be_round() -> None:
    truth = density("rings")
    x = truth.sample(5000, torch.Generator().manual_seed(0))
    assert metrics.mode_coverage(x[x.norm(dim=-1) > 1.5], truth) == pytest.approx(2 / 3)


def test_round_trip_error() -> None:
    class Sloppy:
        def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return 2 * x, torch.zeros(len(x))

        def inverse(self, z: Tensor) -> Tensor:
            return z / 2 + torch.tensor([0.0, 0.25])

    assert metrics.round_trip_error(Sloppy(), normal(3)) == 0.25


def test_all_metrics_of_a_flow() -> None:
    problem = DensityProblem(density("two_moons"))
    flow = p4inv_bent(2, blocks=2)
    figures = metrics.density_metrics(flow, problem, n=500)
    assert figures["test_nll"] == pytest.approx(problem.test_loss(flow).item(), abs=1e-5)
    assert figures["kl"] == pytest.approx(figures["test_nll"] - problem.entropy, abs=1e-4)
    assert figures["bits_per_dim"] == pytest.approx(figures["test_nll"] / (2 * math.log(2)))
    assert figures["train_nll"] == pytest.approx(figures["test_nll"], abs=0.3)
    assert figures["round_trip"] < 1e-4
    assert 0 < figures["bridge_mass"] < 1
    assert figures == metrics.density_metrics(flow, problem, n=500)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda: metrics.estimate(torch.zeros(1)), ShapeError, "n >= 2", id="one-value"),
        pytest.param(lambda: metrics.kl(torch.zeros(3), torch.zeros(4)), ShapeError, "equal", id="kl"),
        pytest.param(
            lambda: metrics.sliced_wasserstein(normal(3), normal(4)), ShapeError, "as many of each", id="sizes"
        ),
        pytest.param(
            lambda: metrics.sliced_wasserstein(normal(3), normal(3, 3)), ShapeError, r"\(n, d\)", id="dimensions"
        ),
        pytest.param(
            lambda: metrics.sliced_wasserstein(normal(3), normal(3), 0), OptionError, "directions=0", id="directions"
        ),
        pytest.param(lambda: metrics.mmd(normal(3), normal(1)), ShapeError, "at least 2", id="mmd-points"),
        pytest.param(lambda: metrics.mmd(normal(3), normal(3), (0.0,)), OptionError, "above 0", id="mmd-width"),
        pytest.param(lambda: metrics.mode_coverage(normal(0), density("rings")), ShapeError, "no samples", id="none"),
        pytest.param(lambda: density("rings").level(1.0), OptionError, "share=1.0", id="share"),
    ],
)
def test_bad_input_is_named(call: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_a_density_in_the_place_of_a_problem_is_refused() -> None:
    with pytest.raises(OptionError, match=r"problem=Rings.*: expected a p4lab\.problems\.DensityProblem"):
        metrics.density_metrics(p4inv_bent(2, 0), density("rings"))
