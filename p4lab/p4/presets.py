"""Named settings: the paper's own, and the ones that our benchmark found to be the fastest."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from p4lab.p4.following import Following
from p4lab.p4.invertible import P4Inv
from p4lab.p4.linear import Reset
from p4lab.p4.orthogonal import P4Orthogonal
from p4lab.p4.relative import P4Relative
from p4lab.p4.riemannian import P4Riemannian
from p4lab.p4.schedule import MergeSchedule

WIDE = 256
"""From this width on, a step of an orthogonal layer takes as long as its products."""
FEW = 3
"""Rows for the samples of a batch cost less than whole matrices from so many times their number on."""
ALL = 1_000_000
"""This rank stands for as many directions as there are."""


@dataclass(frozen=True)
class Preset:
    """Settings of a layer and its merge schedule that go together.

    Attributes:
        name: what the lab calls it.
        rank: number of directions, in layers wide enough for it (see `rank_for`).
        reset: how directions are redrawn (layers that follow whole gradients draw none).
        train_v: whether the directions train, too.
        every: optimizer steps between merges.
        refine_every: merges between refinements of the inverse, or of the rotation.
        kind: class of the layer.
    """

    name: str
    rank: int
    reset: Reset
    train_v: bool
    every: int
    refine_every: int
    kind: type[P4Inv] | type[P4Orthogonal] | type[P4Relative] | type[P4Riemannian] = P4Inv

    def rank_for(self, dim: int) -> int:
        """Return the rank for layers of width ``dim``.

        At most two thirds of the width (unless it is `ALL`), for rotations half of it, but at least 1. From `WIDE` on
        rotations get dim / 16 directions, so that a step stays cheap beside that of `nn.Linear`. Layers that follow the
        whole gradient have room for the samples of a batch, and whole matrices up to that width (rotations up to three
        times of it).

        Example:
            >>> RECOMMENDED.rank_for(512), RECOMMENDED.rank_for(64), PAPER.rank_for(2)
            (64, 42, 1)
            >>> [ORTHOGONAL.rank_for(dim) for dim in (1, 40, 128, 256, 512, 1024)]
            [1, 20, 32, 16, 32, 64]
            >>> [RELATIVE.rank_for(dim) for dim in (2, 128, 255, 1023)]
            [2, 128, 128, 128]
            >>> [RIEMANNIAN.rank_for(dim) for dim in (64, 384, 512)]
            [64, 384, 128]
        """
        if self.kind is P4Relative:
            return min(dim, self.rank)
        if self.kind is P4Riemannian:
            return dim if dim <= FEW * self.rank else self.rank
        if self.kind is P4Orthogonal:
            return dim // 16 if dim >= WIDE else min(self.rank, max(1, dim // 2))
        return dim if self.rank == ALL else min(self.rank, max(1, 2 * dim // 3))

    def settings(self, dim: int) -> dict[str, Any]:
        """Return what the preset says of a layer of width ``dim``, as keywords for its class."""
        settings: dict[str, Any] = {"rank": self.rank_for(dim)}
        if not issubclass(self.kind, Following):
            settings["reset"] = self.reset
        if issubclass(self.kind, P4Inv):
            settings["train_v"] = self.train_v
        return settings

    def layer(self, dim: int, **options: Any) -> Any:
        """Return a layer with these settings and further ``options`` of its class."""
        return self.kind(dim, **self.settings(dim) | options)

    def schedule(self, model: nn.Module, optimizer: Optimizer) -> MergeSchedule:
        """Return a merge schedule with these settings."""
        return MergeSchedule(model, optimizer, every=self.every, refine_every=self.refine_every)


PAPER = Preset("paper", rank=1, reset="gaussian", train_v=True, every=10, refine_every=50)
"""The paper (arXiv:2010.07033) takes one random direction, trains it along, and merges every 10 steps."""

RECOMMENDED = Preset("recommended", rank=64, reset="gradient", train_v=False, every=4, refine_every=50)
"""The lab starts with many directions, takes them from the gradient, and merges often (see ``make bench``)."""

PRESETS = {preset.name: preset for preset in (RECOMMENDED, PAPER)}
"""These are the presets of `P4Inv`, by name."""

ORTHOGONAL = Preset("orthogonal", 32, "gradient", train_v=False, every=4, refine_every=50, kind=P4Orthogonal)
"""Rotations take directions from the gradient and merge often, for plain descent (``p4lab.bench orthogonal``)."""

EVERYTHING = Preset("everything", ALL, "identity", train_v=False, every=10, refine_every=50)
"""P4Inv along all directions at once: for narrow layers, whose merges can then be rare, and for maps."""

RELATIVE = Preset("relative", 128, "gradient", train_v=False, every=1, refine_every=50, kind=P4Relative)
"""All of the gradient of each batch, relative to the weights: for likelihoods, and for wide layers."""

RIEMANNIAN = Preset("riemannian", 128, "gradient", train_v=False, every=1, refine_every=200, kind=P4Riemannian)
"""Rotations follow the whole gradient of batches of up to 128 samples, by plain descent; larger ones in the mean."""
