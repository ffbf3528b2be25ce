"""Layers made on the meta device, under a default device, and cast up."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from p4.dense_twin import assert_bitwise, state_of
from p4.interrupts import FLOWS, layers, outputs, units, width

from p4lab.p4 import (
    MergeSchedule,
    P4Circulant,
    P4Givens,
    P4Inv,
    P4Lipschitz,
    P4Module,
    P4Orthogonal,
    P4PositiveDefinite,
    P4Reflections,
    P4SpecialLinear,
    P4Spectrum,
    P4Stiefel,
    p4_modules,
)

KINDS = (
    P4Inv,
    P4Orthogonal,
    P4Reflections,
    P4Givens,
    P4SpecialLinear,
    P4PositiveDefinite,
    P4Lipschitz,
    P4Stiefel,
    P4Spectrum,
    P4Circulant,
)
VARIANTS = [variant for subject in (*layers(5, 2), *FLOWS) for variant in subject.variants()]
models = pytest.mark.parametrize("make", [make for _, make in VARIANTS], ids=[name for name, _ in VARIANTS])
Make = Callable[..., Any]


def trained(model: torch.nn.Module, steps: int = 3) -> torch.nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    merges = MergeSchedule(model, optimizer, every=2, refine_every=1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        dtype = next(model.parameters()).dtype
        x = torch.randn(8, width(model), generator=generator, dtype=dtype, device="cpu")
        optimizer.zero_grad()
        outputs(model, x).square().mean().backward()
        optimizer.step()
        merges.step()
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@models
def test_a_state_is_assigned_to_a_model_without_memory(make: Make, dtype: torch.dtype) -> None:
    source = trained(make(seed=0, dtype=dtype))
    model = make(seed=1, dtype=torch.float32).to("meta")
    model.load_state_dict(copy.deepcopy(source.state_dict()), assign=True)  # it takes the tensors themselves
    assert_bitwise(state_of(trained(model)), state_of(trained(source)))


@pytest.mark.parametrize("init", ["identity", "orthogonal"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_layer_is_made_on_the_meta_device(kind: type[P4Module], init: str) -> None:
    if init == "orthogonal" and kind in (P4PositiveDefinite, P4Circulant):
        init = "identity"  # the only start that they have by name
    sizes = (4, 4) if kind in (P4Lipschitz, P4Stiefel, P4Spectrum) else (4,)
    layer, real = None, kind(*sizes, init=init)  # type: ignore[call-arg]
    with torch.device("meta"):
        layer = kind(*sizes, init=init)  # type: ignore[call-arg]
    assert all(t.is_meta for t in [*layer.parameters(), *layer.buffers()])
    layer.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(3, 4)
    torch.testing.assert_close(layer(x), real(x))
    assert layer.merge()


@models
def test_a_default_device_is_for_what_has_none(make: Make) -> None:
    model = make(seed=0)
    twin = copy.deepcopy(model)
    with torch.device("meta"):  # where nothing can be computed: whatever lands there by mistake is noticed
        trained(model)
        for layer in p4_modules(model):
            layer.violation()
            layer.recompute()
        copy.deepcopy(model).fold() if hasattr(model, "fold") else None
        for unit in units(model):
            if hasattr(unit, "reset"):
                unit.reset()
    trained(twin)
    for layer in p4_modules(twin):
        layer.recompute()
    for unit in units(twin):
        if hasattr(unit, "reset"):
            unit.reset()
    assert_bitwise(state_of(model), state_of(twin))


@models
def test_a_model_that_is_cast_up_is_exact_in_its_new_dtype(make: Make) -> None:
    model = trained(make(seed=0, dtype=torch.float32), 20).double()
    for layer in p4_modules(model):
        weight = layer.weight.detach()
        if hasattr(layer, "weight_inverse"):
            eye = torch.eye(len(weight), dtype=torch.float64)
            torch.testing.assert_close(weight @ layer.weight_inverse, eye, rtol=0, atol=1e-11)
        if hasattr(layer, "logabsdet"):
            torch.testing.assert_close(layer.logabsdet(), torch.linalg.slogdet(weight).logabsdet, rtol=0, atol=1e-11)
        assert layer.violation() < 1e-11
