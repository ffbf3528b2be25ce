"""Named architectures."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from p4lab.errors import OptionError
from p4lab.flows.bent import BentIdentity
from p4lab.flows.flow import Flow, Layer, Linear
from p4lab.p4 import RECOMMENDED, P4Inv, Preset


def p4inv_bent(
    dim: int, blocks: int, preset: Preset = RECOMMENDED, init: str = "orthogonal", seed: int = 0, **options: Any
) -> Flow:
    """Return P4Inv layers with a Bent identity or its inverse, in turn, between any two of them.

    The sequence is ``P4Inv, b, P4Inv, b^-1, P4Inv, b, ..., P4Inv``: ``blocks`` nonlinearities, one linear layer more.

    Args:
        dim: width d.
        blocks: number of nonlinearities, at least 0.
        preset: rank, reset kind and whether directions train.
        init: initial matrix of each P4Inv layer.
        seed: seed of the initial matrices and directions.
        options: further arguments of `P4Inv`: ``dtype``, ``device``, and over the preset's ``rank``, ``reset`` or
            ``train_v``.

    Raises:
        OptionError: blocks < 0, or an option that P4Inv refuses.

    Source: arXiv:2010.07033, section 3.2.

    Example:
        >>> flow = p4inv_bent(2, blocks=3)
        >>> len(flow.linear_layers()), len(flow.layers)
        (4, 7)
    """
    generator = torch.Generator().manual_seed(seed)
    settings = {"rank": preset.rank_for(dim), "reset": preset.reset, "train_v": preset.train_v, **options}
    return bent_stack(blocks, lambda: P4Inv(dim, init=init, seed=generator, **settings))


def bent_stack(blocks: int, linear: Callable[[], Linear]) -> Flow:
    """Return linear layers with a Bent identity or its inverse, in turn, between any two of them.

    Args:
        blocks: number of nonlinearities, at least 0.
        linear: makes a linear layer; called ``blocks + 1`` times.

    Raises:
        OptionError: blocks < 0.
    """
    if blocks < 0:
        raise OptionError(f"blocks={blocks}: expected at least 0")
    layers: list[Layer] = [linear()]
    for i in range(blocks):
        layers += [BentIdentity(inverted=i % 2 == 1), linear()]
    return Flow(layers)


def trainable(model: nn.Module) -> int:
    """Return the number of parameters that an optimizer sees."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
