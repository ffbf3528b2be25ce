"""A density over the internal coordinates of a molecule: angles and plain numbers."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError
from p4lab.flows.bijection import Carrying
from p4lab.flows.context import check_length, paired
from p4lab.flows.latent import LatentDensity
from p4lab.flows.linear_layers import FoldedLinear
from p4lab.molecules.couplings import Mixed, embedded
from p4lab.p4 import P4Module, fold_inside
from p4lab.p4.validate import check_tensor

HARMONICS = 3
"""Numbers see cosines and sines of so many multiples of the angles."""


class MoleculeFlow(LatentDensity):
    r"""A density over internal coordinates y: angles, which are uniform in the latent space, and plain numbers.

    .. math:: \log q(y | c) = \log p_0(z) + \log\left|\det \frac{\partial z}{\partial y}\right|, \qquad
              z = F(y; c), \quad p_0 = U[-\pi, \pi)^m \otimes N(0, I)

    Args:
        circular: number m of angles that come first in y.
        dim: width of y.
        angles: layers that move the angles alone, from data to latent space.
        numbers: layers that move the rest, with cosines and sines of the data's angles as context; with no ``angles``
            layers, they move all of y and the latent space is N(0, I).
        context: length of the context c, 0 for none; all layers that read a context have it behind all else.

    Raises:
        OptionError: sizes that do not fit.
        ShapeError, DtypeError: from all methods, if points have another width, or are no tensor.
    """

    def __init__(
        self, dim: int, circular: int, angles: Sequence[Carrying], numbers: Sequence[Carrying], context: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= circular < dim or not numbers:
            raise OptionError(f"dim={dim}, circular={circular}: expected circular < dim, and layers for the numbers")
        self.dim, self.circular, self.context = dim, circular, check_length(context)
        self.angles, self.numbers = nn.ModuleList(angles), nn.ModuleList(numbers)
        self.turns = circular if angles else 0

    # --- density -----------------------------------------------------------------------------------------------------

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(z, log|det dz/dy|)`` of shapes (..., d) and (...)."""
        return self._shaped(y, False, context)

    def inverse_with_logabsdet(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dz|)`` of shapes (..., d) and (...)."""
        return self._shaped(z, True, context)

    def log_prob_of_angles(self, angles: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density of the angles alone (nats), shape (n,) for angles of shape (n, m), radians.

        Args:
            angles: shape (n, m).
            context: shape (c,) or (n, c), None for a density without.

        Raises:
            OptionError: the angles have no layers of their own.
        """
        if not self.angles:
            raise OptionError("this flow has no layers for the angles alone: their density is not known")
        angles, context = paired("MoleculeFlow", self.context, angles, context)
        rows, logabsdet, _, _ = _run(self.angles, angles.t().contiguous(), False, _columns(context))
        return logabsdet - math.log(2 * math.pi) * len(rows)

    def draw(self, n: int, **kind: Any) -> Tensor:
        """Draw latent points, shape (n, d): angles, then numbers."""
        angles = torch.rand(n, self.turns, **kind) * (2 * math.pi) - math.pi
        return torch.cat([angles, torch.randn(n, self.dim - self.turns, **kind)], -1)

    # --- path gradients ----------------------------------------------------------------------------------------------

    def latent_with_score(
        self, y: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""Carry data and the score of their density p to the latent space.

        .. math:: z = F(y), \qquad s = \nabla_z \left(\log p(y) - \log\left|\det \frac{\partial z}{\partial y}\right|
                  - \log p_0(z)\right)

        Args:
            y: shape (n, d).
            score: the gradient of log p at y, shape (n, d).
            context: shape (c,) or (n, c), None for a density without.

        Returns:
            z, differentiable in the parameters; log q(y); and s, which is 0 where q is p.
        """
        y, context = paired("MoleculeFlow", self.context, y, context)
        rows = y.detach().t().contiguous().requires_grad_()
        z, total, end_score = self._map(rows, False, score.detach().t(), context)
        z = z.t()
        with torch.no_grad():
            end_score = end_score.t() - self.prior_score(z)
        return z, self.joined(z, total), end_score

    def sample_with_score(
        self, n: int, generator: torch.Generator | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples y, log q(y), and the gradient of log q at y.

        Args:
            n: number of samples.
            generator: CPU generator (None: torch's default).
            context: shape (c,), the same for all of them; None for a density without.

        Returns:
            y of shape (n, d), differentiable in the parameters that the numbers have for given angles; log q of shape
            (n,); the score, shape (n, d).
        """
        z, context = paired("MoleculeFlow", self.context, self.latent(n, generator, context=context), context)
        rows = z.t().contiguous().requires_grad_()
        y, total, end_score = self._map(rows, True, self.prior_score(z).t(), context)
        return y.t(), self.joined(z, -total), end_score.t()

    def prior_score(self, z: Tensor) -> Tensor:
        """Return the gradient of log p_0 at z, shape (n, d): -z for the numbers, 0 for the angles."""
        score = -z
        score[:, : self.turns] = 0.0
        return score

    # --- P4 ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fold(self) -> "MoleculeFlow":
        """Return a plain flow of the same density: P4 layers become `FoldedLinear` ones. This flow is not changed.

        Raises:
            SingularMatrixError: a linear layer is singular or not finite.
        """
        twin = copy.deepcopy(self).with_linear(FoldedLinear.of)
        fold_inside(twin)
        return twin

    def with_linear(self, plain: Callable[[Any], FoldedLinear]) -> "MoleculeFlow":
        """Put other linear layers in the places of P4 layers, and return the flow itself.

        Args:
            plain: makes one from a P4 layer.
        """
        for layer in self.numbers:
            if isinstance(layer, Mixed) and isinstance(layer.linear, P4Module):
                layer.linear = plain(layer.linear)
        return self

    # --- inside: columns ---------------------------------------------------------------------------------------------

    def _shaped(self, y: Tensor, inverse: bool, context: Tensor | None) -> tuple[Tensor, Tensor]:
        check_tensor("MoleculeFlow", y)
        if y.shape[-1:] != (self.dim,):
            raise ShapeError(f"MoleculeFlow(dim={self.dim}) got shape {tuple(y.shape)}: expected (..., {self.dim})")
        y, context = paired("MoleculeFlow", self.context, y, context)
        rows, total, _ = self._map(y.reshape(-1, self.dim).t().contiguous(), inverse, None, context)
        return rows.t().view(y.shape), total.view(y.shape[:-1])

    def _map(
        self, rows: Tensor, inverse: bool, score: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Any]:
        """Return where columns go, log|det|, and their score if they have one; the context comes in rows."""
        given = _columns(context)
        if given is not None and score is not None:
            given = given.detach().requires_grad_()
        if not self.angles:
            return _run(self.numbers, rows, inverse, given, score)[:3]
        sizes = (self.circular, self.dim - self.circular)
        angles, x = rows.split(sizes)
        of_angles, of_x = (None, None) if score is None else score.split(sizes)
        if inverse:
            angles, more, of_angles, _ = _run(self.angles, angles, True, given, of_angles)
            if score is not None:
                angles = angles.detach().requires_grad_()
        context = embedded(angles, HARMONICS)
        context = context if given is None else torch.cat([context, given])
        x, total, of_x, of_context = _run(self.numbers, x, inverse, context, of_x)
        if of_angles is not None:
            of_angles = of_angles + torch.autograd.grad(context, angles, of_context, retain_graph=True)[0]
        if not inverse:
            angles, more, of_angles, _ = _run(self.angles, angles, False, given, of_angles)
        end_score = None if of_angles is None or of_x is None else torch.cat([of_angles, of_x])
        return torch.cat([angles, x]), total + more, end_score


def _columns(context: Tensor | None) -> Tensor | None:
    return None if context is None else context.reshape(-1, context.shape[-1]).t()


def _run(
    layers: nn.ModuleList, x: Tensor, inverse: bool, context: Tensor | None = None, score: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return where layers bring columns x, log|det|, the score there (if x has one), and what the context's gains."""
    total = x.new_zeros(x.shape[1])
    of_context = None if context is None or score is None else torch.zeros_like(context)
    for layer in cast(Sequence[Carrying], reversed(layers) if inverse else layers):
        if score is None:
            x, logabsdet = layer.map(x, inverse, context)
        else:
            x, logabsdet, score, gain = layer.carry(x, score, inverse, context)
            of_context = gain if of_context is None else of_context if gain is None else of_context + gain
        total = total + logabsdet
    return x, total, score, of_context
