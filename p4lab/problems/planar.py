"""Shapes of particles in the plane: where they are, but for where all of them are and how all of them are turned."""

import itertools
import math

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.problems.energies import Energy

MOST_PARTICLES = 6
"""More have too many permutations: 7 would have 10,080 images."""


class PlanarShapes:
    r"""Coordinates of n particles in the plane without their centre and their rotation, with a constant volume.

    .. math:: \rho = H x, \qquad f = \left(\tfrac{1}{2} |\rho_1|^2,\; e^{-i \varphi} \rho_2,\; \dots,\;
        e^{-i \varphi} \rho_{n-1}\right), \quad \varphi = \arg \rho_1, \qquad dx = d(\sqrt{n} \bar x)\, d\varphi\, df

    with positions as complex numbers and Jacobi vectors :math:`\rho`: the rows of H are orthonormal and add up to 0,
    the first one is :math:`(1, -1, 0, \dots) / \sqrt{2}`. The volume element is 1 since :math:`r\,dr = d(r^2 / 2)`. An
    energy that neither depends on the rotation nor joins centre and shape thus has the density :math:`e^{-u / T}` over
    f at each temperature, with nothing that would not scale: a `SteerableFlow` may learn it.

    Permutations of the particles and reflections act on f (`images`).

    Args:
        particles: n, from 2 to 6.

    Attributes:
        dim: width of f, 2 n - 3.
        order: number of images, 2 n!.

    Raises:
        OptionError: n is out of range.
        ShapeError: from all methods, if points have another width.

    Source: ours; Jacobi vectors are those of celestial mechanics.

    Example:
        >>> shapes = PlanarShapes(3)
        >>> shapes.encode(torch.tensor([1.0, 0.0, -1.0, 0.0, 0.0, 3.0]))
        tensor([ 1.0000,  0.0000, -2.4495])
    """

    def __init__(self, particles: int) -> None:
        if not 2 <= particles <= MOST_PARTICLES:
            raise OptionError(f"particles={particles}: expected 2 to {MOST_PARTICLES}, since all n! orders are listed")
        self.particles, self.dim = particles, 2 * particles - 3
        rows = torch.zeros(particles - 1, particles, dtype=torch.float64, device="cpu")
        for i in range(particles - 1):
            rows[i, : i + 1], rows[i, i + 1] = 1.0, -(i + 1.0)
        self._jacobi = rows / rows.norm(dim=1, keepdim=True)
        eye = torch.eye(particles, dtype=torch.float64, device="cpu")
        orders = torch.stack([eye[list(order)] for order in itertools.permutations(range(particles))])
        self._permuted = self._jacobi @ orders @ self._jacobi.t()
        self.order = 2 * len(orders)

    def encode(self, x: Tensor) -> Tensor:
        """Return f, shape (..., 2 n - 3), for positions x of shape (..., 2 n)."""
        _checked(x, 2 * self.particles)
        return _shape_of(_times(self._jacobi, torch.complex(x[..., 0::2], x[..., 1::2])))

    def decode(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/df|)`` of shapes (..., 2 n) and (...), centred, and turned such that rho_1 > 0.

        Where the first number of f is not above 0 there is no such shape: positions are finite, and log|det| is -inf.
        """
        rho, inside = self._vectors(f)
        x = torch.view_as_real(_times(self._jacobi.t(), rho)).flatten(-2)
        return x, torch.where(inside, 0.0, -math.inf).to(x)

    def images(self, f: Tensor) -> Tensor:
        """Return the same shapes with their particles in all orders, then these reflected: (..., 2 n!, 2 n - 3)."""
        rho = _times(self._permuted, self._vectors(f)[0][..., None, :])
        return _shape_of(torch.cat([rho, rho.conj()], -2))

    def _vectors(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return Jacobi vectors as complex numbers, shape (..., n - 1), and where there are any."""
        half, rest = _checked(f, self.dim).split((1, self.dim - 1), -1)
        inside = half > 0
        first = torch.where(inside, 2 * half, 1.0).sqrt()
        rest = torch.complex(rest[..., 0::2], rest[..., 1::2])
        return torch.cat([torch.complex(first, torch.zeros_like(first)), rest], -1), inside.squeeze(-1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(particles={self.particles})"


class ShapeEnergy:
    """The energy of shapes: that of particles with their centre at 0; inf where there is no shape.

    Args:
        energy: u of positions; it neither depends on the rotation nor joins centre and shape.
        shapes: the coordinates.
    """

    def __init__(self, energy: Energy, shapes: PlanarShapes) -> None:
        if energy.dim != 2 * shapes.particles:
            raise OptionError(f"an energy of {energy.dim} coordinates for {shapes}: expected {2 * shapes.particles}")
        self.energy, self.shapes, self.dim = energy, shapes, shapes.dim

    def __call__(self, x: Tensor) -> Tensor:
        """Return u in nats, shape (...) for shapes x of shape (..., 2 n - 3), differentiable."""
        positions, logabsdet = self.shapes.decode(x)
        return self.energy(positions) - logabsdet


def _checked(x: Tensor, width: int) -> Tensor:
    if x.shape[-1:] != (width,):
        raise ShapeError(f"points of shape {tuple(x.shape)}: expected (..., {width})")
    return x


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return a real matrix times complex vectors, shape (..., m) to (..., k)."""
    return (matrix.to(vectors) @ vectors[..., None]).squeeze(-1)


def _shape_of(rho: Tensor) -> Tensor:
    first, rest = rho[..., :1], rho[..., 1:]
    length = first.abs()
    # Two particles at one place have no angle: that of 0 is as good as any.
    turned = rest * torch.where(length > 0, first.conj() / torch.where(length > 0, length, 1.0), 1.0)
    return torch.cat([0.5 * length.square(), torch.view_as_real(turned).flatten(-2)], -1)
