"""The P4 contract: a frozen tensor with a property, and a perturbation that keeps it.

A P4 module owns tensors A in a set S (invertible, orthogonal, ...) that the optimizer never sees, and parameters B of a
perturbation R_B: S -> S with an identity B0. Training moves B; a merge sets ``A <- R_B(A)`` and ``B <- B0`` and leaves
the function of the module as it was (arXiv:2010.07033, section 2.1).

A new property is a subclass of `P4Module` with six methods; `merge`, the schedule and `fold` need nothing else.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn


class MergeStatus(IntEnum):
    """What became of one attempt to merge."""

    MERGED = 0
    SKIPPED_SINGULAR = 1
    SKIPPED_INACCURATE = 2
    DISCARDED_NOT_FINITE = 3


@dataclass(frozen=True)
class Check:
    """One figure that a merge is judged by: it must not exceed its limit (NaN does).

    Attributes:
        status: what becomes of the merge otherwise.
        text: what the figure is and what to do, for the report.
    """

    status: MergeStatus
    text: str


class MergeReport:
    """Judgement of one merge attempt, kept on the device until somebody asks.

    Reading a property, ``bool(report)`` or ``repr`` waits for the device; making and keeping a report does not.

    Args:
        checks: what is judged. The first one is for values that are not finite: it discards; later ones skip.
        figures: the measured values, shape (len(checks),).
        limits: their limits, same shape.

    Attributes:
        accepted: scalar bool tensor, the perturbation becomes part of the frozen tensor.
        discarded: scalar bool tensor, the perturbation is dropped because it is not finite.
    """

    def __init__(self, checks: tuple[Check, ...], figures: Tensor, limits: Tensor) -> None:
        within = figures <= limits
        self.checks, self.figures, self.limits = checks, figures, limits
        self.accepted = within.all()
        self.discarded = within[0].logical_not()

    @property
    def merged(self) -> bool:
        """Whether the perturbation is now part of the frozen tensor."""
        return self.status is MergeStatus.MERGED

    @property
    def status(self) -> MergeStatus:
        """What became of the attempt: the status of the first figure above its limit, else MERGED."""
        first = self._first_failure()
        return MergeStatus.MERGED if first is None else self.checks[first].status

    @property
    def reason(self) -> str:
        """One sentence on why it merged or not, with the figure that decided."""
        first = self._first_failure()
        if first is None:
            return "merged"
        verdict = self.checks[first].status.name.lower().replace("_", " ")
        figure, limit = float(self.figures[first]), float(self.limits[first])
        return f"{verdict}: {self.checks[first].text} ({figure:.3g}, limit {limit:.3g})"

    def _first_failure(self) -> int | None:
        failures = (~(self.figures <= self.limits)).tolist()
        return failures.index(True) if any(failures) else None

    def __bool__(self) -> bool:
        return self.merged

    def __repr__(self) -> str:
        return f"MergeReport({self.reason})"


P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="P4Module")


def full_precision(method: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Run a method of a P4 module without autocast: that may lower products with a batch, but not the property."""

    @wraps(method)
    def run(self: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        device = self.perturbation()[0].device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return method(self, *args, **kwargs)
        with torch.autocast(device, enabled=False):
            return method(self, *args, **kwargs)

    return run


class P4Module(nn.Module, ABC):
    """Base class of layers that train by property-preserving perturbation.

    Subclasses keep A in buffers and B in parameters and supply the abstract methods. None of them may read a tensor on
    the
    host: decisions are tensors, writes are masked by them. `merge` calls `propose`, `absorb` and
    `reset` without gradient tracking and without autocast.
    """

    @abstractmethod
    def perturbation(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters B."""

    def directions(self) -> tuple[nn.Parameter, ...]:
        """Return those members of B that a merge redraws, so that an optimizer's momentum for them is void."""
        return ()

    @abstractmethod
    def propose(self) -> tuple[MergeReport, dict[str, Tensor]]:
        """Judge the present perturbation and compute what a merge would write, without writing.

        Returns:
            The judgement, and the tensors that `absorb` needs, already neutral where it is not accepted.
        """

    @abstractmethod
    def absorb(self, report: MergeReport, update: dict[str, Tensor]) -> None:
        """Write ``A <- R_B(A)`` in place."""

    @abstractmethod
    def reset(self, where: Tensor | None = None, undo: Tensor | None = None) -> None:
        """Set ``B <- B0`` where the scalar bool tensor ``where`` holds (None: always).

        ``undo`` (scalar bool tensor) marks a perturbation that was dropped: whatever trains beside it goes back to the
        last merge.
        """

    @abstractmethod
    def violation(self) -> Tensor:
        """Return how far the frozen tensor is from its property (a scalar; 0 is exact)."""

    @abstractmethod
    def correct(self) -> Tensor:
        """Bring the frozen tensor closer to its property and return the remaining violation."""

    @abstractmethod
    def fold(self) -> nn.Module:
        """Return an ordinary torch module that computes the same function."""

    def carry_momentum(self, parameter: nn.Parameter, momentum: Tensor, report: MergeReport) -> None:
        """Rewrite, in place, an optimizer's running average of a parameter's gradients right after a merge.

        The default clears it for `directions` and keeps it for the others (arXiv:2010.07033, section 2.3).
        """
        if any(parameter is direction for direction in self.directions()):
            momentum.masked_fill_(report.accepted, 0.0)

    def penalty(self) -> Tensor:
        """Return a differentiable scalar that grows as the perturbation nears the border of S (default: none)."""
        return next(iter(self.perturbation())).new_zeros(())

    @torch.no_grad()
    @full_precision
    def merge(self) -> MergeReport:
        """Merge the perturbation into the frozen tensor, all or nothing, without a host synchronisation.

        .. math:: A \\leftarrow R_B(A), \\quad B \\leftarrow B_0

        Returns:
            A report that says whether it merged and why not. The effective weights are the same to rounding either way,
            unless the perturbation was not finite: then the layer returns to its last merge.

        Call it between an optimizer step and the next forward pass: it writes tensors that a pending backward pass
        needs (torch raises then). Source: arXiv:2010.07033, algorithm 1.
        """
        report, update = self.propose()
        self.absorb(report, update)
        self.reset(where=report.accepted | report.discarded, undo=report.discarded)
        return report


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
    `p4lab.flows.Flow`, folds itself. The given model is not changed. Cost O(d^2 k) per module.
    """
    if _folds_itself(model):
        return model.fold()  # type: ignore[operator]
    twin = copy.deepcopy(model)
    folded: dict[nn.Module, nn.Module] = {}

    def replace(parent: nn.Module) -> None:
        for name, child in parent._modules.items():
            if child is None:
                continue
            if _folds_itself(child):
                parent._modules[name] = folded.setdefault(child, child.fold())  # type: ignore[operator]
            else:
                replace(child)

    replace(twin)
    return twin


def _folds_itself(module: nn.Module) -> bool:
    return hasattr(module, "fold") and bool(p4_modules(module))
