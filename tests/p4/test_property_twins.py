"""The P4 properties beyond invertibility against their dense twins: values, gradients, numerical derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from p4.dense_twin import BATCHES, RANKS, WEIGHTS, assert_like_twin, twin_tensors
from p4.property_zoo import CASES, INVERTIBLE, Case, perturb, width_in
from torch import Tensor, nn

from p4lab.p4 import p4_modules

DIMS = (1, 2, 3, 7, 32)
dims = pytest.mark.parametrize("dim", DIMS, ids="d{}".format)
ranks = pytest.mark.parametrize("rank", RANKS, ids="k{}".format)
batches = pytest.mark.parametrize("batch", BATCHES, ids=lambda b: "batch" + "x".join(map(str, b)) if b else "no-batch")
cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
operations = pytest.mark.parametrize(
    ("case", "operation"), [pytest.param(c, o, id=f"{c.name}-{o}") for c in CASES for o in c.operations]
)
derivatives = pytest.mark.parametrize(
    ("case", "operation"),
    [
        pytest.param(c, o, id=f"{c.name}-{o}")
        for c in CASES
        for o in (*c.operations, "weight", *(("weight_inverse",) if c in INVERTIBLE else ()))
    ],
)


@operations
@batches
@ranks
@dims
def test_value_and_gradients_in_float64(
    dim: int, rank: int, batch: tuple[int, ...], case: Case, operation: str
) -> None:
    layer = case.perturbed(dim, rank)
    assert_like_twin(layer, operation, batch, width_in(layer), tolerance=1e-9)


@operations
@pytest.mark.parametrize("reset", ["gaussian", "gradient"])
@ranks
@dims
def test_value_and_gradients_in_float32(dim: int, rank: int, reset: str, case: Case, operation: str) -> None:
    layer = case.perturbed(dim, rank, torch.float32, **({"reset": reset} if case.resets else {}))
    assert_like_twin(layer, operation, (5,), width_in(layer), tolerance=1e-3)


@operations
@pytest.mark.parametrize("merges", [1, 5])
def test_value_and_gradients_after_merges(merges: int, case: Case, operation: str) -> None:
    layer = case.perturbed(7, 2)
    for _ in range(merges):
        for part in p4_modules(layer):
            assert part.merge().merged
        perturb(layer, 0.2)
    assert_like_twin(layer, operation, (5,), width_in(layer), tolerance=1e-9)


@cases
@ranks
@dims
def test_weight_is_the_twins(dim: int, rank: int, case: Case) -> None:
    layer = case.perturbed(dim, rank)
    expected = WEIGHTS[type(layer)](twin_tensors(layer))
    torch.testing.assert_close(layer.weight, expected, rtol=1e-11, atol=1e-11, check_stride=False)


@pytest.mark.parametrize("case", INVERTIBLE, ids=lambda c: c.name)
@ranks
@dims
def test_weight_inverse_is_the_twins(dim: int, rank: int, case: Case) -> None:
    layer = case.perturbed(dim, rank)
    expected = torch.linalg.inv(WEIGHTS[type(layer)](twin_tensors(layer)))
    torch.testing.assert_close(layer.weight_inverse, expected, rtol=1e-9, atol=1e-9, check_stride=False)


def as_function(layer: nn.Module, operation: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The operation as a function of the input and of all that trains, and its arguments."""
    names = [name for name, _ in layer.named_parameters()]

    class Shell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer

        def forward(self, x: Tensor) -> Tensor:
            if operation in ("forward", "inverse"):
                return getattr(self.inner, operation)(x)
            result = getattr(self.inner, operation)
            return result() if callable(result) else result

    def call(x: Tensor, *values: Tensor) -> Tensor:
        parameters = {f"inner.{n}": v for n, v in zip(names, values, strict=True)}
        return torch.func.functional_call(Shell(), parameters, (x,))

    x = torch.randn(2, width_in(layer), dtype=torch.float64, requires_grad=True)
    return call, (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))


@derivatives
@pytest.mark.parametrize("rank", [1, 2], ids="k{}".format)
def test_first_derivatives(rank: int, case: Case, operation: str) -> None:
    assert torch.autograd.gradcheck(*as_function(case.perturbed(3, rank), operation))


@derivatives
def test_second_derivatives(case: Case, operation: str) -> None:
    assert torch.autograd.gradgradcheck(*as_function(case.perturbed(2, 2), operation))


@cases
def test_first_derivatives_at_rest(case: Case) -> None:
    assert torch.autograd.gradcheck(*as_function(case.make(3, 2, dtype=torch.float64), "forward"))
