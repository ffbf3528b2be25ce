"""P4Permutation: linear layers on sets that commute with permutations of the items."""

from numbers import Integral

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError
from p4lab.p4.changes import Changes
from p4lab.p4.contract import p4_modules
from p4lab.p4.invertible import P4Inv
from p4lab.p4.report import MergeReport


class P4Permutation(nn.Module):
    r"""Linear layer on n items of c channels that commutes with permutations of the items and knows its inverse.

    .. math:: y_i = D\,(x_i - \bar x) + M \bar x + b, \qquad W = (I_n - J) \otimes D + J \otimes M, \qquad
              W^{-1} = (I_n - J) \otimes D^{-1} + J \otimes M^{-1}, \\
              \ln|\det W| = (n - 1) \ln|\det D| + \ln|\det M|, \qquad J = \tfrac1n 1 1^T

    These are all matrices that commute with permutations: with :math:`A = D`, :math:`B = (M - D)/n` they read
    :math:`I \otimes A + 1 1^T \otimes B`, and :math:`a I + b\, 1 1^T` for one channel. D acts on the deviations from
    the mean and M on the mean. Any two invertible matrices will do, so each is a `P4Inv`, whose perturbation, merge and
    correction stay in the commutant. The number of items may differ from call to call.

    Args:
        channels: number c of channels of an item.
        bias: whether there is an additive bias, the same for all items.
        options: of both `P4Inv` layers: rank, init, reset, train_v, min_factor, seed, device, dtype.

    Attributes:
        deviation: D, a `P4Inv` without bias. A merge schedule finds it by itself.
        mean: M, a `P4Inv` with the bias.

    Raises:
        OptionError, ShapeError, SingularMatrixError, DtypeError: as `P4Inv`.

    Cost for a batch of B sets of n items: forward and backward 2 B (n + 1) c^2 multiply-adds; merge O(c^2 k); log|det|
    as `P4Inv`. Nothing grows with n but the batch.

    Source: P4 scheme arXiv:2010.07033; the commutant: Zaheer et al., arXiv:1703.06114, lemma 3.

    Example:
        >>> layer = P4Permutation(2, seed=0)
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(layer(x[[2, 0, 1, 4, 3]]), layer(x)[[2, 0, 1, 4, 3]], atol=1e-6)
        True
        >>> invariant = nn.Sequential(layer, nn.Tanh(), MeanPool(), nn.Linear(2, 1))
        >>> invariant(x).shape
        torch.Size([1])
    """

    def __init__(self, channels: int, bias: bool = True, **options: object) -> None:
        super().__init__()
        self.channels = channels
        self.deviation = P4Inv(channels, bias=False, **options)  # type: ignore[arg-type]
        seed = options.get("seed")
        if isinstance(seed, Integral):
            options["seed"] = int(seed) + 1  # other directions than those of D
        self.mean = P4Inv(channels, bias=bias, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., n, c).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        mean = self._mean(x)
        return self.deviation(x - mean) + self.mean(mean)

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., n, c), differentiable.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        mean = self._mean(y)
        return self.deviation.inverse(y - mean) + self.mean.inverse(mean)

    def logabsdet(self, items: int) -> Tensor:
        """Return log|det W| (nats) for sets of so many items, a differentiable scalar in float64."""
        return (_checked(items) - 1) * self.deviation.logabsdet() + self.mean.logabsdet()

    def sign(self, items: int) -> Tensor:
        """Return the sign of det W for sets of so many items."""
        return self.deviation.sign() ** (_checked(items) - 1) * self.mean.sign()

    def weight(self, items: int) -> Tensor:
        """Return the effective weights as a matrix, shape (n c, n c). Cost O(n^2 c^2 + c^2 k)."""
        return _commutant(self.deviation.weight, self.mean.weight, _checked(items))

    def weight_inverse(self, items: int) -> Tensor:
        """Return the inverse of the effective weights, shape (n c, n c). Cost O(n^2 c^2 + c^2 k)."""
        return _commutant(self.deviation.weight_inverse, self.mean.weight_inverse, _checked(items))

    def merge(self) -> list[MergeReport]:
        """Merge both parts, each judged by itself, and return their reports. Cost O(c^2 k)."""
        plans = [layer.plan() for layer in p4_modules(self)]
        both = Changes()
        for plan in plans:
            both.join(plan)
        both.commit()
        return [plan.report for plan in plans]

    def violation(self) -> Tensor:
        """Return the larger violation of the two parts; equivariance itself holds by construction. Cost O(c^3)."""
        return torch.stack([layer.violation() for layer in p4_modules(self)]).max()

    def correct(self) -> Tensor:
        """Refine the inverses of both parts and return the larger violation left. Cost O(c^3)."""
        return torch.stack([layer.correct() for layer in p4_modules(self)]).max()

    def extra_repr(self) -> str:
        """Return the number of channels."""
        return f"channels={self.channels}"

    def _mean(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[-1] != self.channels or x.shape[-2] < 1:
            raise ShapeError(
                f"P4Permutation(channels={self.channels}) got shape {tuple(x.shape)}: "
                f"expected (..., items, {self.channels}) with at least one item"
            )
        return x.mean(-2, keepdim=True)


class MeanPool(nn.Module):
    """Mean over the items: makes an equivariant network invariant; shape (..., n, c) to (..., c)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the second last axis."""
        return x.mean(-2)


def _commutant(deviation: Tensor, mean: Tensor, items: int) -> Tensor:
    j = torch.full((items, items), 1 / items, dtype=mean.dtype, device=mean.device)
    return torch.kron(torch.eye(items, dtype=j.dtype, device=j.device) - j, deviation) + torch.kron(j, mean)


def _checked(items: int) -> int:
    if not isinstance(items, int) or items < 1:
        raise OptionError(f"items={items!r}: expected a whole number of at least 1")
    return items
