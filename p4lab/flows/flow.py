"""Normalizing flows of linear layers that know their inverse and determinant, and of any other bijections."""

import copy
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from p4lab.baselines import Penalized
from p4lab.errors import OptionError, ShapeError
from p4lab.flows import fused
from p4lab.flows.linear import FoldedLinear, Linear, Permutation, is_linear, sum_of_logabsdets
from p4lab.options import check_known, options_of
from p4lab.p4 import P4Inv, P4Module
from p4lab.p4._validate import no_tensor


class Bijection(Protocol):
    """What a flow asks of any other layer: each direction returns its own log|det|, of shape (...)."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)``."""

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/dy|)``."""


Layer = Linear | Bijection


class Flow(nn.Module):
    r"""A density given by an invertible map of the data onto a standard normal distribution.

    .. math:: \log p(x) = \log N(z; 0, I) + \log\left|\det \frac{\partial z}{\partial x}\right|, \qquad z = F(x)

    ``forward`` runs from the data to the latent space, so that training by maximum likelihood needs the cheap products
    ``W x`` only; sampling uses the inverses, which P4Inv layers know anyway.

    Args:
        layers: linear layers (`Linear`: log|det| is one number) and bijections (`Bijection`: log|det| belongs to each
            sample) in the order in which the data passes them. Another flow stands for its layers.
        dim: width d (None: that of the layers).

    Raises:
        OptionError: no layer that tells its dim, or layers of different dim.

    Cost for a batch of B: that of its layers; log|det| of a P4Inv layer is O(d k^2), whatever B is.
    Source: arXiv:2010.07033, section 3.2.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> from p4lab.flows import BentIdentity
        >>> flow = Flow([P4Inv(2, seed=0), BentIdentity()])
        >>> flow.log_prob(torch.zeros(1, 2)).detach()  # -log(2 pi)
        tensor([-1.8379])
    """

    dim: int

    def __init__(self, layers: Iterable["Layer | Flow"], dim: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_flat(layers))
        dims: set[int] = {cast(Any, layer).dim for layer in self.layers if hasattr(layer, "dim")}
        if dim is not None:
            dims.add(dim)
        if len(dims) != 1:
            raise OptionError(f"layers of dims {sorted(dims)}: a flow needs at least one, all of the same dim")
        (self.dim,) = dims

    def linear_layers(self) -> list[Any]:
        """Return the linear layers in order."""
        return [layer for layer in self.layers if is_linear(layer)]

    def logabsdet(self) -> Tensor:
        """Return the sum of log|det W| over the linear layers (nats), a differentiable scalar (float64 for P4Inv)."""
        total = sum_of_logabsdets(self.linear_layers())
        return torch.zeros((), device=self._like().device) if total is None else total

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(z, log|det dz/dx|)`` of shapes (..., d) and (...).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit.
        """
        self._check(x)
        layers = list(self.layers)
        return fused.run(layers, x, self._layered) if fused.fusible(layers, x) else self._layered(x)

    def _layered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = sum_of_logabsdets(self.linear_layers())
        if total is not None:
            total = total.to(x.dtype)
        for layer in self.layers:
            if is_linear(layer):
                x = layer(x)
            else:
                x, logabsdet = layer(x)
                total = logabsdet if total is None else total + logabsdet
        total = x.new_zeros(()) if total is None else total
        return x, total.expand(x.shape[:-1])

    def inverse(self, z: Tensor) -> Tensor:
        """Return the data that belong to latent ``z`` of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: z does not fit.
        """
        self._check(z)
        layers = list(self.layers)
        if fused.fusible(layers, z, gradients=False):
            return fused.undo(layers, z)
        for layer in reversed(self._sequence()):
            z = undo(layer, z)
        return z

    def inverse_with_logabsdet(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/dz|)`` of shapes (..., d) and (...): training by energy needs both.

        Raises:
            ShapeError, DtypeError, DeviceError: z does not fit.
        """
        self._check(z)
        total = -self.logabsdet().to(z.dtype)
        for layer in reversed(self._sequence()):
            if is_linear(layer):
                z = cast(Linear, layer).inverse(z)
            else:
                z, logabsdet = cast(Bijection, layer).inverse(z)
                total = total + logabsdet
        return z, total.expand(z.shape[:-1])

    def stages(self, points: Tensor, to: Literal["data", "latent"] = "data") -> list[Tensor]:
        """Return what each layer makes of points, for a look into the depth of the flow.

        Args:
            points: latent z (``to="data"``) or data x (``to="latent"``), shape (..., d).
            to: direction.

        Returns:
            ``len(layers) + 1`` tensors of shape (..., d): the points themselves, then what is left after each layer.

        Raises:
            OptionError: unknown direction.
            ShapeError, DtypeError, DeviceError: the points do not fit.
        """
        if to not in ("data", "latent"):
            raise OptionError(f"to={to!r}: expected 'data' or 'latent'")
        self._check(points)
        path = [points]
        for layer in self._sequence() if to == "latent" else reversed(self._sequence()):
            path.append(do(layer, path[-1]) if to == "latent" else undo(layer, path[-1]))
        return path

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape (...) for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit.
        """
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
        return self.inverse(self._latent(n, generator))

    def sample_with_log_prob(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw ``n`` samples with log p(x) in nats, of shapes (n, d) and (n,), differentiable in the parameters.

        Args:
            n: number of samples.
            generator: as for `sample`; the samples are the same.

        Raises:
            ShapeError: n < 0.
        """
        z = self._latent(n, generator)
        x, logabsdet = self.inverse_with_logabsdet(z)
        return x, -logabsdet - 0.5 * z.square().sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)

    def _latent(self, n: int, generator: torch.Generator | None) -> Tensor:
        if n < 0:
            raise ShapeError(f"n={n}: expected at least 0 samples")
        like = self._like()
        z = torch.randn(n, self.dim, generator=generator, dtype=like.dtype, device="cpu")
        return z.to(like.device)

    def penalty(self, **options: Any) -> Tensor:
        """Return the sum of its layers' penalties, to be added to a loss; a differentiable scalar, 0 if none has one.

        Args:
            options: of the layers' ``penalty``, such as ``strength``; each layer gets those that it knows.

        Raises:
            OptionError: an option that no penalty knows.

        Source: arXiv:2010.07033, section 2.3.
        """
        terms = penalties(self, options)
        return torch.stack(terms).sum() if terms else torch.zeros((), device=self._like().device)

    @torch.no_grad()
    def fold(self) -> "Flow":
        """Return a plain flow of the same density, for use after training: nothing of P4 is left in it.

        Linear layers become frozen `FoldedLinear` ones, of which the inverse is stored; other layers and permutations
        are copied. This flow is not changed. Cost O(d^3) per linear layer.

        Raises:
            SingularMatrixError: a linear layer is singular or not finite.
        """
        twins: dict[nn.Module, nn.Module] = {}
        for layer in self.layers:
            if layer not in twins:
                plain = isinstance(layer, Permutation | FoldedLinear) or not is_linear(layer)
                twins[layer] = copy.deepcopy(layer) if plain else FoldedLinear.of(layer)
        return Flow(cast(Iterable[Layer], (twins[layer] for layer in self.layers)), self.dim).train(self.training)

    def _check(self, x: object) -> None:
        if not isinstance(x, Tensor):
            raise no_tensor("Flow", x, self._like())

    def _sequence(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def _like(self) -> Tensor:
        """Return a tensor with the flow's dtype and device."""
        device = None
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor
            device = tensor.device
        return torch.zeros((), device=device)


def do(layer: Layer, x: Tensor) -> Tensor:
    """Return what a layer makes of x, without log|det|."""
    return cast(Linear, layer)(x) if is_linear(layer) else cast(Bijection, layer)(x)[0]


def undo(layer: Layer, y: Tensor) -> Tensor:
    """Return what a layer makes y of, without log|det|."""
    return cast(Linear, layer).inverse(y) if is_linear(layer) else cast(Bijection, layer).inverse(y)[0]


def penalties(model: nn.Module, options: dict[str, Any]) -> list[Tensor]:
    """Return the penalties of a model's layers, differentiable scalars; each layer gets those options that it knows.

    Raises:
        OptionError: an option that neither they nor `P4Inv.penalty` know.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, P4Module | Penalized)]
    if not options:
        return [layer.penalty() for layer in layers]
    kinds: list[Any] = [type(layer) for layer in layers]
    known = [_penalty_options(kind) for kind in kinds]
    check_known("penalty", options, _penalty_options(P4Inv), *known)
    return [
        layer.penalty(**{name: value for name, value in options.items() if names is None or name in names})
        for layer, names in zip(layers, known, strict=True)
    ]


@functools.cache
def _penalty_options(kind: Any) -> frozenset[str] | None:
    names = options_of(kind.penalty)
    return None if names is None else names - {"self"}


def _flat(layers: Iterable[Layer | Flow]) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, Flow):
            yield from layer.layers
        else:
            yield cast(nn.Module, layer)
