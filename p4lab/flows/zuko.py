"""zuko, both ways: p4lab's layers and flows inside zuko's; the other way is `p4lab.flows.from_zuko`.

Importing zuko switches off the validation of arguments in all of ``torch.distributions``; so `p4lab.flows` imports this
module only when something of it is asked for.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self, cast

import torch
import zuko
from torch import Tensor
from torch.distributions import Transform, constraints

from p4lab.flows.bent import BentIdentity, bent, bent_inverse
from p4lab.flows.context import length_of
from p4lab.flows.flow import Flow, Layer
from p4lab.flows.from_zuko import FromZuko
from p4lab.flows.linear_layers import folded, is_linear, through
from p4lab.p4.validate import check_tensor

__all__ = ["BentTransform", "BijectionTransform", "FromZuko", "LazyBijection", "as_lazy", "as_transform", "to_zuko"]


class _Reversible(Transform):
    """What both transforms share: the inverse is the same one with the other direction."""

    bijective = True
    parts: Mapping[str, Any] = MappingProxyType({})
    inverted: bool

    @property
    def inv(self) -> Self:
        """The inverse transform, on the same layer if there is one."""
        return cast(Any, type(self))(**self.parts, inverted=not self.inverted, cache_size=self._cache_size)

    def with_cache(self, cache_size: int = 1) -> Self:
        """Return the transform with another cache size."""
        return cast(Any, type(self))(**self.parts, inverted=self.inverted, cache_size=cache_size)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed x and the logarithm of what it does to volume."""
        raise NotImplementedError

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the logarithm of what the transform does to volume at x."""
        return self.call_and_ladj(x)[1]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self) or self.inverted != other.inverted:
            return False
        return all(part is other.parts[name] for name, part in self.parts.items())

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
        context: what the layer is given beside points, of shape (..., c); None for one that takes nothing.

    Raises:
        OptionError, DtypeError, ShapeError, DeviceError: where it is applied, if points or context do not fit.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> transform = BijectionTransform(P4Inv(2, init=torch.diag(torch.tensor([2.0, 3.0]))))
        >>> transform.inv(transform(torch.ones(2))).detach()
        tensor([1., 1.])
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(
        self, layer: Layer | Flow, inverted: bool = False, cache_size: int = 0, context: Tensor | None = None
    ) -> None:
        super().__init__(cache_size)
        self.layer, self.inverted, self.context = layer, inverted, context
        self.parts = {"layer": layer, "context": context}

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the transformed x and log|det| of its Jacobian, of shapes (..., d) and (...)."""
        layer: Any = self.layer
        given = (x,) if self.context is None else (x, self.context)
        if isinstance(layer, Flow):
            return layer.inverse_with_logabsdet(*given) if self.inverted else layer(*given)
        if is_linear(layer):
            return through(layer, x, self.inverted)
        return layer.inverse(*given) if self.inverted else layer(*given)

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
    """A layer or flow as a lazy transformation of zuko.

    One that reads a context is given that of the zuko flow; one that reads none is the same whatever that is.

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
        if isinstance(layer, BentIdentity):
            return BentTransform(layer.inverted)
        return BijectionTransform(layer, context=c if length_of(layer) else None)

    @torch.no_grad()
    def fold(self) -> "LazyBijection":
        """Return the same with nothing of P4 left in it (`p4lab.fold` of a zuko flow calls it)."""
        layer: Any = self.layer
        return LazyBijection(layer.fold() if isinstance(layer, Flow) else folded(layer)).train(self.training)


def as_transform(layer: Layer | Flow, context: Tensor | None = None) -> Transform:
    """Return a layer or flow as a ``torch.distributions`` transform, of vectors (Bent identities: elementwise).

    Args:
        layer: what `p4lab.flows.Flow` accepts as a layer, or such a flow.
        context: for one that reads a context; shape (..., c).
    """
    return LazyBijection(layer)(context)


def as_lazy(layer: Layer | Flow) -> zuko.lazy.LazyTransform:
    """Return a layer or flow as a lazy transformation, for ``zuko.flows.Flow([...], base)``.

    A layer that came from zuko is unwrapped. One that reads a context is given that of the zuko flow.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> nsf = zuko.flows.NSF(features=3, transforms=2)
        >>> flow = zuko.flows.Flow([nsf.transform, as_lazy(P4Inv(3, seed=0))], nsf.base)
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    if isinstance(layer, FromZuko) and isinstance(layer.transform, zuko.lazy.LazyTransform) and layer.given is None:
        return layer.transform
    return LazyBijection(layer)


def to_zuko(flow: Flow) -> zuko.flows.Flow:
    """Return a flow as a zuko flow of the same density; the layers, and so their parameters, are shared.

    The zuko flow takes the same context: ``to_zuko(flow)(context).log_prob(x)`` is ``flow.log_prob(x, context)``.

    Example:
        >>> from p4lab.flows import p4inv_bent
        >>> to_zuko(p4inv_bent(2, blocks=2))().sample((5,)).shape
        torch.Size([5, 2])
    """
    like = flow.like()
    loc, scale = (fill(flow.dim, dtype=like.dtype, device=like.device) for fill in (torch.zeros, torch.ones))
    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, loc, scale, buffer=True)
    # zuko gives the context to each of its transformations: one that reads none must not be unwrapped then.
    wraps = [LazyBijection if flow.context and not length_of(layer) else as_lazy for layer in flow.layers]
    return zuko.flows.Flow([wrap(cast(Layer, layer)) for wrap, layer in zip(wraps, flow.layers, strict=True)], base)
