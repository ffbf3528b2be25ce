"""POET: weights that are turned by blocks on both sides and keep their singular values, as its paper trains them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from p4lab.errors import OptionError
from p4lab.p4 import Changes

WARM_UP = 10
"""So many steps after a merge the gradient is clipped more, from a tenth of the usual limit upwards."""


class PoetLinear(nn.Module):
    r"""Linear layer ``y = R W P x + b`` with frozen W and block-diagonal R and P, nearly orthogonal, in random bases.

    .. math:: R = \Psi_o^T \operatorname{diag}(G_1, G_2, \dots)\, \Psi_o, \qquad
              G = (I + Q)(I + Q + \dots + Q^k), \quad Q^T = -Q

    :math:`\Psi` are permutations, drawn anew at each merge, and P is made as R is. A truncated Cayley transform is not
    quite orthogonal, so that singular values drift with the size of Q.

    Args:
        dim_in: length of an input.
        dim_out: length of an output.
        block: size of a block; it divides both dims.
        bias: whether there is an additive bias.
        init: W, shape (dim_out, dim_in) (None: normal noise with rows of length 1, as the paper starts).
        seed: of W and the permutations.
        terms: k.

    Raises:
        OptionError: a block that does not divide the dims.

    Cost for a batch of B: 2 B d^2 + 4 B d b multiply-adds and k d b^2 for the blocks b; merge O(d^2 b).
    Source: Qiu et al., arXiv:2506.08001 (block-stochastic, Cayley-Neumann) and arXiv:2603.05500.
    """

    frozen_weight: Tensor
    order_in: Tensor
    order_out: Tensor
    skew_in: nn.Parameter
    skew_out: nn.Parameter

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        block: int = 64,
        bias: bool = True,
        init: Tensor | None = None,
        seed: int = 0,
        terms: int = 3,
    ) -> None:
        super().__init__()
        if block < 2 or dim_in % block or dim_out % block:
            raise OptionError(f"block={block}: expected a number above 1 that divides {dim_in} and {dim_out}")
        self.dim_in, self.dim_out, self.block, self.terms = dim_in, dim_out, block, terms
        self.generator = torch.Generator().manual_seed(seed)
        if init is None:
            init = F.normalize(torch.randn(dim_out, dim_in, generator=self.generator), dim=1)
        kind: dict[str, Any] = {"dtype": init.dtype, "device": init.device}
        self.register_buffer("frozen_weight", init.detach().clone())
        for name, dim in (("in", dim_in), ("out", dim_out)):
            self.register_buffer(f"order_{name}", torch.randperm(dim, generator=self.generator).to(init.device))
            self.register_parameter(f"skew_{name}", nn.Parameter(torch.zeros(dim // block, block, block, **kind)))
        self.bias = nn.Parameter(torch.zeros(dim_out, **kind)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``R W P x + b`` for x of shape (..., dim_in)."""
        y = self._turn(
            F.linear(self._turn(x, self.skew_in, self.order_in), self.frozen_weight), self.skew_out, self.order_out
        )
        return y if self.bias is None else y + self.bias

    @property
    def weight(self) -> Tensor:
        """The effective weights ``R W P``, shape (dim_out, dim_in), differentiable. Cost O(d^2 b)."""
        eye = torch.eye(self.dim_in, dtype=self.frozen_weight.dtype, device=self.frozen_weight.device)
        y = self(eye)
        return (y if self.bias is None else y - self.bias).t()

    def rotations(self) -> list[nn.Parameter]:
        """Return the parameters of R and P."""
        return [self.skew_in, self.skew_out]

    def plan(self) -> Changes:
        """Plan ``W <- R W P`` with R = P = I in new random bases, all or nothing."""
        changes = Changes()
        changes.put(self.frozen_weight, self.weight)
        for skew in self.rotations():
            changes.clear(skew)
        for order in (self.order_in, self.order_out):
            changes.put(order, torch.randperm(len(order), generator=self.generator).to(order.device))
        return changes

    def _turn(self, x: Tensor, skew: Tensor, order: Tensor) -> Tensor:
        upper = skew.triu(1)
        turn = upper.mT - upper  # Q^T, for rows
        eye = torch.eye(self.block, dtype=x.dtype, device=x.device).expand_as(turn)
        series = eye + turn
        for _ in range(self.terms - 1):
            series = torch.baddbmm(eye, series, turn)
        blocks = torch.baddbmm(series, series, turn)
        z = torch.einsum("...nb,nbc->...nc", x[..., order].unflatten(-1, (-1, self.block)), blocks)
        return z.flatten(-2)[..., order.argsort()]


class PoetSchedule:
    """Merge all `PoetLinear` layers every so many steps, and let the optimizer forget their rotations.

    Args:
        model: contains such layers.
        optimizer: what trains it.
        every: steps between merges.
        clip: largest norm of the gradient.

    Raises:
        OptionError: there are none.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, every: int = 200, clip: float = 1.0) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, PoetLinear)]
        if not self.layers:
            raise OptionError(f"{type(model).__name__} contains no PoetLinear layers")
        self.optimizer, self.every, self.clip, self.steps = optimizer, every, clip, 0

    def step(self) -> None:
        """Count a step of the optimizer; merge if that is due."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.merge()

    @torch.no_grad()
    def merge(self) -> None:
        """Merge every layer now."""
        for layer in self.layers:
            layer.plan().commit()
            for rotation in layer.rotations():
                self.optimizer.state.pop(rotation, None)

    def limit(self) -> float:
        """Return the largest norm of the gradient for the next step: less than usual for some steps after a merge."""
        since = self.steps % self.every if self.steps >= self.every else WARM_UP
        return self.clip * min(1.0, 0.1 + 0.9 * since / WARM_UP)
