"""Modules whose weights are read by name: tensors that P4 layers make, in the place of their parameters.

A convolution, a recurrent layer or an attention has no linear layer inside, but a tensor that its forward pass reads.
Such a module gets a class of its own, derived from the one that it had, in which the name of the tensor is a property.
(`torch.nn.utils.parametrize` does the same, but its modules cannot be pickled, and `nn.LSTM` ignores it.)
"""

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError
from p4lab.p4.changes import Changes
from p4lab.p4.contract import fold_inside
from p4lab.p4.linear import P4Linear
from p4lab.p4.modes import without_gradients

NAME = "p4"
"""The layers are a submodule of this name."""


class Stack(nn.Module):
    """A weight tensor made of the matrices of P4 layers, one below the other.

    Args:
        layers: without bias, and all with inputs of one length.
        shape: of the tensor.
    """

    def __init__(self, layers: Iterable[P4Linear], shape: torch.Size) -> None:
        super().__init__()
        self.layers, self.shape = nn.ModuleList(layers), shape

    def forward(self) -> Tensor:
        """Return the tensor, differentiable. Cost O(d^2 k) for each layer."""
        return torch.cat([cast(P4Linear, layer).watched_weight() for layer in self.layers]).view(self.shape)

    @property
    def trains(self) -> bool:
        """Whether an optimizer may move it."""
        return any(parameter.requires_grad for parameter in self.parameters())


class UnderWay(threading.local):
    """What the forward passes that are under way in this thread have made: no other thread may see it.

    A thread without gradients would hand weights without a history to one that trains, and two that train would share
    one graph.

    Attributes:
        weights: by module and name.
    """

    def __init__(self) -> None:
        self.weights: dict[nn.Module, dict[str, Tensor]] = {}


UNDER_WAY = UnderWay()
"""Each thread finds its own here."""


class Computed(nn.Module):
    """What a class has besides its own where weights of a module are computed (see `computed_class`)."""

    p4_class: ClassVar[type[nn.Module]]
    """The class of the module before."""
    p4_names: ClassVar[tuple[str, ...]]
    """The weights that are computed."""
    p4: nn.ModuleDict

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Return what the module computes, with each weight made once."""
        if torch.compiler.is_compiling():
            return super().forward(*arguments, **keywords)
        try:
            try:
                UNDER_WAY.weights[self] = {}
                return super().forward(*arguments, **keywords)
            finally:
                UNDER_WAY.weights.pop(self, None)
        finally:  # twice, for an interrupt may strike just before it is done
            UNDER_WAY.weights.pop(self, None)

    def p4_weight(self, name: str) -> Tensor:
        """Return a weight, the same one all through a forward pass."""
        weights = None if torch.compiler.is_compiling() else UNDER_WAY.weights.get(self)
        if weights is None:
            return cast(Tensor, self.p4[name]())
        if name not in weights:
            weights[name] = self.p4[name]()
        return weights[name]

    @without_gradients
    def fold(self) -> nn.Module:
        """Return a copy of the module as it was before: of its class, with parameters of the same names in their order.

        They train if those of the P4 layers do. Cost O(d^2 k) for each layer.
        """
        twin = copy.deepcopy(self)
        for name in self.p4_names:
            stack = cast(Stack, self.p4[name])
            twin._parameters[name] = nn.Parameter(stack().clone(), requires_grad=stack.trains)
        del twin._modules[NAME]
        object.__setattr__(twin, "__class__", self.p4_class)
        if isinstance(twin, nn.RNNBase):
            cast(Any, twin)._init_flat_weights()
        fold_inside(twin)
        return twin

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.p4_names:
            raise OptionError(
                f"{self.p4_class.__name__}.{name} is made of P4 layers and cannot be set: use start_at(weight) of "
                f"those in module.{NAME}[{name!r}].layers, or p4lab.fold(model) first"
            )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        _, _, *rest = cast(tuple[Any, ...], super().__reduce_ex__(protocol))
        return (empty, (self.p4_class, self.p4_names), *rest)


class ComputedRecurrent(Computed):
    """The same for `nn.LSTM`, `nn.GRU` and `nn.RNN`, which keep a list of their weights besides."""

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in cast(Any, self)._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: object) -> None:
        """Ignore what torch keeps there, which is out of date after a step."""

    def flatten_parameters(self) -> None:
        """Leave the weights where they are: they are no parameters."""

    def _update_flat_weights(self) -> None:
        pass  # they are never out of date


@cache
def computed_class(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """Return the class of modules in which the weights of these names are computed, always the same one."""
    base = ComputedRecurrent if issubclass(plain, nn.RNNBase) else Computed
    weights = {name: _read(name) for name in names}
    return type(f"P4{plain.__name__}", (base, plain), {"p4_class": plain, "p4_names": names, **weights})


def _read(name: str) -> property:
    def weight(module: Computed) -> Tensor:
        return module.p4_weight(name)

    return property(weight)


def empty(plain: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    """Return a module without its state, for copies and files to fill."""
    kind = computed_class(cast(Any, plain), names)
    return kind.__new__(kind)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module, or the one that it had before its weights were computed."""
    return module.p4_class if isinstance(module, Computed) else type(module)


def compute(module: nn.Module, stacks: Mapping[str, Stack], changes: Changes) -> None:
    """Plan to have weights of a module computed, besides those that are already.

    Args:
        module: any module that reads them by name.
        stacks: what makes each of them.
        changes: where it is planned.
    """
    before = dict(module.p4.items()) if isinstance(module, Computed) else {}
    # None keeps the place of a parameter, for the order of names in a state_dict.
    writes: list[Callable[[], Any]] = [partial(module._parameters.__setitem__, name, None) for name in stacks]
    writes.append(partial(module._modules.__setitem__, NAME, nn.ModuleDict(before | dict(stacks))))
    if isinstance(module, nn.RNNBase):
        writes.append(partial(module.__dict__.pop, "_flat_weights", None))
        writes.append(partial(module.__dict__.__setitem__, "_flat_weight_refs", []))
    kind = computed_class(cast(Any, plain_class(module)), (*before, *stacks))
    writes.append(partial(object.__setattr__, module, "__class__", kind))
    for write in writes:
        changes.also(write)
