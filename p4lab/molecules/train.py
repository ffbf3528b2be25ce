"""Training flows of molecules: by example, with or without forces, by energy, or by both."""

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from p4lab.errors import OptionError, TrainingError
from p4lab.fit import Fit, fit
from p4lab.molecules.average import Average
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.losses import by_energy, by_forces
from p4lab.molecules.target import Examples, InternalEnergy
from p4lab.p4 import MergeSchedule, p4_modules

KINDS = ("example", "forces", "energy", "mixed")
"""What a stage may learn from."""
REFINE_EVERY = 50
"""Merges between two corrections of the inverses of P4 layers."""
FEWEST_NORMS, MOST_NORMS = 10, 100
"""Steps of a stage from which gradients are clipped; steps whose norms are looked at."""
MOST_SKIPPED = 50
"""Steps in a row without a finite gradient after which training ends."""


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    Attributes:
        kind: "example" (maximum likelihood), "forces" (examples and the forces there), "energy" (the flow's own samples
            and the forces there), or "mixed" (the sum of the last two).
        minutes: CPU minutes of this process to spend; 0: ``steps`` decides.
        steps: optimizer steps; 0: ``minutes`` decides.
        examples: examples per step.
        samples: samples of the flow per step.
        rate: peak of Adam's learning rate; it rises over 50 steps, and falls to 0 by a half cosine.
        clip: largest norm of the gradient, as a multiple of the median over the last 100 steps: gradients that use
            forces have a heavy tail, and one clash of two atoms must not undo what was learnt.
        average: weight of the past in the running average of the parameters.
        patience: for "example": checks of the validation likelihood without an improvement after which the stage ends
            (0: never). There are 20 checks in a stage.

    Raises:
        OptionError: something is out of range.
    """

    kind: str
    minutes: float = 0.0
    steps: int = 0
    examples: int = 512
    samples: int = 256
    rate: float = 2e-3
    clip: float = 3.0
    average: float = 0.99
    patience: int = 4

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionError(f"kind={self.kind!r} is not known: choose one of {KINDS}")
        if (self.minutes > 0) == (self.steps > 0) or min(self.minutes, self.steps) < 0:
            raise OptionError(f"minutes={self.minutes}, steps={self.steps}: expected one of the two, above 0")
        if any(not isinstance(number, int) for number in (self.steps, self.examples, self.samples, self.patience)):
            raise OptionError(f"{self}: expected whole numbers of steps, examples and samples, and as patience")
        if (
            min(self.examples, self.samples) < 1
            or not 0 <= self.average < 1
            or not (0 < self.rate < math.inf and self.clip > 0)
        ):
            raise OptionError(
                f"examples={self.examples}, samples={self.samples}, average={self.average}, rate={self.rate}, "
                f"clip={self.clip}: expected at least 1, at least 1, below 1, and above 0 (a finite rate)"
            )


@dataclass(frozen=True)
class Record:
    """One step of a training.

    Attributes:
        stage: its place.
        step: counted over all stages, from 1.
        minutes: CPU minutes so far.
        loss: nats: the mean of -log q for "example" and "forces", of u + log q of samples for "energy", the sum of both
            for "mixed". Constants are left out.
        gradient: norm of the gradient, before clipping.
        taken: whether it was finite, and the step made.
    """

    stage: int
    step: int
    minutes: float
    loss: float
    gradient: float
    taken: bool


@dataclass
class Training:
    """What became of a training.

    Attributes:
        flow: the average of the parameters as a plain flow: nothing of P4 is left in it.
        records: of all steps.
        validation: (step, mean of -log q over the validation examples in nats) of every check.
        minutes: CPU minutes.
        reason: why it ended early, "" if it did not.
    """

    flow: MoleculeFlow
    records: list[Record] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    minutes: float = 0.0
    reason: str = ""


# --- training --------------------------------------------------------------------------------------------------------


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    flow: MoleculeFlow,
    examples: Examples | None,
    target: InternalEnergy | None,
    stages: Sequence[Stage],
    validation: Tensor | None = None,
    seed: int = 0,
    on_record: Callable[[Record], object] | None = None,
    merge_every: int = 8,
    loss: Callable[[Stage, torch.Generator], Tensor] | None = None,
) -> Training:
    """Train a flow in place, stage by stage; after an "example" stage it is at its best validation likelihood.

    Args:
        flow: the flow.
        examples: of the target, for all stages but "energy".
        target: reduced energy of internal coordinates, for stages "energy" and "mixed".
        stages: what to do.
        validation: held-out examples, shape (n, d), for the early stopping of "example" stages.
        seed: of batches and samples.
        on_record: called after each step; what it returns is not looked at.
        merge_every: steps between two merges of P4 layers.
        loss: of a step of a stage (None: that of its kind).

    Returns:
        The averaged flow, and the records. If an energy fails, or gradients stay not finite, they are those so far and
        ``reason`` says why.

    Raises:
        OptionError: a stage by energy without a target, or another one without examples.
    """
    kinds = {stage.kind for stage in stages}
    if target is None and kinds & {"energy", "mixed"}:
        raise OptionError("stages by energy need a target: pass an InternalEnergy")
    if examples is None and kinds - {"energy"}:
        raise OptionError('all stages but "energy" need examples: pass Examples')
    generator = torch.Generator().manual_seed(seed)
    loss = loss or partial(_loss, flow, examples, target)
    start = time.process_time()
    result, average = Training(flow), Average(flow)
    for place, stage in enumerate(stages):
        loop = _Loop(flow, average, stage, place, result, start, validation, on_record)
        try:
            loop.run(partial(loss, stage, generator), merge_every)
        except TrainingError as error:
            result.reason = str(error)
            break
    result.flow = average.flow()
    result.minutes = (time.process_time() - start) / 60
    return result


def _loss(
    flow: MoleculeFlow,
    examples: Examples | None,
    target: InternalEnergy | None,
    stage: Stage,
    generator: torch.Generator,
) -> Tensor:
    terms = []
    if stage.kind != "energy" and examples is not None:
        y, score = examples.batch(stage.examples, generator)
        terms.append(-flow.log_prob(y).mean() if stage.kind == "example" else by_forces(flow, y, score))
    if stage.kind in ("energy", "mixed") and target is not None:
        terms.append(by_energy(flow, target, stage.samples, generator))
    return torch.stack(terms).sum()


@dataclass
class _Loop:
    """One stage of a training."""

    flow: MoleculeFlow
    average: Average
    stage: Stage
    place: int
    result: Training
    start: float
    validation: Tensor | None
    on_record: Callable[[Record], object] | None
    best: tuple[float, list[Tensor], dict[str, Any]] | None = None
    waited: int = 0
    checks: int = 0
    skipped: int = 0
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_NORMS))

    def run(self, loss: Callable[[], Tensor], merge_every: int) -> None:
        stage = self.stage
        optimizer = torch.optim.Adam(self.flow.parameters(), lr=stage.rate, betas=(0.9, 0.99), fused=True)
        merges = MergeSchedule(self.flow, optimizer, merge_every, REFINE_EVERY) if p4_modules(self.flow) else None
        fit(
            loss,
            optimizer,
            stage.steps or math.inf,
            seconds=60 * stage.minutes or math.inf,
            schedules=[merges],
            rate=lambda now: stage.rate * min(1.0, (now.step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * now.progress)),
            clip=lambda: stage.clip * median(self.norms) if len(self.norms) >= FEWEST_NORMS else math.inf,
            not_finite="skip",
            after=self._after,
            clock=time.process_time,
        )
        if self.best and self.best[0] < self.result.validation[-1][1]:
            self.average.set(self.best[1])
            self.flow.load_state_dict(self.best[2])

    def _after(self, now: Fit) -> bool:
        """Follow a step; return whether the stage ends early."""
        self.skipped = 0 if now.taken else self.skipped + 1
        if now.taken:
            self.norms.append(float(now.norm))
            self.average.update(self.stage.average)
        minutes, number = (time.process_time() - self.start) / 60, len(self.result.records) + 1
        self.result.records.append(Record(self.place, number, minutes, float(now.loss), float(now.norm), now.taken))
        if self.on_record:
            self.on_record(self.result.records[-1])
        if self.skipped >= MOST_SKIPPED:
            raise TrainingError(
                f"no finite gradient in {self.skipped} steps of stage {self.place} ({self.stage.kind}): lower its "
                "rate. The flow is the average of the steps before"
            )
        if self.stage.kind != "example" or self.validation is None or now.progress * 20 < self.checks + 1:
            return False
        self._check(self.validation)
        return 0 < self.stage.patience <= self.waited

    @torch.no_grad()
    def _check(self, validation: Tensor) -> None:
        self.checks += 1
        nll = -float(self.average.flow().log_prob(validation).mean())
        self.result.validation.append((len(self.result.records), nll))
        if self.best is None or nll < self.best[0]:
            self.best, self.waited = (nll, self.average.kept(), copy.deepcopy(self.flow.state_dict())), 0
        else:
            self.waited += 1
