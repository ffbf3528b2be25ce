"""Transforms of torch.func, vectorized derivatives, checkpointing and compilers: right values, and no trace is left."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo
from p4.dense_twin import assert_bitwise, state_of
from p4.interrupts import FLOWS, layers, outputs, units, width
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint

from p4lab.p4 import MergeSchedule, p4_modules

# torch's own: forward mode and Dynamo use what torch says is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
F64 = torch.float64
VARIANTS = [variant for subject in (*layers(4, 2), *FLOWS) for variant in subject.variants()]
LAYERS = [variant for subject in layers(4, 2) for variant in subject.variants()]
models = pytest.mark.parametrize("make", [make for _, make in VARIANTS], ids=[name for name, _ in VARIANTS])
single = pytest.mark.parametrize("make", [make for _, make in LAYERS], ids=[name for name, _ in LAYERS])
Make = Callable[..., Any]


def amid_training(make: Make) -> nn.Module:
    """A model with a perturbation and without a remembered batch."""
    model = make(seed=0, dtype=F64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    """A model has forgotten what a transform did to it: merges are those of a twin that saw none of it."""
    assert_bitwise(state_of(model), before)
    assert all(layer.batch is None for layer in p4_modules(model))
    x = torch.randn(3, width(model), dtype=F64)
    y = outputs(model, x).detach()
    for unit in units(model):
        assert unit.merge()
    torch.testing.assert_close(outputs(model, x).detach(), y)


def by_loop(model: nn.Module, x: Tensor) -> Tensor:
    return torch.stack([torch.autograd.functional.jacobian(lambda t: outputs(model, t[None])[0], row) for row in x])


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd], ids=["jacrev", "jacfwd"])
@models
def test_jacobians_of_each_sample(make: Make, jacobian: Callable) -> None:
    model = amid_training(make)
    x = torch.randn(3, width(model), dtype=F64)
    expected = by_loop(copy.deepcopy(model), x)
    before = state_of(model)
    torch.testing.assert_close(vmap(jacobian(lambda t: outputs(model, t[None])[0]))(x), expected)
    untouched(model, before)


@models
def test_vectorized_jacobians(make: Make) -> None:
    model = amid_training(make)
    x = torch.randn(3, width(model), dtype=F64)
    expected = torch.autograd.functional.jacobian(lambda t: outputs(copy.deepcopy(model), t), x)
    before = state_of(model)
    result = torch.autograd.functional.jacobian(lambda t: outputs(model, t), x, vectorize=True)
    torch.testing.assert_close(result, expected)
    untouched(model, before)


@models
def test_gradients_of_many_cotangents_at_once(make: Make) -> None:
    model = amid_training(make)
    x, parameters = torch.randn(3, width(model), dtype=F64), list(model.parameters())
    y = outputs(copy.deepcopy(model), x)
    cotangents = torch.randn(2, *y.shape, dtype=F64)
    before = state_of(model)
    gradients = torch.autograd.grad(outputs(model, x), parameters, cotangents, is_grads_batched=True, allow_unused=True)
    for i, cotangent in enumerate(cotangents):
        twin = copy.deepcopy(model)
        expected = torch.autograd.grad(outputs(twin, x), list(twin.parameters()), cotangent, allow_unused=True)
        for g, e in zip(gradients, expected, strict=True):
            assert (g is None) == (e is None)
            if g is not None and e is not None:
                torch.testing.assert_close(g[i], e)
    untouched(model, before)


@models
def test_gradients_of_each_sample(make: Make) -> None:
    model = amid_training(make)
    x, parameters = torch.randn(3, width(model), dtype=F64), dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        y = functional_call(model, parameters, (row[None],))
        return torch.cat([y[0], y[1][:, None]], -1).square().sum() if isinstance(y, tuple) else y.square().sum()

    before = state_of(model)
    gradients = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, row in enumerate(x):
        twin = copy.deepcopy(model)
        outputs(twin, row[None]).square().sum().backward()
        for name, parameter in twin.named_parameters():
            torch.testing.assert_close(gradients[name][i], parameter.grad)
    untouched(model, before)


@single
def test_checkpointing_keeps_one_activation_of_twenty(make: Make) -> None:
    stack = nn.Sequential(*(make(seed=i, dtype=F64) for i in range(20)))
    wide = width(stack[0])
    x = torch.randn(331, wide, dtype=F64, requires_grad=True)

    def alive() -> int:
        gc.collect()
        return sum(type(t) is Tensor and t.shape == x.shape for t in gc.get_objects())

    before = alive()
    y = checkpoint(stack, x, use_reentrant=False)
    assert alive() - before == 1
    y.square().sum().backward()
    twin, x2 = copy.deepcopy(stack), x.detach().clone().requires_grad_()
    twin(x2).square().sum().backward()
    torch.testing.assert_close(x.grad, x2.grad)
    for layer, other in zip(p4_modules(stack), p4_modules(twin), strict=True):
        layer.merge()
        other.merge()
    assert_bitwise(state_of(stack), state_of(twin))


@single
def test_what_is_remembered_can_be_offloaded(make: Make) -> None:
    model = amid_training(make)
    x, packed = torch.randn(331, width(model), dtype=F64), []

    def pack(t: Tensor) -> Tensor:
        packed.append(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs(model, x).sum().backward()
    if any(getattr(layer, "reset_kind", "") == "gradient" and hasattr(layer, "v") for layer in p4_modules(model)):
        assert any(shape[:1] == (331,) for shape in packed)


# --- compilers ---


@pytest.mark.slow
@single
def test_one_graph_serves_all_merges(make: Make) -> None:
    """Forward and backward compile without a break and once, and train as the layer does without a compiler."""
    model = make(seed=0, dtype=F64)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    runs = []
    for layer, forward in ((model, compiled), (twin, twin)):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        runs.append((forward, optimizer, MergeSchedule(layer, optimizer, every=2, refine_every=2)))
    for _ in range(8):
        x = torch.randn(8, width(model), dtype=F64)
        for forward, optimizer, merges in runs:
            optimizer.zero_grad()
            (forward(x) - x.roll(1, -1)).square().mean().backward()
            optimizer.step()
            merges.step()
    assert counter.frame_count == 1
    torch.testing.assert_close(model.weight, twin.weight, rtol=0, atol=1e-12)
    for name, t in state_of(model).items():
        torch.testing.assert_close(t, state_of(twin)[name], rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("make", [subject.make for subject in FLOWS], ids=[subject.name for subject in FLOWS])
def test_flows_compile_without_a_break(make: Make) -> None:
    flow = amid_training(make)
    torch._dynamo.reset()
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    x = torch.randn(8, flow.dim, dtype=F64)
    torch.testing.assert_close(compiled(x), flow.log_prob(x))
    compiled(x).mean().backward()
    gradients = [p.grad.clone() for p in flow.parameters()]
    flow.zero_grad()
    flow.log_prob(x).mean().backward()
    for g, p in zip(gradients, flow.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad)
    for layer in p4_modules(flow):
        assert layer.merge()


@pytest.mark.slow
@models
def test_exports_take_batches_of_any_size(make: Make) -> None:
    model = amid_training(make).eval()
    example, x = (torch.randn(rows, width(model), dtype=F64) for rows in (3, 70))
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(outputs(program.module(), x), outputs(model, x))


# --- order ---


@pytest.mark.parametrize("input_gradient", [False, True], ids=["first", "inner"])
@models
def test_a_merge_before_the_backward_pass_is_refused_by_name(make: Make, input_gradient: bool) -> None:
    from p4lab.errors import MergeOrderError

    model = amid_training(make)
    x = torch.randn(3, width(model), dtype=F64, requires_grad=input_gradient)
    y = outputs(model, x).square().sum()
    for unit in units(model):
        unit.merge()
    with pytest.raises(MergeOrderError, match=r"was merged or reset.*merge after optimizer\.step"):
        y.backward()


@single
def test_an_inverse_before_a_merge_is_refused_by_name(make: Make) -> None:
    from p4lab.errors import MergeOrderError

    model = amid_training(make)
    if not hasattr(model, "inverse"):
        assert type(model).__name__ in ("P4Lipschitz", "P4Stiefel", "P4Spectrum")
        return
    y = model.inverse(torch.randn(3, width(model), dtype=F64)).square().sum()
    for unit in units(model):
        unit.merge()
    with pytest.raises(MergeOrderError):
        y.backward()


@single
def test_operations_in_place_may_follow(make: Make) -> None:
    model = amid_training(make)
    for shape in ((5,), (2, 3), ()):
        x = torch.randn(*shape, width(model), dtype=F64)
        gradients = torch.autograd.grad(nn.functional.relu(model(x), inplace=True).sum(), list(model.parameters()))
        expected = torch.autograd.grad(nn.functional.relu(model(x)).sum(), list(model.parameters()))
        for g, e in zip(gradients, expected, strict=True):
            torch.testing.assert_close(g, e)
