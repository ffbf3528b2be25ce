"""Linear problems of the paper: learn y = T x from samples, starting at the identity."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from p4lab.errors import OptionError
from p4lab.linalg.initial import haar_rotation, spread_spd

TARGETS = ("spd", "so", "minus_identity")
"""The targets of the paper."""
CONDITION = 100.0
"""Condition number of `ill_conditioned`, and of the covariance of coloured inputs."""


def _noise(generator: torch.Generator, dim: int) -> Tensor:
    return torch.randn(dim, dim, generator=generator, dtype=torch.float64, device="cpu")


def ill_conditioned(dim: int, generator: torch.Generator) -> Tensor:
    """Return a random matrix with det > 0 and singular values from 1/10 to 10, shape (d, d), float64."""
    left, right = (torch.linalg.qr(_noise(generator, dim)).Q for _ in range(2))
    values = torch.logspace(-1, 1, dim, base=math.sqrt(CONDITION), dtype=torch.float64, device="cpu")
    return _with_sign((left * values) @ right, 1.0)


def colouring(dim: int, generator: torch.Generator) -> Tensor:
    r"""Return a matrix L, shape (d, d), float64, that colours white rows z ~ N(0, I): z L has the covariance C.

    .. math:: C = L^T L = Q^T \mathrm{diag}(c)\, Q, \qquad Q \text{ Haar}, \qquad \sum_i c_i = d

    with variances c spaced evenly in their logarithm, the largest 100 times the smallest. Cost O(d^3).
    """
    variances = torch.logspace(-1, 1, dim, base=math.sqrt(CONDITION), dtype=torch.float64, device="cpu")
    variances *= dim / variances.sum()
    return variances.sqrt()[:, None] * haar_rotation(_noise(generator, dim))


def _with_sign(matrix: Tensor, sign: float) -> Tensor:
    return torch.cat([-matrix[:1], matrix[1:]]) if torch.linalg.slogdet(matrix)[0] * sign < 0 else matrix


MAPS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "spd": lambda dim, generator: spread_spd(_noise(generator, dim)),
    "so": lambda dim, generator: haar_rotation(_noise(generator, dim)),
    "minus_identity": lambda dim, _: -torch.eye(dim, device="cpu"),
    "ill_conditioned": ill_conditioned,
    "negative": lambda dim, generator: _with_sign(torch.linalg.qr(_noise(generator, dim)).Q, -1.0),
}
"""Maps to learn by name, from a width and a generator: those of the paper, and two more."""


def linear_target(kind: str, dim: int, seed: int = 1) -> Tensor:
    """Return the target matrix T of a linear problem.

    Args:
        kind: a name of `MAPS`: "spd" (``M M^T + I / 2`` with ``M_ij ~ N(0, 1/d)``: symmetric, eigenvalues from 0.5 to
            about 4.5), "so" (Haar on the rotations), "minus_identity" (det = -1 for odd d: to reach it from the
            identity the determinant must change sign), "ill_conditioned" (singular values from 1/10 to 10) or
            "negative" (a rotation times a mirror: det = -1).
        dim: d.
        seed: seed of the random matrix.

    Returns:
        Shape (d, d), float32.

    Raises:
        OptionError: unknown kind.

    Source: arXiv:2010.07033, section 4.1 (the first three).
    """
    if kind not in MAPS:
        raise OptionError(f"linear target {kind!r} is not known: choose one of {tuple(MAPS)}")
    return MAPS[kind](dim, torch.Generator().manual_seed(seed)).float()


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
