"""Named architectures."""

from collections.abc import Callable
from itertools import cycle
from typing import Any, cast

import torch

from p4lab.errors import OptionError
from p4lab.flows.bent import BentIdentity
from p4lab.flows.bijection import Bijection
from p4lab.flows.context import check_length
from p4lab.flows.coupling import AffineCoupling, ContextAffine
from p4lab.flows.flow import Flow, Layer
from p4lab.flows.linear_layers import Linear
from p4lab.flows.mixing import check_mixing_options, mixing_layer, p4inv
from p4lab.options import takes_options_of
from p4lab.p4 import RECOMMENDED, P4Inv, Preset
from p4lab.p4.validate import seed_from

PAIRED = "paired"
"""Initial matrices of `p4inv_bent` with which each Bent identity is undone by the inverse one that follows it."""


@takes_options_of(P4Inv)
def p4inv_bent(
    dim: int,
    blocks: int,
    preset: Preset = RECOMMENDED,
    init: str = "orthogonal",
    seed: int | torch.Generator | None = 0,
    context: int = 0,
    hidden: int = 64,
    **options: Any,
) -> Flow:
    """Return P4Inv layers with a Bent identity or its inverse, in turn, between any two of them.

    The sequence is ``P4Inv, b, P4Inv, b^-1, P4Inv, b, ..., P4Inv``: ``blocks`` nonlinearities, one linear layer more.
    With a context, a `ContextAffine` layer follows each P4Inv layer; such a stack has no fused path.

    Args:
        dim: width d.
        blocks: number of nonlinearities, at least 0.
        preset: rank, reset kind and whether directions train.
        init: initial matrix of each P4Inv layer; or "paired": random orthogonal ones in turn with the identity, which
            stands within each pair ``b, P4Inv, b^-1``. The pair then cancels, and a stack of an even number of
            nonlinearities starts as an orthogonal map, however deep it is.
        seed: seed of the initial matrices and directions, and of the networks.
        context: length c of the context, 0 for none.
        hidden: width of the one hidden layer of the networks that read it.
        options: further arguments of `P4Inv`: ``dtype``, ``device``, and over the preset's ``rank``, ``reset`` or
            ``train_v``.

    Raises:
        OptionError: blocks < 0, context < 0, or an option that P4Inv refuses or does not know.

    Source: arXiv:2010.07033, section 3.2; the layers that read a context are ours.

    Example:
        >>> flow = p4inv_bent(2, blocks=3)
        >>> len(flow.linear_layers()), len(flow.layers)
        (4, 7)
    """
    check_length(context)
    first = seed_from(seed)
    generator, networks = (torch.Generator().manual_seed(first + i) for i in (0, 1))
    kinds = cycle(("orthogonal", "identity") if init == PAIRED else (init,))
    kind = {name: options.get(name) for name in ("dtype", "device")}

    def linear() -> Linear | Flow:
        layer = p4inv(dim, generator, preset, init=next(kinds), **options)
        return Flow([layer, ContextAffine(dim, context, hidden, 1, networks, **kind)]) if context else layer

    return bent_stack(blocks, linear)


def bent_stack(blocks: int, linear: Callable[[], Linear | Flow]) -> Flow:
    """Return linear layers with a Bent identity or its inverse, in turn, between any two of them.

    Args:
        blocks: number of nonlinearities, at least 0.
        linear: makes a linear layer, or a flow that stands for its layers; called ``blocks + 1`` times.

    Raises:
        OptionError: blocks < 0.
    """
    if blocks < 0:
        raise OptionError(f"blocks={blocks}: expected at least 0")
    layers: list[Layer | Flow] = [linear()]
    for i in range(blocks):
        layers += [BentIdentity(inverted=i % 2 == 1), linear()]
    return Flow(layers)


def realnvp(
    dim: int,
    blocks: int,
    mixing: str = "swap",
    hidden: int = 64,
    depth: int = 2,
    seed: int | torch.Generator | None = 0,
    preset: Preset = RECOMMENDED,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    context: int = 0,
    **options: Any,
) -> Flow:
    """Return affine couplings with a mixing layer between any two of them: RealNVP, or Glow without convolutions.

    Each coupling moves one half of the coordinates and starts at the identity; all mixings of `MIXINGS` but
    "permutation" start as the swap, so that flows of one seed start as the same function whatever mixes them.

    Args:
        dim: width d, at least 2.
        blocks: number of couplings, at least 1.
        mixing: a name of `p4lab.flows.MIXINGS`.
        hidden: width of the hidden layers of the couplings' networks.
        depth: number of their hidden layers.
        seed: seed of networks and mixing layers; the networks do not depend on the mixing.
        preset: settings of P4 mixing layers.
        dtype: float32 or float64 (None: torch's default).
        device: device of all tensors.
        context: length c of the context that the couplings read, 0 for none.
        options: further options of the mixing layers, such as ``bias=False`` (which fixed ones ignore).

    Raises:
        OptionError: something is out of range, or an option that neither this function nor the mixing knows.

    Source: arXiv:1605.08803 (RealNVP), arXiv:1807.03039 (Glow), arXiv:2010.07033, section 3.3 (P4Inv swaps).

    Example:
        >>> realnvp(2, blocks=4, mixing="p4inv").sample(3).shape
        torch.Size([3, 2])
        >>> realnvp(2, blocks=4, mixing="p4inv", context=5).log_prob(torch.zeros(3, 2), torch.ones(3, 5)).shape
        torch.Size([3])
    """

    check_mixing_options(realnvp, mixing, options)

    def coupling(generator: torch.Generator) -> Bijection:
        return AffineCoupling(dim, hidden, depth, generator, dtype, device, context)

    return coupling_flow(dim, blocks, coupling, mixing, seed, preset, dtype=dtype, device=device, **options)


def spline_flow(
    dim: int,
    blocks: int,
    mixing: str = "swap",
    bins: int = 8,
    hidden: int = 64,
    depth: int = 2,
    seed: int | torch.Generator | None = 0,
    preset: Preset = RECOMMENDED,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    context: int = 0,
    **options: Any,
) -> Flow:
    """Return rational-quadratic spline couplings (zuko's) with a mixing layer between any two of them.

    Splines act within [-5, 5] and leave what is outside alone: standardize data first (`Standardize`). They start at
    the identity. Arguments as for `realnvp`, and:

    Args:
        bins: bins of each spline, at least 2.

    Raises:
        OptionError: as `realnvp`.

    Source: Durkan et al., arXiv:1906.04032; zuko's ``GeneralCouplingTransform`` and ``MonotonicRQSTransform``.
    """
    check_mixing_options(spline_flow, mixing, options)
    from p4lab.flows.from_zuko import spline_coupling  # here: zuko switches off torch's validation of distributions

    def coupling(generator: torch.Generator) -> Bijection:
        return spline_coupling(dim, bins, hidden, depth, generator, dtype, device, context)

    return coupling_flow(dim, blocks, coupling, mixing, seed, preset, dtype=dtype, device=device, **options)


def coupling_flow(
    dim: int,
    blocks: int,
    coupling: Callable[[torch.Generator], Bijection],
    mixing: str = "swap",
    seed: int | torch.Generator | None = 0,
    preset: Preset = RECOMMENDED,
    **options: Any,
) -> Flow:
    """Return couplings of any kind with a mixing layer between any two of them.

    Args:
        dim: width d, at least 2.
        blocks: number of couplings, at least 1.
        coupling: makes one, from a generator; couplings that read a context make the flow conditional.
        mixing: a name of `p4lab.flows.MIXINGS`.
        seed: seed of everything random.
        preset: settings of P4 mixing layers.
        options: of the mixing layers.

    Raises:
        OptionError: dim, blocks or mixing out of range, or an option that the mixing does not know.
    """
    check_mixing_options(coupling_flow, mixing, options)
    if dim < 2 or blocks < 1:
        raise OptionError(f"dim={dim}, blocks={blocks}: expected dim >= 2 (two halves) and blocks >= 1")
    mix = mixing_layer(mixing)
    layers = alternating(blocks, coupling, lambda generator: mix(dim, generator, preset, **options), seed)
    return Flow(cast(list[Layer], layers), dim)


def alternating(
    blocks: int,
    coupling: Callable[[torch.Generator], Any],
    mixing: Callable[[torch.Generator], Any],
    seed: int | torch.Generator | None,
) -> list[Any]:
    """Return couplings with a mixing layer between any two of them; of one seed couplings do not depend on what mixes.

    Args:
        blocks: number of couplings, at least 1.
        coupling, mixing: make a layer from a generator; each kind has one of its own.
        seed: seed of both.
    """
    first = 2 * seed_from(seed)
    couplings, mixings = (torch.Generator().manual_seed(first + i) for i in (0, 1))
    layers = [coupling(couplings)]
    for _ in range(blocks - 1):
        layers += [mixing(mixings), coupling(couplings)]
    return layers
