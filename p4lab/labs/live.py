"""A lab for anything that torch can train: a problem, a model, an optimizer and a merge schedule of one's own."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from p4lab.errors import ConfigError, OptionError
from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.digits import eigenvalues
from p4lab.labs.lab import SLOW, Axes, Lab, Picture, View
from p4lab.labs.table import STYLE, Table
from p4lab.p4 import MergeSchedule, P4Inv, p4_modules
from p4lab.plots import Loss
from p4lab.problems import TableProblem
from p4lab.training import CustomConfig, Engine, Problem, RunConfig
from p4lab.training.config import setting

LEARNING = ("learning_rate",)
MERGING = ("merge_every", "refine_every")
INVERTIBLE = ("reset", "skip", "penalty")
GIVEN = ("rank", "train_v", "dtype", "device", "optimizer")
"""Settings that say what was given, and cannot be set."""


@dataclass(frozen=True)
class LiveView(View):
    """What is looked at."""

    speed: float | None = setting(None, choices=SLOW)


def live_lab(
    problem: Problem,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: MergeSchedule | None = None,
    batch_size: int = 128,
    seed: int = 0,
    measure_every: int = 25,
    pictures: Sequence[Picture] = (),
    loss: Loss | None = None,
    title: str | None = None,
) -> Lab[CustomConfig, View]:
    """Return a lab for anything that torch can train; `p4lab.widgets.train_live` shows it and says more.

    Raises:
        OptionError: no module, or an optimizer that does not step it, or wants a closure; P4 layers without a schedule,
            or one of other layers, or that is attached; a problem without ``batch`` and ``loss``.
    """
    if isinstance(problem, type):
        raise OptionError(f"problem is the class {problem.__name__}: give an instance, {problem.__name__}()")
    if not isinstance(model, nn.Module):
        raise OptionError(f"model={model!r:.80}: expected a torch.nn.Module, after the problem")
    if not hasattr(optimizer, "param_groups") or isinstance(optimizer, LBFGS):
        raise OptionError(
            f"{type(optimizer).__name__} where the optimizer stands: expected a torch.optim.Optimizer that steps "
            "without a closure; a lab has no scheduler of learning rates"
        )
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not trained & {id(parameter) for parameter in model.parameters()}:
        raise OptionError(f"{type(optimizer).__name__} holds none of the parameters of {type(model).__name__}")
    for needed in ("batch", "loss"):
        if not callable(getattr(problem, needed, None)):
            raise OptionError(
                f"problem of type {type(problem).__name__}: expected a method {needed!r}; a table becomes a problem by "
                "p4lab.problems.table_problem, a density in the plane by DensityProblem"
            )
    layers = p4_modules(model)
    if layers and schedule is None:
        raise OptionError(f"{type(model).__name__} contains P4 layers: give a MergeSchedule, or they never merge")
    if schedule is not None and set(schedule.layers) != set(layers):
        raise OptionError(
            f"this schedule merges other layers than those of {type(model).__name__}: make it anew of this model and "
            "optimizer"
        )
    if schedule is not None and schedule.attached:
        raise OptionError("this schedule is attached to its optimizer, and a lab counts steps by itself: detach() it")
    # One deep copy keeps optimizer and schedule on the copied model's parameters.
    pristine = copy.deepcopy((problem, model, optimizer, schedule))

    given = _config(model, optimizer, schedule, batch_size, seed, measure_every)

    def trainer(config: RunConfig) -> Engine:
        for name in GIVEN:
            value = getattr(config, name)
            if value != getattr(given, name):
                raise ConfigError(f"{name}={value!r}: the model was given with {getattr(given, name)!r}; build it anew")
        return Engine(config, *copy.deepcopy(pristine))

    inverted = any(isinstance(layer, P4Inv) for layer in layers)
    table = Table(problem) if isinstance(problem, TableProblem) and not pictures else None
    name = "loss −log p (nats per row)" if isinstance(problem, TableProblem) else "loss"
    reading = loss or Loss(name, bits=False, test=hasattr(problem, "test_loss"))
    perturbations = (*(MERGING if schedule else ()), *(INVERTIBLE if inverted else ()))
    axes = Axes("Eigenvalues", "of the watched matrix", "real part", "imaginary part", height=200)
    spectrum = (
        [Picture(axes, eigenvalues, 0.3, "eigenvalues")]
        if not table and (hasattr(problem, "watched") or inverted)
        else []
    )
    return Lab(
        name="table" if table else "live",
        title=title or type(model).__name__,
        subtitle=f"{type(optimizer).__name__}, {sum(p.numel() for p in model.parameters()):,} trainable parameters",
        config=given,
        view=table.view() if table else LiveView(),
        trainer=trainer,
        groups={
            "Optimizer": LEARNING,
            **({"Perturbations": perturbations} if perturbations else {}),
            "Run": ("speed",),
        },
        more={"Run": ("seed",), "Diagnostics": ("view",)},
        pictures=(*(table.pictures() if table else pictures), *spectrum),
        numbers=numbers.usual(reading),
        curves=lambda sight: training_figure(sight, reading),
        loss=reading,
        offers=table.offers() if table else {},
        style=STYLE if table else "",
    )


def _config(
    model: nn.Module,
    optimizer: Optimizer,
    schedule: MergeSchedule | None,
    batch_size: int,
    seed: int,
    measure_every: int,
) -> CustomConfig:
    first = next(model.parameters())
    layer = next((module for module in model.modules() if isinstance(module, P4Inv)), None)
    values: dict[str, Any] = {
        "seed": seed,
        "dtype": "float64" if first.dtype == torch.float64 else "float32",
        "device": str(first.device),
        "threads": torch.get_num_threads(),
        "optimizer": type(optimizer).__name__,
        "learning_rate": float(optimizer.param_groups[0]["lr"]),
        "batch_size": batch_size,
        "measure_every": measure_every,
    }
    if schedule is not None:
        values |= {"merge_every": schedule.every, "refine_every": schedule.refine_every}
    if layer is not None:
        values |= {
            "rank": layer.rank,
            "reset": layer.reset_kind,
            "train_v": layer.train_v,
            "refine_order": layer.refine_order,
            "skip": layer.min_factor > 0,
        }
    return CustomConfig(**values)
