"""What a flow asks of its nonlinear layers, and the base class that gives them all of it for one method."""

import itertools
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from p4lab.flows.context import paired
from p4lab.p4.validate import check_input


class Bijection(Protocol):
    """What a flow asks of any other layer: each direction returns its own log|det|, of shape (...).

    A layer with an attribute ``context`` above 0 is called with a context of that length as a second argument.
    """

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)``."""

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/dy|)``."""


class Bijective(nn.Module, ABC):
    r"""Base class of bijections: `map` says where points go, in both directions, and what becomes of the volume.

    .. math:: y = f(x; c), \qquad \log\left|\det \frac{\partial y}{\partial x}\right|

    Attributes:
        dim: width d; may be absent from a layer that takes any.
        axis: where the coordinates are: -1 for points (..., d), 0 for columns (d, B).
        context: length of the context c, 0 if there is none.

    Raises:
        ShapeError, DtypeError, DeviceError: from both directions, if points or context do not fit.
        OptionError: from both directions, if there is no context where one is needed, or one where none is taken.
    """

    dim: int
    axis = -1
    context = 0

    @abstractmethod
    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...), unchecked.

        Args:
            x: points, or what they were moved to.
            inverse: whether to go back.
            context: what f depends on beside x, None if there is nothing.
        """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...), the batch shapes of x and context broadcast."""
        self.check(x)
        x, context = self.pair(x, context)
        return self.map(x, False, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/dy|)`` of shapes (..., d) and (...), the batch shapes of y and context broadcast."""
        self.check(y)
        y, context = self.pair(y, context)
        return self.map(y, True, context)

    def check(self, x: Tensor) -> None:
        """Raise the error of points that do not fit the layer's first tensor."""
        like = next(itertools.chain(self.parameters(), self.buffers()))
        check_input(type(self).__name__, self.dim, like, x)

    def pair(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return points and context with one batch shape; raise the error of a context that does not fit."""
        return paired(type(self).__name__, self.context, x, context)


class Carried(NamedTuple):
    """What a layer makes of points that have a score.

    Attributes:
        y: where the points are now, of the shape of x.
        logabsdet: log|det dy/dx|, shape (...).
        score: of y, of the same shape, without a graph.
        context: what the score of the context gains, of the shape of the context, or None.
    """

    y: Tensor
    logabsdet: Tensor
    score: Tensor
    context: Tensor | None


class Carrying(Bijective):
    r"""A bijection that takes the score of points along, the gradient of their log-density: for path gradients.

    .. math:: \nabla_y \log p_Y(y) = J^{-T} (\nabla_x \log p_X(x) - \nabla_x \log|\det J|), \qquad y = f(x)
    """

    @abstractmethod
    def carry(self, x: Tensor, score: Tensor, inverse: bool = False, context: Tensor | None = None) -> Carried:
        """Return what `map` does, and the score of y from that of x; x (and the context) must require a gradient."""


def own(context: Tensor | None) -> Tensor | None:
    """Return the context as a node of its own: its gradient is then that of one layer, not of the layers before."""
    return None if context is None else context.view_as(context)


def carry_split(
    inputs: tuple[Tensor, Tensor, Tensor | None], outputs: tuple[Tensor, Tensor], scores: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Carry scores through ``b -> y(b; a, c)``, which acts on each entry of b by itself.

    The Jacobian is triangular, so that this costs one backward pass through a network without the weights' part.

    Args:
        inputs: a, b and the context c, which may be None.
        outputs: y and the logarithms of its slopes, of the shape of b.
        scores: of a and of b.

    Returns:
        The scores of a and of y, and what that of c gains.
    """
    a, b, context = inputs
    ones = torch.ones_like(outputs[1])
    of_a, of_b = scores
    with torch.no_grad():
        (bend,) = torch.autograd.grad(outputs[1], b, ones, retain_graph=True, allow_unused=True)
        of_b = ((of_b if bend is None else of_b - bend) / outputs[1].exp()).detach()
    sources = [a] if context is None else [a, context]
    slopes = torch.autograd.grad(outputs, sources, (of_b, ones), retain_graph=True, allow_unused=True)
    of_a = of_a if slopes[0] is None else of_a - slopes[0]
    return of_a, of_b, None if context is None else -slopes[1]
