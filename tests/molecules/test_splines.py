"""Splines: slopes, inverses, gradients, and zuko's values."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.molecules.splines import SMALLEST, STEEPEST, circular, linear_tails, wrap

BOUND = 3.0
Spline = Callable[..., tuple[Tensor, Tensor]]


def tails(x: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    return linear_tails(x, parameters, BOUND, inverse)


BOTH = pytest.mark.parametrize(
    ("spline", "fixed"), [pytest.param(tails, 1, id="linear-tails"), pytest.param(circular, 0, id="circular")]
)


def example(fixed: int, bins: int = 5, n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(n, generator=generator, dtype=torch.float64)
    return x, 1.5 * torch.randn(3 * bins - fixed, n, generator=generator, dtype=torch.float64)


@BOTH
@pytest.mark.parametrize("bins", [2, 8])
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_the_slope_is_autograds(spline: Spline, fixed: int, bins: int, inverse: bool) -> None:
    x, parameters = example(fixed, bins)
    x.requires_grad_()
    y, log_slope = spline(x, parameters, inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert (slope > 0).all()
    torch.testing.assert_close(slope.log(), log_slope, rtol=0, atol=1e-9)


@BOTH
def test_the_inverse_undoes(spline: Spline, fixed: int) -> None:
    x, parameters = example(fixed)
    y, log_slope = spline(x, parameters)
    back, log_inverse = spline(y, parameters, inverse=True)
    torch.testing.assert_close(back, wrap(x) if spline is circular else x, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_inverse, -log_slope, rtol=0, atol=1e-8)


@BOTH
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_gradients(spline: Spline, fixed: int, inverse: bool) -> None:
    x, parameters = example(fixed, bins=3, n=6)
    inputs = (x.requires_grad_(), parameters.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, parameters: spline(x, parameters, inverse=inverse), inputs)


@BOTH
def test_parameters_of_0_are_the_identity(spline: Spline, fixed: int) -> None:
    x, parameters = example(fixed)
    y, log_slope = spline(wrap(x), 0 * parameters)
    torch.testing.assert_close(y, wrap(x))
    torch.testing.assert_close(log_slope, torch.zeros_like(x))


def test_nothing_moves_outside() -> None:
    x = torch.tensor([-7.0, -BOUND, BOUND, 7.0, math.inf])
    y, log_slope = tails(x, example(1, n=5)[1].float())
    assert torch.equal(y, x)
    assert torch.equal(log_slope, torch.zeros(5))


def test_the_circle_has_no_seam() -> None:
    _, parameters = example(0, n=1)
    turns = torch.tensor([math.pi - 1e-7, -math.pi + 1e-7, math.pi - 1e-7 - 2 * math.pi], dtype=torch.float64)
    y, log_slope = circular(turns, parameters.expand(-1, 3))
    torch.testing.assert_close(y.cos(), torch.full_like(y, -1.0), rtol=0, atol=1e-8)
    torch.testing.assert_close(log_slope, log_slope[:1].expand(3), rtol=0, atol=1e-4)


def knots(parameters: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """The knots of `linear_tails`, x and y, and the slopes there, from its definition."""
    sides = [parameters[i * bins : (i + 1) * bins].softmax(0) * (1 - SMALLEST * bins) + SMALLEST for i in (0, 1)]
    edges = [2 * BOUND * torch.cat([torch.zeros_like(side[:1]), side.cumsum(0)]) - BOUND for side in sides]
    inner = (STEEPEST * torch.tanh(parameters[2 * bins :] / STEEPEST)).exp()
    ends = torch.ones_like(inner[:1])
    return edges[0], edges[1], torch.cat([ends, inner, ends])


def test_zuko_agrees() -> None:
    from zuko.transforms import MonotonicRQSTransform

    bins, n = 6, 50
    generator = torch.Generator().manual_seed(1)
    raw = [torch.randn(n, size, generator=generator, dtype=torch.float64) for size in (bins, bins, bins - 1)]
    theirs = MonotonicRQSTransform(*raw, bound=BOUND, slope=1e-3)
    x = torch.linspace(-4, 4, n, dtype=torch.float64)
    shares = [edges.diff(dim=-1) / (2 * BOUND) for edges in (theirs.horizontal, theirs.vertical)]
    logits = [((share - SMALLEST) / (1 - SMALLEST * bins)).log() for share in shares]
    slopes = STEEPEST * torch.atanh(theirs.derivatives[:, 1:-1].log() / STEEPEST)
    ours = torch.cat([*logits, slopes], -1).t()
    horizontal, vertical, derivatives = knots(ours, bins)
    for mine, other in (
        (horizontal, theirs.horizontal),
        (vertical, theirs.vertical),
        (derivatives, theirs.derivatives),
    ):
        torch.testing.assert_close(mine.t(), other, rtol=0, atol=1e-9)
    for mine, other in zip(tails(x, ours), theirs.call_and_ladj(x), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-7)
    torch.testing.assert_close(tails(x, ours, inverse=True)[0], theirs.inv(x), rtol=0, atol=1e-7)


def test_float32_stays_accurate() -> None:
    x, parameters = example(1, n=5000)
    exact = tails(x, parameters)
    single = tails(x.float(), parameters.float())
    torch.testing.assert_close(single[0].double(), exact[0], rtol=0, atol=1e-4)
    back = tails(single[0], parameters.float(), inverse=True)[0]
    assert float((back - x.float()).abs().median()) < 1e-6


@pytest.mark.parametrize(
    ("shape", "bound", "error"),
    [
        pytest.param((3, 4), 1.0, ShapeError, id="rows"),
        pytest.param((2, 4), 1.0, ShapeError, id="one-bin"),
        pytest.param((8, 5), 1.0, ShapeError, id="width"),
        pytest.param((8, 4), 0.0, OptionError, id="bound"),
    ],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], bound: float, error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        linear_tails(torch.zeros(4), torch.zeros(shape), bound)
