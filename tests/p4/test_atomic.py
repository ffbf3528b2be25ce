"""All or nothing where it is easily forgotten: modes of torch, copies, failing writes, states, casts and counts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from p4.dense_twin import assert_bitwise, state_of
from p4.interrupts import interrupted_at, layers, outputs, units, width
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from p4lab.p4 import Changes, MergeSchedule, P4Circulant, P4Inv, p4_modules

F64 = torch.float64
LAYERS = [(n, make) for subject in layers(5, 2) for n, make in subject.variants()]
every_layer = pytest.mark.parametrize("make", [make for _, make in LAYERS], ids=[name for name, _ in LAYERS])
Make = Callable[..., Any]


@every_layer
def test_a_merge_in_inference_mode_leaves_a_layer_that_merges(make: Make) -> None:
    model = make(seed=0, dtype=F64)
    with torch.inference_mode():
        for unit in units(model):
            unit.merge()
            unit.correct()
    with torch.no_grad():
        for layer in p4_modules(model):
            layer.u.normal_(std=0.1)
    x = torch.randn(3, width(model), dtype=F64)
    before = outputs(model, x).detach()
    for unit in units(model):
        assert unit.merge()
    torch.testing.assert_close(outputs(model, x).detach(), before)
    outputs(model, x).sum().backward()


@pytest.mark.parametrize("how", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("attached", [False, True])
def test_a_copied_schedule_goes_on_counting(how: Callable[[Any], Any], attached: bool) -> None:
    layer = P4Inv(4, seed=0)
    optimizer = torch.optim.Adam(layer.parameters())
    merges = MergeSchedule(layer, optimizer, every=2)
    if attached:
        merges.attach()
    layer, optimizer, merges = how((layer, optimizer, merges))
    for _ in range(4):
        layer(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        if not attached:
            merges.step()
    assert (merges.steps, merges.attempts) == (4, 2)


class FailingAt(TorchDispatchMode):
    """Raises before the n-th operation, once."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make",
    [lambda: P4Inv(4, rank=1, dtype=F64, seed=0), lambda: P4Circulant(4, dtype=F64)],
    ids=["P4Inv", "P4Circulant"],
)
def test_decay_with_a_refused_merge_is_all_or_nothing(make: Callable[[], Any]) -> None:
    """A failing operation amid the writes: the weights have decayed, or not, but never a part of them."""
    number, struck = 0, 0
    while True:
        number += 1
        layer = make()
        merges = MergeSchedule(layer, torch.optim.SGD(layer.parameters(), lr=0.5), every=1, weight_decay=1.0)
        layer.min_factor = 1 - 1e-12
        with torch.no_grad():
            layer.u.copy_(torch.linspace(-0.3, -0.1, layer.u.numel()).view_as(layer.u))
        before = layer.weight.detach()
        try:
            with FailingAt(number):
                merges.step()
            break
        except KeyboardInterrupt:
            struck += 1
        after = layer.weight.detach()
        assert any(torch.allclose(after, factor * before, rtol=0, atol=1e-12) for factor in (1.0, 0.5)), number
    assert struck > 20


def test_a_write_that_fails_for_good_does_not_stop_the_others() -> None:
    a, b = torch.zeros(2), torch.zeros(2)

    def fail() -> None:
        raise MemoryError

    changes = Changes()
    changes.put(a, torch.ones(2))
    changes.write(torch.zeros(1), fail)
    changes.put(b, torch.ones(2))
    with pytest.raises(MemoryError):
        changes.commit()
    assert a.all()
    assert b.all()


@every_layer
def test_a_state_of_another_shape_changes_nothing(make: Make) -> None:
    model = make(seed=0, dtype=F64)
    before, state = state_of(model), model.state_dict()
    for name, tensor in model.state_dict().items():
        if torch.is_tensor(tensor) and tensor.dim():
            other = {k: 2 * t if torch.is_tensor(t) and t.is_floating_point() else t for k, t in state.items()}
            other[name] = torch.zeros(tensor.shape[0] + 1, *tensor.shape[1:], dtype=tensor.dtype)
            with pytest.raises(RuntimeError, match=r"size mismatch.*Nothing of this layer was loaded"):
                model.load_state_dict(other)
            if len(p4_modules(model)) == 1:
                assert_bitwise(state_of(model), before)


@every_layer
def test_an_interrupted_cast_casts_nothing(make: Make) -> None:
    model = make(seed=0, dtype=F64)
    layer = p4_modules(model)[0]
    x = torch.randn(3, width(model), dtype=F64)
    before, y = state_of(model), outputs(model, x).detach()
    for number in range(1, 100):
        left = number

        def cast(t: Tensor) -> Tensor:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return t.float() if t.is_floating_point() else t

        try:
            layer._apply(cast)
        except KeyboardInterrupt:
            assert_bitwise(state_of(model), before)
            assert torch.equal(outputs(model, x).detach(), y)
        else:
            assert number > 3
            assert next(layer.parameters()).dtype == torch.float32
            return


def test_momentum_in_a_narrower_dtype_is_carried() -> None:
    layer = P4Inv(4, rank=2, reset="gradient", seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    merges = MergeSchedule(layer, optimizer)
    layer(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    state = optimizer.state[layer.u]
    state["momentum_buffer"] = state["momentum_buffer"].bfloat16()
    before = state["momentum_buffer"].clone()
    assert merges.merge()[0]
    assert state["momentum_buffer"].dtype == torch.bfloat16
    assert not torch.equal(state["momentum_buffer"], before)


@pytest.mark.filterwarnings("ignore")  # of the tracer
@every_layer
def test_training_layers_can_be_traced(make: Make) -> None:
    model = make(seed=0, dtype=F64)
    x = torch.randn(3, width(model), dtype=F64)
    traced = torch.jit.trace(model, x, check_trace=False)
    torch.testing.assert_close(traced(x), model(x))


def test_counting_a_step_is_all_or_nothing() -> None:
    layer = P4Inv(3, seed=0)
    merges = MergeSchedule(layer, torch.optim.SGD(layer.parameters(), lr=0.1), every=100, weight_decay=1.0)
    number = 1
    while True:
        steps, factors = merges.steps, merges.state_dict()["factors"]
        struck = interrupted_at(number, merges.step)
        counted = merges.steps - steps
        assert merges.state_dict()["factors"] == pytest.approx([factors[0] * 0.9**counted])
        if not struck:
            break
        number += 1
    assert number > 5
