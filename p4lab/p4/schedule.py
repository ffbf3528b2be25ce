"""When to merge, and what an optimizer must forget at a merge."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from p4lab.errors import OptionError
from p4lab.p4.contract import MergeReport, P4Module, p4_modules

SCALES = frozenset(
    {"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "step_size", "eta", "mu"}
)
"""Optimizer state that measures the size of gradients; all else of a parameter's shape remembers their direction."""


class MergeSchedule:
    """Merge the P4 modules of a model every so many optimizer steps, and keep the optimizer consistent with it.

    One line in a training loop, after ``optimizer.step()``::

        merges = MergeSchedule(model, optimizer, every=10)
        for x in data:
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
            merges.step()

    At a merge each module carries the momentum of its perturbation over to the new one (`P4Module.carry_momentum`): for
    P4Inv it is projected on the new directions, kept where these are random, and cleared for directions that train
    themselves. Gradient scales (Adam's second moments) stay. Of a module whose perturbation was discarded as not finite
    everything is cleared. All of it is masked on the device: nothing waits for the host, except that
    `torch.optim.LBFGS` (which waits by itself) loses its whole history when anything merged.

    Args:
        model: a module that contains P4 modules; each is found once, however often it is shared.
        optimizer: the optimizer, or optimizers, that step the model's parameters; None if there is no state to keep
            consistent.
        every: optimizer steps between merge attempts (N in the paper).
        refine_every: merge attempts between corrections of the frozen tensors (for P4Inv, of the inverse); 0 is never.

    Raises:
        OptionError: every < 1, refine_every < 0, or a model without P4 modules.

    Source: arXiv:2010.07033, algorithm 1.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> layer = P4Inv(2, seed=0)
        >>> merges = MergeSchedule(layer, every=2)
        >>> merges.step(), [report.merged for report in merges.step()]
        ([], [True])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        every: int = 10,
        refine_every: int = 50,
    ) -> None:
        if every < 1 or refine_every < 0:
            raise OptionError(f"every={every}, refine_every={refine_every}: expected every >= 1 and refine_every >= 0")
        self.layers = p4_modules(model)
        if not self.layers:
            raise OptionError(
                f"{type(model).__name__} contains no P4 modules: put P4Inv layers into it, or leave out the schedule"
            )
        self.optimizers = (
            [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        )
        self.every, self.refine_every = every, refine_every
        self.steps = 0
        self.attempts = 0
        self.violations: list[Tensor] = []
        self._steps_at_merge = 0

    @property
    def due(self) -> bool:
        """Whether the next `step` will try to merge."""
        return self.steps + 1 - self._steps_at_merge >= self.every

    def step(self) -> list[MergeReport]:
        """Count one optimizer step; merge, and refine, if that is due.

        Returns:
            One report per layer if a merge was tried, else an empty list.
        """
        due = self.due
        self.steps += 1
        return self.merge() if due else []

    def merge(self) -> list[MergeReport]:
        """Try to merge every layer now; `step` counts anew from here. Cost per layer O(d^2 k), O(d^3) if it refines."""
        reports = []
        for layer in self.layers:
            report = layer.merge()
            self._forget(layer, report)
            reports.append(report)
        self.attempts += 1
        self._steps_at_merge = self.steps
        if self.refine_every and self.attempts % self.refine_every == 0:
            self.refine()
        return reports

    def refine(self) -> list[Tensor]:
        """Correct the frozen tensors of every layer now and return what violation is left (kept in ``violations``)."""
        self.violations = [layer.correct() for layer in self.layers]
        return self.violations

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and intervals, so that a resumed run merges at the same steps."""
        return {
            "every": self.every,
            "refine_every": self.refine_every,
            "steps": self.steps,
            "attempts": self.attempts,
            "steps_at_merge": self._steps_at_merge,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the counters and intervals from `state_dict`."""
        self.every, self.refine_every = state["every"], state["refine_every"]
        self.steps, self.attempts, self._steps_at_merge = state["steps"], state["attempts"], state["steps_at_merge"]

    def _forget(self, layer: P4Module, report: MergeReport) -> None:
        for optimizer in self.optimizers:
            if isinstance(optimizer, LBFGS):
                if bool(report.accepted | report.discarded):
                    optimizer.state.clear()
                continue
            for parameter in layer.perturbation():
                for tensor in _state_like(optimizer, parameter, skip=SCALES):
                    layer.carry_momentum(parameter, tensor, report)
            for parameter in layer.parameters(recurse=False):
                for tensor in _state_like(optimizer, parameter):
                    tensor.masked_fill_(report.discarded, 0.0)


def _state_like(optimizer: Optimizer, parameter: nn.Parameter, skip: frozenset[str] = frozenset()) -> Iterator[Tensor]:
    if parameter in optimizer.state:  # looked up first: state is a defaultdict and must not gain an entry
        for name, value in optimizer.state[parameter].items():
            if name not in skip and torch.is_tensor(value) and value.shape == parameter.shape:
                yield value
