"""Parametrized layers next to O(n): how near, what they claim in training, and the truth in evaluation."""

from __future__ import annotations

import pytest
import torch
from baselines.twins import amid
from p4.dense_twin import BATCHES, WEIGHTS, twin_tensors

from p4lab.baselines import METHODS, CayleyNeumann
from p4lab.errors import OptionError


def turning(angle: float, terms: int) -> CayleyNeumann:
    """A layer of width 2 whose Cayley transform turns by this angle."""
    layer = CayleyNeumann(2, terms=terms, dtype=torch.float64)
    with torch.no_grad():
        layer.upper[0, 1] = torch.tan(torch.tensor(angle) / 2)
    return layer


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("dim", [1, 2, 7, 40], ids="d{}".format)
def test_forward_and_inverse_are_those_of_the_weights(dim: int, batch: tuple[int, ...]) -> None:
    layer, x = amid("cayley_neumann", dim), torch.randn(*batch, dim, dtype=torch.float64)
    weight = WEIGHTS[CayleyNeumann](twin_tensors(layer))
    torch.testing.assert_close(layer(x), x @ weight.T + layer.bias)
    torch.testing.assert_close(layer.inverse(x), (x - layer.bias) @ weight)


def test_gradients_are_those_of_the_weights() -> None:
    layer, x, target = amid("cayley_neumann", 7), torch.randn(5, 7).double(), torch.randn(5, 7).double()
    (layer(x) - target).square().sum().backward()
    tensors = twin_tensors(layer)
    weight = WEIGHTS[CayleyNeumann](tensors)
    (x @ weight.T + tensors["bias"] - target).square().sum().backward()
    torch.testing.assert_close(layer.upper.grad, tensors["upper"].grad)
    torch.testing.assert_close(layer.bias.grad, tensors["bias"].grad)


@pytest.mark.parametrize("terms", [1, 2, 5, 8], ids="k{}".format)
@pytest.mark.parametrize("angle", [0.1, 1.0, 2.0], ids="{}rad".format)
@torch.no_grad()
def test_how_far_the_series_is_off(angle: float, terms: int) -> None:
    layer = turning(angle, terms)
    t = layer.upper[0, 1]
    modulus = (1 - (1j * t) ** (terms + 1)).abs()
    torch.testing.assert_close(layer.weight.T @ layer.weight, modulus**2 * torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(layer.eval().logabsdet(), 2 * modulus.log())


@torch.no_grad()
def test_more_terms_come_to_the_cayley_transform() -> None:
    layer = turning(0.8, terms=60)
    q, eye = layer.upper - layer.upper.T, torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(layer.weight, torch.linalg.solve(eye - q, eye + q), rtol=1e-12, atol=1e-12)
    assert layer.violation() < 1e-12


def test_what_is_refused() -> None:
    for terms in (0, 2.5):
        with pytest.raises(OptionError, match=f"terms={terms}: expected a whole number"):
            METHODS["cayley_neumann"].build(3, terms=terms)
