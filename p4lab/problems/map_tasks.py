"""Maps to learn, by any kind of layer, and what all tasks of a race have in common."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.baselines import Method, penalty

TEST_SIZE = 2048
"""Number of points that a map is tested on."""
POOL = 16_384
"""Number of coloured inputs: to colour each batch anew would cost as much as a layer's forward pass."""
DRAWN_WIDTH = 256
"""Widest matrix whose eigenvalues are drawn; those of a wider one would keep a lab waiting."""


class Task:
    """A problem that any method's layers can be trained on, from the identity.

    Attributes:
        dim: width d.
    """

    dim: int

    def model(self, method: Method, seed: int, **options: Any) -> nn.Module:
        """Return what is trained: one layer of the method, started at the identity; a flow stacks several."""
        return method.build(self.dim, seed=seed, **options)

    def watched(self, model: Any) -> Tensor | None:
        """Return the effective matrix, where there is one, and it is not too wide to be looked at."""
        return model.weight if hasattr(model, "weight") and self.dim <= DRAWN_WIDTH else None


class MapTask(Task):
    r"""Learn the linear map ``y = T x`` from samples; log|det W| is asked for after each step.

    .. math:: \frac{1}{d}\, \mathbb{E}\, |W x - T x|^2, \qquad x \sim N(0, C)

    where C is I if nothing is said. Learnt both ways, the error of the inverse is part of the loss, which is 0 for
    W = T only, as before:

    .. math:: \frac{1}{d}\, \mathbb{E} \left(|W x - T x|^2 + |W^{-1} T x - x|^2\right)

    Args:
        target: T, shape (d, d).
        dtype: dtype of the data.
        device: where the data live.
        colours: L of `p4lab.problems.linear_maps.colouring`, shape (d, d), with C = L^T L (None: the identity).
        both: whether the map is learnt both ways.
    """

    def __init__(
        self,
        target: Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        colours: Tensor | None = None,
        both: bool = False,
    ) -> None:
        self.dim, self._both = len(target), both
        self.target = target.to(device, dtype)
        self._pool: Tensor | None = None
        generator = torch.Generator().manual_seed(1)
        if colours is None:
            self._test = torch.randn(TEST_SIZE, self.dim, generator=generator, device="cpu").to(self.target)
        else:
            white = torch.randn(TEST_SIZE + POOL, self.dim, generator=generator, dtype=torch.float64, device="cpu")
            self._test, self._pool = (white @ colours).to(self.target).split([TEST_SIZE, POOL])

    def model(self, method: Method, seed: int, **options: Any) -> nn.Module:
        """Return a layer of the method, started at the identity."""
        self._knows = method.linear and method.exact_logabsdet
        return super().model(method, seed, **options)

    @torch.no_grad()
    def after_step(self, model: Any) -> None:
        """Have the layer tell log|det W|, if it is one that knows: otherwise knowing it would cost nothing here."""
        if self._knows:
            model.logabsdet()

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw inputs x, shape (size, d); coloured ones from a pool of 16,384."""
        if self._pool is not None:
            return drawn(self._pool, size, generator)
        return torch.randn(size, self.dim, generator=generator, dtype=self.target.dtype, device="cpu").to(
            self.target.device
        )

    def loss(self, model: Any, x: Tensor) -> Tensor:
        """Return the mean squared error of a batch, plus the penalty of a penalized method."""
        return self._error(model, x) + penalty(model)

    @torch.no_grad()
    def test_loss(self, model: Any) -> Tensor:
        """Return the mean squared error on data that are not trained on."""
        return self._error(model, self._test)

    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return "eigenvalues" of W, if there is one, and of the "target", shape (d, 2): real and imaginary part.

        There are none of matrices wider than 256.
        """
        if self.dim > DRAWN_WIDTH:
            return {}
        matrices = {"eigenvalues": self.watched(model), "target": self.target}
        return {name: _eigenvalues(matrix) for name, matrix in matrices.items() if matrix is not None}

    def _error(self, model: Any, x: Tensor) -> Tensor:
        y = x @ self.target.t()
        error = (model(x) - y).square().mean()
        return error + (model.inverse(y) - x).square().mean() if self._both else error


def drawn(pool: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draw rows of a pool with replacement, shape (size, d); a CPU generator draws the same on every device."""
    rows = torch.randint(len(pool), (size,), generator=generator, device="cpu")
    return pool[rows.to(pool.device)]


def _eigenvalues(matrix: Tensor) -> Tensor:
    matrix = matrix.detach().to("cpu", torch.float64)
    if not bool(matrix.isfinite().all()):
        return torch.full((len(matrix), 2), math.nan, dtype=torch.float64, device="cpu")
    return torch.view_as_real(torch.linalg.eigvals(matrix))
