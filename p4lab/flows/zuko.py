"""zuko, both ways: p4lab's layers and flows inside zuko's, and zuko's transformations inside p4lab's.

Importing zuko switches off the validation of arguments in all of ``torch.distributions``; so `p4lab.flows` imports this
module only when something of it is asked for.
"""

import itertools
from functools import partial
from typing import Any, Self, cast

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.distributions.utils import _sum_rightmost

from p4lab.baselines.layer import device_of, readable
from p4lab.errors import OptionError
from p4lab.flows.bent import BentIdentity, bent, bent_inverse
from p4lab.flows.bijection import Bijective
from p4lab.flows.flow import Flow, Layer
from p4lab.flows.linear_layers import is_linear, through
from p4lab.p4.validate import check_options, check_tensor, seed_from


class _Reversible(Transform):
    """What both transforms share: the inverse is the same one with the other direction."""

    bijective = True
    parts: tuple[Any, ...] = ()
    inverted: bool

    @property
    def inv(self) -> Self:
        """The inverse transform, on the same layer if there is one."""
        return cast(Any, type(self))(*self.parts, not self.inverted, self._cache_size)

    def with_cache(self, cache_size: int = 1) -> Self:
        """Return the transform with another cache size."""
        return cast(Any, type(self))(*self.parts, self.inverted, cache_size)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed x and the logarithm of what it does to volume."""
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of what the transform does to volume at x."""
        return self.call_and_ladj(x)[1]

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self.parts, self.inverted) == (other.parts, other.inverted)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inv.call_and_ladj(y)[0]


class BijectionTransform(_Reversible):
    r"""A linear layer, a bijection or a whole flow as a ``torch.distributions`` transform of vectors.

    For a flow the direction is data to latent, as in zuko.

    Args:
        layer: what `p4lab.flows.Flow` accepts as a layer, or such a flow.
        inverted: whether the transform is the inverse of ``layer``.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> transform = BijectionTransform(P4Inv(2, init=torch.diag(torch.tensor([2.0, 3.0]))))
        >>> transform.inv(transform(torch.ones(2))).detach()
        tensor([1., 1.])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, layer: Layer | Flow, inverted: bool = False, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.layer, self.parts, self.inverted = layer, (layer,), inverted

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed x and log|det| of its Jacobian, of shapes (..., d) and (...)."""
        layer: Any = self.layer
        if isinstance(layer, Flow):
            return layer.inverse_with_logabsdet(x) if self.inverted else layer(x)
        if is_linear(layer):
            return through(layer, x, self.inverted)
        return layer.inverse(x) if self.inverted else layer(x)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log|det dy/dx|, shape (...)."""
        check_tensor("BijectionTransform", x)
        if isinstance(self.layer, Flow) or not is_linear(self.layer):
            return self.call_and_ladj(x)[1]
        logabsdet = cast(Any, self.layer).logabsdet().to(x.dtype).expand(x.shape[:-1])
        return -logabsdet if self.inverted else logabsdet

    def __repr__(self) -> str:
        return f"BijectionTransform({self.layer!r}, inverted={self.inverted})"


class BentTransform(_Reversible):
    """The Bent identity, or its inverse, as an elementwise ``torch.distributions`` transform.

    Args:
        inverted: whether it is the inverse of `p4lab.flows.bent`.
    """

    domain = constraints.real
    codomain = constraints.real
    sign = +1

    def __init__(self, inverted: bool = False, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.inverted = inverted

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed x and the logarithm of the slope, both of the shape of x."""
        return bent_inverse(x) if self.inverted else bent(x)


class LazyBijection(zuko.lazy.LazyTransform):
    """A layer or flow as a lazy transformation of zuko; a context is ignored.

    Args:
        layer: what `p4lab.flows.Flow` accepts as a layer, or such a flow; it becomes a submodule, so that a merge
            schedule finds P4 modules in the zuko flow.
    """

    def __init__(self, layer: Layer | Flow) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, c: Any = None) -> Transform:
        """Return the transform of the layer as it is now."""
        layer = self.layer
        return BentTransform(layer.inverted) if isinstance(layer, BentIdentity) else BijectionTransform(layer)


class FromZuko(Bijective):
    """A transformation of zuko, or of ``torch.distributions``, as a layer of a p4lab flow.

    Args:
        transform: a lazy transformation (any module whose forward pass returns a transform), or a transform without
            parameters; of vectors, or elementwise.
        context: what a lazy transformation is given, None if it takes nothing.
        dim: width d, if it should be checked against that of the other layers.

    Raises:
        OptionError: neither a module nor a transform, or a transform that is not bijective.

    Example:
        >>> layer = FromZuko(torch.distributions.AffineTransform(1.0, 2.0))
        >>> layer(torch.zeros(1, 3))
        (tensor([[1., 1., 1.]]), tensor([2.0794]))
    """

    def __init__(self, transform: nn.Module | Transform, context: Tensor | None = None, dim: int | None = None) -> None:
        super().__init__()
        if not isinstance(transform, nn.Module | Transform):
            raise OptionError(f"{type(transform).__name__}: expected a zuko LazyTransform or a torch Transform")
        self.transform = transform
        self.register_buffer("context", context)
        if dim is not None:
            self.dim = dim
        if not all(map(readable, itertools.chain(self.parameters(), self.buffers()))):
            return  # zuko looks at values to build a transform
        built = self.build()
        if not isinstance(built, Transform) or not built.bijective or built.domain.event_dim > 1:
            raise OptionError(f"{built!r}: expected a bijective transform of vectors, or an elementwise one")

    def build(self) -> Transform:
        """Return the transform as the parameters are now."""
        if not isinstance(self.transform, nn.Module):
            return self.transform
        return self.transform() if self.context is None else self.transform(self.context)

    def check(self, x: Tensor) -> None:
        """Raise the error of what is no tensor."""
        check_tensor("FromZuko", x)

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...)."""
        if not x.numel():  # zuko cannot reshape an empty batch
            return x, x.new_zeros(x.shape[:-1])
        transform: Any = self.build()
        y, ladj = (transform.inv if inverse else transform).call_and_ladj(x)
        return y, _sum_rightmost(ladj, 1 - transform.domain.event_dim)


def as_transform(layer: Layer | Flow) -> Transform:
    """Return a layer or flow as a ``torch.distributions`` transform, of vectors (Bent identities: elementwise)."""
    return LazyBijection(layer)()


def as_lazy(layer: Layer | Flow) -> zuko.lazy.LazyTransform:
    """Return a layer or flow as a lazy transformation, for ``zuko.flows.Flow([...], base)``.

    A layer that came from zuko is unwrapped.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> nsf = zuko.flows.NSF(features=3, transforms=2)
        >>> flow = zuko.flows.Flow([nsf.transform, as_lazy(P4Inv(3, seed=0))], nsf.base)
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    if isinstance(layer, FromZuko) and isinstance(layer.transform, zuko.lazy.LazyTransform) and layer.context is None:
        return layer.transform
    return LazyBijection(layer)


def to_zuko(flow: Flow) -> zuko.flows.Flow:
    """Return a flow as a zuko flow of the same density; the layers, and so their parameters, are shared.

    Example:
        >>> from p4lab.flows import p4inv_bent
        >>> to_zuko(p4inv_bent(2, blocks=2))().sample((5,)).shape
        torch.Size([5, 2])
    """
    like = flow.like()
    loc, scale = (fill(flow.dim, dtype=like.dtype, device=like.device) for fill in (torch.zeros, torch.ones))
    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, loc, scale, buffer=True)
    return zuko.flows.Flow([as_lazy(cast(Layer, layer)) for layer in flow.layers], base)


def spline_coupling(
    dim: int,
    bins: int = 8,
    hidden: int = 64,
    depth: int = 2,
    seed: int | torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> FromZuko:
    """Return one coupling layer of rational-quadratic splines; the first ``dim // 2`` coordinates stay.

    Args:
        dim: width d, at least 2.
        bins: bins of each spline, at least 2.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.
        seed: seed of the network, or a CPU generator to draw it from (None: torch's default generator).
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: something is out of range.

    Source: Durkan et al., arXiv:1906.04032.
    """
    dtype = dtype or torch.get_default_dtype()
    check_options(dim, 1, dtype)
    if dim < 2 or bins < 2 or hidden < 1 or depth < 1:
        raise OptionError(f"dim={dim}, bins={bins}, hidden={hidden}, depth={depth}: expected at least 2, 2, 1, 1")
    # zuko draws from torch's default generator, and makes tensors on its default device
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed_from(seed))
        lazy = zuko.flows.coupling.GeneralCouplingTransform(
            dim,
            mask=torch.arange(dim) < dim // 2,
            univariate=partial(zuko.transforms.MonotonicRQSTransform, slope=1e-3),
            shapes=[(bins,), (bins,), (bins - 1,)],
            hidden_features=(hidden,) * depth,
            activation=nn.SiLU,
        )
    for parameter in lazy.hyper[-1].parameters():
        nn.init.zeros_(parameter)
    return FromZuko(lazy.to(dtype=dtype), dim=dim).to(device=device_of(device))


def splines(
    dim: int, bins: int = 16, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> FromZuko:
    """Return a rational-quadratic spline for each coordinate, which no other coordinate has a say in.

    Splines act within [-5, 5] and leave what is outside alone; they start at the identity.

    Args:
        dim: width d, at least 1.
        bins: bins of each spline, at least 2.
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: something is out of range.

    Source: Durkan et al., arXiv:1906.04032.

    Example:
        >>> splines(1)(torch.tensor([[0.5]]))[0].detach()
        tensor([[0.5000]])
    """
    dtype = dtype or torch.get_default_dtype()
    check_options(dim, 1, dtype)
    if bins < 2:
        raise OptionError(f"bins={bins}: expected at least 2")
    shapes = (bins,), (bins,), (bins - 1,)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # zuko draws what is then set to zero
        lazy = zuko.flows.ElementWiseTransform(
            dim, univariate=partial(zuko.transforms.MonotonicRQSTransform, slope=1e-3), shapes=shapes
        )
    for parameter in lazy.parameters():
        nn.init.zeros_(parameter)
    return FromZuko(lazy.to(dtype=dtype), dim=dim).to(device=device_of(device))
