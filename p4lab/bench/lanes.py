"""Training runs that are described, done and remembered one by one: what tuning, races and sweeps are made of."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from p4lab.baselines import METHODS
from p4lab.bench.store import Described, Result, perform
from p4lab.errors import RunFileError, TrainingError
from p4lab.problems.rates import Choice, choice
from p4lab.training.race import RaceConfig, memory_of, race_figures, racer

CHECK_EVERY = 5
"""Steps between looks at the test loss; they are not part of the training time."""
NEVER = 1_000_000
"""Steps between measurements of a race: none is made on the way."""


@dataclass(frozen=True)
class Trace:
    """How a run went.

    Attributes:
        method: its name.
        seed: seed of data, start and batches.
        checks: steps, seconds of training and test loss, every 5 steps or seldomer; the first is the start.
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


@dataclass(frozen=True)
class Trial(Described):
    """Everything in a call of `train` that its result depends on; make it by `of`.

    Attributes:
        method: its name.
        config: task, width, seed, batch size and whatever else is set, with this method alone.
        settings: optimizer and rate.
        seconds, steps, target: where it ends.
        pause: seconds between two looks.
    """

    method: str
    config: RaceConfig
    settings: Choice
    seconds: float
    steps: int | None
    target: float
    pause: float

    @classmethod
    def of(
        cls,
        config: RaceConfig,
        name: str,
        seconds: float,
        steps: int | None = None,
        target: float = -math.inf,
        settings: Choice | None = None,
        pause: float = 0.0,
    ) -> Self:
        """Describe a call of `train` with these arguments; the tuned rates are looked up, since they may change."""
        settings = settings or choice(config.task, METHODS[name], config.width)
        most = None if steps is None else int(steps)
        return cls(name, _alone(config, name), settings, float(seconds), most, float(target), float(pause))


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
    config = _alone(config, name)
    lane = racer(config.replace(budget=seconds) if config.anneal and steps is None else config, name, settings, steps)

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


def _alone(config: RaceConfig, name: str) -> RaceConfig:
    return config.replace(methods=name, measure_every=NEVER)


def traces_of(
    trials: Sequence[Trial],
    backend: str | None = None,
    n_jobs: int = -1,
    file: Path | str | None = None,
    progress: bool = True,
) -> list[Trace]:
    """Return how each trial went, in their order.

    Args:
        trials: what to do.
        backend, n_jobs: see `p4lab.bench.workers.parallel`.
        file: JSON lines that keep finished trials, which are not done again (None: nothing is kept). They are known
            by everything in them; of the machine, and of the versions of p4lab and torch, the file knows nothing.
        progress: whether stderr gets a line for each that ends.

    Raises:
        RunFileError: the file holds something else, or cannot be read or written.
        ConfigError, MissingPackageError: as `p4lab.bench.workers.parallel`, or a method cannot do its task.
    """
    results = perform(trials, _result, _summary if progress else None, file, n_jobs, backend)
    try:
        return [_trace(results[trial.key()]) for trial in trials]
    except (AttributeError, KeyError, TypeError) as error:
        raise RunFileError(f"{file}: a result is damaged ({error!r}). Choose another file") from error


def _result(trial: Trial) -> Result:
    end = (trial.seconds, trial.steps, trial.target)
    trace = train(trial.config, trial.method, *end, trial.settings, trial.pause)
    return dataclasses.asdict(trace)


def _trace(result: Result) -> Trace:
    # In a file tuples are lists.
    return Trace(**result | {"checks": tuple((step, seconds, loss) for step, seconds, loss in result["checks"])})


def _summary(trial: Trial, result: Result) -> str:
    steps, seconds, loss = result["checks"][-1]
    end = result["stopped"] or f"loss {loss:.4g}"
    return (
        f"{trial.config.task}, {trial.method}, seed {trial.config.seed}, {trial.settings}: {end} after {steps} steps, "
        f"{seconds:.2f} s"
    )
