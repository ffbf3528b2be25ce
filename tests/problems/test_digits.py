"""The digits problem: its split, and the bookkeeping of its density."""

import math

import pytest
import torch

from p4lab.errors import OptionError, ShapeError
from p4lab.flows import p4inv_bent
from p4lab.problems import Digits, bits


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(seed=0, dtype=torch.float64)


class Uniform:
    """A model whose density on the data is uniform over [0, 17)^64, whatever the preprocessing."""

    def __init__(self, problem: Digits) -> None:
        self.problem = problem

    def log_prob(self, y: torch.Tensor) -> torch.Tensor:
        _, logabsdet = self.problem.to_model(self.problem.to_data(y))
        return -64 * math.log(17) - logabsdet


def test_split_has_every_digit_once(digits: Digits) -> None:
    assert digits.train.shape == (1438, 64)
    assert digits.test.shape == (359, 64)
    other = Digits(seed=1, dtype=torch.float64)
    assert not torch.equal(digits.test, other.test)
    together = [torch.cat([d.train, d.test]).sum(0) for d in (digits, other)]
    torch.testing.assert_close(*together)


def test_same_seed_same_data(digits: Digits) -> None:
    again = Digits(seed=0, dtype=torch.float64)
    assert torch.equal(digits.train, again.train)
    assert torch.equal(digits.dequantized, again.dequantized)


def test_batches_quantize_back_to_training_digits(digits: Digits) -> None:
    x = digits.batch(20, torch.Generator().manual_seed(0))
    rows = {tuple(row) for row in digits.train.int().tolist()}
    assert all(tuple(row) in rows for row in x.floor().int().tolist())
    assert torch.equal(x, digits.batch(20, torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(0)
    assert not torch.equal(digits.batch(20, generator), digits.batch(20, generator))


def test_preprocessing_logabsdet_is_that_of_autograd(digits: Digits) -> None:
    x = digits.batch(3, torch.Generator().manual_seed(0)).requires_grad_()
    y, logabsdet = digits.to_model(x)
    (slopes,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(logabsdet, slopes.log().sum(-1))
    torch.testing.assert_close(digits.to_data(y), x)


def test_a_uniform_density_costs_log2_of_17_bits(digits: Digits) -> None:
    x = digits.batch(10, torch.Generator().manual_seed(0))
    assert bits(float(digits.loss(Uniform(digits), x))) == pytest.approx(math.log2(17))


def test_loss_is_the_density_of_the_dequantized_integers(digits: Digits) -> None:
    flow = p4inv_bent(64, 1, dtype=torch.float64)
    x = digits.batch(2, torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(lambda t: flow(digits.to_model(t)[0])[0], x[0])
    z, _ = flow(digits.to_model(x)[0])
    exact = -0.5 * z[0].square().sum() - 32 * math.log(2 * math.pi) + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(digits.loss(flow, x[:1]), -exact / 64)


def test_pictures_are_levels(digits: Digits) -> None:
    flow = p4inv_bent(64, 1, dtype=torch.float64)
    pictures = digits.pictures(flow, torch.full((2, 64), torch.nan, dtype=torch.float64))["samples"]
    assert pictures.shape == (2, 8, 8)
    assert pictures.dtype == torch.uint8
    assert pictures.max() == 0
    assert digits.pictures(flow, torch.randn(50, 64, dtype=torch.float64))["samples"].max() == 16
    assert torch.equal(digits.real(1)[0].view(-1), digits.test[0].to(torch.uint8))


def test_errors(digits: Digits) -> None:
    with pytest.raises(ShapeError, match="64"):
        digits.to_model(torch.zeros(2, 63))
    with pytest.raises(OptionError, match="359"):
        digits.real(360)
