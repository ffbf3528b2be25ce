"""Learn a matrix T from y = T x: as a plain weight, by P4Inv, or through P4Inv's inverse."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.linalg import inverse_and_logabsdet
from p4lab.linalg.initial import haar_rotation, spread_spd
from p4lab.p4 import P4Inv
from p4lab.p4.linear import Reset

NAMES = {
    "identity": "the identity",
    "rotation": "a rotation: by 120 degrees for d = 2, else uniformly random (Haar)",
    "reflection": "the last coordinate mirrored (det -1)",
    "shear": "ones on the diagonal and right above it (det 1)",
    "scaling": "the coordinates scaled by factors from 0.5 to 4.5",
    "minus_identity": "minus the identity (det -1 for odd d)",
    "nearly_singular": "condition number 1000, det > 0",
    "spd": "symmetric positive definite, eigenvalues from 0.5 to about 4.5, random axes",
    "spd_near_one": "symmetric positive definite, eigenvalues from about 0.5 to 1.5, random axes",
    "random": "independent normal entries of variance 1/d",
}
"""Matrices that have a name, and what they are."""

ROUTES = ("plain", "p4inv", "through_inverse")
CONDITION = 1e3


def matrix(text: str, dim: int, seed: int = 0) -> Tensor:
    """Return the matrix that a text stands for.

    Args:
        text: one of `NAMES`, or rows of numbers: entries separated by spaces or commas, rows by semicolons.
        dim: d.
        seed: seed of the matrices that are random.

    Returns:
        Shape (d, d), float64.

    Raises:
        OptionError: unknown name, another shape, an entry that is not a finite number.

    Example:
        >>> matrix("1 0; 0.5 1", 2)
        tensor([[1.0000, 0.0000],
                [0.5000, 1.0000]], dtype=torch.float64)
    """
    name = text.strip()
    if name in _MAKERS:
        return _MAKERS[name](
            torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
        )
    if not any(character.isdigit() for character in name):
        raise OptionError(f"matrix {text!r} is not known: expected {_expected(dim)}")
    rows = [[_entry(entry, text) for entry in row.replace(",", " ").split()] for row in name.split(";")]
    if [len(row) for row in rows] != [dim] * dim:
        lengths = " + ".join(str(len(row)) for row in rows)
        raise OptionError(f"matrix {text!r} has rows of {lengths} numbers: expected {_expected(dim)}")
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def as_text(matrix: Tensor, decimals: int = 4) -> str:
    """Return a matrix, shape (d, d), as a text that `matrix` reads, rounded to ``decimals``.

    Example:
        >>> as_text(torch.tensor([[1.0, -1e-9], [1 / 3, 1.0]]))
        '1 0; 0.3333 1'
    """
    return "; ".join(" ".join(f"{round(entry, decimals) + 0.0:.15g}" for entry in row) for row in matrix.tolist())


def _eye(noise: Tensor) -> Tensor:
    return torch.eye(len(noise), dtype=noise.dtype, device="cpu")


def _rotation(noise: Tensor) -> Tensor:
    if len(noise) != 2:
        return haar_rotation(noise)
    c, s = math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)
    return torch.tensor([[c, -s], [s, c]], dtype=noise.dtype, device="cpu")


def _reflection(noise: Tensor) -> Tensor:
    mirror = _eye(noise)
    mirror[-1, -1] = -1
    return mirror


def _shear(noise: Tensor) -> Tensor:
    return _eye(noise) + torch.ones_like(noise).triu(1).tril(1)


def _nearly_singular(noise: Tensor) -> Tensor:
    stretch = torch.logspace(0, -math.log10(CONDITION), len(noise), dtype=noise.dtype, device="cpu")
    # The transpose of noise gives another rotation, and no second draw is needed.
    return haar_rotation(noise) * stretch @ haar_rotation(noise.t().contiguous())


def _spd_near_one(noise: Tensor) -> Tensor:
    # By Wigner's semicircle law, the symmetric part has eigenvalues in (-0.5, 0.5), or a little outside.
    return _eye(noise) + (noise + noise.t()) / (4 * math.sqrt(2 * len(noise)))


_MAKERS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _eye,
    "rotation": _rotation,
    "reflection": _reflection,
    "shear": _shear,
    "scaling": lambda noise: torch.linspace(0.5, 4.5, len(noise), dtype=noise.dtype, device="cpu").diag(),
    "minus_identity": lambda noise: -_eye(noise),
    "nearly_singular": _nearly_singular,
    "spd": spread_spd,
    "spd_near_one": _spd_near_one,
    "random": lambda noise: noise / math.sqrt(len(noise)),
}


def _entry(entry: str, text: str) -> float:
    try:
        value = float(entry)
    except ValueError as error:
        raise OptionError(f"matrix {text!r}: {entry!r} is not a number") from error
    if not math.isfinite(value):
        raise OptionError(f"matrix {text!r}: {entry!r} is not finite")
    return value


def _expected(dim: int) -> str:
    return f'one of {", ".join(NAMES)}, or {dim} rows of {dim} numbers such as "1 0; 0.5 1"'


class ThroughInverse(nn.Module):
    """Use a P4Inv layer backwards: ``y = W^-1 x``, so that W learns the inverse of the target.

    Args:
        layer: the P4Inv layer; its bias, if it has one, is subtracted first.
    """

    def __init__(self, layer: P4Inv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's inverse at x, shape (..., d)."""
        return self.layer.inverse(x)

    @property
    def weight(self) -> Tensor:
        """The matrix that maps x to y, ``W^-1``, shape (d, d)."""
        return self.layer.weight_inverse

    def logabsdet(self) -> Tensor:
        """Return log|det W^-1| (nats), a differentiable scalar in float64. Cost as `P4Inv.logabsdet`."""
        return -self.layer.logabsdet()


MatrixModel = nn.Linear | P4Inv | ThroughInverse
"""A linear map with a ``weight``."""


def matrix_model(
    route: str,
    start: Tensor,
    rank: int = 1,
    reset: Reset = "gaussian",
    train_v: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> MatrixModel:
    """Return a linear map without bias that begins at ``start``.

    Args:
        route: "plain" (an `nn.Linear`), "p4inv" (a `P4Inv`) or "through_inverse" (a `P4Inv` used backwards, whose own
            weight begins at ``start^-1``).
        start: shape (d, d).
        rank: see `P4Inv`, as for what follows.
        reset: how directions are redrawn.
        train_v: whether directions train.
        seed: seed of the directions.
        dtype: float32 or float64.
        device: where it lives.

    Raises:
        OptionError: unknown route.
        SingularMatrixError: ``start`` is singular or too ill-conditioned for ``dtype``, whatever the route.
    """
    if route not in ROUTES:
        raise OptionError(f"route={route!r}: expected one of {', '.join(ROUTES)}")
    dim = len(start)
    try:
        inverse, _, _ = inverse_and_logabsdet(start, dim, dtype)
    except SingularMatrixError as error:
        raise SingularMatrixError(str(error).replace("init", "the start matrix", 1)) from error
    if route == "plain":
        linear = nn.utils.skip_init(nn.Linear, dim, dim, bias=False, dtype=dtype, device=device)
        with torch.no_grad():
            linear.weight.copy_(start)
        return linear
    layer = P4Inv(
        dim,
        rank,
        bias=False,
        init=start if route == "p4inv" else inverse,
        reset=reset,
        train_v=train_v,
        seed=seed,
        dtype=dtype,
        device=device,
    )
    return layer if route == "p4inv" else ThroughInverse(layer)


@dataclass(eq=False)
class MatrixProblem:
    r"""Minimize the mean squared error of a linear map.

    .. math:: \frac{1}{d}\, \mathbb{E}\, |f(x) - T x|^2, \quad x \sim N(0, I)
              \qquad\text{or exactly}\qquad \frac{1}{d}\, |W - T|_F^2

    The exact loss comes from the batch ``sqrt(d) I``, which has the mean square of the normal distribution in every
    direction; so all routes are trained by plain forward and backward passes either way.

    Args:
        start: where the run begins, shape (d, d); kept for the pictures.
        target: T, shape (d, d), of any rank.
        sampled: whether batches are drawn; if not, the loss is exact.
        dtype: of batches and losses.
        device: where they live.

    Raises:
        ShapeError: start and target are not square matrices of one size.
    """

    start: Tensor
    target: Tensor
    sampled: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        self.set_target(self.target)

    @property
    def dim(self) -> int:
        """The width d."""
        return len(self.start)

    def set_target(self, target: Tensor) -> None:
        """Replace the target; a run may go on meanwhile.

        Raises:
            ShapeError: another shape.
        """
        if target.shape != self.start.shape or target.shape != (self.dim, self.dim):
            shapes = f"{tuple(target.shape)} for a start of shape {tuple(self.start.shape)}"
            raise ShapeError(f"target of shape {shapes}: expected two square matrices of one size")
        self.target = target.detach().to("cpu", torch.float64).clone()
        self._target = self.target.to(self.device, self.dtype)

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Return inputs x: ``size`` normal ones, or (exact) the d rows of ``sqrt(d) I``; shape (size or d, d)."""
        if not self.sampled:
            return math.sqrt(self.dim) * torch.eye(self.dim, dtype=self.dtype, device=self.device)
        x = torch.randn(size, self.dim, generator=generator, dtype=torch.float64, device="cpu")
        return x.to(self.device, self.dtype)

    def loss(self, model: MatrixModel, x: Tensor) -> Tensor:
        """Return the mean over a batch of ``|f(x) - T x|^2 / d``, a differentiable scalar."""
        return (model(x) - x @ self._target.t()).square().mean()

    @torch.no_grad()
    def test_loss(self, model: MatrixModel) -> Tensor:
        """Return the exact loss ``|W - T|_F^2 / d``."""
        return (self.watched(model) - self._target).square().sum() / self.dim

    @torch.no_grad()
    def watched(self, model: MatrixModel) -> Tensor:
        """Return the matrix that maps x to y, shape (d, d)."""
        return model.weight.detach()

    @torch.no_grad()
    def pictures(self, model: MatrixModel, z: Tensor) -> dict[str, Tensor]:
        """Return "start", "target" and "weight", and of P4Inv the present perturbation: "frozen" A, "u", "v".

        All of them are float64 copies on the CPU, of shape (d, d), and (rank, d) for u and v. ``z`` is not used: there
        is nothing to sample.
        """
        layer = model.layer if isinstance(model, ThroughInverse) else model
        found = {"start": self.start, "target": self.target, "weight": self.watched(model)}
        if isinstance(layer, P4Inv):
            found |= {"frozen": layer.frozen_weight, "u": layer.u, "v": layer.v}
        return {name: tensor.detach().to("cpu", torch.float64, copy=True) for name, tensor in found.items()}
