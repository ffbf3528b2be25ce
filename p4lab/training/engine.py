"""The engine: a run, step by step, without thread, timer or widget."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from p4lab.errors import ConfigError, TrainingError
from p4lab.flows import Flow, p4inv_bent
from p4lab.p4 import MergeReport, MergeSchedule, MergeStatus, penalty
from p4lab.p4.invertible import MIN_FACTOR
from p4lab.problems import Digits
from p4lab.training.config import LIVE, RunConfig
from p4lab.training.records import Event, Kind, Records, Snapshot

if TYPE_CHECKING:
    import pandas

SMOOTHING = 50
PICTURES = 64
EVENT_OF: dict[MergeStatus, Kind] = {
    MergeStatus.MERGED: "merge",
    MergeStatus.SKIPPED_SINGULAR: "skip",
    MergeStatus.SKIPPED_INACCURATE: "skip",
    MergeStatus.DISCARDED_NOT_FINITE: "discard",
}


class Problem(Protocol):
    """What the engine asks of a problem."""

    dim: int

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw training data."""

    def loss(self, model: Any, x: Tensor) -> Tensor:
        """Return the loss of a batch in nats/dim, differentiable."""

    def test_loss(self, model: Any) -> Tensor:
        """Return the loss on data that is not trained on."""

    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return what to show, by name, for fixed latent variables z; on the CPU, sharing no memory with the model."""


class Engine:
    """A run of a flow of P4Inv layers.

    Everything random comes from generators that the engine owns, one for the batches and one for the pictures, so that
    looking at a run (`snapshot`) does not change it. The first measurement is taken before the first step.

    Args:
        config: the settings.
        problem: what is trained on (None: the one that the config names).
        model: what is trained (None: the one that the config describes).

    Attributes:
        config: the settings in force; `set` replaces it.
        step: number of optimizer steps done.
        records: what was recorded so far.
        problem, model, optimizer, schedule: the parts.

    Example:
        >>> engine = Engine(RunConfig(blocks=0))
        >>> engine.run(2)
        >>> engine.step, len(engine.records.steps)
        (2, 2)
    """

    def __init__(self, config: RunConfig, problem: Problem | None = None, model: Flow | None = None) -> None:
        self.config = config
        dtype, device = getattr(torch, config.dtype), torch.device(config.device)
        self.problem: Problem = problem or Digits(config.seed, device, dtype)
        self.model = model or p4inv_bent(
            self.problem.dim,
            config.blocks,
            init="identity",
            seed=config.seed,
            rank=config.rank,
            reset=config.reset,
            train_v=config.train_v,
            dtype=dtype,
            device=device,
        )
        self.optimizer = _optimizer(config, self.model)
        self.schedule = MergeSchedule(
            self.model, self.optimizer, every=config.merge_every, refine_every=config.refine_every
        )
        self.records = Records()
        self.step = 0
        self._everyone = tuple(range(len(self.schedule.layers)))
        self._batches = torch.Generator().manual_seed(config.seed)
        latent = torch.Generator().manual_seed(config.seed + 1)
        self._z = torch.randn(PICTURES, self.problem.dim, generator=latent, dtype=dtype).to(device)
        self._apply(config)
        self._measure()

    # --- training ----------------------------------------------------------------------------------------------------

    def run(self, n: int = 1) -> None:
        """Do ``n`` optimizer steps and record them.

        Raises:
            TrainingError: loss or gradient is not finite. The step is not taken: model, optimizer and records are as
                before it, and `run` may be called again.
        """
        with _threads(self.config.threads):
            for _ in range(n):
                self._step()

    @property
    def merge_due(self) -> bool:
        """Whether the next step ends with a merge attempt."""
        return self.schedule.due

    def _step(self) -> None:
        start = time.perf_counter()
        x = self.problem.batch(self.config.batch_size, self._batches)
        self.optimizer.zero_grad()
        loss = self.problem.loss(self.model, x)
        (loss + penalty(self.model) if self.config.penalty else loss).backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        # The only wait for the device in a step: a loss that is not finite must be known before the optimizer acts.
        value, norm = torch.stack([loss.detach(), torch.nn.utils.get_total_norm(grads).to(loss.dtype)]).tolist()
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            raise TrainingError(
                f"step {self.step + 1}: loss {value:.4g}, gradient norm {norm:.4g}. The step was not taken; "
                "lower the learning rate, switch skip or penalty on, or reset"
            )
        self.optimizer.step()
        reports = self.schedule.step()
        self.step += 1
        self._note(reports)
        seconds = time.perf_counter() - start
        self.records.steps.append(
            step=self.step, loss=value, smooth_loss=self._smooth(value), grad_norm=norm, step_seconds=seconds
        )
        if self.step % self.config.measure_every == 0:
            self._measure()

    def _smooth(self, value: float) -> float:
        column = self.records.steps.columns["smooth_loss"]
        if not column:
            return value
        # Over the last fifth of the run at first, over the last 50 steps or so later on.
        weight = max(1 / SMOOTHING, min(1.0, 5 / len(column)))
        return column[-1] + weight * (value - column[-1])

    def _note(self, reports: list[MergeReport]) -> None:
        if not reports:
            return
        layers: dict[tuple[Kind, str], list[int]] = {}
        accepted = torch.stack([report.accepted for report in reports]).tolist()
        for layer, (report, merged) in enumerate(zip(reports, accepted, strict=True)):
            key: tuple[Kind, str] = ("merge", "") if merged else (EVENT_OF[report.status], report.reason)
            layers.setdefault(key, []).append(layer)
        for (kind, text), indices in layers.items():
            # One tuple for the usual case keeps a long run's events small.
            which = self._everyone if len(indices) == len(reports) else tuple(indices)
            self.records.add(Event(self.step, kind, which, text))
        if self.config.refine_every and self.schedule.attempts % self.config.refine_every == 0:
            worst = torch.stack(self.schedule.violations).max().item()
            self.records.add(Event(self.step, "refine", self._everyone, f"largest |A A^-1 - I| is now {worst:.2g}"))

    @torch.no_grad()
    def _measure(self) -> None:
        layers = self.model.linear_layers()
        values = torch.linalg.svdvals(torch.stack([layer.weight for layer in layers]))
        figures = [
            self.problem.test_loss(self.model),
            self.model.logabsdet(),
            torch.stack([layer.violation() for layer in layers]).max(),
            (values[:, 0] / values[:, -1]).max(),
        ]
        test, logabsdet, residual, condition = (float(figure) for figure in figures)
        self.records.measures.append(
            step=self.step, test_loss=test, logabsdet=logabsdet, residual=residual, condition=condition
        )

    # --- settings ----------------------------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """Change a hyperparameter of the running run; the change is recorded as an event.

        Args:
            name: one of `LIVE`.
            value: its new value.

        Raises:
            ConfigError: unknown name, value out of range, or a setting that applies only when a run is built.
        """
        config = self.config.replace(**{name: value})
        if name not in LIVE:
            raise ConfigError(f"{name}={value!r}: applies at reset; while a run goes on, {', '.join(LIVE)} can change")
        if config == self.config:
            return
        self._apply(config)
        self.config = config
        self.records.add(
            Event(
                self.step,
                "set",
                (),
                f"{name} = {getattr(config, name):g}" if name == "learning_rate" else f"{name} = {value}",
            )
        )

    def _apply(self, config: RunConfig) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate
        self.schedule.every, self.schedule.refine_every = config.merge_every, config.refine_every
        for layer in self.model.linear_layers():
            layer.reset_kind = config.reset
            layer.min_factor = MIN_FACTOR if config.skip else 0.0

    # --- looking -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Return the present state; it shares no memory with the run, and taking it does not change the run."""
        pictures = self.problem.pictures(self.model, self._z)
        return Snapshot(
            config=self.config,
            step=self.step,
            curves=MappingProxyType(self.records.curves()),
            events=self.records.thinned(),
            counts=MappingProxyType(dict(self.records.counts)),
            pictures=MappingProxyType({name: picture.numpy() for name, picture in pictures.items()}),
        )

    @torch.no_grad()
    def logabsdet_error(self) -> float:
        """Return how far the carried log|det| of any layer is from a factorization in float64 (nats). Cost O(d^3)."""
        layers = self.model.linear_layers()
        exact = torch.stack([torch.linalg.slogdet(layer.weight.double())[1] for layer in layers])
        return float((torch.stack([layer.logabsdet() for layer in layers]) - exact).abs().max())

    def frame(self) -> "pandas.DataFrame":
        """Return the records as a table, one row per step."""
        return self.records.frame()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    kind = {"adam": Adam, "sgd": SGD}[config.optimizer]
    return kind(model.parameters(), lr=config.learning_rate)
