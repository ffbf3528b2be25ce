"""A linear layer that learns its inverse beside its weights, and trains log|det| by it."""

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from p4lab.baselines.dense import Penalized
from p4lab.baselines.layer import in_training, start_matrix
from p4lab.linalg import inverse_and_logabsdet
from p4lab.p4.validate import seed_from


class SelfNormalizing(Penalized):
    r"""Linear layer with a second matrix R that learns to be the inverse of its weights.

    .. math:: \frac{\partial \ln|\det W|}{\partial W} = W^{-T} \approx R^T, \qquad
              \text{penalty } \tfrac{s}{d}\, \mathbb{E}\, |R W x - x|^2

    In training `logabsdet` costs O(d^2): its gradient is R^T, which is as right as R is, and its value, which gradient
    descent does not need, is that of the last evaluation (at first that of the start). In eval mode, or where no
    gradients are recorded, both are exact. `inverse` is R, nearly right always. The penalty is on the last batch that
    was mapped in training, as if it did not depend on the layers before, and trains both matrices; without such a batch
    it is 0. The published layers also train R by the likelihood of the reversed model, with half of the weight for each
    direction; this one does not. Arguments and errors as for `p4lab.baselines.Dense`.

    Cost for a batch of B: forward, backward and penalty 9 B d^2; `inverse` B d^2; `logabsdet` O(d^2) in training, else
    O(d^3).
    Source: Keller et al., ICML 2021, arXiv:2011.07248 (self normalizing flows).
    """

    evaluated: Tensor

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        seed = seed_from(seed)
        super().__init__(dim, init, bias, seed, dtype, device)
        start = start_matrix(init, dim, self._kind["dtype"], seed)
        inverse, _, logabsdet = inverse_and_logabsdet(start, dim, start.dtype)
        self.learned_inverse = nn.Parameter(inverse.to(**self._kind))
        self.register_buffer("evaluated", logabsdet.to(**self._kind))
        self._batch: Tensor | None = None

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats): exact in evaluation; in training the last one evaluated, with R^T as gradient."""
        if in_training(self):
            return cast(Tensor, _Learned.apply(self.matrix, self.learned_inverse, self.evaluated))
        logabsdet = super().logabsdet()
        self.evaluated.copy_(logabsdet.detach())
        return logabsdet

    def penalty(self, strength: float = 1.0) -> Tensor:
        """Return the penalty above with s = ``strength``, a differentiable scalar. Cost 2 B d^2."""
        if self._batch is None or not len(self._batch):
            return self.matrix.new_zeros(())
        back = F.linear(F.linear(self._batch, self.matrix), self.learned_inverse)
        return strength * (back - self._batch).square().mean()

    @torch.no_grad()
    def violation(self) -> Tensor:
        """Return ``max |R W - I|``. Cost O(d^3)."""
        product = self.learned_inverse @ self.matrix
        product.diagonal().sub_(1)
        return product.abs().max()

    def _map(self, x: Tensor) -> Tensor:
        if in_training(self):
            self._batch = x.detach()
        return super()._map(x)

    def _unmap(self, y: Tensor) -> Tensor:
        return F.linear(y, self.learned_inverse)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._batch = None  # of another dtype or device
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_batch": None}


class _Learned(torch.autograd.Function):
    """A given log|det W|, whose gradient with respect to W is the transpose of a learned inverse."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, learned_inverse: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(learned_inverse)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, c: Tensor) -> tuple[Tensor, None, None]:
        (learned_inverse,) = ctx.saved_tensors
        return c * learned_inverse.t(), None, None
