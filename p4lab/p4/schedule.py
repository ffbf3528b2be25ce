"""When to merge, and what an optimizer must forget at a merge."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from numbers import Integral, Real
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from p4lab.distributed import JoinedSchedule, Replicas, refuse_shards
from p4lab.errors import OptionError
from p4lab.p4.changes import Changes
from p4lab.p4.contract import P4Module, Total, alone, p4_modules
from p4lab.p4.modes import without_gradients
from p4lab.p4.report import MergeReport

MOMENTA = frozenset({"exp_avg", "momentum_buffer", "momentum", "grad_avg", "prev"})
"""Optimizer state of these names averages gradients, so that it has a direction: a merge carries it over."""
SCALES = frozenset({"exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum"})
"""Optimizer state of these names measures the size of gradients: a merge leaves it alone."""


class MergeSchedule(JoinedSchedule):
    """Merge the P4 modules of a model every so many optimizer steps, and keep the optimizer consistent with it.

    One line in a training loop, after ``optimizer.step()``::

        merges = MergeSchedule(model, optimizer, every=10)
        for x in data:
            optimizer.zero_grad()
            loss(model, x).backward()
            optimizer.step()
            merges.step()

    or, where nobody can edit the loop, ``MergeSchedule(model, optimizer, every=10).attach()``.

    At a merge each module carries the momentum of its perturbation over to the new one (`P4Module.carry_momentum`): for
    P4Inv it is projected on the new directions, kept where these are random, and cleared for directions that train
    themselves. Momentum is what torch's optimizers call `MOMENTA`; gradient scales, and whatever else optimizers keep,
    stay as they are. Of a module whose perturbation was discarded as not finite, momentum and scales are cleared, and
    in other state what is not finite. All of it is masked on the device: nothing waits for the host, except that
    `torch.optim.LBFGS` (which waits by itself) loses its whole history when anything merged.

    The merge of all layers, the optimizer's state and the schedule's own counts are all or nothing: an exception,
    Ctrl-C included, finds them before the merge or after it. Refinement follows as a step of its own; if that was
    interrupted, the next merge begins with it.

    Under `torch.nn.parallel.DistributedDataParallel` the replicas start from one state and stay bit-equal
    (`p4lab.distributed`).

    Args:
        model: a module that contains P4 modules; each is found once, however often it is shared.
        optimizer: the optimizer, or optimizers, that step the model's parameters; None if there is no state to keep
            consistent.
        every: optimizer steps between merge attempts (N in the paper).
        refine_every: merge attempts between corrections of the frozen tensors (for P4Inv, of the inverse); 0 is never.
        recompute_every: corrections between factorizations, which take the place of a correction and remove what
            rounding added to log|det|; 0 is never.
        weight_decay: lambda of a decay of the effective weights, ``W <- (1 - lr lambda) W`` for each optimizer step,
            with the learning rate of u, done at merges. (An optimizer's own weight decay sees the perturbation only.)
        group: process group of the replicas (None: that of the DistributedDataParallel, if the model is one).

    Raises:
        OptionError: every < 1, refine_every < 0 or recompute_every < 0, or no whole numbers; weight_decay < 0 or for
            weights that cannot decay; no module, or one without P4 modules; no optimizer, one that steps none of the
            model's parameters, or optimizers that step none of its perturbations.
        ShardingError: parameters of P4 modules are split over processes (FSDP).

    Cost of a merge per layer: O(d^2 k); with a correction or a factorization O(d^3).
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
        recompute_every: int = 20,
        weight_decay: float = 0.0,
        group: Any = None,
    ) -> None:
        intervals, numbers = (every, refine_every, recompute_every), isinstance(weight_decay, Real)
        numbers = numbers and all(isinstance(interval, Integral) for interval in intervals)
        if not numbers or every < 1 or refine_every < 0 or recompute_every < 0 or not weight_decay >= 0:
            raise OptionError(
                f"every={every!r}, refine_every={refine_every!r}, recompute_every={recompute_every!r}, "
                f"weight_decay={weight_decay!r}: expected every >= 1 and the others >= 0, and intervals that are whole"
            )
        if not isinstance(model, nn.Module):
            raise OptionError(f"model={model!r:.80}: expected a torch.nn.Module; nn.ModuleList holds several")
        self.layers = p4_modules(model)
        if not self.layers:
            raise OptionError(
                f"{type(model).__name__} contains no P4 modules: put P4Inv layers into it, or leave out the schedule"
            )
        refuse_shards(model)
        optimizers = _optimizers(optimizer)
        _check_stepped(model, optimizers)
        steppers = [optimizers_of(layer, optimizers) for layer in self.layers]
        if optimizers and not any(steppers):
            kind = type(self.layers[0]).__name__
            raise OptionError(
                f"no optimizer steps the perturbation of any P4 layer ({kind}.u, ...), so that their weights would not "
                "train: make the optimizer of model.parameters() after convert() or after the layers were put in"
            )
        for layer, of_layer in zip(self.layers, steppers, strict=True):
            for one in of_layer:
                layer.check_optimizer(one)
        super().__init__(model, optimizers, Replicas.of(model, group))
        self.every, self.refine_every, self.recompute_every = map(int, intervals)
        self.weight_decay = weight_decay
        self.steps = 0
        self.attempts = 0
        self.violations: list[Tensor] = []
        self._steps_at_merge = 0
        self._refinement_due = False
        self._handle: RemovableHandle | None = None
        self._factors: list[float | Tensor] = []
        if weight_decay:
            for layer in self.layers:
                layer.shrink(Changes(), 1.0)  # raises where the property forbids it
                self._learning_rate(layer)
            self._factors = [1.0] * len(self.layers)
        self._synchronize()

    @property
    def attached(self) -> bool:
        """Whether it counts by itself, see `attach`."""
        return self._handle is not None

    @property
    def due(self) -> bool:
        """Whether the next `step` will try to merge."""
        return self.steps + 1 - self._steps_at_merge >= self.every

    def step(self) -> list[MergeReport]:
        """Count one optimizer step; merge, and refine, if that is due.

        Returns:
            One report per layer if a merge was tried, else an empty list.

        Raises:
            OptionError: the schedule is attached to its optimizer and counts by itself.
        """
        if self.attached:
            raise OptionError("this schedule is attached to its optimizer and counts by itself: do not call step()")
        return self._advance()

    def attach(self) -> Self:
        """Count by itself from now on, after each step of the optimizer (of the last one, if there are several).

        For trainers whose loop nobody can edit: it uses torch's step hooks, and returns the schedule itself.

        Raises:
            OptionError: there is no optimizer, or another schedule of the same layers is attached to it.
        """
        if not self.optimizers:
            raise OptionError("there is no optimizer to attach to: MergeSchedule(model, optimizer).attach()")
        optimizer = self.optimizers[-1]
        for hook in optimizer._optimizer_step_post_hooks.values():
            other = getattr(hook, "__self__", None)
            if isinstance(other, MergeSchedule) and other is not self and set(other.layers) & set(self.layers):
                raise OptionError(
                    f"a schedule of the same layers is attached to this {type(optimizer).__name__} already, every "
                    f"{other.every} steps, and both would merge them: detach() that one first, or change its every"
                )
        if self._handle is None:
            self._handle = optimizer.register_step_post_hook(self._after_step)
        return self

    def detach(self) -> None:
        """Count when `step` is called, as before `attach`."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @without_gradients
    def merge(self) -> list[MergeReport]:
        """Try to merge every layer now; `step` counts anew from here. Cost per layer O(d^2 k), O(d^3) if it refines."""
        if self._refinement_due:
            self.refine()
        total = alone if self.replicas is None else self.replicas.total
        plans = []
        with nullcontext() if self.replicas is None else self.replicas.common_draws(self.attempts):
            for i, layer in enumerate(self.layers):
                changes = self._plan(layer, total)
                if self._factors:
                    layer.shrink(changes, self._factors[i])
                plans.append(changes)
        plan = plans[0]
        for changes in plans[1:]:
            plan.join(changes)
        attempts = self.attempts + 1
        plan.assign(
            self,
            attempts=attempts,
            _factors=[1.0] * len(self._factors),
            _steps_at_merge=self.steps,
            _refinement_due=bool(self.refine_every) and attempts % self.refine_every == 0,
        )
        plan.commit()
        if self._refinement_due:
            self.refine()
        return [changes.report for changes in plans]

    @without_gradients
    def refine(self) -> list[Tensor]:
        """Correct the frozen tensors of every layer now and return what violation is left (kept in ``violations``)."""
        interval = self.refine_every * self.recompute_every
        exact = interval > 0 and self._refinement_due and self.attempts % interval == 0
        self.violations = [layer.recompute() if exact else layer.correct() for layer in self.layers]
        self._refinement_due = False
        return self.violations

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and intervals, so that a resumed run merges at the same steps."""
        return {
            "every": self.every,
            "refine_every": self.refine_every,
            "recompute_every": self.recompute_every,
            "steps": self.steps,
            "attempts": self.attempts,
            "steps_at_merge": self._steps_at_merge,
            "refinement_due": self._refinement_due,
            "factors": [float(factor) for factor in self._factors],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the counters and intervals from `state_dict`; replicas take over the layers of the first one again.

        Raises:
            OptionError: it is no state of a schedule, or of one that decays the weights of other layers.
        """
        missing = {"every", "refine_every", "steps", "attempts", "steps_at_merge"} - state.keys()
        factors = state.get("factors", [])
        if missing or (factors and len(factors) != len(self._factors)):
            raise OptionError(
                f"this is no state of such a schedule: {', '.join(sorted(missing)) or 'nothing'} is missing, and "
                f"{len(factors)} layers decay in it, {len(self._factors)} here; build the schedule as it was saved"
            )
        self.every, self.refine_every = state["every"], state["refine_every"]
        self.steps, self.attempts, self._steps_at_merge = state["steps"], state["attempts"], state["steps_at_merge"]
        self.recompute_every = state.get("recompute_every", self.recompute_every)  # not in files of version 0.1
        self._refinement_due = state.get("refinement_due", False)
        if factors:
            self._factors = list(factors)
        self._synchronize()

    def __repr__(self) -> str:
        names = [type(layer).__name__ for layer in self.layers]
        layers = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        how = f", weight_decay={self.weight_decay}" if self.weight_decay else ""
        how += ", attached" if self.attached else ""
        return (
            f"MergeSchedule({layers}; every={self.every}, refine_every={self.refine_every}, "
            f"recompute_every={self.recompute_every}{how}; {self.steps} steps, {self.attempts} merges tried)"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": self.attached}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handle=None)
        if state["_handle"]:  # copies of an optimizer have none of its hooks
            self.attach()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _after_step(self, *_: Any) -> None:
        self._advance()

    def _advance(self) -> list[MergeReport]:
        self.check_join()
        due, factors = self.due, self._factors
        if factors:
            pairs = zip(factors, map(self._learning_rate, self.layers), strict=True)
            factors = [factor * (1 - rate * self.weight_decay) for factor, rate in pairs]
        self.__dict__.update(steps=self.steps + 1, _factors=factors)  # both or none
        return self.merge() if due else []

    def _synchronize(self) -> None:
        if self.replicas is not None:
            self.replicas.synchronize([self.model])

    def _plan(self, layer: P4Module, total: Total) -> Changes:
        """Plan the merge of a layer, and what it means for the optimizers."""
        changes = layer.plan(total)
        perturbation = layer.perturbation()
        parameters = [parameter for parameter in layer._parameters.values() if parameter is not None]
        for optimizer in self.optimizers:
            if isinstance(optimizer, LBFGS):
                if bool(changes.report.accepted | changes.report.discarded):
                    changes.also(optimizer.state.clear)
                continue
            for parameter in parameters:
                moves = any(parameter is p for p in perturbation)
                for name, state in optimizer_state(optimizer, parameter):
                    if name in MOMENTA and moves:
                        momentum = layer.carry_momentum(parameter, state.to(parameter.dtype), changes).to(state.dtype)
                        if momentum is not state:
                            changes.absorb(state, momentum)
                    if name in MOMENTA or name in SCALES:
                        changes.write(state, partial(state.masked_fill_, changes.report.discarded, 0.0))
                    else:
                        changes.mend(state)
        return changes

    def _learning_rate(self, layer: P4Module) -> float | Tensor:
        parameter = layer.perturbation()[0]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                if any(parameter is p for p in group["params"]):
                    rate: float | Tensor = group["lr"]
                    if not torch.is_tensor(rate) and not rate * self.weight_decay < 1:
                        raise OptionError(
                            f"lr {rate} x weight_decay {self.weight_decay}: expected less than 1, for a step may not "
                            "shrink the weights to nothing"
                        )
                    return rate
        raise OptionError(
            f"weight_decay={self.weight_decay} needs the learning rate of {type(layer).__name__}: pass the optimizer "
            "that steps its parameters"
        )


def _optimizers(given: Any) -> list[Optimizer]:
    """Return the optimizers that a schedule is given, none or several.

    Raises:
        OptionError: something else, such as parameters or a scheduler of learning rates.
    """
    if given is None:
        return []
    optimizers = list(given) if isinstance(given, Iterable) else [given]
    for one in optimizers:
        if not hasattr(one, "param_groups"):
            what = f"the class {one.__name__}" if isinstance(one, type) else f"a {type(one).__name__}"
            raise OptionError(
                f"{what} is no optimizer: expected a torch.optim.Optimizer, several, or None; a scheduler of learning "
                "rates has its own as scheduler.optimizer"
            )
    return optimizers


def _check_stepped(model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Raise unless each optimizer steps some parameter of the model."""
    ids = {id(parameter) for parameter in model.parameters()}
    for optimizer in optimizers:
        if not any(id(parameter) in ids for group in optimizer.param_groups for parameter in group["params"]):
            raise OptionError(
                f"this {type(optimizer).__name__} steps none of the parameters of {type(model).__name__}: pass the one "
                "that was made of model.parameters(), and make it anew if the model was copied or loaded since"
            )


def optimizers_of(layer: P4Module, optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """Return those optimizers that step a parameter of a layer's perturbation."""
    ids = {id(parameter) for parameter in layer.perturbation()}
    return [o for o in optimizers if any(id(p) in ids for group in o.param_groups for p in group["params"])]


def optimizer_state(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """Yield what an optimizer keeps for a parameter in floating-point tensors, but for its count of steps."""
    if parameter in optimizer.state:  # looked up first: state is a defaultdict and must not gain an entry
        for name, value in optimizer.state[parameter].items():
            if name != "step" and torch.is_tensor(value) and value.is_floating_point():
                yield name, value
