"""Learning rates: the same grid and the same seconds for every method, on a seed that no race uses."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from p4lab.baselines import METHODS, ORTHOGONAL_GROUPS, Method
from p4lab.bench.lanes import Trace, Trial, traces_of, train
from p4lab.errors import ConfigError
from p4lab.problems.rates import MOMENTUM, Choice
from p4lab.problems.tasks import TASKS, entry_of
from p4lab.training.race import RaceConfig, unfit

SEED = 1000
"""The seed of tuning; the reported runs have others."""
SECONDS = 0.6
"""Seconds of training for each rate."""
ADAM = (1e-3, 3e-3, 1e-2, 3e-2)
"""Learning rates that are tried with Adam."""
SGD = {"map": (0.02, 0.04, 0.08, 0.14), "ica": (0.01, 0.03, 0.08, 0.2), "flow": (0.003, 0.01, 0.02, 0.04)}
"""Rates of gradient descent divided by d: losses are means over d, so that it is stable up to about d / 2 on maps."""
BETWEEN = 1.6
"""A method with one optimizer tries each rate of the grid and that rate divided by this: eight, as all others."""
MAP_TARGET = 1e-4
"""Target on a map, as a share of the test loss at the start."""
WAY = 0.9
"""Target of a likelihood, as a share of the way from the loss at the start to the lowest one."""
NO_FAMILY = tuple(name for name, entry in TASKS.items() if not entry.rotations)
"""Maps that no orthogonal matrix is near to."""
DUPLICATES = {"nflows_qr", "nflows_svd", "geotorch_gl", "torch_matrix_exp", "torch_cayley"}
DUPLICATES |= {"torch_householder_dynamic", "geotorch_so_dynamic"}
"""Methods near to others: slower packages of the same family, and the static ones of pairs."""
RACED = tuple(name for name in METHODS if name not in DUPLICATES)
"""Methods that race if none is named."""


@dataclass(frozen=True)
class Tuned:
    """What tuning on a task found.

    Attributes:
        task: its name.
        target: the test loss to reach.
        choices: by method.
    """

    task: str
    target: float
    choices: Mapping[str, Choice]


def racers(task: str, methods: Sequence[str]) -> tuple[str, ...]:
    """Return those methods that can do a task: knowing what its loss asks for, with its map near their family."""
    return tuple(
        name
        for name in methods
        if not unfit(task, METHODS[name]) and not (METHODS[name].group in ORTHOGONAL_GROUPS and task in NO_FAMILY)
    )


def config_of(task: str, dim: int, seed: int, device: str = "cpu") -> RaceConfig:
    """Return the config of a task at width d, or at the largest that its data have."""
    return RaceConfig(task=task, dim=min(dim, entry_of(task).widest), seed=seed, device=device)


def grid(
    task: str, method: Method, dim: int, sgd: Sequence[float] | None = None, adam: Sequence[float] = ADAM
) -> tuple[Choice, ...]:
    """Return eight choices: four rates of SGD (with momentum, if it is torch's) and of Adam, or eight of one.

    Args:
        task: its name.
        method: whose optimizers are tried.
        dim: width d.
        sgd: rates of gradient descent divided by d (None: those of the kind of task); with other numbers of rates there
            are other numbers of choices.
        adam: rates of Adam.
    """
    both = len(method.optimizers) == 2
    fractions = SGD[entry_of(task).kind] if sgd is None else sgd
    rates = {"sgd": tuple(fraction * dim for fraction in fractions), "adam": tuple(adam)}
    choices = []
    for name in method.optimizers:
        momentum = MOMENTUM if name == "sgd" and both and method.name != "geoopt_stiefel" else 0.0
        values = rates[name] if both else sorted(rate / by for rate in rates[name] for by in (1, BETWEEN))
        choices += [Choice(name, float(f"{rate:.3g}"), momentum, dim) for rate in values]
    return tuple(choices)


def tune(
    task: str,
    methods: Sequence[str],
    dim: int = 64,
    seconds: float = SECONDS,
    backend: str | None = None,
    n_jobs: int = -1,
    file: Path | str | None = None,
    device: str = "cpu",
) -> Tuned:
    """Choose each method's optimizer and rate on a task by time to target, or by test loss if none gets there.

    The target of a map is 1e-4 of the loss at the start; that of a likelihood is 90 % of the way from the loss at the
    start to the lowest that any method saw while it was tuned.

    Args:
        task: its name.
        methods: names; those that cannot do the task are left out.
        dim: width.
        seconds: of training for each rate.
        backend, n_jobs, file: see `p4lab.bench.lanes.traces_of`.
        device: where it trains.

    Raises:
        ConfigError: no method can do the task; and whatever `p4lab.bench.lanes.traces_of` raises.
    """
    config = config_of(task, dim, SEED, device)
    pairs = [(name, choice) for name in racers(task, methods) for choice in grid(task, METHODS[name], config.width)]
    if not pairs:
        raise ConfigError(f"methods={'+'.join(methods)!r}: none of them can do the task {task!r}")
    is_map = entry_of(task).kind == "map"
    # A map's target is known beforehand: no need to go on behind it.
    start = train(config, pairs[0][0], 0.0).checks[0][2]
    known_target = MAP_TARGET * start if is_map else -math.inf
    trials = [Trial.of(config, name, seconds, None, known_target, choice) for name, choice in pairs]
    traces = traces_of(trials, backend, n_jobs, file)
    lowest = min(loss for trace in traces for _, _, loss in trace.checks)
    target = known_target if is_map else start - WAY * (start - lowest)
    found: dict[str, dict[Choice, Trace]] = {}
    for (name, choice), trace in zip(pairs, traces, strict=True):
        found.setdefault(name, {})[choice] = trace
    return Tuned(task, target, {name: best(of_method, target) for name, of_method in found.items()})


def best(trials: Mapping[Choice, Trace], target: float = -math.inf) -> Choice:
    """Return the choice whose trial has the least `merit`, the first of equals."""
    return min(trials, key=lambda choice: merit(trials[choice], target))


def merit(trace: Trace, target: float) -> tuple[bool, float]:
    """Return what tuning minimizes: whether the target was missed, then seconds to it, or the last test loss."""
    reached = trace.reached(target)
    return (True, trace.loss) if reached is None else (False, reached[1])
