"""A race: several methods on one task, each with the same time."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from p4lab.baselines import METHODS, Method, Plain, Rebase
from p4lab.errors import ConfigError, TrainingError
from p4lab.flows import Flow
from p4lab.p4 import PRESETS, MergeSchedule
from p4lab.packages import require
from p4lab.problems.map_tasks import Task
from p4lab.problems.rates import Choice, choice
from p4lab.problems.tasks import TASKS, WIDEST, entry_of, task
from p4lab.training.config import (
    SWITCH,
    Rule,
    RunConfig,
    budget,
    half_cosine,
    one_of,
    rate_factor,
    setting,
    turn,
    whole,
)
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes
from p4lab.training.records import Snapshot

if TYPE_CHECKING:
    import pandas

SEPARATOR = "+"
TRACKED_WIDTH = 128
"""Widest layer whose weights, inverse and determinant are compared with a factorization at measurements."""


def _are_methods(text: str) -> bool:
    names = text.split(SEPARATOR)
    return 1 <= len(names) == len(set(names)) and all(name in METHODS for name in names)


@dataclass(frozen=True)
class RaceConfig(RunConfig):
    """Train several methods from the same start on the same data, each for the same time.

    Rank, directions and merges are those of each P4 method's preset; learning rates are each method's own best
    (`p4lab.problems.rates`) times ``rate_factor``. Annealed, each lane's rate follows half a cosine over its budget.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "race"
    live: ClassVar[tuple[str, ...]] = ("rate_factor", "budget")

    batch_size: int = 64
    measure_every: int = 25
    task: str = setting(
        "so", "Task", one_of(*TASKS), choices={name: entry.label for name, entry in TASKS.items()}, look="wide"
    )
    methods: str = setting(
        "plain+p4inv+plu+dense+exponential",
        "",
        Rule(str, _are_methods, f"different names joined by {SEPARATOR}, of {', '.join(METHODS)}"),
    )
    dim: int = setting(64, "Width d", whole(2, WIDEST), choices=(8, 16, 32, 48, 64, 128, 256, 512, 1024), own=True)
    rate_factor: float = rate_factor(
        0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, help="On top of each method's best"
    )
    anneal: bool = setting(
        False, "Anneal", SWITCH, help="Learning rates follow half a cosine down to 0 over the time of each"
    )
    turn: float = turn(20.0)
    budget: float = budget(20.0, "Seconds of training")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the methods."""
        return tuple(self.methods.split(SEPARATOR))

    @property
    def width(self) -> int:
        """The width d."""
        return TASKS[self.task].width(self.dim)

    def parts(self) -> tuple[Task, nn.Module]:
        """Return the task, and the model of the first method.

        Raises:
            ConfigError: the method cannot do the task.
        """
        return self.parts_of(METHODS[self.names[0]])

    def parts_of(self, method: Method) -> tuple[Task, nn.Module]:
        """Return the task, and the model of a method.

        Raises:
            ConfigError: the method cannot do the task.
        """
        chosen = task(self.task, self.dim, self.seed + 1, **self.where)
        reason = unfit(self.task, method)
        if reason:
            raise ConfigError(f"methods={method.name!r}: {reason}")
        options = {"bias": TASKS[self.task].kind == "flow"} if method.linear else {}
        return chosen, chosen.model(method, self.seed, **self.where, **options)

    def measures(self, problem: Any, model: nn.Module, watched: Tensor | None) -> dict[str, Any]:
        """Return the test loss, and `race_figures`."""
        return {"test_loss": float(problem.test_loss(model)), **race_figures(model)}


def unfit(task_name: str, method: Method) -> str:
    """Return why a method cannot take part in a task, "" if it can."""
    entry = entry_of(task_name)
    if entry.kind != "map":
        if not method.linear:
            return f"the task {task_name!r} is for linear layers"
        if not method.has_likelihood:
            return f"the likelihood of {task_name!r} needs log|det|, which it does not know"
    if entry.both and not method.exact_inverse:
        return f"the loss of {task_name!r} needs the inverse, which it does not know"
    return ""


def racer(config: RaceConfig, name: str, settings: Choice | None = None, steps: int | None = None) -> Engine:
    """Return the engine of one method of a race.

    Args:
        config: the race's settings.
        name: of the method.
        settings: optimizer and rate (None: the tuned ones, see `p4lab.problems.rates`).
        steps: after how many steps an annealed rate is 0 (None: after the budget's seconds).

    Raises:
        ConfigError: the method cannot do the task.
        MissingPackageError: its package is not installed.
    """
    method = METHODS[name]
    best = settings or choice(config.task, method, config.width)
    problem, model = config.parts_of(method)
    optimizer = method.optimizer(model, best.rate, best.optimizer, **best.options)
    schedule = method.schedule(model, optimizer)
    if (preset := method.preset) is not None:
        known = config.preset_values(preset.name) if preset.name in PRESETS else {}
        config = config.replace(**known | {"merge_every": preset.every, "refine_every": preset.refine_every})
    engine = Engine(
        config,
        problem,
        model,
        optimizer,
        schedule if isinstance(schedule, MergeSchedule) else None,
        rates=lambda config: [best.rate * config.rate_factor] * len(optimizer.param_groups),
        anneal=(lambda engine: half_cosine(_progress(engine, steps))) if config.anneal else None,
        extras=lambda engine: {"memory": np.array(memory_of(engine))},
        stateful={"rebase": schedule} if isinstance(schedule, Rebase) else {},
        clock=clock_of(config.device),
    )
    if isinstance(schedule, Rebase):
        optimizer.register_step_post_hook(lambda *_: _move_base(schedule, engine.step + 1))
    return engine


def _progress(engine: Engine, steps: int | None) -> float:
    config: Any = engine.config
    return engine.seconds / config.budget if steps is None else engine.step / max(1, steps)


def clock_of(device: str) -> Callable[[], float] | None:
    """Return a clock that waits until a device has done what it was given; None for the CPU, where any clock is right.

    Without it the work of a step's merge would count as the time of whoever waits next.
    """
    if torch.device(device).type == "cpu":
        return None
    module = torch.get_device_module(device)

    def clock() -> float:
        module.synchronize()
        return time.perf_counter()

    return clock


def _move_base(schedule: Rebase, step: int) -> None:
    try:
        schedule.step()
    except ValueError as error:  # what geotorch refuses
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"step {step}: the weights cannot be a new base: {reason}") from error


def memory_of(engine: Engine) -> int:
    """Return the bytes of parameters, buffers, gradients and optimizer state."""
    tensors: list[Tensor] = [*engine.model.parameters(), *engine.model.buffers()]
    tensors += [p.grad for p in engine.model.parameters() if p.grad is not None]
    tensors += [
        value for state in engine.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    return sum(tensor.nbytes for tensor in tensors)


def race(config: RaceConfig) -> Lanes:
    """Return lanes by method that take turns, so that each has trained for the same time.

    Raises:
        ConfigError: a method cannot do the task.
        MissingPackageError: a method's package is not installed.

    Example:
        >>> lanes = race(RaceConfig(methods="plain+p4inv", dim=8, turn=1.0))
        >>> lanes.run(2)
        >>> sorted(lanes.engines)
        ['p4inv', 'plain']
    """
    return Lanes(config, "methods", {name: racer(config, name) for name in config.names})


@torch.no_grad()
def race_figures(model: nn.Module) -> dict[str, float]:
    """Return how exact the inverses and determinants of a model's linear layers are, whatever their kind.

    Returns:
        logabsdet and sign of the product; logabsdet_error: largest distance of a layer's own log|det| from a
        factorization of its weights in float64; residual: largest entry of ``|f^-1(f(I)) - I|``; condition: largest
        condition number. NaN where a layer knows no inverse or determinant, is not linear, or is wider than 128.

    Cost O(d^3) per layer.
    """
    layers = [layer for layer in model.modules() if hasattr(layer, "fold") and not isinstance(layer, Flow)]
    found = [_layer_figures(layer) for layer in layers if layer.dim <= TRACKED_WIDTH]  # type: ignore[operator]
    if not found or len(found) < len(layers):
        return dict.fromkeys(("logabsdet", "sign", "logabsdet_error", "residual", "condition"), math.nan)
    return {
        "logabsdet": sum(one["logabsdet"] for one in found),
        "sign": math.prod(one["sign"] for one in found),
        **{name: _worst([one[name] for one in found]) for name in ("logabsdet_error", "residual", "condition")},
    }


def _layer_figures(layer: Any) -> dict[str, float]:
    weight = layer.weight.detach()
    if not bool(weight.isfinite().all()):
        return dict.fromkeys(("logabsdet", "sign", "logabsdet_error", "residual", "condition"), math.nan)
    sign, truth = torch.linalg.slogdet(weight.cpu().double())
    values = torch.linalg.svdvals(weight)
    own = residual = math.nan
    if type(layer) is not Plain:
        eye = torch.eye(layer.dim, dtype=weight.dtype, device=weight.device)
        own = float(layer.logabsdet())
        try:
            residual = float((layer.inverse(layer(eye)) - eye).abs().max())
        except LinAlgError:  # singular: there is no inverse
            residual = math.inf
    return {
        "logabsdet": float(truth) if math.isnan(own) else own,
        "sign": float(sign),
        "logabsdet_error": abs(own - float(truth)),
        "residual": residual,
        "condition": float(values[0] / values[-1]),
    }


def _worst(values: list[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


def standings(snapshot: Snapshot) -> "pandas.DataFrame":
    """Return one row per lane of a race, the lowest loss at equal time first.

    Columns: "loss" (test loss, at equal time), "at_step" (the test loss when the slowest lane's number of steps was
    done) with that number, "steps", "step_ms" (mean), "memory_kb" (parameters, buffers, gradients, optimizer state),
    "inverse_error", "logdet_error", and "stopped" with the reason.
    """
    pd = require("pandas", "lab")

    lanes = snapshot.lanes
    common = common_step(lanes)
    rows = []
    for name, lane in lanes.items():
        rows.append(
            {
                "method": METHODS[name].label,
                "loss": math.nan if lane.message else lane.last("test_loss"),
                "at_step": loss_at(lane, common),
                "steps": lane.step,
                "step_ms": 1e3 * lane.last("seconds") / max(1, lane.step),
                "memory_kb": float(lane.pictures["memory"]) / 1024,
                "inverse_error": lane.last("residual"),
                "logdet_error": lane.last("logabsdet_error"),
                "stopped": lane.message,
            }
        )
    return pd.DataFrame(rows, index=list(lanes)).sort_values("loss", na_position="last")


def common_step(lanes: Mapping[str, Snapshot]) -> int:
    """Return the step that the slowest lane has reached; lanes that stopped do not count."""
    return min((lane.step for lane in lanes.values() if not lane.message), default=0)


def loss_at(lane: Snapshot, step: int) -> float:
    """Return the last test loss of a lane up to a step; NaN if there is none."""
    steps, losses = lane.curves["test_loss"]
    here = losses[steps <= step]
    return float(here[-1]) if len(here) else math.nan
