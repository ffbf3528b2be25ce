"""Linear regression onto a matrix that has a property, and how far a matrix is from each property."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from p4lab.errors import OptionError
from p4lab.p4.circulant import circulant
from p4lab.problems.matrix import haar_rotation, spread_spd


def channels_of(dim: int) -> int:
    """Return how many channels an item has where d numbers are read as a set: at most 8, for at least 4 items.

    Example:
        >>> channels_of(64), channels_of(16), channels_of(7)
        (8, 4, 1)
    """
    return next(c for c in (8, 4, 2, 1) if dim % c == 0 and dim // c >= min(4, dim))


def _stretched(noise: Tensor, values: Tensor) -> Tensor:
    """Return a matrix with these singular values, and two different random frames."""
    return haar_rotation(noise[0]) * values @ haar_rotation(noise[1])


def _volume(noise: Tensor) -> Tensor:
    # A rotation by angles up to one, times a positive definite stretch: no eigenvalue near the negative axis, where
    # the straight way from the identity would lead through det = 0.
    d = noise.shape[-1]
    skew = torch.linalg.matrix_exp((noise[0] - noise[0].t()) / (4 * math.sqrt(d)))
    frame = haar_rotation(noise[1])
    stretch = torch.linspace(-0.7, 0.7, d, dtype=noise.dtype, device="cpu").exp()
    return skew @ (frame * stretch @ frame.t())


def _lipschitz(noise: Tensor) -> Tensor:
    return _stretched(noise, torch.linspace(0.1, 1.0, noise.shape[-1], dtype=noise.dtype, device="cpu"))


def _circulant(noise: Tensor) -> Tensor:
    return circulant(noise[0, 0] / math.sqrt(noise.shape[-1]))


def _permutation(noise: Tensor) -> Tensor:
    d = noise.shape[-1]
    c = channels_of(d)
    deviation, mean = (spread_spd(noise[i, :c, :c]) for i in (0, 1))
    j = torch.full((d // c, d // c), c / d, dtype=noise.dtype, device="cpu")
    return torch.kron(torch.eye(d // c, dtype=noise.dtype, device="cpu") - j, deviation) + torch.kron(j, mean)


def _invertible(noise: Tensor) -> Tensor:
    # Eigenvalues fill a disc around 1 that leaves 0 out.
    return torch.eye(noise.shape[-1], dtype=noise.dtype, device="cpu") + 0.7 * noise[0] / math.sqrt(noise.shape[-1])


def _not_definite(w: Tensor) -> float:
    least = float(torch.linalg.eigvalsh((w + w.t()) / 2)[0])
    return max(_largest(w - w.t()), -least)


def _volume_error(w: Tensor) -> float:
    sign, logabsdet = torch.linalg.slogdet(w)
    # Near det = 1 from the logarithm: a product of d numbers would only add roundings of its own.
    return abs(math.expm1(min(float(logabsdet), 700.0))) if sign > 0 else 1 + float(logabsdet.exp())


def _not_equivariant(w: Tensor) -> float:
    """Return how much W changes under a transposition of two items and under their cycle, which generate all."""
    c = channels_of(len(w))
    blocks = w.view(len(w) // c, c, len(w) // c, c)
    cycle = _largest(blocks.roll((1, 1), (0, 2)) - blocks)
    order = torch.arange(len(blocks), device="cpu")
    order[:2] = order[:2].flip(0)
    return max(cycle, _largest(blocks[order][:, :, order] - blocks))


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _eye(w: Tensor) -> Tensor:
    return torch.eye(len(w), dtype=w.dtype, device="cpu")


class Property(NamedTuple):
    """What a matrix may have.

    Attributes:
        target: from normal noise, shape (3, d, d), to a random matrix that has it.
        violation: how far a matrix is from it; NaN where that takes more than the matrix.
        symbols: what is measured, in symbols.
    """

    target: Callable[[Tensor], Tensor]
    violation: Callable[[Tensor], float]
    symbols: str


_TABLE = {
    "orthogonal": Property(lambda noise: haar_rotation(noise[0]), lambda w: _largest(w.t() @ w - _eye(w)), "|WᵀW − I|"),
    "volume": Property(_volume, _volume_error, "|det W − 1|"),
    "positive_definite": Property(lambda noise: spread_spd(noise[0]), _not_definite, "|W − Wᵀ|, −λ min"),
    "lipschitz": Property(_lipschitz, lambda w: max(0.0, float(torch.linalg.matrix_norm(w, 2)) - 1), "|W|₂ / c − 1"),
    "circulant": Property(_circulant, lambda w: _largest(w.roll((1, 1), (0, 1)) - w), "|P⁻¹WP − W|"),
    "permutation": Property(_permutation, _not_equivariant, "|P⁻¹WP − W|"),
    "invertible": Property(_invertible, lambda w: math.nan, "|W⁻¹W − I|"),
}
PROPERTIES = tuple(_TABLE)
"""The properties by name."""
VIOLATIONS = {name: entry.symbols for name, entry in _TABLE.items()}
"""What `violation` measures, in symbols."""


def _property(name: str) -> Property:
    if name not in _TABLE:
        raise OptionError(f"property {name!r} is not known: choose one of {PROPERTIES}")
    return _TABLE[name]


def property_target(name: str, dim: int, seed: int = 0) -> Tensor:
    """Return a random matrix that has a property.

    Args:
        name: one of `PROPERTIES`; the spectral norm for "lipschitz" is 1.
        dim: width d.
        seed: of the matrix.

    Returns:
        Shape (d, d), float64.

    Raises:
        OptionError: unknown name.

    Example:
        >>> target = property_target("volume", 4)
        >>> round(float(torch.linalg.det(target)), 6)
        1.0
    """
    generator, make = torch.Generator().manual_seed(seed), _property(name).target
    return make(torch.randn(3, dim, dim, generator=generator, dtype=torch.float64, device="cpu"))


def violation(name: str, weight: Tensor, bound: float = 1.0, inverse: Tensor | None = None) -> float:
    r"""Return how far a matrix is from a property: 0 is exact, and the largest entry counts.

    ``|W^T W - I|``; ``|det W - 1|``; the larger of ``|W - W^T|`` and minus the least eigenvalue of the symmetric part;
    how far the spectral norm is above c, per c; ``|P^-1 W P - W|`` for the cyclic shift P; the same for permutations of
    the items that generate all others; ``|W^-1 W - I|`` for the inverse that came with the matrix, NaN without one.

    Args:
        name: one of `PROPERTIES`.
        weight: W, shape (d, d), any dtype; figures are computed in float64.
        bound: c.
        inverse: the inverse that a method knows, shape (d, d).

    Raises:
        OptionError: unknown name.

    Cost O(d^3), except for the two equivariances, O(d^2).

    Example:
        >>> violation("circulant", property_target("circulant", 8))
        0.0
    """
    measure = _property(name).violation
    w = weight.detach().to("cpu", torch.float64)
    if not bool(w.isfinite().all()):
        return math.inf
    if name == "invertible":
        return math.nan if inverse is None else _largest(inverse.detach().to(w) @ w - _eye(w))
    return measure(w / bound if name == "lipschitz" else w)


# --- the problem ------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class PropertyProblem:
    r"""Regression onto ``y = T x + noise``, from endless batches or from a few samples.

    .. math:: \frac{1}{d}\, \mathbb{E}\, |W x - y|^2 + s\, p(W), \qquad x \sim N(0, I)

    Args:
        target: T, shape (d, d).
        noise: standard deviation of what is added to y; may be set at any time.
        strength: s, of the penalty of a model that has one (a method ``wish``); may be set at any time.
        samples: how many (x, y) there are, the same in every epoch; 0: each batch is new.
        seed: of these samples.
        dtype: of batches and losses.
        device: where they live.
    """

    target: Tensor
    noise: float = 0.0
    strength: float = 0.1
    samples: int = 0
    seed: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self._target = self.target.to(self.device, self.dtype)
        self._shown = self.target.to("cpu", torch.float32, copy=True)
        self._pool = self._draw(self.samples, torch.Generator().manual_seed(self.seed))

    @property
    def dim(self) -> int:
        """The width d."""
        return len(self.target)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs x and standard normal noise for y, both of shape (size, d)."""
        if not self.samples:
            return self._draw(size, generator)
        chosen = torch.randint(self.samples, (size,), generator=generator, device="cpu").to(self.device)
        return self._pool[0][chosen], self._pool[1][chosen]

    def loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean squared error over a batch, plus the model's penalty; a differentiable scalar."""
        x, noise = batch
        loss = (model(x) - torch.addmm(noise, x, self._target.t(), beta=self.noise)).square().mean()
        wish = getattr(model, "wish", None)
        return loss if wish is None else loss + self.strength * wish()

    def after_step(self, model: Any) -> None:
        """Let the model do what it does after an optimizer step; it is part of the step's time."""
        after = getattr(model, "after_step", None)
        if after is not None:
            after()

    @torch.no_grad()
    def test_loss(self, model: Any) -> Tensor:
        """Return the exact error ``|W - T|_F^2 / d``, without noise and penalty."""
        return (model.weight - self._target).square().sum() / self.dim

    def watched(self, model: Any) -> None:
        """Return None: matrices are shown, but their paths are not recorded."""

    @torch.no_grad()
    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return "matrix", the effective W, and "target", both (d, d), float32. ``z`` is not used."""
        return {"matrix": model.weight.detach().to("cpu", torch.float32, copy=True), "target": self._shown}

    def _draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x, noise = torch.randn(2, size, self.dim, generator=generator, dtype=self.dtype, device="cpu").to(self.device)
        return x, noise
