"""Maximum likelihood on a density in the plane, of which the truth is known."""

from typing import Any

import torch
from torch import Tensor

from p4lab.problems.density2d import Density2D

TEST = 4096
"""Number of points in the test set."""
SIDE = 96
"""Cells along a side of pictures, if nothing else is said."""


class DensityProblem:
    r"""Learn a density p from samples of it, drawn anew for every batch.

    .. math:: L = -E_{x \sim p} \log q(x) = H(p) + KL(p \| q)

    Args:
        density: p, say from `p4lab.problems.densities.density`.
        seed: seed of the test set.
        device: where batches and test set live.
        dtype: their dtype.
        side: cells along a side of the pictures of log-densities.

    Attributes:
        dim: 2.
        test: the test set, shape (4096, 2).
        entropy: mean of -log p over the test set (nats): the test loss minus this is an unbiased estimate of KL(p || q)
            whose sampling error vanishes as q comes near p.
    """

    dim = 2

    def __init__(
        self,
        density: Density2D,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        side: int = SIDE,
    ) -> None:
        self.density, self.name = density, density.name
        self.device, self.dtype = torch.device(device), dtype
        generator = torch.Generator().manual_seed(seed)
        test = density.sample(TEST, generator)
        self.test = test.to(self.device, dtype)
        self.entropy = -density.log_prob(test).mean().item()
        self._grid = density.grid(side).to(self.device, dtype)

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw a batch of shape (size, 2).

        Args:
            size: number of points.
            generator: CPU generator; every device then draws the same.
        """
        return self.density.sample(size, generator).to(self.device, self.dtype)

    def loss(self, model: Any, x: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of x in nats, a differentiable scalar."""
        return -model.log_prob(x).mean()

    @torch.no_grad()
    def test_loss(self, model: Any) -> Tensor:
        """Return the loss on the test set (nats)."""
        return self.loss(model, self.test)

    @torch.no_grad()
    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return what the model makes of latent variables, and its log-density over the bounds.

        Args:
            model: the flow.
            z: shape (n, 2); keep it fixed to watch one set of samples change.

        Returns:
            On the CPU: "samples" of shape (n, 2), and "log_density" (nats) of shape (side, side), the first row at the
            top (largest y).
        """
        side = len(self._grid)
        log_density = model.log_prob(self._grid.view(-1, 2)).view(side, side)
        return {"samples": model.inverse(z).to("cpu", copy=True), "log_density": log_density.to("cpu", copy=True)}

    def truth(self) -> Tensor:
        """Return the true log-density on the grid of `pictures` (nats, -inf where it is 0), on the CPU, float64."""
        return self.density.log_prob(self.density.grid(len(self._grid)))

    def train_sample(self, n: int, seed: int = 0) -> Tensor:
        """Return ``n`` points of the density to show beside the model's samples, shape (n, 2), on the CPU."""
        return self.density.sample(n, torch.Generator().manual_seed(seed), self.dtype)
