"""Linear problems of the paper: learn y = T x from samples, starting at the identity."""

from dataclasses import dataclass

import torch
from torch import Tensor

from p4lab.errors import OptionError
from p4lab.problems.matrix import haar_rotation, spread_spd

TARGETS = ("spd", "so", "minus_identity")


def linear_target(kind: str, dim: int, seed: int = 1) -> Tensor:
    """Return the target matrix T of a linear problem.

    Args:
        kind: "spd" (``M M^T + I / 2`` with ``M_ij ~ N(0, 1/d)``: symmetric, eigenvalues from 0.5 to about 4.5), "so"
            (Haar on the rotations) or "minus_identity" (det = -1 for odd d: to reach it from the identity the
            determinant must change sign).
        dim: d.
        seed: seed of the random matrix.

    Returns:
        Shape (d, d), float32.

    Raises:
        OptionError: unknown kind.

    Source: arXiv:2010.07033, section 4.1.
    """
    noise = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    if kind == "spd":
        return spread_spd(noise).float()
    if kind == "so":
        return haar_rotation(noise).float()
    if kind == "minus_identity":
        return -torch.eye(dim, device="cpu")
    raise OptionError(f"linear target {kind!r} is not known: choose one of {TARGETS}")


@dataclass(frozen=True)
class LinearProblem:
    """Minimize ``E |f(x) - T x|^2 / d`` over x ~ N(0, I).

    Attributes:
        target: T, shape (d, d).
        batch: samples per step.
    """

    target: Tensor
    batch: int = 64

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a fresh batch ``(x, T x)``, each of shape (batch, d)."""
        x = torch.randn(self.batch, self.target.shape[0], generator=generator, device="cpu")
        return x, x @ self.target.t()

    def error(self, weight: Tensor) -> Tensor:
        """Return the exact mean squared error ``|W - T|_F^2 / d`` of weights W, shape (d, d)."""
        return (weight - self.target).square().sum() / self.target.shape[0]
