"""Linear regression onto a matrix that has a property, and how far a matrix is from each property."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p4lab.baselines.properties import PROPERTIES, Property
from p4lab.baselines.property_maps import eye_like, largest
from p4lab.errors import OptionError, ShapeError


def property_target(name: str, dim: int, seed: int = 0) -> Tensor:
    """Return a random matrix that has a property.

    Args:
        name: one of `p4lab.baselines.properties.PROPERTIES`; the spectral norm for "lipschitz" is 1.
        dim: width d, at least 1.
        seed: of the matrix.

    Returns:
        Shape (d, d), float64.

    Raises:
        OptionError: unknown name, or no width.

    Example:
        >>> target = property_target("volume", 4)
        >>> round(float(torch.linalg.det(target)), 6)
        1.0
    """
    prop = _property(name)
    if dim < 1:
        raise OptionError(f"dim={dim}: expected at least 1")
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, dim, dim, generator=generator, dtype=torch.float64, device="cpu")
    return prop.target(noise)


def violation(name: str, weight: Tensor, bound: float = 1.0, inverse: Tensor | None = None) -> float:
    r"""Return how far a matrix is from a property: 0 is exact, and the largest entry counts.

    ``|W^T W - I|``; ``|det W - 1|``; the larger of ``|W - W^T|`` and minus the least eigenvalue of the symmetric part;
    how far the spectral norm is above c, per c; how far singular values are from those that fall evenly from 1 to 0.1;
    ``|P^-1 W P - W|`` for the cyclic shift P; the same for permutations of the items that generate all others;
    ``|W^-1 W - I|`` for the inverse that came with the matrix, NaN without one.

    Args:
        name: one of `p4lab.baselines.properties.PROPERTIES`.
        weight: W, shape (d, d), any dtype; figures are computed in float64.
        bound: c.
        inverse: the inverse that a method knows, shape (d, d).

    Raises:
        OptionError: unknown name.
        ShapeError: W is not square.

    Cost O(d^3), except for the two equivariances, O(d^2).

    Example:
        >>> violation("circulant", property_target("circulant", 8))
        0.0
    """
    prop = _property(name)
    if weight.dim() != 2 or not 0 < weight.shape[0] == weight.shape[1]:
        raise ShapeError(f"weights of shape {tuple(weight.shape)}: expected (d, d), at least one row")
    w = weight.detach().to("cpu", torch.float64)
    if not bool(w.isfinite().all()):
        return math.inf
    if prop.violation is not None:
        return prop.violation(w / bound if prop.bounded else w)
    return math.nan if inverse is None else largest(inverse.detach().to(w) @ w - eye_like(w))


def _property(name: str) -> Property:
    if name not in PROPERTIES:
        raise OptionError(f"property {name!r} is not known: choose one of {tuple(PROPERTIES)}")
    return PROPERTIES[name]


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
