"""Train your own problem, model, optimizer and merge schedule live."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from p4lab.labs.lab import Picture
from p4lab.labs.live import live_lab
from p4lab.p4 import MergeSchedule
from p4lab.plots import Loss
from p4lab.training import Problem
from p4lab.widgets.dashboard import Dashboard


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
        pictures: `p4lab.labs.Picture` objects beside the curves, made of what ``problem.pictures`` returns. Where none
            is given, a table (`p4lab.problems.table_problem`) shows its columns, data beside samples.
        loss: how losses read (None: a plain number).
        title: heading (None: the model's class).
        name: see `Dashboard`.

    Raises:
        OptionError: no module, or an optimizer that does not step it, or wants a closure; P4 layers without a schedule,
            or one of other layers, or that is attached; a problem without ``batch`` and ``loss``.

    Example:
        >>> lab = train_live(problem, model, torch.optim.Adam(model.parameters()), schedule)  # doctest: +SKIP
    """
    lab = live_lab(problem, model, optimizer, schedule, batch_size, seed, measure_every, pictures, loss, title)
    return Dashboard(lab, name=name)
