"""The relative gradient and the Cayley retraction against explicit algebra, and what makes them what they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from baselines.twins import haar
from p4.dense_twin import well_conditioned
from torch import Tensor, nn

from p4lab.baselines import (
    CayleyDescent,
    CayleyLinear,
    LandingDescent,
    RelativeAdam,
    RelativeGradient,
    RelativeLinear,
    SubmanifoldDescent,
)
from p4lab.errors import OptionError

D = 12
OPTIMIZERS = (RelativeGradient, CayleyDescent, SubmanifoldDescent, LandingDescent)
sizes = pytest.mark.parametrize("batch", [1, 4, 5, 6, 11, 12, 30], ids="B{}".format)


def data(batch: int, dim: int = D) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, dim, dtype=torch.float64), torch.randn(batch, dim, dtype=torch.float64)


def nll(y: Tensor, target: Tensor, layer: RelativeLinear) -> Tensor:
    return (y - target).square().mean() + y.cosh().log().sum(-1).mean() - layer.logabsdet()


def euclidean(layer: RelativeLinear, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradients of a loss of (W, b) at the layer's weights and bias, by autograd alone."""
    w, b = (p.detach().clone().requires_grad_() for p in (layer.matrix, layer.bias))
    return torch.autograd.grad(loss(w, b), (w, b))


# --- the relative gradient ---


@sizes
@pytest.mark.parametrize("with_logabsdet", [False, True], ids=["fit", "likelihood"])
def test_a_relative_step_is_g_w_t_w(batch: int, with_logabsdet: bool) -> None:
    layer = RelativeLinear(D, init=well_conditioned(D), dtype=torch.float64)
    optimizer = RelativeGradient(layer, lr=0.1)
    x, target = data(batch)

    def loss(w: Tensor, b: Tensor) -> Tensor:
        fit = (x @ w.T + b - target).square().mean() * D
        return fit - torch.linalg.slogdet(w).logabsdet if with_logabsdet else fit

    w, (g, g_bias) = layer.weight.detach().clone(), euclidean(layer, loss)
    fit = (layer(x) - target).square().mean() * D
    (fit - layer.logabsdet() if with_logabsdet else fit).backward()
    assert layer.matrix.grad is None
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), w - 0.1 * g @ w.T @ w, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.bias.detach(), -0.1 * g_bias, rtol=1e-10, atol=1e-10)
    assert optimizer.dense_steps == (batch >= D)
    assert layer.is_tracked


@sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_tracked_determinant_is_right_after_many_steps(dtype: torch.dtype, batch: int) -> None:
    layer = RelativeLinear(D, init=well_conditioned(D), dtype=dtype)
    optimizer = RelativeGradient(layer, lr=0.02)
    for _ in range(100):
        x, target = (t.to(dtype) for t in data(batch))
        optimizer.zero_grad()
        nll(layer(x), target, layer).backward()
        optimizer.step()
    assert layer.is_tracked
    expected = torch.linalg.slogdet(layer.weight.detach().double()).logabsdet
    close = 1e-4 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(layer.logabsdet().detach(), expected, rtol=close, atol=close)


def test_the_determinant_is_tracked_through_zero() -> None:
    """One step from det W = 1 to det W = -1/2."""
    layer = RelativeLinear(3, bias=False, dtype=torch.float64)
    optimizer = RelativeGradient(layer, lr=1.0)
    x = torch.eye(3, dtype=torch.float64)[:1]
    (1.5 * layer(x)[0, 0]).backward()
    optimizer.step()
    assert float(torch.linalg.det(layer.weight.detach())) == pytest.approx(-0.5)
    assert float(layer.logabsdet().detach()) == pytest.approx(-0.6931471805599453)


def test_equivariance() -> None:
    """Sources mixed by any A give the same trajectory of W A from the same W0 A0 (Cardoso and Laheld)."""
    dim, trajectories, plain = 6, [], []
    sources = torch.randn(40, 4, dim, dtype=torch.float64) ** 3
    for mixing in (torch.eye(dim, dtype=torch.float64), well_conditioned(dim)):
        start = torch.linalg.inv(mixing)
        layer = RelativeLinear(dim, init=start, bias=False, dtype=torch.float64)
        optimizer = RelativeGradient(layer, lr=0.02)
        euclid = nn.Parameter(start.clone())
        sgd = torch.optim.SGD([euclid], lr=0.02)
        systems = []
        for s in sources:
            x = s @ mixing.T
            optimizer.zero_grad()
            (layer(x).cosh().log().sum(-1).mean() - layer.logabsdet()).backward()
            optimizer.step()
            sgd.zero_grad()
            ((x @ euclid.T).cosh().log().sum(-1).mean() - torch.linalg.slogdet(euclid).logabsdet).backward()
            sgd.step()
            systems.append(layer.weight.detach() @ mixing)
        trajectories.append(torch.stack(systems))
        plain.append(euclid.detach() @ mixing)
    torch.testing.assert_close(*trajectories, rtol=1e-9, atol=1e-9)
    assert (trajectories[0][-1] - trajectories[0][0]).abs().max() > 0.1
    assert (plain[0] - plain[1]).abs().max() > 0.01  # the ordinary gradient is not equivariant


def test_relative_adam_is_adam_on_relative_gradients() -> None:
    layer = RelativeLinear(D, init=well_conditioned(D), dtype=torch.float64)
    w = nn.Parameter(layer.weight.detach().clone())
    b = nn.Parameter(torch.zeros(D, dtype=torch.float64))
    optimizer, adam = RelativeAdam(layer, lr=1e-2), torch.optim.Adam([b, w], lr=1e-2)
    for _ in range(5):
        x, target = data(4)
        optimizer.zero_grad()
        nll(layer(x), target, layer).backward()
        optimizer.step()
        adam.zero_grad()
        y = x @ w.T + b
        loss = (y - target).square().mean() + y.cosh().log().sum(-1).mean() - torch.linalg.slogdet(w).logabsdet
        loss.backward()
        w.grad = w.grad @ w.detach().T @ w.detach()
        adam.step()
    torch.testing.assert_close(layer.weight.detach(), w.detach(), rtol=1e-9, atol=1e-9)
    assert not layer.is_tracked
    expected = torch.linalg.slogdet(layer.weight).logabsdet
    torch.testing.assert_close(layer.logabsdet(), expected, rtol=1e-12, atol=1e-12)


def test_relative_adam_leaves_a_layer_alone_that_the_loss_does_not_see() -> None:
    model = nn.ModuleList([RelativeLinear(3), RelativeLinear(3)])
    optimizer = RelativeAdam(model, lr=0.1)
    for layers in (model, model[:1]):
        optimizer.zero_grad()
        before = model[1].weight.detach().clone()
        sum(layer(torch.ones(2, 3)).square().sum() for layer in layers).backward()
        optimizer.step()
    assert torch.equal(model[1].weight, before)


# --- the Cayley retraction ---


@sizes
def test_a_cayley_step_by_hand(batch: int) -> None:
    layer = CayleyLinear(D, init=haar(D), dtype=torch.float64)
    optimizer = CayleyDescent(layer, lr=0.3)
    x, target = data(batch)
    w = layer.weight.detach().clone()
    g, g_bias = euclidean(layer, lambda w, b: (x @ w.T + b - target).square().mean() * D)
    skew = g @ w.T - w @ g.T
    eye = torch.eye(D, dtype=torch.float64)
    expected = torch.linalg.inv(eye + 0.15 * skew) @ (eye - 0.15 * skew) @ w
    ((layer(x) - target).square().mean() * D).backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.bias.detach(), -0.3 * g_bias, rtol=1e-10, atol=1e-10)
    assert optimizer.dense_steps == (2 * batch >= D)


@pytest.mark.parametrize("batch", [4, 30], ids=["factored", "dense"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-13)], ids=["f32", "f64"])
def test_cayley_steps_stay_orthogonal(dtype: torch.dtype, limit: float, batch: int) -> None:
    layer = CayleyLinear(D, init=haar(D), dtype=dtype)
    optimizer = CayleyDescent(layer, lr=0.5)
    for _ in range(300):
        x, target = (t.to(dtype) for t in data(batch))
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert layer.violation() < limit


# --- what all share ---


def fit(layer: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return (layer(x) - target).square().sum()


optimizers = pytest.mark.parametrize("descent", OPTIMIZERS, ids=lambda descent: descent.__name__)


@optimizers
def test_batches_accumulate_until_the_step(descent: type) -> None:
    x, target = data(5)
    start = haar(D)
    weights = []
    for parts in ([slice(0, 5)], [slice(0, 2), slice(2, 5)]):
        layer = descent.layer_type(D, init=start, dtype=torch.float64)
        optimizer = descent(layer, lr=0.01)
        for part in parts:
            fit(layer, x[part], target[part]).backward()
        optimizer.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-12, atol=1e-12)


@optimizers
def test_gradients_that_come_from_elsewhere_count_too(descent: type) -> None:
    x, target = data(3)
    start = haar(D)
    weights = []
    for route in ("forward", "weight"):
        layer = descent.layer_type(D, init=start, bias=False, dtype=torch.float64)
        optimizer = descent(layer, lr=0.01)
        fit(layer, x, target).backward()
        second = layer(target) if route == "forward" else target @ layer.weight.T
        (second - x).square().sum().backward()
        assert (layer.matrix.grad is None) == (route == "forward")
        optimizer.step()
        # Six samples: twice as many are as many as the width.
        assert optimizer.dense_steps == {RelativeGradient: route == "weight", CayleyDescent: True}.get(descent, 0)
        weights.append(layer.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-11, atol=1e-11)


@optimizers
def test_a_step_consumes_and_zero_grad_clears(descent: type) -> None:
    layer = descent.layer_type(D, dtype=torch.float64)
    optimizer = descent(layer, lr=0.01)
    x, target = data(3)
    fit(layer, x, target).backward()
    optimizer.zero_grad()
    assert len(layer.factors()[0]) == 0
    optimizer.step()
    assert torch.equal(layer.weight, torch.eye(D, dtype=torch.float64))
    fit(layer, x, target).backward()
    assert layer.factors()[0].shape == (3, D)
    optimizer.step()
    assert len(layer.factors()[0]) == 0


@optimizers
def test_gradients_reach_what_comes_before(descent: type) -> None:
    x, target = data(3)
    x.requires_grad_()
    layer = descent.layer_type(D, init=haar(D), dtype=torch.float64)
    (expected,) = torch.autograd.grad(fit(layer, x, target), x)
    descent(layer, lr=0.01)
    (gradient,) = torch.autograd.grad(fit(layer, x, target), x)
    torch.testing.assert_close(gradient, expected)


@optimizers
def test_a_layer_that_is_evaluated_keeps_nothing(descent: type) -> None:
    layer = descent.layer_type(D, dtype=torch.float64)
    descent(layer, lr=0.01)
    with torch.no_grad():
        layer(data(3)[0])
    assert len(layer.factors()[0]) == 0


@optimizers
def test_other_parameters_get_plain_gradient_steps(descent: type) -> None:
    model = nn.Sequential(nn.Linear(D, D, dtype=torch.float64), descent.layer_type(D, dtype=torch.float64))
    before = model[0].weight.detach().clone()
    optimizer = descent(model, lr=0.01)
    x, target = data(3)
    optimizer.step(lambda: fit(model, x, target).backward())
    torch.testing.assert_close(model[0].weight.detach(), before - 0.01 * model[0].weight.grad)


@optimizers
def test_copies_keep_no_batch(descent: type) -> None:
    layer = descent.layer_type(D, dtype=torch.float64)
    descent(layer, lr=0.01)
    fit(layer, *data(3)).backward()
    twin = copy.deepcopy(layer)
    assert len(twin.factors()[0]) == 0
    assert len(layer.factors()[0]) == 3


@pytest.mark.parametrize("change", ["in place", "loaded", "assigned", "cast"])
def test_a_determinant_of_other_weights_is_not_reported(change: str) -> None:
    layer = RelativeLinear(3, dtype=torch.float64)
    RelativeGradient(layer, lr=0.1)
    assert layer.logabsdet() == 0
    state = {**layer.state_dict(), "matrix": 2 * torch.eye(3, dtype=torch.float64)}
    if change == "in place":
        with torch.no_grad():
            layer.matrix.mul_(2)
    elif change == "cast":
        with torch.no_grad():
            layer.matrix.data = 2 * layer.matrix.data
        layer.float()
    else:
        layer.load_state_dict(state, assign=change == "assigned")
    assert float(layer.logabsdet().detach()) == pytest.approx(3 * 0.6931471805599453)


@torch.no_grad()
def test_a_copy_that_was_changed_as_often_does_not_report_the_originals_determinant() -> None:
    layer = RelativeLinear(3, dtype=torch.float64)
    RelativeGradient(layer, lr=0.1)
    for _ in range(3):
        layer.matrix.mul_(1)
    assert layer.logabsdet() == 0
    twin = copy.deepcopy(layer)
    while twin.matrix._version < layer.matrix._version:
        twin.matrix.mul_(2)
    expected = torch.linalg.slogdet(twin.matrix).logabsdet
    assert expected > 0
    torch.testing.assert_close(twin.logabsdet(), expected)


@optimizers
def test_what_the_optimizers_refuse(descent: type) -> None:
    with pytest.raises(OptionError, match=f"contains no {descent.layer_type.__name__} layers"):
        descent(nn.Linear(2, 2), lr=0.1)
    with pytest.raises(OptionError, match="lr=0"):
        descent(descent.layer_type(2), lr=0)
