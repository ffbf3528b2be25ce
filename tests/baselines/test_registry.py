"""The registry says the truth: what each method knows, and what a training step of it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from p4lab.baselines import METHODS, Method, penalty
from p4lab.baselines.registry import Group
from p4lab.errors import OptionError

D, BATCH = 160, 6
FACTORIZATIONS = ("lu", "inv", "solve", "det", "qr", "svd", "eig", "cholesky", "matrix_exp", "geqrf", "householder")
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
methods = pytest.mark.parametrize("name", METHODS)


class CubicCalls(TorchDispatchMode):
    """Collects factorizations of d x d matrices, and products and triangular solves of two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        large = [t.numel() >= D * D for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if name in PRODUCTS or "triangular" in name:
            cubic = sum(large[-2:]) == 2
        else:
            cubic = any(large) and name != "detach" and any(part in name for part in FACTORIZATIONS)
        if cubic:
            self.names.add(name)
        return func(*args, **(kwargs or {}))


def cubic_calls(work: Callable[[], object]) -> set[str]:
    with CubicCalls() as calls:
        work()
    return calls.names


def training_step(method: Method) -> Callable[[], None]:
    layer = method.build(D, seed=0)
    optimizer = method.optimizer(layer, 1e-3, next(iter(method.optimizers)))
    schedule = method.schedule(layer, optimizer)
    x = torch.randn(BATCH, D, requires_grad=True)

    def step() -> None:
        optimizer.zero_grad()
        loss = layer(x).square().mean() + penalty(layer)
        if method.has_likelihood:
            loss = loss - (layer.logabsdet() if method.linear else layer.logabsdet(x).mean())
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()

    step()  # what happens once (the first determinant of a tracked layer) is not part of a step
    return step


@methods
def test_cubic_is_said_honestly(name: str) -> None:
    calls = cubic_calls(training_step(METHODS[name]))
    assert bool(calls) == METHODS[name].cubic, calls


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].exact_inverse])
def test_cubic_inverse_is_said_honestly(name: str) -> None:
    layer, y = METHODS[name].build(D, seed=0), torch.randn(BATCH, D)
    calls = cubic_calls(lambda: layer.inverse(y))
    assert bool(calls) == METHODS[name].cubic_inverse, calls


@methods
def test_an_entry_is_complete(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.label
    assert method.source
    assert method.group in get_args(Group)
    assert (method.cubic_inverse is None) == (not method.exact_inverse)
    assert not (method.exact_logabsdet and method.exact_when_evaluated)


def test_labels_are_unique() -> None:
    assert len({method.label for method in METHODS.values()}) == len(METHODS)


@methods
def test_everything_builds_alike(name: str) -> None:
    method = METHODS[name]
    options = {"init": "identity", "bias": False} if method.linear else {}
    layer = method.build(4, seed=0, dtype=torch.float64, device="cpu", **options)
    assert layer(torch.zeros(2, 4, dtype=torch.float64)).dtype == torch.float64
    for kind in method.optimizers:
        assert method.optimizer(layer, 1e-2, kind).param_groups[0]["lr"] == 1e-2


@methods
def test_an_unknown_optimizer_is_refused(name: str) -> None:
    method = METHODS[name]
    with pytest.raises(OptionError, match=f"method '{name}' has no optimizer 'nonsense'"):
        method.optimizer(method.build(4, seed=0), 1e-2, "nonsense")


@methods
def test_unknown_options_are_refused_with_the_known_ones(name: str) -> None:
    method = METHODS[name]
    with pytest.raises(
        OptionError, match=rf"^method '{name}' has no option 'dtpye' \(did you mean 'dtype'\?\): it knows"
    ):
        method.build(4, dtpye=torch.float64)
    layer = method.build(4, seed=0)
    for kind in method.optimizers:
        with pytest.raises(OptionError, match="has no option 'momentun'"):
            method.optimizer(layer, 1e-2, kind, momentun=0.5)


def test_options_reach_the_optimizer() -> None:
    method = METHODS["dense"]
    optimizer = method.optimizer(method.build(3), 0.1, "sgd", momentum=0.3)
    assert optimizer.param_groups[0]["momentum"] == 0.3
