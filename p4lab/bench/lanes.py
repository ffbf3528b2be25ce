"""One training run after the other, or several at a time: what tuning, races and sweeps are made of."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import joblib
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from p4lab.errors import ConfigError, TrainingError
from p4lab.problems.rates import Choice
from p4lab.training.race import RaceConfig, memory_of, race_figures, racer

CHECK_EVERY = 5
"""Steps between looks at the test loss; they are not part of the training time."""


@dataclass(frozen=True)
class Trace:
    """How a run went.

    Attributes:
        method: its name.
        seed: seed of data, start and batches.
        checks: steps, seconds of training and test loss, every 5 steps; the first is the start.
        inverse_error: largest entry of ``|f^-1(f(I)) - I|`` at the end.
        logdet_error: error of log|det| (nats) at the end.
        memory: bytes of parameters, buffers, gradients and optimizer state.
        stopped: why it stopped early, "" if it did not.
    """

    method: str
    seed: int
    checks: tuple[tuple[int, float, float], ...]
    inverse_error: float
    logdet_error: float
    memory: int
    stopped: str

    @property
    def loss(self) -> float:
        """The last test loss; inf if the run broke down."""
        return math.inf if self.stopped else self.checks[-1][2]

    def reached(self, target: float) -> tuple[int, float] | None:
        """Return steps and seconds at the first look that saw the target loss or less."""
        return next(((step, seconds) for step, seconds, loss in self.checks if loss <= target), None)


def train(
    config: RaceConfig,
    name: str,
    seconds: float,
    steps: int | None = None,
    target: float = -math.inf,
    settings: Choice | None = None,
    pause: float = 0.0,
) -> Trace:
    """Train one method on its own until a target, a time or a number of steps is reached.

    If the config is annealed, rates are 0 at the end of the steps, or else of the seconds.

    Args:
        config: task, width, seed and batch size.
        name: of the method.
        seconds: of training; looks at the test loss do not count.
        steps: at most so many (None: no limit).
        target: test loss to stop at.
        settings: optimizer and rate (None: the tuned ones).
        pause: seconds of training between two looks, at least.

    Raises:
        ConfigError: the method cannot do the task, or rates are to be annealed over no finite time.
    """
    end = {"budget": seconds} if config.anneal and steps is None else {}
    lane = racer(config.replace(methods=name, measure_every=1_000_000, **end), name, settings, steps)

    def goes_on() -> bool:
        return lane.seconds < seconds and (steps is None or lane.step < steps)

    checks = [(0, 0.0, lane.records.measures.columns["test_loss"][0])]
    stopped = ""
    while not stopped and checks[-1][2] > target and goes_on():
        try:
            lane.run(CHECK_EVERY if steps is None else min(CHECK_EVERY, steps - lane.step))
            if goes_on() and lane.seconds - checks[-1][1] < pause:
                continue
            loss = float(lane.problem.test_loss(lane.model))
        except (TrainingError, LinAlgError) as error:
            stopped = str(error)
            break
        if math.isfinite(loss):
            checks.append((lane.step, lane.seconds, loss))
        else:
            stopped = f"step {lane.step}: the test loss is {loss}"
    figures = race_figures(lane.model)
    return Trace(
        name, config.seed, tuple(checks), figures["residual"], figures["logabsdet_error"], memory_of(lane), stopped
    )


def parallel(
    calls: Iterable[tuple[Callable[..., Any], Any]], backend: str | None = None, n_jobs: int = -1
) -> list[Any]:
    """Return the results of joblib's delayed calls, in order, each on one torch thread.

    Args:
        calls: from ``joblib.delayed``.
        backend: of joblib: None is its own (processes on this machine), "dask" a cluster whose Client exists already.
        n_jobs: calls at a time; -1 is one for each core.

    Raises:
        ConfigError: joblib has no such backend, or its package is not installed.
    """
    try:
        choice = joblib.parallel_config(backend=backend or "loky", n_jobs=n_jobs)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"backend={backend!r}: {error}") from error
    with choice:
        return list(joblib.Parallel()(calls))
