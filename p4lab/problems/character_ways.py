"""Ways to train the projections of a transformer of characters: plain, with a property by P4, and by POET."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW

from p4lab.baselines.poet import PoetLinear, PoetSchedule
from p4lab.p4 import ORTHOGONAL, MergeSchedule, convert, p4_modules
from p4lab.problems.characters import CharacterModel

PROJECTIONS = ("*.query", "*.key", "*.value", "*.output", "*.up", "*.down")
"""The linear layers of a block, which are what keeps a property."""
DECAY = 0.01
"""AdamW's weight decay, of what does not turn."""
WARM_UP = 20
"""Steps in which learning rates rise to what they are."""
RANK, EVERY = 16, 10
"""Directions on each side (POET's blocks are twice as large), and steps between merges (POET has its own)."""
HEAD = 32
"""Numbers of a head of attention, where that divides the width; else there is one head."""


@dataclass(frozen=True)
class Way:
    """A way to train the projections.

    Attributes:
        label: what it is called.
        turn: puts the layers of this way into a model (None: it stays as it is).
        rate: of AdamW for what turns; the best of the grid of ``python -m p4lab.experiments.characters``.
        schedule: from model and optimizer to what merges, every so many steps (None: nothing does).
        keeps: the property, as `p4lab.p4.convert` names it (empty: none).
    """

    label: str
    rate: float
    turn: Callable[[nn.Module, int, int], object] | None = None
    schedule: Callable[[nn.Module, AdamW], Any] | None = None
    keeps: str = ""


def projections(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return each linear layer of a block, after its parent and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and f"*.{name}" in PROJECTIONS
    ]


@torch.no_grad()
def _converted(keeps: str, model: nn.Module, rank: int, seed: int) -> None:
    """Put P4 layers into a model; what keeps its singular values starts with rows of length 1, as POET does."""
    for _, _, layer in projections(model):
        layer.weight.copy_(F.normalize(layer.weight, dim=1))
    convert(model, keeps, PROJECTIONS, seed=seed, rank=rank, reset=ORTHOGONAL.reset)


def _poet(model: nn.Module, rank: int, seed: int) -> None:
    """Put POET's layers in the place of projections, with its own start and blocks of twice the rank."""
    for number, (parent, name, child) in enumerate(projections(model)):
        layer = PoetLinear(child.in_features, child.out_features, block=2 * rank, seed=seed + number)
        setattr(parent, name, layer.to(child.weight))


def _p4(label: str, keeps: str, rate: float) -> Way:
    merges = partial(MergeSchedule, every=EVERY, refine_every=ORTHOGONAL.refine_every)
    return Way(label, rate, partial(_converted, keeps), merges, keeps)


WAYS: Mapping[str, Way] = {
    "plain": Way("plain weights", 1e-2),
    "spectrum": _p4("P4Spectrum", "spectrum", 1e-2),
    "orthogonal": _p4("P4Orthogonal, P4Stiefel", "orthogonal", 1e-2),
    "poet": Way("POET", 1e-2, _poet, PoetSchedule),
}
"""Plain weights train by AdamW; the others turn, and AdamW moves what turns them."""
KEEPING = {name: way.label for name, way in WAYS.items() if way.keeps}
"""The ways that keep a property, by name, and what they are called."""


def build(way: str, width: int, blocks: int, length: int, rank: int, seed: int) -> CharacterModel:
    """Return a model at its start; all that is no projection is the same for all ways of one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CharacterModel(width, blocks, 1 if width % HEAD else width // HEAD, length)
    if WAYS[way].turn is not None:
        WAYS[way].turn(model, rank, seed)  # type: ignore[misc]
    return model


def optimizer_of(way: str, model: nn.Module) -> AdamW:
    """Return AdamW with what turns in its first group, and all else, at the rate of plain weights, in its last."""
    turning = {id(p) for module in p4_modules(model) for p in module.perturbation()}
    turning |= {id(p) for module in model.modules() if isinstance(module, PoetLinear) for p in module.rotations()}
    groups = [
        {"params": [p for p in model.parameters() if (id(p) in turning) is turns], "lr": rate, "weight_decay": decay}
        for turns, rate, decay in ((True, WAYS[way].rate, 0.0), (False, WAYS["plain"].rate, DECAY))
    ]
    return AdamW([group for group in groups if group["params"]])
