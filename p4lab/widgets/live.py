"""Train your own problem, model, optimizer and merge schedule live."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from p4lab.errors import OptionError
from p4lab.p4 import MergeSchedule, P4Inv, p4_modules
from p4lab.plots import Loss
from p4lab.training import CustomConfig, Engine, Problem, RunConfig
from p4lab.widgets import settings_items as shared
from p4lab.widgets.controls import Group
from p4lab.widgets.old_dashboard import Dashboard, Picture, Style
from p4lab.widgets.spectrum import show_spectrum, spectrum_plane

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0)
INTERVALS = (1, 2, 5, 10, 20, 50, 100, 200)


def train_live(
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
    name: str | None = None,
) -> Dashboard:
    """Return a lab for anything that torch can train.

    What is given is copied, so that it stays as it is and Reset comes back to it; `Dashboard.model` is the model of the
    active run.

    Args:
        problem: has ``batch(size, generator)`` and ``loss(model, batch)``; ``test_loss(model)``, ``pictures(model, z)``
            and ``watched(model)`` are used if they are there (see `p4lab.training.Problem`).
        model: any module; P4 layers in it are measured and merged.
        optimizer: steps the model's parameters.
        schedule: when P4 layers merge; needed if there are any.
        batch_size: samples per step.
        seed: seed of the batches.
        measure_every: steps between measurements; they cost O(d^3) for each P4Inv layer.
        pictures: fast pictures beside the curves.
        loss: how losses read (None: a plain number).
        title: heading (None: the model's class).
        name: see `Dashboard`.

    Raises:
        OptionError: P4 layers without a schedule, or a problem without ``batch`` and ``loss``.

    Example:
        >>> lab = train_live(problem, model, torch.optim.Adam(model.parameters()), schedule)  # doctest: +SKIP
    """
    for needed in ("batch", "loss"):
        if not callable(getattr(problem, needed, None)):
            raise OptionError(f"problem of type {type(problem).__name__}: expected a method {needed!r}")
    if p4_modules(model) and schedule is None:
        raise OptionError(f"{type(model).__name__} contains P4 layers: give a MergeSchedule, or they never merge")
    config = _config(model, optimizer, schedule, batch_size, seed, measure_every)
    # One deep copy keeps optimizer and schedule on the copied model's parameters.
    pristine = copy.deepcopy((problem, model, optimizer, schedule))

    def factory(config: RunConfig) -> Engine:
        return Engine(config, *copy.deepcopy(pristine))

    eigenvalues = spectrum_plane("of the watched matrix")
    watched = hasattr(problem, "watched") or any(isinstance(layer, P4Inv) for layer in p4_modules(model))
    has_test = hasattr(problem, "test_loss")
    return Dashboard(
        config,
        factory,
        title or type(model).__name__,
        f"{type(optimizer).__name__}, {sum(p.numel() for p in model.parameters()):,} trainable parameters",
        _settings(config, schedule is not None, any(isinstance(layer, P4Inv) for layer in p4_modules(model))),
        [*pictures, *([Picture(eigenvalues, lambda frame: show_spectrum(eigenvalues, frame), 0.3)] if watched else [])],
        Style(loss or Loss("loss", bits=False, test=has_test)),
        name,
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


def _settings(config: CustomConfig, merges: bool, invertible: bool) -> list[Group]:
    groups = [
        Group(
            "Optimizer",
            [shared.learning_rate(config, *RATES)],
        )
    ]
    perturbations = []
    if merges:
        perturbations += [
            shared.merge_every(config, *INTERVALS),
            shared.refine_every(config, *INTERVALS),
        ]
    if invertible:
        perturbations += [
            shared.directions(),
            shared.skip(),
            shared.penalty("Penalize vanishing and exploding determinants"),
        ]
    if perturbations:
        groups.append(Group("Perturbations", perturbations))
    return [*groups, Group("Run", [shared.seed(), shared.slow_speed_limit()])]
