"""Dynamic trivializations: a new base changes no function, and the optimizer forgets what has lost its meaning."""

from __future__ import annotations

import math

import pytest
import torch
from baselines.twins import REBASED, amid
from torch import nn

from p4lab.baselines import METHODS, Dense, GeotorchGL, MatrixExponential, Rebase
from p4lab.errors import OptionError

methods = pytest.mark.parametrize("name", REBASED)


def one_step(layer: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    (layer(x) - x.flip(-1)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@methods
def test_a_new_base_leaves_the_function_unchanged(name: str, dtype: torch.dtype) -> None:
    layer, x = amid(name, 6, dtype), torch.randn(5, 6, dtype=dtype)
    before = layer.weight.detach().clone(), layer(x).detach(), layer.inverse(x).detach(), layer.logabsdet().detach()
    (parameter,) = layer.rebased()
    coordinates = parameter.detach().clone()
    layer.rebase()
    after = layer.weight, layer(x), layer.inverse(x), layer.logabsdet()
    close = 1e-5 if dtype == torch.float32 else 1e-12
    for value, expected in zip(after, before, strict=True):
        torch.testing.assert_close(value.detach(), expected, rtol=close, atol=close)
    assert layer.rebased()[0] is parameter  # the optimizer still holds it
    assert not torch.equal(parameter, coordinates)


@methods
def test_the_next_gradient_is_that_of_a_fresh_layer_there(name: str) -> None:
    layer = amid(name, 5)
    layer.rebase()
    fresh = METHODS[name].build(5, init=layer.weight.detach(), dtype=torch.float64)
    x = torch.randn(7, 5, dtype=torch.float64)
    changes = []
    for candidate in (layer, fresh):
        candidate.bias.data.zero_()
        before = candidate.weight.detach().clone()
        one_step(candidate, torch.optim.SGD(candidate.parameters(), lr=1e-3), x)
        changes.append(candidate.weight.detach() - before)
    torch.testing.assert_close(*changes, rtol=1e-6, atol=1e-9)


def test_it_moves_the_base_every_so_many_steps() -> None:
    layer = MatrixExponential(3)
    schedule = Rebase(nn.Sequential(layer), every=3)
    with torch.no_grad():
        layer.exponent.fill_(0.1)
    due = [schedule.due for _ in range(7) if schedule.step() is not None]
    assert due == [False, True, False, False, True, False, False]
    assert not layer.exponent.any()
    assert schedule.steps == 7


@methods
def test_momentum_is_kept_where_the_frame_stays(name: str) -> None:
    layer, x = METHODS[name].build(4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    optimizer = METHODS[name].optimizer(layer, 1e-2, "adam")
    schedule = Rebase(layer, optimizer, every=2)
    one_step(layer, optimizer, x)
    schedule.step()
    (parameter,) = layer.rebased()
    memory = {key: value.clone() for key, value in optimizer.state[parameter].items()}
    bias = optimizer.state[layer.bias]["exp_avg"].clone()
    assert schedule.step()
    assert torch.equal(optimizer.state[layer.bias]["exp_avg"], bias)
    assert optimizer.state[parameter]["step"] == memory["step"]
    for key in ("exp_avg", "exp_avg_sq"):
        expected = torch.zeros_like(memory[key]) if isinstance(layer, GeotorchGL) else memory[key]
        assert torch.equal(optimizer.state[parameter][key], expected)


def test_lbfgs_loses_its_history() -> None:
    layer, x = MatrixExponential(3, dtype=torch.float64), torch.randn(9, 3, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (layer(x) - x.flip(-1)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.state
    Rebase(layer, [optimizer], every=1).step()
    assert not optimizer.state


def test_a_resumed_schedule_moves_at_the_same_steps() -> None:
    layer = MatrixExponential(3)
    schedule = Rebase(layer, every=5)
    for _ in range(3):
        schedule.step()
    other = Rebase(layer, every=2)
    other.load_state_dict(schedule.state_dict())
    assert [other.step() for _ in range(4)] == [False, True, False, False]


def test_what_a_schedule_refuses() -> None:
    with pytest.raises(OptionError, match="every=0"):
        Rebase(MatrixExponential(2), every=0)
    with pytest.raises(OptionError, match="contains no trivialized layers"):
        Rebase(Dense(2))


@torch.no_grad()
def test_new_bases_reach_what_one_exponential_cannot() -> None:
    """diag(-1, -4) has no real logarithm, but it is a product of two exponentials."""
    layer = MatrixExponential(2, dtype=torch.float64)
    layer.exponent.copy_(torch.tensor([[0.0, -torch.pi], [torch.pi, 0.0]], dtype=torch.float64))
    layer.rebase()
    layer.exponent[1, 1] = math.log(4)
    torch.testing.assert_close(layer.weight, torch.diag(torch.tensor([-1.0, -4.0], dtype=torch.float64)))
    assert float(layer.logabsdet()) == pytest.approx(math.log(4))
