"""The P4 contract: a frozen tensor with a property, and a perturbation that keeps it.

A P4 module owns tensors A in a set S (invertible, orthogonal, ...) that the optimizer never sees, and parameters B of a
perturbation R_B: S -> S with an identity B0. Training moves B; a merge sets ``A <- R_B(A)`` and ``B <- B0`` and leaves
the function of the module as it was (arXiv:2010.07033, section 2.1).

A new property is a subclass of `P4Module` with five methods; `merge`, the schedule and `fold` need nothing else. A
merge is planned as a value (`Changes`) and then written in one go, so that whatever interrupts it, Ctrl-C included,
finds the module before it or after it, and never between.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p4lab.errors import OptionError
from p4lab.linalg import autocasts
from p4lab.p4.changes import Changes
from p4lab.p4.modes import without_gradients
from p4lab.p4.report import MergeReport

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="P4Module")
Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes that train one model together: what a merge takes from a batch passes through it."""


def alone(part: Tensor) -> Tensor:
    """Return the tensor itself: the sum over all processes where there is only one."""
    return part


def full_precision(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Run a method of a P4 module without autocast: that may lower products with a batch, but not the property."""

    @wraps(method)
    def run(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        device = self.perturbation()[0].device.type
        if not autocasts(device):
            return method(self, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return method(self, *args, **kwargs)

    return run


class P4Module(nn.Module, ABC):
    """Base class of layers that train by property-preserving perturbation.

    Subclasses keep A in buffers and B in parameters and supply the abstract methods. None of them may read a tensor on
    the host: decisions are tensors, writes are masked by them. `merge` calls `propose` without gradient tracking and
    without autocast.
    """

    @abstractmethod
    def perturbation(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters B."""

    def directions(self) -> tuple[nn.Parameter, ...]:
        """Return those members of B that a merge redraws, so that an optimizer's momentum for them is void."""
        return ()

    @abstractmethod
    def propose(self, total: Total = alone) -> Changes:
        """Judge the perturbation and plan what a merge writes, ``A <- R_B(A)`` and ``B <- B0``; write nothing.

        Args:
            total: sums over replicas; what is computed from a batch, and differs between them, must pass through it.

        Returns:
            The plan, made from the judgement: `Changes.absorb` for A, `Changes.clear` or `Changes.renew` for B,
            `Changes.undo` for what goes back to the last merge when the perturbation is not finite.
        """

    @abstractmethod
    def violation(self) -> Tensor:
        """Return how far the frozen tensor is from its property (a scalar; 0 is exact)."""

    @abstractmethod
    def correct(self) -> Tensor:
        """Bring the frozen tensor closer to its property and return the remaining violation.

        It must be all or nothing, too: plan `Changes`, then commit them.
        """

    def recompute(self) -> Tensor:
        """Derive anew, by factorization, whatever is known of the frozen tensor; return the remaining violation.

        The default corrects: only properties with an inverse or a determinant have more to do.
        """
        return self.correct()

    @abstractmethod
    def fold(self) -> nn.Module:
        """Return an ordinary torch module that computes the same function."""

    def carry_momentum(self, parameter: nn.Parameter, momentum: Tensor, changes: Changes) -> Tensor:
        """Return what an optimizer's running average of a parameter's gradients becomes if the merge is accepted.

        The default is zero for `directions` and no change for the others (arXiv:2010.07033, section 2.3).
        """
        redrawn = any(parameter is direction for direction in self.directions())
        return torch.zeros_like(momentum) if redrawn else momentum

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise if an optimizer cannot train this layer, for a schedule that is made of both (default: all can).

        Raises:
            OptionError: it cannot.
        """

    def start_at(self, weight: Tensor) -> None:
        """Make the effective weights those that are given, with no perturbation left; all or nothing.

        Args:
            weight: shape (dim_out, dim_in), with the property of the layer.

        Raises:
            OptionError: this layer cannot be started anywhere (the default).
            DtypeError: no tensor.
            ShapeError, SingularMatrixError, OptionError: the weights lack the property.
        """
        raise OptionError(f"{type(self).__name__} has no method start_at(weight): build the layer with init=weight")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter, as ``layer.name = nn.Parameter(...)`` does.

        Raises:
            OptionError: the name is that of weights which are computed.
        """
        if isinstance(getattr(type(self), name, None), property):
            raise OptionError(
                f"{type(self).__name__}.{name} is computed and cannot be set: use start_at(weight), or p4lab.fold first"
            )
        super().register_parameter(name, param)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the weights with the property that are nearest to given ones, in float64 on the CPU.

        The default is for properties that nearly all matrices have: it returns what it was given.

        Raises:
            SingularMatrixError: none is nearest.
        """
        return weight.detach().to("cpu", torch.float64)

    def shrink(self, changes: Changes, factor: float | Tensor) -> None:
        """Plan ``W <- factor W`` after the merge, for a schedule with weight decay.

        Raises:
            OptionError: there is no such method (the default), or the property fixes the size of the weights.
        """
        raise OptionError(
            f"{type(self).__name__} has no method shrink(changes, factor), so that its weights cannot decay: write one "
            "that plans the factor for the frozen tensors, or leave weight_decay out"
        )

    def penalty(self) -> Tensor:
        """Return a differentiable scalar that grows as the perturbation nears the border of S (default: none)."""
        return next(iter(self.perturbation())).new_zeros(())

    @torch.no_grad()
    @full_precision
    def plan(self, total: Total = alone) -> Changes:
        """Return what `merge` would write, for whoever has more to write with it: see `propose`, which it calls."""
        return self.propose(total)

    @without_gradients
    def merge(self) -> MergeReport:
        """Merge the perturbation into the frozen tensor, all or nothing, without a host synchronisation.

        .. math:: A \\leftarrow R_B(A), \\quad B \\leftarrow B_0

        Returns:
            A report that says whether it merged and why not. The effective weights are the same to rounding either way,
            unless the perturbation was not finite: then the layer returns to its last merge.

        Call it between an optimizer step and the next forward pass: a pending backward pass would use tensors that it
        writes (layers of p4lab raise `MergeOrderError` then). Source: arXiv:2010.07033, algorithm 1.
        """
        changes = self.plan()
        changes.commit()
        return changes.report


def p4_modules(model: nn.Module) -> list[P4Module]:
    """Return the P4 modules of a model, each once even if it is shared, in the order of ``model.modules()``."""
    return [module for module in model.modules() if isinstance(module, P4Module)]


def penalty(model: nn.Module, **options: Any) -> Tensor:
    """Return the sum of the penalties of a model's P4 modules (a differentiable scalar; 0.0 if it has none).

    Args:
        model: any module.
        options: passed on to each module's ``penalty``.
    """
    terms = [module.penalty(**options) for module in p4_modules(model)]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def fold(model: nn.Module) -> nn.Module:
    """Return a copy of a model in which every P4 module is an ordinary one; nothing of P4 is left.

    Shared modules stay shared. A module that contains P4 modules and has a ``fold`` of its own, such as
    `p4lab.flows.Flow`, folds itself. The given model is not changed. Of a converted model (`p4lab.convert`) all
    modules, and all names in its ``state_dict``, are as before. Cost O(d^2 k) per module.
    """
    if _folds_itself(model):
        return model.fold()  # type: ignore[operator]
    twin = copy.deepcopy(model)
    fold_inside(twin)
    return twin


def fold_inside(model: nn.Module) -> None:
    """Put an ordinary module in the place of every P4 module inside of a model; see `fold`."""
    folded: dict[nn.Module, nn.Module] = {}

    def replace(parent: nn.Module) -> None:
        for name, child in parent._modules.items():
            if child is None:
                continue
            if _folds_itself(child):
                if child not in folded:
                    folded[child] = child.fold()  # type: ignore[operator]
                parent._modules[name] = folded[child]
            else:
                replace(child)

    replace(model)


def _folds_itself(module: nn.Module) -> bool:
    return hasattr(module, "fold") and bool(p4_modules(module))
