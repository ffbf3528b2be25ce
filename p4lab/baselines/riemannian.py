"""Optimizers that move along GL(n) or O(n) themselves, and the layers whose gradients they need in factored form."""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from p4lab.baselines.layer import Baseline, NearlyOrthogonal, OrthogonalBaseline, start_matrix
from p4lab.options import takes_options_of
from p4lab.packages import require


class FactoredLinear(Baseline):
    """Linear layer that hands an optimizer of this module the factors of its weight gradient ``G = g^T x``.

    Until such an optimizer adopts it, it is an ordinary layer with a (d, d) gradient. Then ``matrix.grad`` stays None
    for what reaches W through `forward`: the products ``z = W x`` and the gradients ``g`` at the outputs are kept
    instead, until the optimizer's next step. What reaches W otherwise (`inverse`, `weight`) is in ``matrix.grad``.
    """

    orthogonal = False

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        start = start_matrix(init, dim, self._kind["dtype"], seed, orthogonal=self.orthogonal)
        self.matrix = nn.Parameter(start.to(**self._kind))
        self.adopted = False
        self._batches: list[tuple[Tensor, Tensor]] = []

    @property
    def weight(self) -> Tensor:
        """The weights, which are the parameter itself."""
        return self.matrix

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return z and g, each of shape (B, d), of all batches since the last step; B is 0 if there were none."""
        if not self._batches:
            return (self.matrix.detach()[:0],) * 2
        z, g = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*self._batches, strict=True))
        return z, g

    def forget(self) -> None:
        """Drop the kept batches."""
        self._batches = []

    def _map(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Factored.apply(x, self.matrix, self)) if self.adopted else F.linear(x, self.matrix)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_batches": []}


class _Factored(torch.autograd.Function):
    """``x W^T``, whose backward pass keeps g instead of multiplying it by x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, layer: FactoredLinear) -> Tensor:
        z = F.linear(x, matrix)
        ctx.save_for_backward(z, matrix)
        ctx.layer = layer
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:
        z, matrix = ctx.saved_tensors
        if matrix.requires_grad:
            ctx.layer._batches.append((z.detach(), g))
        return (g @ matrix if ctx.needs_input_grad[0] else None), None, None


class RelativeLinear(FactoredLinear):
    r"""Linear layer for `RelativeGradient`: log|det W| is tracked, step by step, instead of computed.

    Its gradient with respect to log|det W| needs no inverse either: relative to W it is the identity. Whenever W was
    changed by anybody else, `logabsdet` factorizes (O(d^3)) and tracks on from there. Arguments and errors as for
    `p4lab.baselines.Dense`.

    Cost for a batch of B: forward and backward 2 B d^2; `logabsdet` O(1) if tracked; `inverse` O(d^3).
    """

    @takes_options_of(FactoredLinear)
    def __init__(self, dim: int, **options: Any) -> None:
        super().__init__(dim, **options)
        self._tracked: tuple[Tensor, nn.Parameter, int] | None = None
        self._pull: Tensor | float = 0.0

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar in float64. Cost O(1), O(d^3) if it is not tracked."""
        if not self.adopted:
            return super().logabsdet().double()
        return cast(Tensor, _Tracked.apply(self.matrix, self.tracked(), self))

    def tracked(self) -> Tensor:
        """Return the stored log|det W|, or a new one if that belongs to other weights."""
        if self._tracked is not None and self.is_tracked:
            return self._tracked[0]
        return self.track(torch.linalg.slogdet(self.matrix.detach().double()).logabsdet)

    def track(self, logabsdet: Tensor) -> Tensor:
        """Store, and return, the log|det| of the present weights."""
        self._tracked = (logabsdet, self.matrix, self.matrix._version)
        return logabsdet

    @property
    def is_tracked(self) -> bool:
        """Whether the stored log|det| belongs to the present weights."""
        return (
            self._tracked is not None and self._tracked[1] is self.matrix and self._tracked[2] == self.matrix._version
        )

    @property
    def pull(self) -> Tensor | float:
        """The gradient of the loss with respect to log|det W| since the last step."""
        return self._pull

    def forget(self) -> None:
        """Drop the kept batches and the gradient with respect to log|det W|."""
        super().forget()
        self._pull = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_tracked": None, "_pull": 0.0}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._tracked = None  # another dtype rounds to another determinant
        return super()._apply(fn, recurse)


class _Tracked(torch.autograd.Function):
    """The tracked log|det W|, whose backward pass keeps its factor c: the gradient c W^-T is never formed."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, logabsdet: Tensor, layer: RelativeLinear) -> Tensor:
        ctx.layer = layer
        return logabsdet.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, c: Tensor) -> tuple[None, None, None]:
        ctx.layer._pull = ctx.layer._pull + c
        return None, None, None


class CayleyLinear(FactoredLinear, OrthogonalBaseline):
    """Linear layer with orthogonal weights, for `CayleyDescent` and `SubmanifoldDescent`, which keep them so.

    Arguments as for `p4lab.baselines.Dense`; ``init`` has to be orthogonal, else OptionError.

    Cost for a batch of B: forward and backward 2 B d^2, `inverse` B d^2.
    """

    orthogonal = True


class NearLinear(FactoredLinear, NearlyOrthogonal):
    """Linear layer with nearly orthogonal weights, for `LandingDescent` and `Pogo`, which keep them near.

    Arguments as for `p4lab.baselines.Dense`; ``init`` has to be orthogonal, else OptionError.

    Cost for a batch of B: forward and backward 2 B d^2, `inverse` B d^2.
    """

    orthogonal = True


class StiefelLinear(OrthogonalBaseline):
    """Linear layer whose weights are a geoopt ManifoldParameter, for geoopt's RiemannianSGD and RiemannianAdam.

    Arguments as for `p4lab.baselines.Dense`.

    Raises:
        OptionError: a start that is not orthogonal.
        MissingPackageError: geoopt is not installed.

    Cost for a batch of B: forward and backward 3 B d^2; an optimizer step O(d^3).
    Source: Kochurov et al., arXiv:2005.02819; geoopt 0.5 (``geoopt.CanonicalStiefel``).
    """

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        geoopt = require("geoopt", "baselines")
        start = start_matrix(init, dim, self._kind["dtype"], seed, orthogonal=True)
        self.matrix = geoopt.ManifoldParameter(start.to(**self._kind), manifold=geoopt.CanonicalStiefel())

    @property
    def weight(self) -> Tensor:
        """The weights, which are the parameter itself."""
        return self.matrix
