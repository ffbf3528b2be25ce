"""The engine: a run, step by step, without thread, timer or widget."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.optim import SGD, Adam, Optimizer

from p4lab.errors import ConfigError, OptionError, TrainingError
from p4lab.p4 import MergeReport, MergeSchedule, MergeStatus, P4Inv, P4Module, p4_modules, penalty
from p4lab.p4.linear import MIN_FACTOR, P4Linear
from p4lab.training.config import RunConfig, value_text
from p4lab.training.interrupts import whole_steps
from p4lab.training.measure import eigenvalues
from p4lab.training.records import Event, Kind, Moment, Records, Snapshot, copied

if TYPE_CHECKING:
    import pandas

SMOOTHING = 50
PICTURES = 64
"""Latent variables that pictures are made of, where a problem does not say."""
SMALL_BYTES = 512
"""A watched matrix up to this size (8 x 8) is recorded after every step, a larger one at measurements."""
EVENT_OF: dict[MergeStatus, Kind] = {
    MergeStatus.MERGED: "merge",
    MergeStatus.SKIPPED_SINGULAR: "skip",
    MergeStatus.SKIPPED_INACCURATE: "skip",
    MergeStatus.DISCARDED_NOT_FINITE: "discard",
    MergeStatus.DISCARDED_SINGULAR: "discard",
}


class Problem(Protocol):
    """What the engine asks of a problem.

    ``dim``, `test_loss`, `pictures` and what follows may be missing: ``shown`` is the number of latent variables that
    pictures are made of (missing: 64); ``after_step(model)`` is part of each step and its time; ``watched(model)``
    returns the (d, d) matrix whose path and eigenvalues are recorded (missing: the weights of the first P4Inv layer);
    ``set_target(text)`` changes what is trained for; ``release()`` frees what training holds outside of torch, and is
    called whenever it pauses.
    """

    dim: int

    def batch(self, size: int, generator: torch.Generator) -> Any:
        """Draw training data."""

    def loss(self, model: Any, x: Any) -> Tensor:
        """Return the loss of a batch, a differentiable scalar."""

    def test_loss(self, model: Any) -> Tensor:
        """Return the loss on data that is not trained on."""

    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return what to show, by name, for fixed latent variables z; on the CPU, sharing no memory with the model."""


class Engine:
    """A run: problem, model, optimizer and merge schedule, recorded.

    Everything random comes from generators that the engine owns, one for the batches and one for the pictures, so that
    looking at a run (`snapshot`) does not change it. The first measurement is taken before the first step.

    Args:
        config: the settings.
        problem: what is trained on (None: the one that the config describes).
        model: what is trained (None: the config's).
        optimizer: what trains it (None: the config's).
        schedule: when P4 modules merge (None: the config's; a model without P4 modules has none).
        rates: learning rates of the optimizer's groups for a config (None: ``config.step_size`` for all).
        anneal: what the learning rates are multiplied by, asked before each step (None: 1).
        extras: further pictures of the engine, by name.
        stateful: further parts of the run's state, by name: what has ``state_dict`` and ``load_state_dict``.
        clock: what tells the time that steps take, in seconds (None: `Engine.clock`).

    Attributes:
        config: the settings in force; `set` replaces it.
        step: number of optimizer steps done.
        seconds: time that they took.
        records: what was recorded so far.
        finished: whether the run has come to its end; never, for a single engine.
        clock: what tells the time that steps take, in seconds.
        problem, model, optimizer, schedule: the parts.

    Example:
        >>> from p4lab.training import DigitsConfig
        >>> engine = Engine(DigitsConfig(blocks=0))
        >>> engine.run(2)
        >>> engine.step, len(engine.records.steps)
        (2, 2)
    """

    finished: bool = False
    clock: Callable[[], float] = staticmethod(time.perf_counter)

    def __init__(
        self,
        config: RunConfig,
        problem: Any = None,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        schedule: MergeSchedule | None = None,
        *,
        rates: Callable[[Any], Sequence[float]] | None = None,
        anneal: Callable[["Engine"], float] | None = None,
        extras: Callable[["Engine"], dict[str, Any]] = lambda engine: {},
        stateful: Mapping[str, Any] = MappingProxyType({}),
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.config, self._rates, self._anneal = config, rates, anneal
        self._extras, self._stateful = extras, stateful
        self.clock = clock or type(self).clock
        if problem is None or model is None:
            problem, model = _parts(config)
        self.problem, self.model = problem, model
        self.layers = p4_modules(model)
        self.optimizer = optimizer or _optimizer(config, model)
        # What a lab shows of log|det| has been carried along by merges: no factorization comes to its aid.
        own = MergeSchedule(model, self.optimizer, recompute_every=0) if self.layers and not schedule else None
        self.schedule = schedule or own
        self.step, self.seconds = 0, 0.0
        self._after_step = getattr(problem, "after_step", None)
        self._everyone = tuple(range(len(self.layers)))
        self._perturbations = _amounts(self.layers)
        self._factors = {layer: layer.min_factor or MIN_FACTOR for layer in self.layers if isinstance(layer, P4Inv)}
        self._batches = torch.Generator().manual_seed(config.seed)
        latent = torch.Generator().manual_seed(config.seed + 1)
        z = torch.randn(
            getattr(problem, "shown", PICTURES),
            getattr(problem, "dim", 1),
            generator=latent,
            dtype=getattr(torch, config.dtype),
            device="cpu",
        )
        self._z = z.to(config.device)
        watched = self._watched()
        self._watched_bytes = 0 if watched is None else watched.numel() * watched.element_size()
        self._small = 0 < self._watched_bytes <= SMALL_BYTES
        self.records = Records.watching(self._watched_bytes)
        self._apply(config)
        self._measure()
        self._follow(set(), True)

    # --- training ----------------------------------------------------------------------------------------------------

    def run(self, n: int = 1) -> None:
        """Do ``n`` optimizer steps and record them.

        An interrupt waits for the end of a step, so that `run` may be called again for the same numbers as without it;
        a second one does not wait.

        Raises:
            TrainingError: loss or gradient is not finite. The step is not taken: model, optimizer and records are as
                before it, and `run` may be called again.
        """
        with _threads(self.config.threads), whole_steps() as between:
            for _ in range(n):
                between()
                try:
                    self._step()
                except (LinAlgError, np.linalg.LinAlgError) as error:
                    raise TrainingError(
                        f"step {self.step + 1}: {error}. The weights have no inverse or are not finite"
                    ) from error

    @property
    def merges(self) -> bool:
        """Whether there is anything to merge."""
        return self.schedule is not None

    @property
    def merge_due(self) -> bool:
        """Whether the next step ends with a merge attempt."""
        return self.schedule is not None and self.schedule.due

    def _step(self) -> None:
        start = self.clock()
        if self._anneal is not None:
            self._set_rates(self.config)
        x = self.problem.batch(self.config.batch_size, self._batches)
        self.optimizer.zero_grad()
        loss = self.problem.loss(self.model, x)
        if not (isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad):
            got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"{loss!r:.80}"
            raise OptionError(f"{type(self.problem).__name__}.loss returned {got}: expected a scalar with a gradient")
        (loss + penalty(self.model) if self.config.penalty else loss).backward()
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        # The only wait for the device in a step: a loss that is not finite must be known before the optimizer acts.
        sizes = [_norm(of).to(loss) for of in (grads, self._perturbations)]
        value, norm, moved = torch.stack([loss.detach(), *sizes]).tolist()
        if not (math.isfinite(value) and math.isfinite(norm)):
            self.optimizer.zero_grad()
            off = [name for name in ("skip", "penalty") if self.schedule and not getattr(self.config, name)]
            switches = f"switch {' or '.join(off)} on, " if off else ""
            raise TrainingError(
                f"step {self.step + 1}: loss {value:.4g}, gradient norm {norm:.4g}. The step was not taken; "
                f"lower the learning rate, {switches}or reset"
            )
        self.optimizer.step()
        reports = self.schedule.step() if self.schedule else []
        if self._after_step is not None:
            self._after_step(self.model)
        self.step += 1
        seconds = self.clock() - start
        self.seconds += seconds
        kinds = self._note(reports)
        self.records.steps.append(
            step=self.step,
            loss=value,
            smooth_loss=self._smooth(value),
            grad_norm=norm,
            perturbation_norm=moved,
            step_seconds=seconds,
            seconds=self.seconds,
        )
        due = self.step % self.config.measure_every == 0
        if due:
            self._measure()
        if due or self._small:
            self._follow(kinds, due)

    def _smooth(self, value: float) -> float:
        column = self.records.steps.columns["smooth_loss"]
        if not column:
            return value
        # Over the last fifth of the run at first, over the last 50 steps or so later on.
        weight = max(1 / SMOOTHING, min(1.0, 5 / len(column)))
        return column[-1] + weight * (value - column[-1])

    def _note(self, reports: list[MergeReport]) -> set[Kind]:
        """Record what became of merge attempts and return the kinds of events."""
        if not reports or self.schedule is None:
            return set()
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
            self.records.add(Event(self.step, "refine", self._everyone, f"largest violation is now {worst:.2g}"))
        return {kind for kind, _ in layers}

    @torch.no_grad()
    def _measure(self) -> None:
        values = self.config.measures(self.problem, self.model, self._watched())
        spectrum = values.pop("spectrum", None)
        self.records.measures.append(step=self.step, **values)
        if spectrum is not None:
            self.records.spectrum.add(self.step, spectrum)

    @torch.no_grad()
    def _follow(self, kinds: set[Kind], measured: bool) -> None:
        """Record the watched matrix."""
        watched = self._watched()
        if watched is None:
            return
        matrix = watched.detach().cpu().numpy().copy()
        self.records.trail.add(self.step, matrix)
        if "merge" in kinds:
            self.records.merge_points.add(self.step, matrix)
        if "skip" in kinds:
            self.records.skip_points.add(self.step, matrix)
        if measured:
            self.records.spectrum.add(self.step, eigenvalues(matrix))

    def _watched(self) -> Tensor | None:
        if hasattr(self.problem, "watched"):
            return self.problem.watched(self.model)
        return next((layer.weight for layer in self.layers if isinstance(layer, P4Inv)), None)

    # --- settings ----------------------------------------------------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """Change a hyperparameter of the running run; the change is recorded as an event.

        Args:
            name: one of ``config.live``.
            value: its new value.

        Raises:
            ConfigError: unknown name, value out of range, or a setting that applies only when a run is built.
        """
        config = self.config.replace(**{name: value})
        if name not in config.live:
            raise ConfigError(
                f"{name}={value!r}: applies at reset; while a run goes on, {', '.join(config.live)} can change"
            )
        if config == self.config:
            return
        self._apply(config)
        self.config = config
        self.records.add(Event(self.step, "set", (), f"{name} = {value_text(value)}"))

    def _apply(self, config: RunConfig) -> None:
        config.update(self.problem)
        self._set_rates(config)
        if self.schedule:
            self.schedule.every, self.schedule.refine_every = config.merge_every, config.refine_every
        for layer in self.layers:
            if isinstance(layer, P4Linear) and (isinstance(layer, P4Inv) or "reset" in config.live):
                layer.reset_kind = config.reset
        for layer, factor in self._factors.items():
            layer.refine_order, layer.min_factor = config.refine_order, factor if config.skip else 0.0

    def _set_rates(self, config: RunConfig) -> None:
        groups = self.optimizer.param_groups
        rates = self._rates(config) if self._rates else [config.step_size] * len(groups)
        factor = 1.0 if self._anneal is None else self._anneal(self)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor

    # --- looking, and coming back ------------------------------------------------------------------------------------

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """Return the present state; it shares no memory with the run, and taking it does not change the run."""
        return Snapshot(
            config=self.config,
            step=self.step,
            curves=MappingProxyType(self.records.curves()),
            events=self.records.all_events(),
            counts=MappingProxyType(dict(self.records.counts)),
            pictures=self._pictures(),
            **self.records.trails(),
        )

    def _pictures(self) -> MappingProxyType[str, Any]:
        pictures = self.problem.pictures(self.model, self._z) if hasattr(self.problem, "pictures") else {}
        if not (isinstance(pictures, Mapping) and all(hasattr(picture, "numpy") for picture in pictures.values())):
            kind = type(self.problem).__name__
            raise OptionError(f"{kind}.pictures returned {pictures!r:.80}: expected tensors by name")
        return MappingProxyType({name: picture.numpy() for name, picture in pictures.items()} | self._extras(self))

    @torch.no_grad()
    def moment(self) -> Moment:
        """Return the present as a moment that `load_state` can come back to. Cost: a copy of weights and optimizer."""
        return Moment(self.step, self.state(), self._pictures(), dict(self.records.counts))

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on: plain numbers, text and tensors."""
        return copied(
            {
                "config": self.config.to_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict() if self.schedule else {},
                "batches": self._batches.get_state(),
                **{name: part.state_dict() for name, part in self._stateful.items()},
            }
        )

    def load_state(self, state: dict[str, Any], records: Records | None = None) -> None:
        """Go to a state: the next steps are those that followed it, unless settings change.

        Args:
            state: from `state` of an engine with the same problem and the same kind of model.
            records: what led to it (None: the records begin anew).

        Raises:
            ConfigError: the state does not fit.
        """
        state = copied(state)
        try:
            config = self.config.replace(**state["config"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.schedule:
                self.schedule.load_state_dict(state["schedule"])
            self._batches.set_state(state["batches"])
            for name, part in self._stateful.items():
                part.load_state_dict(state[name])
            step, seconds = int(state["step"]), float(state["seconds"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"state of a run: it does not fit this problem and model ({error})") from error
        self.step, self.seconds, self.records = step, seconds, records or Records.watching(self._watched_bytes)
        self._apply(config)
        self.config = config
        if records is None:
            self._measure()

    def release(self) -> None:
        """Free what the problem holds outside of torch; the next step takes it again."""
        if hasattr(self.problem, "release"):
            self.problem.release()

    def frame(self) -> "pandas.DataFrame":
        """Return the records as a table, one row per step."""
        return self.records.frame()


def run(config: RunConfig, steps: int) -> Engine:
    """Train the problem and model of a config, without thread or widget, and return the engine.

    A lab may train with more than its config says, such as several lanes, or rates of their own:
    ``lab.trainer(config).run(steps)`` gives the numbers of any lab (`p4lab.labs.Lab`).

    Raises:
        TrainingError: as `Engine.run`.
    """
    engine = Engine(config)
    engine.run(steps)
    return engine


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parts(config: RunConfig) -> tuple[Any, nn.Module]:
    parts: Any = config.parts()
    if not (isinstance(parts, tuple) and len(parts) == 2 and isinstance(parts[1], nn.Module)):
        raise OptionError(f"{type(config).__name__}.parts() returned {parts!r:.120}: expected (problem, model)")
    for needed in ("batch", "loss"):
        if not callable(getattr(parts[0], needed, None)):
            kind = type(parts[0]).__name__
            raise OptionError(f"{type(config).__name__}.parts(): its problem, a {kind}, has no method {needed!r}")
    return parts[0], parts[1]


def _optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    kind = {"adam": Adam, "sgd": SGD}[config.optimizer]
    return kind(model.parameters(), lr=config.learning_rate)


def _norm(tensors: list[Tensor]) -> Tensor:
    # Of one tensor without the detour of torch's function, which takes as long as a small layer's forward pass.
    return (
        torch.linalg.vector_norm(tensors[0].detach()) if len(tensors) == 1 else torch.nn.utils.get_total_norm(tensors)
    )


def _amounts(layers: list[P4Module]) -> list[Tensor]:
    """Return the parameters that are 0 right after a merge: how much is perturbed, not along what."""
    return [
        parameter
        for layer in layers
        for parameter in layer.perturbation()
        if not any(parameter is direction for direction in layer.directions())
    ]
