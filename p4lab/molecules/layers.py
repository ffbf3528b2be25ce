"""What layers of flows of molecules have in common: columns, contexts, and scores that go along.

States have their coordinates first, shape (d, B): halves are then views, and the bins of splines lie first as
`p4lab.molecules.splines` wants them. Besides the map and its log-determinant, every layer knows how to carry a score
(the gradient of a log-density) along, which is what path gradients need:

.. math:: \\nabla_y \\log p_Y(y) = J^{-T} (\\nabla_x \\log p_X(x) - \\nabla_x \\log|\\det J|), \\qquad y = f(x)

For a coupling J is triangular, so that this costs one backward pass through its network without the weights' part.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Carried(NamedTuple):
    """What a layer makes of a state that has a score.

    Attributes:
        y: new state, shape (d, B).
        logabsdet: log|det dy/dx|, shape (B,).
        score: of y, shape (d, B), without a graph.
        context: what the score of the context gains, shape (c, B), or None.
    """

    y: Tensor
    logabsdet: Tensor
    score: Tensor
    context: Tensor | None


class Layer(nn.Module, ABC):
    """Base class: an invertible map of states (d, B), given a context (c, B) or None."""

    @abstractmethod
    def move(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (d, B) and (B,)."""

    @abstractmethod
    def carry(self, x: Tensor, context: Tensor | None, score: Tensor, inverse: bool) -> Carried:
        """Return what `move` does, and the score of y from that of x; x (and the context) must require a gradient."""


class Network(nn.Module):
    """A perceptron on columns, shape (read, B) to (write, B), that starts at 0.

    Args:
        read: number of inputs.
        hidden: width of the hidden layers.
        write: number of outputs.
        depth: number of hidden layers.
        generator: CPU generator for the start.
    """

    def __init__(self, read: int, hidden: int, write: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for inputs, outputs in zip((read, *[hidden] * depth), (*[hidden] * depth, write), strict=True):
            linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
            last = len(self.layers) == depth
            for parameter in linear.parameters():
                if last:
                    nn.init.zeros_(parameter)
                else:
                    nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
            self.layers.append(linear)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, shape (write, B)."""
        for i, linear in enumerate(self.layers):
            x = torch.addmm(linear.bias.unsqueeze(1), linear.weight, x if i == 0 else F.silu(x))  # type: ignore[operator, arg-type]
        return x


def embedded(angles: Tensor, harmonics: int) -> Tensor:
    """Return cosines and sines of multiples of angles (m, B), shape (2 m harmonics, B)."""
    multiples = [k * angles for k in range(1, harmonics + 1)]
    return torch.cat([f(angle) for angle in multiples for f in (torch.cos, torch.sin)])


def own(context: Tensor | None) -> Tensor | None:
    """Return the context as a node of its own: its gradient is then that of one layer, not of the layers before."""
    return None if context is None else context.view_as(context)


def carry_split(
    inputs: tuple[Tensor | None, Tensor, Tensor | None],
    outputs: tuple[Tensor, Tensor],
    scores: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Carry scores through ``b -> y(b; a, c)``, which acts on each entry of b by itself.

    Args:
        inputs: a, b and the context c; what is None has no influence.
        outputs: y and the logarithms of its slopes, of the shape of b.
        scores: of a and of b.

    Returns:
        The scores of a and of y, and what that of c gains.
    """
    a, b, context = inputs
    y, log_slope = outputs
    ones = torch.ones_like(log_slope)
    with torch.no_grad():
        score = scores[1]
        (bend,) = torch.autograd.grad(log_slope, b, ones, retain_graph=True, allow_unused=True)
        score = ((score if bend is None else score - bend) / log_slope.exp()).detach()
    asked = [t for t in (a, context) if t is not None]
    if not asked:
        return scores[0], score, None
    found = list(torch.autograd.grad((y, log_slope), asked, (score, ones), retain_graph=True))
    of_a = scores[0] - found.pop(0) if a is not None else scores[0]
    return of_a, score, -found.pop(0) if found else None
