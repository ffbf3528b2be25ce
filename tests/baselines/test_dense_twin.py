"""Every linear baseline against its dense twin: values, and gradients in both directions."""

from __future__ import annotations

import pytest
import torch
from baselines.twins import BASELINES, ORTHOGONAL, WITH_INVERSE, amid
from p4.dense_twin import BATCHES, OPERATIONS, WEIGHTS, assert_like_twin, twin_tensors

from p4lab.baselines import METHODS

FLOOR = 1e-3  # some gradients vanish but for rounding

methods = pytest.mark.parametrize("name", WITH_INVERSE)
batches = pytest.mark.parametrize("batch", BATCHES, ids=lambda b: "batch" + "x".join(map(str, b)) if b else "no-batch")
operations = pytest.mark.parametrize("operation", OPERATIONS)


@operations
@pytest.mark.parametrize("dim", [1, 2, 7, 40], ids="d{}".format)
@methods
def test_value_and_gradients_in_float64(name: str, dim: int, operation: str) -> None:
    assert_like_twin(amid(name, dim), operation, (5,), dim, tolerance=1e-9, floor=FLOOR)


@pytest.mark.parametrize("operation", ["forward", "inverse"])
@batches
@methods
def test_value_and_gradients_for_every_batch_shape(name: str, batch: tuple[int, ...], operation: str) -> None:
    assert_like_twin(amid(name, 5), operation, batch, 5, tolerance=1e-9, floor=FLOOR)


@operations
@methods
def test_value_and_gradients_in_float32(name: str, operation: str) -> None:
    assert_like_twin(amid(name, 24, torch.float32), operation, (5,), 24, tolerance=1e-3, floor=FLOOR)


@operations
@methods
def test_value_and_gradients_without_a_bias(name: str, operation: str) -> None:
    assert_like_twin(amid(name, 6, bias=False), operation, (5,), 6, tolerance=1e-9, floor=FLOOR)


def test_plain_weights_map_forward_as_their_twin() -> None:
    assert_like_twin(amid("plain", 6), "forward", (5,), 6, tolerance=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_weight_is_the_twins(name: str) -> None:
    layer = amid(name, 7)
    expected = WEIGHTS[type(layer)](twin_tensors(layer))
    torch.testing.assert_close(layer.weight, expected, rtol=1e-12, atol=1e-12, check_stride=False)


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_orthogonal_layers_agree_with_dense_algebra(name: str) -> None:
    layer, y = amid(name, 7), torch.randn(5, 7, dtype=torch.float64)
    weight, bias = layer.weight.detach(), layer.bias
    expected = torch.linalg.solve(weight, (y - bias).T).T
    torch.testing.assert_close(layer.inverse(y), expected, rtol=1e-10, atol=1e-10, check_stride=False)
    assert abs(torch.linalg.slogdet(weight).logabsdet - layer.logabsdet()) < 1e-12
    assert layer.violation() < 1e-13


@pytest.mark.parametrize("reflections", [1, 3, 6], ids="k{}".format)
@pytest.mark.parametrize("name", ["qr", "svd", "householder"])
def test_fewer_reflections(name: str, reflections: int) -> None:
    layer = METHODS[name].build(6, reflections=reflections, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    for operation in OPERATIONS:
        assert_like_twin(layer, operation, (5,), 6, tolerance=1e-9, floor=FLOOR)


def test_reflections_beyond_one_block() -> None:
    assert_like_twin(amid("svd", 70), "inverse", (5,), 70, tolerance=1e-9, floor=FLOOR)
