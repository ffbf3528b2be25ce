"""Running averages of the parameters of flows."""

import copy
from typing import Any, cast

import torch
from torch import Tensor

from p4lab.flows.linear_layers import FoldedLinear
from p4lab.molecules.density import MoleculeFlow
from p4lab.p4 import p4_modules


class Average:
    """A running average of a flow's parameters; of P4 layers, of the weights that they stand for.

    Args:
        flow: the flow that trains.
    """

    def __init__(self, flow: MoleculeFlow) -> None:
        self.trained = flow
        self._p4 = p4_modules(flow)
        inside = {id(parameter) for module in self._p4 for parameter in module.parameters()}
        self._plain = [parameter for parameter in flow.parameters() if id(parameter) not in inside]
        self._steps = 0
        self._average = [tensor.clone() for tensor in self._now()]

    def _now(self) -> list[Tensor]:
        linear: list[Tensor | None] = [t for m in cast(list[Any], self._p4) for t in (m.weight, m.bias)]
        return [p.detach() for p in self._plain] + [t.detach() for t in linear if t is not None]

    @torch.no_grad()
    def update(self, past: float) -> None:
        """Take in the present parameters; ``past`` is the weight of the average so far, less in the first steps."""
        self._steps += 1
        torch._foreach_lerp_(self._average, self._now(), 1 - min(past, self._steps / (self._steps + 9)))

    def kept(self) -> list[Tensor]:
        """Return a copy of the average."""
        return [tensor.clone() for tensor in self._average]

    def set(self, kept: list[Tensor]) -> None:
        """Set the average to a copy from `kept`."""
        torch._foreach_copy_(self._average, kept)

    @torch.no_grad()
    def flow(self) -> MoleculeFlow:
        """Return the average as a flow without P4.

        Raises:
            SingularMatrixError: averaged weights without an inverse.
        """
        values = list(self._average)
        linear = iter(values[len(self._plain) :])
        twin = copy.deepcopy(self.trained).with_linear(
            lambda layer: FoldedLinear(next(linear), None if layer.bias is None else next(linear))
        )
        for parameter, value in zip(twin.parameters(), values[: len(self._plain)], strict=True):
            parameter.copy_(value)
        return twin
