"""A race: several methods on one task, each with the same time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from p4lab.baselines import METHODS, Method, Plain, Rebase
from p4lab.errors import ConfigError, TrainingError
from p4lab.flows import Flow
from p4lab.p4 import PAPER, RECOMMENDED, MergeSchedule
from p4lab.problems.rates import Choice, choice
from p4lab.problems.tasks import TASKS, Task, task
from p4lab.training.config import POSITIVE, Rule, RunConfig, one_of, whole
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes
from p4lab.training.records import Records, Snapshot

if TYPE_CHECKING:
    import pandas

SEPARATOR = "+"
PRESETS_OF = {"p4inv": RECOMMENDED, "p4inv_paper": PAPER}
TRACKED_WIDTH = 128
"""Widest layer whose weights, inverse and determinant are compared with a factorization at measurements."""


def _are_methods(text: str) -> bool:
    names = text.split(SEPARATOR)
    return 1 <= len(names) == len(set(names)) and all(name in METHODS for name in names)


@dataclass(frozen=True)
class RaceConfig(RunConfig):
    """Train several methods from the same start on the same data, each for the same time.

    Rank, directions and merges are those of each P4 method's preset; learning rates are each method's own best
    (`p4lab.problems.rates`) times ``rate_factor``.

    Attributes:
        task: what is learned, one of `p4lab.problems.tasks.TASKS`.
        methods: names of `p4lab.baselines.METHODS`, joined by "+".
        dim: width d; the task "digits" has its own.
        rate_factor: factor on all learning rates; live.
        turn: milliseconds that each lane trains before the next one's turn.
        budget: seconds of training for each lane.
    """

    problem: ClassVar[str] = "race"
    rules: ClassVar[dict[str, Rule]] = {
        "task": one_of(*TASKS),
        "methods": Rule(str, _are_methods, f"different names joined by {SEPARATOR}, of {', '.join(METHODS)}"),
        "dim": whole(2, 512),
        "rate_factor": POSITIVE,
        "turn": Rule(float, lambda value: 1 <= value <= 1000, "1 to 1000 milliseconds"),
        "budget": POSITIVE,
    }
    live: ClassVar[tuple[str, ...]] = ("rate_factor", "budget")

    batch_size: int = 64
    measure_every: int = 25
    task: str = "so"
    methods: str = "plain+p4inv+plu+dense+exponential"
    dim: int = 64
    rate_factor: float = 1.0
    turn: float = 20.0
    budget: float = 20.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the methods."""
        return tuple(self.methods.split(SEPARATOR))

    @property
    def width(self) -> int:
        """The width d."""
        return 64 if self.task == "digits" else self.dim

    def parts(self) -> tuple[Task, nn.Module]:
        """Return the task, and the model of the first method.

        Raises:
            ConfigError: the method cannot do the task.
        """
        return self._parts(METHODS[self.names[0]])

    def _parts(self, method: Method) -> tuple[Task, nn.Module]:
        dtype = getattr(torch, self.dtype)
        chosen = task(self.task, self.dim, self.seed + 1, dtype, self.device)
        reason = unfit(self.task, method)
        if reason:
            raise ConfigError(f"methods={method.name!r}: {reason}")
        options = {"bias": self.task == "digits"} if method.linear else {}
        return chosen, chosen.model(method, self.seed, dtype=dtype, device=self.device, **options)


def unfit(task_name: str, method: Method) -> str:
    """Return why a method cannot take part in a task, "" if it can."""
    if task_name.startswith("ica") or task_name == "digits":
        if not method.linear:
            return f"the task {task_name!r} is for linear layers"
        if not method.exact_logabsdet:
            return f"the likelihood of {task_name!r} needs log|det|, which it does not know"
    return ""


class Lane(Engine):
    """One method of a race.

    Args:
        config: the race's settings.
        name: of the method.
        settings: optimizer and rate (None: the tuned ones, see `p4lab.problems.rates`).

    Attributes:
        method: the method.
    """

    def __init__(self, config: RaceConfig, name: str, settings: Choice | None = None) -> None:
        self.method = METHODS[name]
        best = settings or choice(config.task, self.method, config.width)
        self._rate = best.rate
        chosen, model = config._parts(self.method)
        optimizer = self.method.optimizer(model, best.rate, best.optimizer, **best.options)
        schedule = self.method.schedule(model, optimizer)
        self._rebase = schedule if isinstance(schedule, Rebase) else None
        if self._rebase is not None:
            optimizer.register_step_post_hook(self._move_base)
        preset = PRESETS_OF.get(name)
        if preset is not None:
            config = replace(config, **config.preset_values(preset.name))
        merges = schedule if isinstance(schedule, MergeSchedule) else None
        super().__init__(config, chosen, model, optimizer, merges)

    def _move_base(self, *_: Any) -> None:
        assert self._rebase is not None
        try:
            self._rebase.step()
        except ValueError as error:  # what geotorch refuses
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"step {self.step + 1}: the weights cannot be a new base: {reason}") from error

    def _apply(self, config: RunConfig) -> None:
        assert isinstance(config, RaceConfig)
        super()._apply(replace(config, learning_rate=self._rate * config.rate_factor))

    @torch.no_grad()
    def _measure(self) -> None:
        test = float(self.problem.test_loss(self.model))
        self.records.measures.append(step=self.step, test_loss=test, **race_figures(self.model))

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on."""
        rebase = self._rebase.state_dict() if self._rebase else {}
        return {**super().state(), "rebase": rebase}

    def load_state(self, state: dict[str, Any], records: Records | None = None) -> None:
        """Go to a state, as `Engine.load_state`."""
        super().load_state(state, records)
        if self._rebase is not None:
            self._rebase.load_state_dict(state["rebase"])

    def _pictures(self) -> MappingProxyType[str, Any]:
        return MappingProxyType({**super()._pictures(), "memory": np.array(self.memory())})

    def memory(self) -> int:
        """Return the bytes of parameters, buffers, gradients and optimizer state."""
        tensors: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        tensors += [p.grad for p in self.model.parameters() if p.grad is not None]
        tensors += [
            value for state in self.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
        ]
        return sum(tensor.nbytes for tensor in tensors)


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


class Race(Lanes):
    """Lanes by method that take turns, so that each has trained for the same time; a step is a turn of every lane.

    A lane whose step takes longer than its turn waits until the others have caught up.

    Args:
        config: the race's settings.

    Attributes:
        finished: whether the budget is used up.

    Raises:
        ConfigError: a method cannot do the task.
        MissingPackageError: a method's package is not installed.

    Example:
        >>> race = Race(RaceConfig(methods="plain+p4inv", dim=8, turn=1.0))
        >>> race.run(2)
        >>> sorted(race.engines)
        ['p4inv', 'plain']
    """

    def __init__(self, config: RaceConfig) -> None:
        super().__init__(config, "methods", {name: Lane(config, name) for name in config.names})

    def leaderboard(self) -> "pandas.DataFrame":
        """Return one row per lane, the best first; see `standings`."""
        return standings(self.snapshot())


def standings(snapshot: Snapshot) -> "pandas.DataFrame":
    """Return one row per lane of a race, the lowest loss at equal time first.

    Columns: "loss" (test loss, at equal time), "at_step" (the test loss when the slowest lane's number of steps was
    done) with that number, "steps", "step_ms" (mean), "memory_kb" (parameters, buffers, gradients, optimizer state),
    "inverse_error", "logdet_error", and "stopped" with the reason.
    """
    import pandas as pd  # here: it takes half a second to import

    lanes = snapshot.lanes
    at_step = at_equal_steps(lanes)
    rows = []
    for name, lane in lanes.items():
        rows.append(
            {
                "method": METHODS[name].label,
                "loss": math.nan if lane.message else lane.last("test_loss"),
                "at_step": at_step[name],
                "steps": lane.step,
                "step_ms": 1e3 * lane.last("seconds") / max(1, lane.step),
                "memory_kb": float(lane.pictures["memory"]) / 1024,
                "inverse_error": lane.last("residual"),
                "logdet_error": lane.last("logabsdet_error"),
                "stopped": lane.message,
            }
        )
    return pd.DataFrame(rows, index=list(lanes)).sort_values("loss", na_position="last")


def at_equal_steps(lanes: Mapping[str, Snapshot]) -> dict[str, float]:
    """Return the last test losses up to the step that the slowest lane has reached; lanes that stopped do not count."""
    common = min((lane.step for lane in lanes.values() if not lane.message), default=0)
    curves = {name: lane.curves["test_loss"] for name, lane in lanes.items()}
    here = {name: losses[steps <= common] for name, (steps, losses) in curves.items()}
    return {name: float(losses[-1]) if len(losses) else math.nan for name, losses in here.items()}
