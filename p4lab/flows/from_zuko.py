"""zuko's transformations and flows as layers of p4lab's.

Importing zuko switches off the validation of arguments in all of ``torch.distributions``; so `p4lab.flows` imports this
module only when something of it is asked for.
"""

import itertools
from functools import partial
from typing import Any

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.utils import _sum_rightmost

from p4lab.baselines.layer import device_of, readable
from p4lab.errors import OptionError
from p4lab.flows.bijection import Bijective
from p4lab.flows.context import check_length
from p4lab.p4.validate import check_input, check_options, check_tensor, seed_from


class FromZuko(Bijective):
    """A transformation of zuko, or of ``torch.distributions``, as a layer of a p4lab flow.

    Args:
        transform: a lazy transformation (any module whose forward pass returns a transform), or a transform without
            parameters; of vectors, or elementwise. A zuko flow onto N(0, I) stands for its transformation.
        context: length c of the context that a lazy transformation reads, 0 if it reads none; or a tensor that it is
            always given, which then belongs to the layer.
        dim: width d, if it should be checked against that of the other layers; a zuko flow tells its own.

    Raises:
        OptionError: neither a module nor a transform, a transform that is not bijective, a flow onto another
            distribution, a context for a transform without parameters, or, with ``dim``, sizes that do not fit.

    Example:
        >>> layer = FromZuko(torch.distributions.AffineTransform(1.0, 2.0))
        >>> layer(torch.zeros(1, 3))
        (tensor([[1., 1., 1.]]), tensor([2.0794]))
        >>> layer = FromZuko(zuko.flows.NSF(3, context=2), context=2, dim=3)
        >>> layer(torch.zeros(5, 3), torch.ones(5, 2))[0].shape
        torch.Size([5, 3])
    """

    given: Tensor | None

    def __init__(
        self, transform: nn.Module | Transform, context: Tensor | int | None = None, dim: int | None = None
    ) -> None:
        super().__init__()
        if not isinstance(transform, nn.Module | Transform):
            raise OptionError(f"{type(transform).__name__}: expected a zuko LazyTransform or a torch Transform")
        if isinstance(transform, zuko.lazy.LazyDistribution):
            transform, width = _onto_normal(transform)
            dim = width if dim is None else dim
        given = context if isinstance(context, Tensor) else None
        self.context = 0 if context is None or given is not None else check_length(context)
        if self.context and not isinstance(transform, nn.Module):
            raise OptionError(f"context={context}: {transform!r} has no parameters that a context could set")
        self.transform = transform
        self.register_buffer("given", given)
        if dim is not None:
            self.dim = dim
        if not all(map(readable, itertools.chain(self.parameters(), self.buffers()))):
            return  # zuko looks at values to build a transform
        like = next(self.parameters(), torch.zeros(()))
        built = self.build(like.new_zeros(self.context) if self.context else None)
        if not isinstance(built, Transform) or not built.bijective or built.domain.event_dim > 1:
            raise OptionError(f"{built!r}: expected a bijective transform of vectors, or an elementwise one")
        if dim is not None and isinstance(transform, nn.Module):
            self._check_sizes(dim, like)
        elif dim is not None and not _keeps_length(built, dim):
            raise OptionError(f"{built!r} does not map {dim} numbers to as many: a density needs the same number")

    def build(self, context: Tensor | None = None) -> Transform:
        """Return the transform as the parameters are now, for a context of shape (..., c) if the layer reads one."""
        if not isinstance(self.transform, nn.Module):
            return self.transform
        context = self.given if context is None else context
        return self.transform() if context is None else self.transform(context)

    def check(self, x: Tensor) -> None:
        """Raise the error of what is no tensor, or does not fit the first parameter if the width is known."""
        like = next(self.parameters(), None)
        if like is None or not hasattr(self, "dim"):
            check_tensor("FromZuko", x)
        else:
            check_input("FromZuko", self.dim, like, x)

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...)."""
        if not x.numel():  # zuko cannot reshape an empty batch
            return x, x.new_zeros(x.shape[:-1])
        transform: Any = self.build(context)
        y, ladj = (transform.inv if inverse else transform).call_and_ladj(x)
        return y, _sum_rightmost(ladj, 1 - transform.domain.event_dim)

    @torch.no_grad()
    def _check_sizes(self, dim: int, like: Tensor) -> None:
        """Raise unless a point and a context fit the transformation, of which zuko does not say what it takes."""
        try:
            self.map(like.new_zeros(1, dim), False, like.new_zeros(1, self.context) if self.context else None)
        except RuntimeError as error:
            raise OptionError(
                f"{type(self.transform).__name__} takes no points of {dim} numbers with a context of {self.context}: "
                f"say context=c and dim=d as it was built with ({error})"
            ) from error


def _keeps_length(transform: Transform, dim: int) -> bool:
    try:
        return tuple(transform.forward_shape((dim,))) == (dim,)
    except ValueError:  # it takes points of more dimensions
        return False


def _onto_normal(flow: zuko.lazy.LazyDistribution) -> tuple[nn.Module, int]:
    """Return the transformation of a zuko flow onto N(0, I), which is the prior of ours, and its width.

    Raises:
        OptionError: a flow onto another distribution, or no flow.
    """
    base = flow.base if isinstance(flow, zuko.lazy.Flow) else flow
    if isinstance(base, zuko.lazy.UnconditionalDistribution) and not list(base.parameters()):
        normal = base()
        if isinstance(normal, zuko.distributions.DiagNormal):
            standard = (normal.mean == 0).all() & (normal.stddev == 1).all()
            if base is not flow and (not readable(standard) or bool(standard)):
                return flow.transform, normal.event_shape[0]
    raise OptionError(
        f"{type(flow).__name__} is no flow onto N(0, I), the prior of p4lab's flows: hand over its transform alone"
    )


def spline_coupling(
    dim: int,
    bins: int = 8,
    hidden: int = 64,
    depth: int = 2,
    seed: int | torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    context: int = 0,
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
        context: length c of the context that the network reads, 0 for none.

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
            check_length(context),
            mask=torch.arange(dim) < dim // 2,
            univariate=partial(zuko.transforms.MonotonicRQSTransform, slope=1e-3),
            shapes=[(bins,), (bins,), (bins - 1,)],
            hidden_features=(hidden,) * depth,
            activation=nn.SiLU,
        )
    for parameter in lazy.hyper[-1].parameters():
        nn.init.zeros_(parameter)
    return FromZuko(lazy.to(dtype=dtype), context, dim).to(device=device_of(device))


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
