"""What stands between the coupling layers of a flow and mixes the coordinates."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from p4lab.baselines import PLU, Dense, TorchTrivialized
from p4lab.errors import OptionError
from p4lab.flows.linear_layers import Linear, Permutation
from p4lab.options import check_known, named_options, options_of, takes_options_of
from p4lab.p4 import ORTHOGONAL, RECOMMENDED, P4Inv, P4Orthogonal, Preset
from p4lab.p4.validate import seed_from

SWAP = "reverse"
"""The initial matrix of layers that start as the swap: the coordinates in reversed order."""


class Mixing(Protocol):
    """Makes a mixing layer."""

    def __call__(
        self, dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any
    ) -> Linear:
        """Return a linear layer of width ``dim``.

        Args:
            dim: width d.
            seed: seed, or a CPU generator to draw from.
            preset: settings of P4 layers; others have no use for it.
            options: of the layer's constructor, such as ``dtype`` and ``device``.

        Raises:
            OptionError: an unknown option. Fixed layers ignore what any of the others knows.
        """


def swap(
    dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any
) -> Permutation:
    """Return the fixed swap: the coordinates in reversed order, so that the halves change places."""
    check_known("swap", options, mixing_options("swap"))
    return Permutation.reverse(dim, options.get("device"))


def permutation(
    dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any
) -> Permutation:
    """Return a fixed permutation, drawn at random."""
    check_known("permutation", options, mixing_options("permutation"))
    generator = seed
    if generator is not None and not isinstance(generator, torch.Generator):
        generator = torch.Generator().manual_seed(seed_from(seed))
    return Permutation(torch.randperm(dim, generator=generator, device="cpu").tolist(), options.get("device"))


def from_swap(
    name: str, kind: Callable[..., Any], settings: Callable[[int, Preset], dict[str, Any]] = lambda dim, preset: {}
) -> Mixing:
    """Return a mixing of trained layers that start as the swap.

    Args:
        name: what it is called.
        kind: makes a layer; its options are the mixing's.
        settings: what a layer takes from its width and the preset, where no option says otherwise.
    """

    def make(
        dim: int, seed: int | torch.Generator | None = None, preset: Preset = RECOMMENDED, **options: Any
    ) -> Linear:
        return kind(dim, **{"init": SWAP, "seed": seed, **settings(dim, preset), **options})

    make.__name__ = make.__qualname__ = name
    return takes_options_of(kind)(make)


def _of_p4inv(dim: int, preset: Preset) -> dict[str, Any]:
    if preset.kind is not P4Inv:
        raise OptionError(
            f"preset {preset.name!r} is one of {preset.kind.__name__} layers, and these are P4Inv layers: take another "
            "preset, or p4lab.flows.architectures.bent_stack with preset.layer"
        )
    return preset.settings(dim)


p4inv = from_swap("p4inv", P4Inv, _of_p4inv)
"""P4Inv layers: the P4Inv swaps of arXiv:2010.07033, section 3.3."""
plu = from_swap("plu", PLU)
"""PLU layers, as in Glow; their permutation stays."""
dense = from_swap("dense", Dense)
"""Plain weights, whose determinant and inverse are computed anew each time; the first ones of Glow."""
orthogonal = from_swap("orthogonal", TorchTrivialized)
"""torch's orthogonal parametrization (matrix exponential) on top of the swap."""
p4orthogonal = from_swap(
    "p4orthogonal",
    P4Orthogonal,
    lambda dim, p: {
        "rank": min(p.rank_for(dim), ORTHOGONAL.rank_for(dim)),
        "reset": p.reset if p.reset in P4Orthogonal.resets else ORTHOGONAL.reset,
    },
)
"""P4 layers on the orthogonal group; log|det| stays 0."""

MIXINGS: dict[str, Mixing] = {
    "swap": swap,
    "permutation": permutation,
    "p4inv": p4inv,
    "plu": plu,
    "dense": dense,
    "orthogonal": orthogonal,
    "p4orthogonal": p4orthogonal,
}
"""Mixing layers by name; all but "permutation" start as the swap. A new one is an entry here."""

FIXED: tuple[Mixing, ...] = (swap, permutation)
"""Mixings in which nothing trains: so they ignore options that others have a use for."""


def mixing_layer(name: str) -> Mixing:
    """Return the builder of that name.

    Raises:
        OptionError: unknown name.
    """
    if name not in MIXINGS:
        raise OptionError(f"mixing={name!r} is not known: choose one of {tuple(MIXINGS)}")
    return MIXINGS[name]


def mixing_options(name: str) -> frozenset[str] | None:
    """Return the names of the options that a mixing accepts, None if it takes any name.

    They are those of its layer's constructor; of fixed ones, all that some mixing knows.

    Raises:
        OptionError: unknown mixing.
    """
    make = mixing_layer(name)
    if make not in FIXED:
        return options_of(make)
    return frozenset().union(*(options_of(other) or () for other in MIXINGS.values() if other not in FIXED))


def check_mixing_options(function: Callable[..., Any], mixing: str, options: Iterable[str]) -> None:
    """Raise unless all options that a function hands on to mixing layers are known.

    Args:
        function: who was given them; its own arguments are known, too.
        mixing: a name of `MIXINGS`.
        options: names of the options.

    Raises:
        OptionError: unknown mixing or option.
    """
    check_known(function.__name__, options, named_options(function), mixing_options(mixing))
