"""What stands between the coupling layers of a flow and mixes the coordinates."""

from typing import Any, Protocol

import torch

from p4lab.baselines import PLU, TorchTrivialized
from p4lab.errors import OptionError
from p4lab.flows.linear import Linear, Permutation
from p4lab.p4 import ORTHOGONAL, RECOMMENDED, P4Orthogonal, Preset

SWAP = "reverse"


class Mixing(Protocol):
    """Makes a mixing layer."""

    def __call__(
        self,
        dim: int,
        seed: int | torch.Generator | None = None,
        preset: Preset = RECOMMENDED,
        **options: Any,
    ) -> Linear:
        """Return a linear layer of width ``dim``.

        Args:
            dim: width d.
            seed: seed, or a CPU generator to draw from.
            preset: settings of P4 layers; others have no use for it.
            options: of the layer's constructor, such as ``dtype`` and ``device``.
        """


def swap(
    dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any
) -> Permutation:
    """Return the fixed swap: the coordinates in reversed order, so that the halves change places."""
    return Permutation.reverse(dim, options.get("device"))


def permutation(
    dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any
) -> Permutation:
    """Return a fixed permutation, drawn at random."""
    generator = seed if isinstance(seed, torch.Generator) else None
    if isinstance(seed, int):
        generator = torch.Generator().manual_seed(seed)
    return Permutation(torch.randperm(dim, generator=generator), options.get("device"))


def p4inv(dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any) -> Linear:
    """Return a P4Inv layer that starts as the swap: the P4Inv swap of arXiv:2010.07033, section 3.3."""
    return preset.layer(dim, **{"init": SWAP, "seed": seed, **options})


def plu(dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any) -> Linear:
    """Return a PLU layer, as in Glow, that starts as the swap; its permutation stays."""
    return PLU(dim, **{"init": SWAP, "seed": seed, **options})


def orthogonal(
    dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any
) -> Linear:
    """Return torch's orthogonal parametrization (matrix exponential) on top of the swap."""
    return TorchTrivialized(dim, **{"init": SWAP, "seed": seed, **options})


def p4orthogonal(
    dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any
) -> Linear:
    """Return a P4 layer on the orthogonal group that starts as the swap; log|det| stays 0."""
    rank = min(preset.rank_for(dim), ORTHOGONAL.rank_for(dim))
    return P4Orthogonal(dim, **{"rank": rank, "reset": preset.reset, "init": SWAP, "seed": seed, **options})


MIXINGS: dict[str, Mixing] = {
    "swap": swap,
    "permutation": permutation,
    "p4inv": p4inv,
    "plu": plu,
    "orthogonal": orthogonal,
    "p4orthogonal": p4orthogonal,
}
"""Mixing layers by name; all but "permutation" start as the swap. A new one is an entry here."""


def mixing_layer(name: str) -> Mixing:
    """Return the builder of that name.

    Raises:
        OptionError: unknown name.
    """
    if name not in MIXINGS:
        raise OptionError(f"mixing={name!r} is not known: choose one of {tuple(MIXINGS)}")
    return MIXINGS[name]
