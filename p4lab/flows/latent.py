"""What densities of a flow have in common: a prior, samples that know their density, penalties."""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.baselines import Penalized
from p4lab.errors import OptionError, ShapeError
from p4lab.flows.context import check_context
from p4lab.options import check_known, options_of
from p4lab.p4 import P4Inv, P4Module


class LatentDensity(nn.Module, ABC):
    r"""Base class of densities that an invertible map of the data onto angles and numbers gives.

    .. math:: \log p(x | c) = \log p_0(z) + \log\left|\det \frac{\partial z}{\partial x}\right|, \qquad
              z = F(x; c), \quad p_0 = U[-\pi, \pi)^m \otimes N(0, T I)

    A context has shape (..., c), and its batch shape and that of the points are broadcast: one context of shape (c,)
    belongs to all points, and one of shape (n, c) to n points (n, d), each with its own.

    Attributes:
        dim: width d.
        turns: number m of latent angles, the first coordinates; 0 but where a subclass says otherwise.
        context: length c of the context, 0 if the density has none.

    Raises:
        OptionError: from all methods, if a temperature is not positive, or if there is no context where one is needed,
            or one where none is taken.
        ShapeError, DtypeError, DeviceError: from all methods, if points or context do not fit.
    """

    dim: int
    turns = 0
    context = 0

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(z, log|det dz/dx|)`` of shapes (..., d) and (...)."""

    @abstractmethod
    def inverse_with_logabsdet(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/dz|)`` of shapes (..., d) and (...)."""

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the data that belong to latent ``z`` of shape (..., d)."""
        return self.inverse_with_logabsdet(z, context)[0]

    def log_prob(self, x: Tensor, context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Return log p(x) in nats, shape (...) for x of shape (..., d).

        Args:
            x: points.
            context: shape (..., c), None for a density without.
            temperature: T of the prior.
        """
        temperature = positive(temperature)
        z, logabsdet = self(x, context)
        return self.joined(z, logabsdet, temperature)

    def latent(
        self,
        n: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        context: Tensor | None = None,
    ) -> Tensor:
        """Draw latent points, shape (n, d), or n for each context; at any temperature the same ones, scaled.

        Args:
            n: number of points.
            generator: CPU generator; every device then draws the same (None: torch's default).
            temperature: T of the prior.
            context: shape (..., c) for points of shape (n, ..., d), None for a density without.

        Raises:
            ShapeError: n < 0.
        """
        temperature, like = positive(temperature), self.like()
        if not isinstance(n, Integral) or n < 0:
            raise ShapeError(f"n={n!r}: expected a whole number of at least 0 samples")
        check_context(type(self).__name__, self.context, like, context)
        batch = () if context is None else context.shape[:-1]
        z = self.draw(n * math.prod(batch), generator=generator, dtype=like.dtype, device="cpu")
        if temperature != 1.0:
            z[:, self.turns :] *= math.sqrt(temperature)
        return z.view(n, *batch, self.dim).to(like.device)

    def sample_with_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` samples with log p(x) in nats, differentiable in the parameters and the context.

        Args:
            n: number of samples, of each context if there are several.
            context: shape (c,) for samples of shape (n, d); (..., c) for (n, ..., d); None for a density without.
            generator, temperature: as for `latent`.

        Returns:
            The samples, and their log-densities, of shape (n,) or (n, ...).
        """
        z = self.latent(n, generator, temperature, context)
        x, logabsdet = self.inverse_with_logabsdet(z, context)
        return x, self.joined(z, -logabsdet, temperature)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw the samples of `sample_with_log_prob`, which has the same arguments, without gradient and log p(x)."""
        return self.inverse(self.latent(n, generator, temperature, context), context)

    def penalty(self, **options: Any) -> Tensor:
        """Return the sum of its layers' penalties, to be added to a loss; a differentiable scalar, 0 if none has one.

        Args:
            options: of the layers' ``penalty``, such as ``strength``; each layer gets those that it knows.

        Raises:
            OptionError: an option that no penalty knows.

        Source: arXiv:2010.07033, section 2.3.
        """
        terms = penalties(self, options)
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self.like().device)

    def like(self) -> Tensor:
        """Return a tensor with the flow's dtype and device."""
        device = None
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor
            device = tensor.device
        return torch.zeros((), device=device)

    def draw(self, n: int, **kind: Any) -> Tensor:
        """Draw latent points at T = 1, shape (n, d), with what torch needs to be told."""
        return torch.randn(n, self.dim, **kind)

    def joined(self, z: Tensor, logabsdet: Tensor, temperature: float = 1.0) -> Tensor:
        """Return log p(x) from the prior at z and log|det dz/dx|."""
        return self.log_prior(z, temperature) + logabsdet

    def log_prior(self, z: Tensor, temperature: float = 1.0) -> Tensor:
        """Return log p_0 (nats), shape (...) for z of shape (..., d)."""
        square = -0.5 * (z[..., self.turns :] if self.turns else z).square().sum(-1)
        return (square if temperature == 1.0 else square / temperature) - self.log_norm(temperature)

    def log_norm(self, temperature: float = 1.0) -> float:
        """Return minus the logarithm of the prior's density where it is largest (nats)."""
        return self.turns * math.log(2 * math.pi) + 0.5 * (self.dim - self.turns) * math.log(2 * math.pi * temperature)


def positive(temperature: float) -> float:
    """Return a temperature.

    Raises:
        OptionError: it is not a positive number.
    """
    number = isinstance(temperature, Real) or (isinstance(temperature, Tensor) and temperature.numel() == 1)
    if not (number and math.isfinite(temperature) and temperature > 0):
        raise OptionError(f"temperature={temperature!r:.80}: expected a number above 0")
    return float(temperature)


def penalties(model: nn.Module, options: dict[str, Any]) -> list[Tensor]:
    """Return the penalties of a model's layers, differentiable scalars; each layer gets those options that it knows.

    Raises:
        OptionError: an option that neither they nor `P4Inv.penalty` know.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, P4Module | Penalized)]
    if not options:
        return [layer.penalty() for layer in layers]
    kinds: list[Any] = [type(layer) for layer in layers]
    names = [_penalty_options(kind) for kind in kinds]
    check_known("penalty", options, _penalty_options(P4Inv), *names)
    return [
        layer.penalty(**{name: value for name, value in options.items() if own is None or name in own})
        for layer, own in zip(layers, names, strict=True)
    ]


@functools.cache
def _penalty_options(kind: Any) -> frozenset[str] | None:
    names = options_of(kind.penalty)
    return None if names is None else names - {"self"}
