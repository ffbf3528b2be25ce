"""Numerical first and second derivatives of everything differentiable in P4Inv, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from p4.dense_twin import amid_training
from torch import Tensor

from p4lab.p4 import P4Inv

train_v = pytest.mark.parametrize("train_v", [False, True], ids=["v-fixed", "v-trained"])
ranks = pytest.mark.parametrize("rank", [1, 2, 5], ids="k{}".format)
resets = pytest.mark.parametrize("reset", ["gaussian", "gradient"])
operations = pytest.mark.parametrize(
    "operation", ["forward", "inverse", "logabsdet", "penalty", "weight", "weight_inverse"]
)


def as_function(layer: P4Inv, operation: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The operation as a function of the input and of all that trains, and its arguments."""
    names = [name for name, _ in layer.named_parameters()]

    class Shell(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            if operation in ("forward", "inverse"):
                return getattr(self.layer, operation)(x)
            if operation == "penalty":
                return self.layer.penalty(strength=0.3, floor=3.0, ceiling=-3.0)
            result = getattr(self.layer, operation)
            return result() if callable(result) else result

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(Shell(), {f"layer.{n}": v for n, v in zip(names, values, strict=True)}, (x,))

    x = torch.randn(2, layer.dim, dtype=torch.float64, requires_grad=True)
    return call, (x, *(p.detach().clone().requires_grad_() for p in layer.parameters()))


@operations
@resets
@train_v
@ranks
def test_first_derivatives(rank: int, train_v: bool, reset: str, operation: str) -> None:
    layer = amid_training(3, rank, train_v=train_v, reset=reset)
    assert torch.autograd.gradcheck(*as_function(layer, operation))


@operations
@resets
@train_v
@ranks
def test_second_derivatives(rank: int, train_v: bool, reset: str, operation: str) -> None:
    layer = amid_training(3, rank, train_v=train_v, reset=reset)
    assert torch.autograd.gradgradcheck(*as_function(layer, operation))
