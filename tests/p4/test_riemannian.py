"""P4Riemannian against explicit dense algebra in float64, in both regimes, and what it costs."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from p4.rotations import orthogonal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from p4lab.baselines import CayleyDescent, CayleyLinear
from p4lab.errors import MergeOrderError, OptionError
from p4lab.p4 import MergeSchedule, P4Riemannian

D = 12
LR = 0.7
REGIMES = {"rows": 8, "dense": D}
DIRECTIONS = ("forward", "inverse", "both")

regimes = pytest.mark.parametrize("rank", REGIMES.values(), ids=REGIMES)
directions = pytest.mark.parametrize("direction", DIRECTIONS)


def layer_of(rank: int, dim: int = D, **options: Any) -> P4Riemannian:
    options = {"init": orthogonal(dim), "dtype": torch.float64, "seed": 1} | options
    layer = P4Riemannian(dim, rank=rank, **options)
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.normal_()
    return layer


def value(x: Tensor, weights: Tensor) -> Tensor:
    """A loss whose gradients have nothing special."""
    return (x * weights).sum() + (x.roll(1, -1) * x.square()).sum() / 3


def loss_of(direction: str, forward: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    total = x.new_zeros(())
    if direction != "inverse":
        total = total + value(forward(x), weights)
    if direction != "forward":
        total = total + value(inverse(x.flip(0)), weights.flip(1))
    return total


def skew_gradient(weight: Tensor, bias: Tensor, loss: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    """``G W^T - W G^T`` by automatic differentiation of explicit algebra, and the gradient at the bias."""
    weight, bias = weight.detach().clone().requires_grad_(), bias.detach().clone().requires_grad_()
    total = loss(lambda x: x @ weight.T + bias, lambda y: torch.linalg.solve(weight, (y - bias).T).T)
    gradient, of_bias = torch.autograd.grad(total, (weight, bias))
    e = gradient @ weight.detach().T
    return e - e.T, of_bias


def cayley(weight: Tensor, skew: Tensor, lr: float) -> Tensor:
    eye = torch.eye(len(weight), dtype=weight.dtype)
    return torch.linalg.solve(eye + lr / 2 * skew, (eye - lr / 2 * skew) @ weight)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


# --- what a step is --------------------------------------------------------------------------------------------------


@regimes
@directions
@pytest.mark.parametrize("shape", [(4, D), (3, D), (2, 2, D), (D,)], ids=str)
@pytest.mark.parametrize("needs", [False, True], ids=["data", "input-gradient"])
def test_a_step_is_that_of_the_cayley_retraction(
    rank: int, direction: str, shape: tuple[int, ...], needs: bool
) -> None:
    layer = layer_of(rank)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LR / D)
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=needs)
        flat = x.detach().reshape(-1, D).requires_grad_(needs)
        before, bias = layer.weight.detach(), layer.bias
        assert bias is not None
        skew, of_bias = skew_gradient(before, bias, lambda f, g, flat=flat: loss_of(direction, f, g, flat))
        optimizer.zero_grad()
        rows = (lambda y: layer(y.view(shape)).view(-1, D), lambda y: layer.inverse(y.view(shape)).view(-1, D))
        loss_of(direction, *rows, flat).backward()
        assert bias.grad is not None
        assert close(bias.grad, of_bias)
        optimizer.step()
        expected = cayley(before, skew, LR / D)
        assert close(layer.weight.detach(), expected)  # before the merge
        x = torch.randn(5, D, dtype=torch.float64)
        assert close(layer(x).detach(), x @ expected.T + bias.detach())
        assert close(layer.inverse(layer(x)).detach(), x)
        assert layer.merge()
        assert close(layer.frozen_weight, expected)
        assert close(layer(x).detach(), x @ expected.T + bias.detach())
        assert close(layer.inverse(layer(x)).detach(), x)


@regimes
@directions
@pytest.mark.parametrize("merged", [True, False], ids=["merged", "perturbed"])
def test_gradients_at_the_input_and_the_bias_are_those_of_the_matrix(rank: int, direction: str, merged: bool) -> None:
    layer = layer_of(rank)
    if not merged:
        optimizer = torch.optim.SGD([layer.u], lr=0.05)
        loss_of("forward", layer, layer.inverse, torch.randn(4, D, dtype=torch.float64)).backward()
        optimizer.step()
        layer.zero_grad()
    x = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    twin, bias = x.detach().clone().requires_grad_(), layer.bias
    assert bias is not None
    loss_of(direction, layer, layer.inverse, x).backward()
    weight, shift = layer.weight.detach(), bias.detach().clone().requires_grad_()
    loss_of(direction, lambda x: x @ weight.T + shift, lambda y: (y - shift) @ weight, twin).backward()
    for actual, expected in ((x.grad, twin.grad), (bias.grad, shift.grad)):
        assert actual is not None
        assert expected is not None
        assert close(actual, expected)


@regimes
def test_it_walks_with_the_baseline(rank: int) -> None:
    ours = layer_of(rank, dim=20 if rank < D else 8, bias=False)
    theirs = CayleyLinear(ours.dim, init=ours.weight.detach(), dtype=torch.float64, bias=False)
    steps = torch.optim.SGD(ours.parameters(), lr=LR), CayleyDescent(theirs, lr=LR)
    merges = MergeSchedule(ours, steps[0], every=1)
    for _ in range(30):
        x, t = torch.randn(2, 7, ours.dim, dtype=torch.float64)
        for layer, optimizer in zip((ours, theirs), steps, strict=True):
            optimizer.zero_grad()
            (layer(x) - t).square().mean().backward()
            optimizer.step()
        assert all(merges.step())
        assert close(ours.weight.detach(), theirs.weight.detach(), 1e-11)


@regimes
@directions
def test_batches_accumulate(rank: int, direction: str) -> None:
    layer = layer_of(rank)
    parts = torch.randn(2, 2, D, dtype=torch.float64)
    skew, _ = skew_gradient(
        layer.weight,
        torch.zeros(D).double() if layer.bias is None else layer.bias,
        lambda f, g: sum(loss_of(direction, f, g, part) for part in parts),
    )
    before, optimizer = layer.weight.detach(), torch.optim.SGD([layer.u], lr=0.1)
    for part in parts:
        loss_of(direction, layer, layer.inverse, part).backward()
    optimizer.step()
    assert layer.merge()
    assert close(layer.frozen_weight, cayley(before, skew, 0.1))


@regimes
def test_several_steps_between_merges_descend_to_first_order(rank: int) -> None:
    layer = layer_of(rank)
    optimizer = torch.optim.SGD([layer.u], lr=1e-5)
    expected = layer.weight.detach()
    for _ in range(2):
        x = torch.randn(4, D, dtype=torch.float64)
        assert layer.bias is not None
        skew, _ = skew_gradient(expected, layer.bias, lambda f, g, x=x: loss_of("both", f, g, x[:2]))
        optimizer.zero_grad()
        loss_of("both", layer, layer.inverse, x[:2]).backward()
        optimizer.step()
        expected = cayley(expected, skew, 1e-5)
    moved = (layer.weight - expected).abs().max()
    assert float(moved.detach()) < 1e-6
    assert layer.merge()
    assert float(layer.violation()) < 1e-13


def test_a_batch_larger_than_the_rank_is_right_in_the_mean() -> None:
    layer = layer_of(4, bias=False)
    before, x = layer.weight.detach(), torch.randn(10, D, dtype=torch.float64)
    skew, _ = skew_gradient(before, torch.zeros(D, dtype=torch.float64), lambda f, g: loss_of("forward", f, g, x))
    lr, draws, total = 1e-7, 4000, torch.zeros_like(before)
    optimizer = torch.optim.SGD([layer.u], lr=lr)
    for _ in range(draws):
        with torch.no_grad():
            layer.frozen_weight.copy_(before)
        optimizer.zero_grad()
        loss_of("forward", layer, layer.inverse, x).backward()
        optimizer.step()
        assert layer.merge()
        total += (before - layer.frozen_weight) @ before.T / lr
    error, size = (total / draws - skew).abs().max(), skew.abs().max()
    assert float(error / size) < 0.1


def test_more_samples_than_rows_in_two_batches_are_refused() -> None:
    layer = layer_of(8)
    layer(torch.randn(5, D, dtype=torch.float64)).sum().backward()
    with pytest.raises(MergeOrderError, match=r"P4Riemannian\(dim=12, rank=8\) has 3 rows left .* 5 samples"):
        layer(torch.randn(5, D, dtype=torch.float64)).sum().backward()
    layer.zero_grad()
    layer(torch.randn(5, D, dtype=torch.float64)).sum().backward()


# --- what stays true -------------------------------------------------------------------------------------------------


@regimes
@pytest.mark.parametrize("refine_every", [0, 50])
def test_it_stays_orthogonal_for_2000_steps_in_float32(rank: int, refine_every: int) -> None:
    layer = P4Riemannian(D, rank=rank, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3 * D)
    merges = MergeSchedule(layer, optimizer, every=1, refine_every=refine_every)
    target = orthogonal(D).float()
    for _ in range(2000):
        optimizer.zero_grad()
        x = torch.randn(8, D)
        (layer(x) - x @ target.T - 0.3 * torch.randn(8, D)).square().mean().backward()
        optimizer.step()
        merges.step()
    assert float(layer.violation()) < (1e-5 if refine_every else 3e-4)
    assert float(layer.logabsdet()) == 0
    assert layer.sign() == torch.linalg.slogdet(layer.weight).sign


@regimes
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_any_perturbation_is_a_rotation(rank: int, size: float) -> None:
    layer = layer_of(rank)
    loss_of("both", layer, layer.inverse, torch.randn(4, D, dtype=torch.float64)).backward()
    with torch.no_grad():
        layer.u.normal_(std=size)
    weight, eye = layer.weight.detach(), torch.eye(D, dtype=torch.float64)
    assert close(weight @ weight.T, eye, 1e-10)
    assert layer.merge()
    assert close(layer.frozen_weight, weight, 1e-10)


@regimes
def test_a_step_that_is_too_long_is_dropped(rank: int) -> None:
    layer = layer_of(rank, dtype=torch.float32)
    before = layer.frozen_weight.clone()
    layer(torch.randn(4, D)).square().mean().backward()
    torch.optim.SGD(layer.parameters(), lr=1e9).step()
    report = layer.merge()
    assert report.status.name == "DISCARDED_SINGULAR"
    assert "too long" in report.reason
    assert torch.equal(layer.frozen_weight, before)
    assert not layer.u.any()


@regimes
def test_correct_brings_it_back(rank: int) -> None:
    layer = layer_of(rank)
    with torch.no_grad():
        layer.frozen_weight.add_(1e-4 * torch.randn(D, D))
    assert float(layer.correct()) < 1e-6
    assert float(layer.violation()) < 1e-6


def test_with_rows_momentum_is_dropped_and_without_it_is_kept() -> None:
    for rank, kept in ((8, False), (D, True)):
        layer = layer_of(rank)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        merges = MergeSchedule(layer, optimizer, every=1)
        layer(torch.randn(4, D, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
        assert all(merges.step())
        assert bool(optimizer.state[layer.u]["momentum_buffer"].any()) is kept


def test_rows_take_plain_descent_in_one_process() -> None:
    layer = layer_of(8)
    with pytest.raises(OptionError, match="plain descent"):
        MergeSchedule(layer, torch.optim.Adam(layer.parameters()), every=1)
    with pytest.raises(OptionError, match="P4Orthogonal with reset='gradient'"):
        layer.plan(lambda part: 2 * part)
    narrow = layer_of(D)
    optimizer = torch.optim.Adam(narrow.parameters(), lr=0.01)
    MergeSchedule(narrow, optimizer, every=1)
    assert narrow.plan(lambda part: part).report


@regimes
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("moment", ["backward", "step", "merge"])
def test_a_copy_goes_on_alike(rank: int, how: str, moment: str) -> None:
    layer = layer_of(rank)
    loss_of("both", layer, layer.inverse, torch.randn(4, D, dtype=torch.float64)).backward()
    if moment != "backward":
        torch.optim.SGD(layer.parameters(), lr=0.1).step()
    if moment == "merge":
        assert layer.merge()
        layer.zero_grad()
    if how == "state_dict":
        twin = P4Riemannian(D, rank=rank, seed=9, dtype=torch.float64)
        twin.load_state_dict(layer.state_dict())
    else:
        twin = copy.deepcopy(layer) if how == "deepcopy" else pickle.loads(pickle.dumps(layer))
    x = torch.randn(3, D, dtype=torch.float64)
    results, gradients = [], [None if p.grad is None else p.grad.clone() for p in layer.parameters()]
    for one in (layer, twin):
        for parameter, gradient in zip(one.parameters(), gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.clone()  # copies have none
        y = one(x).detach()
        torch.optim.SGD(one.parameters(), lr=0.1).step()
        assert one.merge()
        one.zero_grad()
        one(torch.ones(10, D, dtype=torch.float64) / torch.arange(1, 11).unsqueeze(1)).square().sum().backward()
        results.append((y, one.frozen_weight, one.u.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@regimes
def test_a_cast_layer_goes_on(rank: int) -> None:
    layer = layer_of(rank)
    loss_of("both", layer, layer.inverse, torch.randn(4, D, dtype=torch.float64)).backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    weight = layer.weight.detach()
    layer.float()
    assert close(layer.weight.detach().double(), weight, 1e-5)
    assert layer.merge()
    assert close(layer.weight.detach().double(), weight, 1e-5)
    assert float(layer.double().violation()) < 1e-10


@regimes
def test_autocast_keeps_the_group(rank: int) -> None:
    layer = layer_of(rank, dtype=torch.float32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(torch.randn(4, D))
            back = layer.inverse(y)
        assert y.dtype is torch.bfloat16
        (y.float().square().sum() + back.float().roll(1, 1).pow(3).sum()).backward()
        optimizer.step()
        assert layer.merge()
    assert float(layer.violation()) < 1e-5


@regimes
def test_transforms_of_torch_differentiate_by_u(rank: int) -> None:
    layer = layer_of(rank)
    loss_of("both", layer, layer.inverse, torch.randn(4, D, dtype=torch.float64)).backward()
    torch.optim.SGD(layer.parameters(), lr=0.05).step()
    x = torch.randn(D, dtype=torch.float64)
    jacobian = torch.func.jacrev(layer)(x)
    assert close(jacobian.detach(), layer.weight.detach())
    assert close(torch.func.jacrev(layer.inverse)(x).detach(), layer.weight.detach().T)
    layer.zero_grad()
    vectorized = torch.autograd.functional.jacobian(layer, x, vectorize=True)
    assert close(vectorized, layer.weight.detach())


@regimes
def test_a_derivative_of_a_gradient_is_refused(rank: int) -> None:
    layer = layer_of(rank)
    x = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    with pytest.raises(OptionError, match="create_graph=True"):
        torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)


@regimes
def test_nothing_to_merge_is_merged(rank: int) -> None:
    layer = layer_of(rank)
    before = layer.frozen_weight.clone()
    assert layer.merge()
    layer(torch.zeros(0, D, dtype=torch.float64)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert layer.merge()
    assert close(layer.frozen_weight, before, 1e-15)


def test_samples_without_a_gradient_turn_nothing() -> None:
    layer = layer_of(8)
    before = layer.frozen_weight.clone()
    (0 * layer(torch.randn(4, D, dtype=torch.float64))).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert layer.merge()
    assert torch.equal(layer.frozen_weight, before)


def test_clipping_the_gradient_shortens_the_step() -> None:
    layer = layer_of(8)
    x = torch.randn(4, D, dtype=torch.float64)
    y = layer(x)
    (g,) = torch.autograd.grad(y.square().sum(), y)
    layer(x).square().sum().backward()
    norm = torch.nn.utils.clip_grad_norm_([layer.u], 1e-3)
    assert math.isclose(float(norm), float(g.norm()), rel_tol=1e-12)


# --- what is computed ------------------------------------------------------------------------------------------------


class Count(TorchDispatchMode):
    """Adds up the multiply-adds of products, and notes what is factorized."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications, self.factorized, self.largest = 0, [], 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in ("mm", "addmm", "addmm_"):
            a, b = args[-2:]
            self.multiplications += a.shape[0] * a.shape[1] * b.shape[1]
        elif name in ("linalg_inv_ex", "_linalg_solve_ex", "linalg_solve_ex"):
            self.factorized.append(args[0].shape[0])
        if isinstance(result, Tensor) and not name.endswith("_") and result.untyped_storage().nbytes():
            fresh = all(result.data_ptr() != t.data_ptr() for t in args if isinstance(t, Tensor))
            self.largest = max(self.largest, result.numel() if fresh else 0)
        return result


def test_a_step_with_rows_costs_five_products_of_the_batch_and_the_matrix() -> None:
    d, b = 256, 8
    layer = P4Riemannian(d, rank=16, seed=0, init="orthogonal")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for needs in (False, True):
        optimizer.zero_grad()
        x = torch.randn(b, d, requires_grad=needs)
        with Count() as there:
            y = layer(x)
        with Count() as back:
            y.square().mean().backward()
        optimizer.step()
        with Count() as merge:
            assert layer.merge()
        small = (2 * b) ** 2 * d
        assert there.multiplications == b * d**2
        assert back.multiplications == 2 * b * d**2  # with an input gradient or without
        assert merge.multiplications == 2 * b * d**2 + 2 * small
        assert merge.factorized == [2 * b]
        assert max(there.largest, back.largest, merge.largest) < d**2


def test_a_step_without_rows_solves_one_system() -> None:
    d, b = 32, 40
    layer = P4Riemannian(d, rank=d, seed=0, bias=False)
    with Count() as there:
        y = layer(torch.randn(b, d))
    with Count() as back:
        y.square().mean().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    with Count() as merge:
        assert layer.merge()
    assert (there.multiplications, back.multiplications, merge.multiplications) == (b * d**2, b * d**2, 0)
    assert merge.factorized == [d]
