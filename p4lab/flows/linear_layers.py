"""Linear layers without P4: permutations, folded layers, and what a flow asks of any linear layer."""

import math
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.baselines.layer import Derived, device_of, readable
from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.linalg import autocasts, small_slogdet
from p4lab.p4 import P4Inv, fold
from p4lab.p4.validate import check_input, check_tensor


class Linear(Protocol):
    """What a flow asks of a linear layer: `p4lab.p4.P4Inv` and the linear layers of `p4lab.baselines` have it."""

    @property
    def dim(self) -> int:
        """Width d."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``W x + b``."""

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)``."""

    def logabsdet(self) -> Tensor:
        """Return log|det W|."""


def is_linear(layer: Any) -> bool:
    """Return whether a layer is a linear one: it has ``logabsdet``, which needs no point to be evaluated at."""
    return hasattr(type(layer), "logabsdet")  # of the class: a module looks for a missing attribute at length


def through(layer: Linear, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Return what a linear layer makes of x, or x of what it made, with log|det|, of shapes (..., d) and (...)."""
    y, logabsdet = layer.inverse(x) if inverse else layer(x), layer.logabsdet().to(x.dtype).expand(x.shape[:-1])
    return y, -logabsdet if inverse else logabsdet


class Permutation(nn.Module):
    r"""Fixed permutation of the coordinates, a linear layer that moves memory only.

    .. math:: y_i = x_{\pi(i)}, \qquad \log|\det| = 0

    Args:
        order: the d indices pi(0), ..., pi(d - 1), each of 0..d-1 once.
        device: device of the indices (None: that of ``order`` if it is a tensor, else torch's default).

    Raises:
        OptionError: not a permutation.
        ShapeError, DtypeError: from both directions, if points have another last dimension, or are no tensor.

    Cost for a batch of B: O(B d), forward and inverse.

    Example:
        >>> Permutation([2, 0, 1])(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[3., 1., 2.]])
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, order: list[int] | Tensor, device: torch.device | str | None = None) -> None:
        super().__init__()
        if not isinstance(order, Tensor):
            order, device = torch.as_tensor(order, dtype=torch.long, device="cpu"), device_of(device)
        order = order.long()
        each = order.dim() == 1 and len(order) > 0
        if readable(order):
            each = each and order.sort().values.tolist() == list(range(len(order)))
        if not each:
            raise OptionError(f"order={order.tolist()}: expected each of 0, ..., d - 1 once")
        self.dim = len(order)
        self.register_buffer("order", order.to(device, copy=True))
        self.register_buffer("inverse_order", order.argsort().to(device))

    @classmethod
    def reverse(cls, dim: int, device: torch.device | str | None = None) -> Self:
        """Return the swap of RealNVP: the coordinates in reversed order, so that the halves change places."""
        return cls(list(reversed(range(dim))), device)

    def forward(self, x: Tensor) -> Tensor:
        """Return the permuted coordinates of x, shape (..., d)."""
        return self._take(x, self.order)

    def inverse(self, y: Tensor) -> Tensor:
        """Undo `forward`."""
        return self._take(y, self.inverse_order)

    def logabsdet(self) -> Tensor:
        """Return 0."""
        return torch.zeros((), device=self.order.device)

    @property
    def weight(self) -> Tensor:
        """The permutation as a matrix of torch's default dtype, shape (d, d)."""
        return torch.eye(self.dim, device=self.order.device)[self.order]

    @property
    def weight_inverse(self) -> Tensor:
        """The transpose of `weight`."""
        return self.weight.t()

    def _take(self, x: Tensor, order: Tensor) -> Tensor:
        check_tensor("Permutation", x)
        if x.shape[-1:] != (self.dim,):
            raise ShapeError(f"Permutation(dim={self.dim}) got shape {tuple(x.shape)}: expected (..., {self.dim})")
        return x.index_select(-1, order)

    def extra_repr(self) -> str:
        """Return the order, shortened; the width where it has no values."""
        if not readable(self.order):
            return f"dim={self.dim}"
        order = self.order.tolist()
        return str(order if len(order) <= 8 else [*order[:4], "...", *order[-3:]])


class FoldedLinear(Derived):
    r"""Linear layer that is done with training: weights, their inverse, bias and log|det| as buffers.

    .. math:: y = W x + b, \qquad x = W^{-1} (y - b)

    Args:
        weight: W, shape (d, d), float32 or float64; copied.
        bias: b, shape (d,), or None.

    Raises:
        ShapeError: weight is not square, or bias does not fit.
        DtypeError: weight or bias is no tensor.
        SingularMatrixError: weight or bias is not finite, or weight is singular; also where the layer is cast up after
            a cast down made it so.
        ShapeError, DtypeError, DeviceError: from both directions, if points do not fit.

    Inverse and log|det| are computed in float64, and anew when the layer is cast to a wider dtype: they are then those
    of the weight as it is. Cost O(d^3) each time; forward and inverse B d^2 for a batch of B. On the meta device, and
    in torch's fake mode, there is nothing to compute; a state may be loaded later (``assign=True``).

    Example:
        >>> layer = FoldedLinear(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
        >>> layer.inverse(layer(torch.ones(1, 2))), layer.logabsdet()
        (tensor([[1., 1.]]), tensor(0.6931, dtype=torch.float64))
    """

    source = "weight"
    weight: Tensor
    weight_inverse: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        for given in (weight, *(() if bias is None else (bias,))):
            check_tensor(type(self).__name__, given)
        weight = weight.detach().clone()
        d = weight.shape[0] if weight.dim() else 0
        if weight.shape != (d, d) or d < 1 or (bias is not None and bias.shape != (d,)):
            shape = None if bias is None else tuple(bias.shape)
            raise ShapeError(f"weight {tuple(weight.shape)}, bias {shape}: expected (d, d), and (d,) or None")
        if bias is not None and readable(bias) and not bool(torch.isfinite(bias).all()):
            raise SingularMatrixError("the bias is not finite: nothing to fold")
        self.dim = d
        self.register_buffer("weight", weight)
        self.register_buffer("weight_inverse", torch.empty_like(weight))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        # A number, not a tensor: it keeps its digits whatever dtype the layer is moved to.
        self._logabsdet = math.nan
        if readable(weight):
            self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """Compute inverse and log|det| of the weight, in float64 on the CPU. Cost O(d^3).

        Raises:
            SingularMatrixError: the weight is singular or not finite.
        """
        wide = self.weight.cpu().double()
        inverse, info = torch.linalg.inv_ex(wide)
        if int(info) != 0 or not bool(torch.isfinite(inverse).all()):
            raise SingularMatrixError("the weights are singular or not finite: they have no inverse")
        self.weight_inverse = inverse.to(self.weight)
        self._logabsdet = float(torch.linalg.slogdet(wide).logabsdet)

    @classmethod
    def of(cls, layer: Any) -> "FoldedLinear":
        """Return a frozen copy of a linear layer that has ``weight`` and ``bias``."""
        with torch.no_grad():
            return FoldedLinear(layer.weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., d)."""
        check_input(type(self).__name__, self.dim, self.weight, x)
        return F.linear(x, self.weight, self.bias)

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d)."""
        check_input(type(self).__name__, self.dim, self.weight, y)
        return F.linear(y if self.bias is None else y - self.bias, self.weight_inverse)

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a constant scalar in float64 (in the weights' dtype where there is none)."""
        dtype = self.weight.dtype if self.weight.device.type == "mps" else torch.float64
        return torch.tensor(self._logabsdet, dtype=dtype, device=self.weight.device)

    def get_extra_state(self) -> Tensor:
        """Return log|det W|."""
        return torch.tensor(self._logabsdet, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Set log|det W|."""
        self._logabsdet = float(state) if readable(state) else math.nan

    def extra_repr(self) -> str:
        """Return the width."""
        return f"dim={self.dim}, bias={self.bias is not None}"


def folded(layer: Any) -> Any:
    """Return a layer of a flow with nothing of P4 left: a linear one as `FoldedLinear`, others as `fold` has them.

    Permutations, and layers that are frozen already, are copied. Cost O(d^3) for a linear layer.

    Raises:
        SingularMatrixError: a linear layer is singular or not finite.
    """
    copied = isinstance(layer, Permutation | FoldedLinear) or not is_linear(layer)
    return fold(layer) if copied else FoldedLinear.of(layer)


def sum_of_logabsdets(layers: list[Any]) -> Tensor | None:
    """Return the sum of log|det W| over linear layers, None if all of them are permutations.

    P4Inv layers of equal shape are batched: one small determinant call for all of them. A differentiable scalar.
    """
    batches: dict[tuple[int, int], list[P4Inv]] = {}
    terms: list[Tensor] = []
    for layer in layers:
        if type(layer) is P4Inv:
            batches.setdefault((layer.rank, layer.dim), []).append(layer)
        elif type(layer) is not Permutation:
            terms.append(layer.logabsdet())
    terms += [_p4inv_logabsdet(batch) for batch in batches.values()]
    return None if not terms else terms[0] if len(terms) == 1 else torch.stack([t.to(terms[-1]) for t in terms]).sum()


def _directions(layer: P4Inv) -> Tensor:
    """Return ``v A^-1``, which a layer whose v trains does not keep."""
    return layer.v @ layer.frozen_inverse if layer.q is None else layer.q


def _p4inv_logabsdet(layers: list[P4Inv]) -> Tensor:
    if len(layers) == 1:
        return layers[0].logabsdet()
    device = layers[0].u.device.type
    if autocasts(device):
        with torch.autocast(device, enabled=False):
            return _p4inv_logabsdet(layers)
    u, q = torch.stack([layer.u for layer in layers]), torch.stack([_directions(layer) for layer in layers])
    frozen = torch.stack([layer.frozen_logabsdet for layer in layers]).sum()
    rank = u.shape[1]
    if rank == 1:
        return frozen + (1 + (q * u).sum((1, 2))).abs().log().sum(dtype=frozen.dtype)
    c = torch.eye(rank, dtype=u.dtype, device=u.device) + q @ u.mT
    return frozen + small_slogdet(c)[1].sum(dtype=frozen.dtype)
