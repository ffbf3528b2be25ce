"""Baselines under another default device, without values, and through casts."""

from __future__ import annotations

import copy

import pytest
import torch
from drawing import default_device, devices

from p4lab.baselines import METHODS, MatrixExponential, penalty

methods = pytest.mark.parametrize("name", METHODS)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
DOUBLE = torch.float64


@methods
def test_a_device_that_is_asked_for_goes_over_the_default(name: str) -> None:
    method = METHODS[name]
    plain = method.build(4, seed=1)
    with default_device():
        layer = method.build(4, seed=1, device="cpu")
        y = layer(X)
        (y.square().sum() + penalty(layer)).backward()
        optimizer = method.optimizer(layer, 1e-2, next(iter(method.optimizers)))
        if not name.startswith("geoopt"):  # whose retraction makes indices on the default device
            optimizer.step()
        schedule = method.schedule(layer, optimizer)
        for _ in range(100 if schedule is not None else 0):
            schedule.step()
        if method.cubic_inverse is not None:
            layer.inverse(layer(X))
        if method.has_likelihood and method.linear:
            layer.logabsdet(), layer.weight, layer.fold()
    assert devices(layer) == {"cpu"}
    torch.testing.assert_close(y, plain(X), rtol=0, atol=0)


@methods
def test_without_a_device_all_of_a_layer_is_on_the_default_and_takes_a_state(name: str) -> None:
    source = METHODS[name].build(4, seed=1, dtype=DOUBLE)
    with default_device():
        layer = METHODS[name].build(4, seed=2)
    assert devices(layer) == {"meta"}
    layer.load_state_dict(source.state_dict(), assign=True)
    torch.testing.assert_close(layer(X.double()), source(X.double()), rtol=0, atol=0)


def test_no_penalty_is_a_zero_where_the_model_is() -> None:
    with default_device():
        assert penalty(METHODS["dense"].build(3, device="cpu")).device.type == "cpu"


# --- casts ------------------------------------------------------------------------------------------------------------


def ill_conditioned() -> MatrixExponential:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=DOUBLE)).Q for _ in range(2))
    return MatrixExponential(5, init=left * torch.logspace(0, 3, 5, dtype=DOUBLE) @ right)


def check(layer: MatrixExponential) -> None:
    torch.testing.assert_close(layer.base_inverse @ layer.base, torch.eye(5, dtype=DOUBLE), rtol=0, atol=1e-9)
    torch.testing.assert_close(layer.base_logabsdet, torch.linalg.slogdet(layer.base).logabsdet)


def test_an_exponential_that_is_cast_up_has_the_inverse_of_its_base() -> None:
    check(ill_conditioned().double())


def test_an_exponential_with_a_narrow_state_has_the_inverse_of_its_base() -> None:
    layer = MatrixExponential(5, dtype=DOUBLE)
    layer.load_state_dict(ill_conditioned().state_dict())
    check(layer)


def test_an_exponential_that_is_cast_down_is_rounded() -> None:
    wide = ill_conditioned().double()
    assert torch.equal(copy.deepcopy(wide).float().base_inverse, wide.base_inverse.float())
