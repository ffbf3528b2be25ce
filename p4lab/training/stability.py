"""The stability lab's problem: a P4Inv layer learns a matrix whose determinant is under the user's hand."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from p4lab.p4 import P4Inv
from p4lab.problems.matrix import MatrixProblem
from p4lab.training.config import Rule, RunConfig, one_of, whole
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes
from p4lab.training.measure import figures
from p4lab.training.records import Event

LANES = ("float32", "float64")
LARGEST_ANGLE = math.pi / 3
DAMAGE, WRECK = 0.1, 0.5
"""Noise on a frozen inverse that refinement mends, and noise that is too much for it."""


class SharedDirections(P4Inv):
    """A P4Inv layer whose random directions are drawn in float64 and rounded: the same ones in every precision."""

    def _noise(self, generator: torch.Generator, rows: int) -> Tensor:
        return torch.randn(rows, self.dim, generator=generator, dtype=torch.float64, device="cpu").to(self.u)


class StabilityProblem(MatrixProblem):
    """Minimize ``|W - T|_F^2 / d``, and say how near to singular and how exact the layer is."""

    def set_target(self, target: Tensor) -> None:
        """Replace the target T, shape (d, d); a run may go on meanwhile.

        Raises:
            ShapeError: another shape.
        """
        super().set_target(target)
        self._target_eigenvalues = _eigenvalues(self.target)

    @torch.no_grad()
    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return what there is to see of a P4Inv layer; all NaN where its weights are not finite.

        "eigenvalues" and "target" (of W and T, real and imaginary part) have shape (d, 2), "singular" (values of W,
        descending) has shape (d,); "det" (sign of det W by a factorization in float64), "sign" (carried), "residual"
        and "logabsdet_error" are scalars. Cost O(d^3). ``z`` is not used.
        """
        weight = model.weight.detach().to("cpu", torch.float64)
        known = ("sign", "residual", "logabsdet_error")
        finite = bool(weight.isfinite().all())
        found = figures(model, weight) if finite else dict.fromkeys(known, math.nan)
        return {
            "eigenvalues": _eigenvalues(weight) if finite else torch.full((self.dim, 2), math.nan),
            "target": self._target_eigenvalues.clone(),
            "singular": torch.linalg.svdvals(weight) if finite else torch.full((self.dim,), math.nan),
            "det": torch.linalg.slogdet(weight)[0] if finite else torch.tensor(math.nan),
            **{name: torch.tensor(found[name], dtype=torch.float64) for name in known},
        }


@dataclass(frozen=True)
class StabilityConfig(RunConfig):
    r"""Learn ``T = Q (I + (p - 1) w w^T)`` with a fixed rotation Q, a unit vector w and the push p in the user's hand.

    The singular values of T are 1, ..., 1, |p|, and det T = p: at 1 it is a rotation, at 0 it is singular, below 0 the
    layer, which starts at the identity, has to cross det = 0.

    Attributes:
        dim: d.
        push: p; live.
    """

    problem: ClassVar[str] = "stability"
    rules: ClassVar[dict[str, Rule]] = {
        "reset": one_of("gaussian"),
        "dim": whole(2, 256),
        "push": Rule(float, lambda value: abs(value) <= 2, "a number from -2 to 2"),
    }
    live: ClassVar[tuple[str, ...]] = (*(name for name in RunConfig.live if name != "reset"), "push")

    rank: int = 8
    reset: Any = "gaussian"
    learning_rate: float = 5e-3
    merge_every: int = 5
    refine_every: int = 0
    measure_every: int = 5
    dim: int = 16
    push: float = 1.0

    @property
    def width(self) -> int:
        """The width d."""
        return self.dim

    def target(self) -> Tensor:
        """Return T, shape (d, d), float64."""
        noise = torch.randn(self.dim + 1, self.dim, generator=_generator(self.seed), dtype=torch.float64, device="cpu")
        skew = noise[1:] - noise[1:].t()
        rotation = torch.linalg.matrix_exp(skew * (LARGEST_ANGLE / torch.linalg.matrix_norm(skew, 2)))
        w = noise[0] / torch.linalg.vector_norm(noise[0])
        return rotation + (self.push - 1) * torch.outer(rotation @ w, w)

    def parts(self) -> tuple[StabilityProblem, P4Inv]:
        """Return the problem, and a P4Inv layer that starts at the identity."""
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        start = torch.eye(self.dim, dtype=torch.float64)
        layer = SharedDirections(
            self.dim,
            min(self.rank, self.dim),
            bias=False,
            train_v=self.train_v,
            seed=self.seed,
            dtype=dtype,
            device=device,
        )
        return StabilityProblem(start, self.target(), False, dtype, device), layer

    def update(self, problem: Any) -> None:
        """Bring the target up to date with the push."""
        problem.set_target(self.target())


def precisions(config: RunConfig) -> Lanes:
    """Return a float32 and a float64 lane with the same start, target and directions."""
    return Lanes(config, "dtype", LANES)


def damage(run: Engine | Lanes, amount: float = DAMAGE) -> None:
    """Multiply every entry of the frozen inverses by ``1 + amount * N(0, 1)``, the same noise in each lane; an event.

    Weights and frozen determinants stay right. What the perturbation's part of the determinant, and merges, take from
    the inverse does not.
    """
    for engine in _engines(run):
        for layer in _layers(engine):
            inverse = layer.frozen_inverse
            noise = torch.randn(inverse.shape, generator=_generator(engine.step), dtype=torch.float64, device="cpu")
            with torch.no_grad():
                inverse.mul_(1 + amount * noise.to(inverse))
                if layer.q is not None:
                    layer.q.copy_(layer.v @ inverse)
        engine.records.add(Event(engine.step, "set", (), f"damage = {amount:g}"))


def recompute(run: Engine | Lanes) -> None:
    """Factorize the frozen matrices anew for inverse and determinant, in every lane; an event. Cost O(d^3)."""
    for engine in _engines(run):
        for layer in _layers(engine):
            layer.recompute()
        engine.records.add(Event(engine.step, "set", (), "inverse = recomputed"))


def _engines(run: Engine | Lanes) -> list[Engine]:
    return list(run.engines.values()) if isinstance(run, Lanes) else [run]


def _layers(engine: Engine) -> list[P4Inv]:
    return [layer for layer in engine.layers if isinstance(layer, P4Inv)]


def _eigenvalues(matrix: Tensor) -> Tensor:
    return torch.view_as_real(torch.linalg.eigvals(matrix))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
