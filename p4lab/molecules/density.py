"""A density over the internal coordinates of a molecule: angles and plain numbers."""

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError
from p4lab.flows.flow import penalties
from p4lab.flows.linear import FoldedLinear
from p4lab.molecules.couplings import Mixed
from p4lab.molecules.layers import Layer, embedded
from p4lab.p4 import P4Module
from p4lab.p4._validate import check_tensor

HARMONICS = 3
"""Numbers see cosines and sines of so many multiples of the angles."""


class MoleculeFlow(nn.Module):
    r"""A density over internal coordinates y: angles, which are uniform in the latent space, and plain numbers.

    .. math:: \log q(y) = \log p_0(z) + \log\left|\det \frac{\partial z}{\partial y}\right|, \qquad
              z = F(y), \quad p_0 = U[-\pi, \pi)^m \otimes N(0, I)

    Args:
        circular: number m of angles that come first in y.
        dim: width of y.
        angles: layers that move the angles alone, from data to latent space.
        numbers: layers that move the rest, with cosines and sines of the data's angles as context; with no ``angles``
            layers, they move all of y and the latent space is N(0, I).

    Raises:
        OptionError: sizes that do not fit.
    """

    def __init__(self, dim: int, circular: int, angles: list[Layer], numbers: list[Layer]) -> None:
        super().__init__()
        if not 0 <= circular < dim or not numbers:
            raise OptionError(f"dim={dim}, circular={circular}: expected circular < dim, and layers for the numbers")
        self.dim, self.circular = dim, circular
        self.angles, self.numbers = nn.ModuleList(angles), nn.ModuleList(numbers)

    # --- density -----------------------------------------------------------------------------------------------------

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(z, log|det dz/dy|)`` of shapes (..., d) and (...).

        Raises:
            ShapeError: y has another width.
        """
        rows = self._columns(y)
        if self.angles:
            angles, x = rows.split((self.circular, self.dim - self.circular))
            x, total = self._run(self.numbers, x, embedded(angles, HARMONICS), False)
            angles, more = self._run(self.angles, angles, None, False)
            rows, total = torch.cat([angles, x]), total + more
        else:
            rows, total = self._run(self.numbers, rows, None, False)
        return rows.t().view(y.shape), total.view(y.shape[:-1])

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dz|)`` of shapes (..., d) and (...).

        Raises:
            ShapeError: z has another width.
        """
        rows = self._columns(z)
        if self.angles:
            angles, x = rows.split((self.circular, self.dim - self.circular))
            angles, total = self._run(self.angles, angles, None, True)
            x, more = self._run(self.numbers, x, embedded(angles, HARMONICS), True)
            rows, total = torch.cat([angles, x]), total + more
        else:
            rows, total = self._run(self.numbers, rows, None, True)
        return rows.t().view(z.shape), total.view(z.shape[:-1])

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log q(y) in nats, shape (...) for y of shape (..., d); per radian for the angles."""
        z, logabsdet = self(y)
        return self._log_base(z) + logabsdet

    def log_prob_of_angles(self, angles: Tensor) -> Tensor:
        """Return the log-density of the angles alone (nats), shape (n,) for angles of shape (n, m), radians.

        Raises:
            OptionError: the angles have no layers of their own.
        """
        if not self.angles:
            raise OptionError("this flow has no layers for the angles alone: their density is not known")
        rows, logabsdet = self._run(self.angles, angles.t().contiguous(), None, False)
        return logabsdet - math.log(2 * math.pi) * len(rows)

    def latent(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw latent points, shape (n, d).

        Args:
            n: number of points.
            generator: CPU generator (None: torch's default).

        Raises:
            ShapeError: n < 0.
        """
        if n < 0:
            raise ShapeError(f"n={n}: expected at least 0 samples")
        like = next(self.parameters())
        m = self.circular if self.angles else 0
        angles = torch.rand(n, m, generator=generator, dtype=like.dtype, device="cpu") * (2 * math.pi) - math.pi
        numbers = torch.randn(n, self.dim - m, generator=generator, dtype=like.dtype, device="cpu")
        return torch.cat([angles, numbers], -1).to(like.device)

    def sample_with_log_prob(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return samples y of shape (n, d) and log q(y) of shape (n,), differentiable in the parameters.

        Args:
            n: number of samples.
            generator: CPU generator (None: torch's default).
        """
        z = self.latent(n, generator)
        y, logabsdet = self.inverse(z)
        return y, self._log_base(z) - logabsdet

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples of shape (n, d), without gradient."""
        return self.inverse(self.latent(n, generator))[0]

    # --- path gradients ----------------------------------------------------------------------------------------------

    def latent_with_score(self, y: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Carry data and the score of their density p to the latent space.

        .. math:: z = F(y), \qquad s = \nabla_z \left(\log p(y) - \log\left|\det \frac{\partial z}{\partial y}\right|
                  - \log p_0(z)\right)

        Args:
            y: shape (n, d).
            score: the gradient of log p at y, shape (n, d).

        Returns:
            z, differentiable in the parameters; log q(y); and s, which is 0 where q is p.
        """
        rows = y.detach().t().contiguous().requires_grad_()
        z, total, carried = self._carry(rows, score.detach().t(), False)
        z = z.t()
        with torch.no_grad():
            carried = carried.t() - self._base_score(z)
        return z, self._log_base(z) + total, carried

    def sample_with_score(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples y, log q(y), and the gradient of log q at y.

        Args:
            n: number of samples.
            generator: CPU generator (None: torch's default).

        Returns:
            y of shape (n, d), differentiable in the parameters that the numbers have for given angles; log q of shape
            (n,); the score, shape (n, d).
        """
        z = self.latent(n, generator)
        rows = z.t().contiguous().requires_grad_()
        y, total, carried = self._carry(rows, self._base_score(z).t(), True)
        return y.t(), self._log_base(z) - total, carried.t()

    # --- P4 ----------------------------------------------------------------------------------------------------------

    def penalty(self, **options: Any) -> Tensor:
        """Return the sum of its layers' penalties, a differentiable scalar; 0 if there are none.

        Args:
            options: of the layers' ``penalty``, such as ``strength``; each layer gets those that it knows.

        Raises:
            OptionError: an option that no penalty knows.
        """
        terms = penalties(self, options)
        return torch.stack(terms).sum() if terms else next(self.parameters()).new_zeros(())

    @torch.no_grad()
    def fold(self) -> "MoleculeFlow":
        """Return a plain flow of the same density: P4 layers become `FoldedLinear` ones. This flow is not changed.

        Raises:
            SingularMatrixError: a linear layer is singular or not finite.
        """
        twin = copy.deepcopy(self)
        for layer in twin.numbers:
            if isinstance(layer, Mixed) and isinstance(layer.linear, P4Module):
                layer.linear = FoldedLinear.of(layer.linear)
        return twin

    # --- inside ------------------------------------------------------------------------------------------------------

    def _columns(self, y: Tensor) -> Tensor:
        check_tensor("MoleculeFlow", y)
        if y.shape[-1:] != (self.dim,):
            raise ShapeError(f"MoleculeFlow(dim={self.dim}) got shape {tuple(y.shape)}: expected (..., {self.dim})")
        return y.reshape(-1, self.dim).t().contiguous()

    def _log_base(self, z: Tensor) -> Tensor:
        numbers = z[..., self.circular :] if self.angles else z
        return -0.5 * numbers.square().sum(-1) - math.log(2 * math.pi) * (self.dim - 0.5 * numbers.shape[-1])

    def _base_score(self, z: Tensor) -> Tensor:
        score = -z
        if self.angles:
            score[:, : self.circular] = 0.0
        return score

    @staticmethod
    def _run(layers: nn.ModuleList, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[1])
        for layer in reversed(layers) if inverse else layers:
            x, logabsdet = cast(Layer, layer).move(x, context, inverse)
            total = total + logabsdet
        return x, total

    def _carry(self, rows: Tensor, score: Tensor, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        if not self.angles:
            rows, total, score, _ = _carried(self.numbers, rows, None, score, inverse)
            return rows, total, score
        sizes = (self.circular, self.dim - self.circular)
        (angles, x), (of_angles, of_x) = rows.split(sizes), score.split(sizes)
        total = torch.zeros_like(rows[0])
        if inverse:
            angles, total, of_angles, _ = _carried(self.angles, angles, None, of_angles, True)
            angles = angles.detach().requires_grad_()
        context = embedded(angles, HARMONICS)
        x, more, of_x, of_context = _carried(self.numbers, x, context, of_x, inverse)
        (gained,) = torch.autograd.grad(context, angles, of_context, retain_graph=True)
        of_angles = of_angles + gained
        if not inverse:
            angles, total, of_angles, _ = _carried(self.angles, angles, None, of_angles, False)
        return torch.cat([angles, x]), total + more, torch.cat([of_angles, of_x])


def _carried(
    layers: nn.ModuleList, x: Tensor, context: Tensor | None, score: Tensor, inverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    total, of_context = x.new_zeros(x.shape[1]), None if context is None else torch.zeros_like(context)
    for layer in reversed(layers) if inverse else layers:
        x, logabsdet, score, gained = cast(Layer, layer).carry(x, context, score, inverse)
        total = total + logabsdet
        if gained is not None:
            of_context = gained if of_context is None else of_context + gained
    return x, total, score, of_context
