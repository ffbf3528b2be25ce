"""Flows of molecules by the name of their architecture."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.flows.architectures import alternating
from p4lab.flows.bijection import Carrying
from p4lab.flows.counting import matched
from p4lab.flows.linear_layers import Permutation
from p4lab.flows.mixing import mixing_layer
from p4lab.molecules.couplings import CircularCoupling, ConditionalAffine, ConditionalCoupling, Mixed, Unrolled
from p4lab.molecules.density import HARMONICS, MoleculeFlow
from p4lab.options import check_known, options_of, takes_options_of
from p4lab.p4 import RECOMMENDED
from p4lab.p4.validate import seed_from

__all__ = ["ARCHITECTURES", "MoleculeFlow", "emptiest", "molecule_flow", "realnvp_flow", "spline_flow"]

REALNVP_BLOCKS, REALNVP_PARAMETERS = 25, 735_050
"""The paper's number of couplings, and of parameters of the flow without P4Inv swaps."""
SWAP_RANK = 5
"""Rank of P4Inv swaps: with it the 24 of them have 8,640 trained numbers."""


def emptiest(angles: Tensor, bins: int = 72) -> Tensor:
    """Return, for angles (n, m) in radians, where on the circle each is least often, shape (m,).

    Args:
        angles: samples.
        bins: of the histograms, which are smoothed over five bins.
    """
    cuts = []
    for column in angles.detach().cpu().double().t():
        counts = torch.histc(column, bins, -math.pi, math.pi)
        smooth = torch.stack([counts.roll(i) for i in range(-2, 3)]).sum(0)
        cuts.append((float(smooth.argmin()) + 0.5) * 2 * math.pi / bins - math.pi)
    return torch.tensor(cuts, dtype=angles.dtype, device="cpu")


def realnvp_flow(y: Tensor, circular: int, mixing: str, seed: int, hidden: int = 0) -> MoleculeFlow:
    """Return 25 affine couplings of all numbers with a mixing layer between any two of them.

    Angles are cut where they are least often and unrolled (`Unrolled`).

    Args:
        y: training data, shape (n, d): for the cuts.
        circular: number of angles.
        mixing: a name of `p4lab.flows.MIXINGS`, such as "swap" or "p4inv" (rank 5).
        seed: of networks and directions.
        hidden: width of the networks; 0: such that there are about 735,050 parameters.

    Source: arXiv:2010.07033, section 4.3 (number of blocks and parameters).
    """
    dim, cuts, mix = y.shape[-1], emptiest(y[:, :circular]), mixing_layer(mixing)
    options: dict[str, Any] = {"rank": SWAP_RANK, "reset": "gradient"} if mixing == "p4inv" else {}

    def build(width: int) -> MoleculeFlow:
        layers = alternating(
            REALNVP_BLOCKS,
            lambda networks: ConditionalCoupling(dim, 0, width, 2, 0, networks),
            lambda directions: Mixed(mix(dim, directions, device="cpu", **options)),
            seed,
        )
        return MoleculeFlow(dim, circular, [], [Unrolled(dim, cuts), *layers])

    if hidden:
        return build(hidden)
    plain = matched(lambda width: realnvp_flow(y[:2], circular, "swap", seed, width), REALNVP_PARAMETERS)
    return build(next(layer.hidden for layer in plain.numbers if isinstance(layer, ConditionalCoupling)))


def spline_flow(
    y: Tensor,
    circular: int,
    mixing: str,
    seed: int,
    blocks: int = 8,
    hidden: int = 128,
    depth: int = 2,
    bins: tuple[int, ...] = (0,),
    affine: bool = True,
    angle_blocks: int = 4,
    angle_bins: int = 12,
    rank: int = 16,
    tempered: bool = False,
) -> MoleculeFlow:
    """Return circular spline couplings for the angles, and conditional couplings for the rest.

    The rest passes a conditional affine map (`ConditionalAffine`), then couplings with a mixing layer before each.

    Args:
        y: training data, shape (n, d): for the whitening.
        circular: number of angles.
        mixing: "permutation" (random ones and swaps in turn), "p4inv" or "p4orthogonal", which start as these.
        seed: of networks and directions.
        blocks: number of couplings.
        hidden: width of their networks.
        depth: number of hidden layers.
        bins: bins of the couplings' splines, in turn; 0: none.
        affine: whether couplings have scales and shifts, too.
        angle_blocks: number of circular couplings.
        angle_bins: bins of their splines.
        rank: of the P4 layers.
        tempered: whether all layers read the logarithm of a temperature, in units of that of the data: the flow then
            has a context of length 1, and may have no angles.

    Raises:
        OptionError: no angles.
    """
    if circular < 1 and not tempered:
        raise OptionError("spline flows need an angle that turns: take realnvp or realnvp_p4inv")
    networks, directions = (torch.Generator().manual_seed(2 * seed + i) for i in (0, 1))
    n = y.shape[-1] - circular
    context = 2 * HARMONICS * circular + tempered
    stays = [tuple(range(0, circular, 2)), tuple(range(1, circular, 2))] if circular > 1 else [(), ()]
    angles: list[Carrying] = [
        CircularCoupling(circular, stays[i % 2], 64, angle_bins, 2, networks, int(tempered))
        for i in range(angle_blocks if circular else 0)
    ]
    numbers = y[:, circular:].double()
    mean = None if circular else numbers.mean(0)  # numbers of a molecule have a mean of 0
    layers: list[Carrying] = [ConditionalAffine(torch.cov(numbers.t()), context, 128, networks, tempered, mean)]
    for i in range(blocks):
        order = (
            torch.randperm(n, generator=directions, device="cpu")
            if i % 2 == 0
            else torch.arange(n, device="cpu").flip(0)
        )
        if mixing == "permutation":
            layers.append(Mixed(Permutation(order)))
        else:
            preset = dataclasses.replace(RECOMMENDED, rank=rank)
            start = torch.eye(n, device="cpu")[order]
            layers.append(Mixed(mixing_layer(mixing)(n, directions, preset, init=start, device="cpu")))
        layers.append(
            ConditionalCoupling(
                n, context, hidden, depth, bins[i % len(bins)], networks, affine or not bins[i % len(bins)]
            )
        )
    return MoleculeFlow(y.shape[-1], circular, angles, layers, int(tempered))


def _architecture(build: Callable[..., MoleculeFlow], mixing: str) -> Callable[..., MoleculeFlow]:
    @takes_options_of(build, "mixing")
    def make(y: Tensor, circular: int, seed: int, **options: Any) -> MoleculeFlow:
        return build(y, circular, mixing, seed, **options)

    return make


ARCHITECTURES: dict[str, Callable[..., MoleculeFlow]] = {
    "realnvp": _architecture(realnvp_flow, "swap"),
    "realnvp_p4inv": _architecture(realnvp_flow, "p4inv"),
    "spline": _architecture(spline_flow, "permutation"),
    "spline_p4": _architecture(spline_flow, "p4inv"),
}


@torch.inference_mode(False)
def molecule_flow(
    name: str, y: Tensor, seed: int | torch.Generator | None = 0, circular: int = 5, **options: Any
) -> MoleculeFlow:
    """Return a flow by the name of its architecture, in the dtype of the data.

    Args:
        name: of `ARCHITECTURES`: "realnvp", "realnvp_p4inv", "spline", "spline_p4".
        y: training data in internal coordinates, shape (n, d): for cuts and whitening.
        seed: of networks and directions.
        circular: number of angles that come first.
        options: of the architecture.

    Raises:
        OptionError: unknown name, or an option that the architecture does not know.
        ShapeError: y is not (n, d), or has too few rows.
    """
    if name not in ARCHITECTURES:
        raise OptionError(f"architecture {name!r} is not known: choose one of {tuple(ARCHITECTURES)}")
    if y.ndim != 2 or len(y) < 2 or y.shape[1] <= circular:
        raise ShapeError(f"data of shape {tuple(y.shape)}: expected (n, d) with n >= 2 and d > {circular}")
    check_known(f"architecture {name!r}", options, options_of(ARCHITECTURES[name]))
    return ARCHITECTURES[name](y, circular, seed_from(seed), **options).to(y.dtype)
