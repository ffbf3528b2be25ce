"""The training loop of experiments, benchmarks and molecules; a lab's engine, which records more, has its own."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Schedule(Protocol):
    """What follows an optimizer step by step: merges, or a learning rate of `torch.optim.lr_scheduler`."""

    def step(self) -> Any:
        """Do what is due after an optimizer step."""


@dataclass
class Fit:
    """How far a training is.

    Attributes:
        steps, seconds: where it ends, whichever comes first.
        step: steps done, those that were skipped among them.
        elapsed: seconds that they took.
        loss: of the newest batch; a tensor until somebody reads it, so that nobody waits for the device.
        norm: of its gradient before clipping, likewise; NaN where nobody asked for it.
        taken: whether the newest step was taken: whether loss and gradient were finite, where that is looked at.
    """

    steps: float
    seconds: float
    step: int = 0
    elapsed: float = 0.0
    loss: Tensor | float = math.nan
    norm: Tensor | float = math.nan
    taken: bool = True

    @property
    def progress(self) -> float:
        """The share that is done, by steps or by time, whichever is further."""
        return max(self.step / self.steps, self.elapsed / self.seconds)


def fit(
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    steps: float = math.inf,
    *,
    seconds: float = math.inf,
    schedules: Iterable[Schedule | None] = (),
    rate: Callable[[Fit], float] | None = None,
    clip: float | Callable[[], float] | None = None,
    not_finite: Literal["take", "skip", "stop"] = "take",
    after: Callable[[Fit], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Fit:
    """Train: loss, backward pass, clipping, optimizer, schedules, again and again.

    A step waits for the device only where ``not_finite`` or ``after`` asks for a number.

    Args:
        loss: draws a batch and returns its loss, a differentiable scalar.
        optimizer: what trains.
        steps: where training ends.
        seconds: likewise, by ``clock``; looked at between two steps.
        schedules: what is stepped after the optimizer; None among them counts as nothing.
        rate: the learning rate of the next step (None: the optimizer's own stays).
        clip: largest norm of the gradient, or what returns it (None: the gradient stays as it is).
        not_finite: what becomes of a step whose loss or gradient is not finite: it is taken unseen, skipped, or ends
            the training, in which case it is not counted.
        after: called after each step; training ends when it returns something true.
        clock: what tells the seconds.

    Returns:
        Where training ended.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> fit(lambda: weight.square().sum(), torch.optim.SGD([weight], lr=0.25), steps=2).step
        2
        >>> weight.tolist()
        [0.25, 0.25]
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    followers = [schedule for schedule in schedules if schedule is not None]
    now, start = Fit(steps, seconds), clock()
    while now.step < steps and now.elapsed < seconds:
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(now)
        optimizer.zero_grad()
        value = loss()
        value.backward()
        now.loss = value.detach()
        limit = clip() if callable(clip) else clip
        if limit is not None or not_finite != "take":
            norm = nn.utils.clip_grad_norm_(parameters, math.inf if limit is None else limit)
            now.norm = norm
            if not_finite != "take":
                # The only wait for the device: the optimizer must not see what is not finite.
                now.loss, now.norm = torch.stack([value.detach(), norm]).tolist()
                now.taken = math.isfinite(now.loss) and math.isfinite(now.norm)
        if now.taken:
            optimizer.step()
            for schedule in followers:
                schedule.step()
        now.elapsed = clock() - start
        if not now.taken and not_finite == "stop":
            break
        now.step += 1
        if after is not None and after(now):
            break
    return now
