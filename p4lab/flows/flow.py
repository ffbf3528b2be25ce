"""Normalizing flows of linear layers that know their inverse and determinant."""

import math
from collections.abc import Iterable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError
from p4lab.flows.bent import BentIdentity


class Linear(Protocol):
    """What a flow asks of a linear layer: `p4lab.p4.P4Inv` and the linear layers of `p4lab.baselines` have it."""

    dim: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``W x + b``."""

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)``."""

    def logabsdet(self) -> Tensor:
        """Return log|det W|."""


Layer = Linear | BentIdentity


class Flow(nn.Module):
    r"""A density given by an invertible map of the data onto a standard normal distribution.

    .. math:: \log p(x) = \log N(z; 0, I) + \log\left|\det \frac{\partial z}{\partial x}\right|, \qquad z = F(x)

    ``forward`` runs from the data to the latent space, so that training by maximum likelihood needs the cheap products
    ``W x`` only; sampling uses the inverses, which P4Inv layers know anyway.

    Args:
        layers: linear and elementwise layers in the order in which the data passes them.

    Raises:
        OptionError: no linear layer, or linear layers of different dim.

    Cost for a batch of B: that of its layers; log|det| of a P4Inv layer is O(d k^2), whatever B is.
    Source: arXiv:2010.07033, section 3.2.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> flow = Flow([P4Inv(2, seed=0), BentIdentity()])
        >>> flow.log_prob(torch.zeros(1, 2)).detach()  # -log(2 pi)
        tensor([-1.8379])
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(cast(Iterable[nn.Module], layers))
        dims = sorted({layer.dim for layer in self.linear_layers()})
        if len(dims) != 1:
            raise OptionError(f"linear layers of dims {dims}: a flow needs at least one, all of the same dim")
        self.dim = dims[0]

    def linear_layers(self) -> list[Any]:
        """Return the linear layers in order."""
        return [layer for layer in self.layers if not isinstance(layer, BentIdentity)]

    def logabsdet(self) -> Tensor:
        """Return the sum of log|det W| over the linear layers (nats), a differentiable scalar (float64 for P4Inv)."""
        return torch.stack([layer.logabsdet() for layer in self.linear_layers()]).sum()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(z, log|det dz/dx|)`` of shapes (..., d) and (...).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit.
        """
        total: Tensor = self.logabsdet().to(x.dtype)
        for layer in self._sequence():
            if isinstance(layer, BentIdentity):
                x, logabsdet = layer(x)
                total = total + logabsdet
            else:
                x = layer(x)
        return x, total.expand(x.shape[:-1])

    def inverse(self, z: Tensor) -> Tensor:
        """Return the data that belong to latent ``z`` of shape (..., d)."""
        for layer in reversed(self._sequence()):
            if isinstance(layer, BentIdentity):
                z, _ = layer.inverse(z)
            else:
                z = layer.inverse(z)
        return z

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape (...) for x of shape (..., d)."""
        z, logabsdet = self(x)
        return logabsdet - 0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` samples of shape (n, d).

        Args:
            n: number of samples.
            generator: CPU generator for the latent variables; every device then draws the same (None: torch's default).

        Raises:
            ShapeError: n < 0.
        """
        if n < 0:
            raise ShapeError(f"n={n}: expected at least 0 samples")
        parameter = next(self.parameters())
        z = torch.randn(n, self.dim, generator=generator, dtype=parameter.dtype)
        return self.inverse(z.to(parameter.device))

    def _sequence(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))
