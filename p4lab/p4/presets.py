"""Named settings: the paper's own, and the ones that our benchmark found to be the fastest."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from p4lab.p4.invertible import P4Inv
from p4lab.p4.linear import Reset
from p4lab.p4.orthogonal import P4Orthogonal
from p4lab.p4.schedule import MergeSchedule


@dataclass(frozen=True)
class Preset:
    """Settings of a P4Inv layer and its merge schedule that go together.

    Attributes:
        name: what the lab calls it.
        rank: number of rank-one terms, in layers wide enough for it (see `rank_for`).
        reset: how directions are redrawn.
        train_v: whether the directions train, too.
        every: optimizer steps between merges.
        refine_every: merges between refinements of the inverse.
    """

    name: str
    rank: int
    reset: Reset
    train_v: bool
    every: int
    refine_every: int

    def rank_for(self, dim: int) -> int:
        """Return the rank for layers of width ``dim``: at most two thirds of it, but at least 1.

        Example:
            >>> RECOMMENDED.rank_for(512), RECOMMENDED.rank_for(64), PAPER.rank_for(2)
            (64, 42, 1)
        """
        return min(self.rank, max(1, 2 * dim // 3))

    def layer(self, dim: int, **options: Any) -> P4Inv:
        """Return a P4Inv layer with these settings and further ``options`` of `P4Inv`."""
        return P4Inv(dim, rank=self.rank_for(dim), reset=self.reset, train_v=self.train_v, **options)

    def schedule(self, model: nn.Module, optimizer: Optimizer) -> MergeSchedule:
        """Return a merge schedule with these settings."""
        return MergeSchedule(model, optimizer, every=self.every, refine_every=self.refine_every)


PAPER = Preset("paper", rank=1, reset="gaussian", train_v=True, every=10, refine_every=50)
"""arXiv:2010.07033: one random direction, trained along, merged every 10 steps."""

RECOMMENDED = Preset("recommended", rank=64, reset="gradient", train_v=False, every=4, refine_every=50)
"""What the lab starts with: many directions, taken from the gradient, merged often (see ``make bench``)."""

PRESETS = {preset.name: preset for preset in (RECOMMENDED, PAPER)}


WIDE = 256
"""Width from which on the cost of a step of an orthogonal layer is that of its products."""


@dataclass(frozen=True)
class OrthogonalPreset:
    """Settings of a P4Orthogonal layer and its merge schedule that go together.

    Attributes:
        name: what the lab calls it.
        rank: number of directions, in layers of middle width (see `rank_for`).
        reset: how directions are redrawn.
        every: optimizer steps between merges.
        refine_every: merges between Newton-Schulz corrections.
    """

    name: str
    rank: int
    reset: Reset
    every: int
    refine_every: int

    def rank_for(self, dim: int) -> int:
        """Return the rank for layers of width ``dim``.

        At most half of the width, but at least 1; from `WIDE` on dim / 16, so that a step stays cheap beside that of
        `nn.Linear`.

        Example:
            >>> [ORTHOGONAL.rank_for(dim) for dim in (1, 40, 128, 256, 512, 1024)]
            [1, 20, 32, 16, 32, 64]
        """
        return dim // 16 if dim >= WIDE else min(self.rank, max(1, dim // 2))

    def layer(self, dim: int, **options: Any) -> P4Orthogonal:
        """Return a P4Orthogonal layer with these settings and further ``options`` of `P4Orthogonal`."""
        return P4Orthogonal(dim, rank=self.rank_for(dim), reset=self.reset, **options)

    def schedule(self, model: nn.Module, optimizer: Optimizer) -> MergeSchedule:
        """Return a merge schedule with these settings."""
        return MergeSchedule(model, optimizer, every=self.every, refine_every=self.refine_every)


ORTHOGONAL = OrthogonalPreset("orthogonal", rank=32, reset="gradient", every=4, refine_every=50)
"""Directions from the gradient, merged often; for plain gradient descent (``python -m p4lab.bench orthogonal``)."""
