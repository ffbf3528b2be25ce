"""Coordinates of a molecule whose volume element is the same everywhere."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.errors import ShapeError
from p4lab.flows import Whitening
from p4lab.molecules.coordinates import Coordinates


class FlatCoordinates(nn.Module):
    r"""Internal coordinates in which the Boltzmann distribution is exp(-E / kT) and nothing else.

    .. math:: f = \left(\varphi, L (r^3 / 3, -\cos \theta, \psi) + c\right), \qquad
        \log\left|\det \frac{\partial f}{\partial x}\right| = \log|\det L|

    Volume in bonds r, angles :math:`\theta` and torsions is :math:`\prod r^2 \sin \theta`, which does not depend on
    temperature: the densities of `Coordinates` at two temperatures are therefore not powers of each other. Those of f
    are, since :math:`r^2 dr = d(r^3 / 3)` and :math:`\sin \theta\, d\theta = -d \cos \theta`. L whitens the numbers.

    Args:
        coordinates: of bonds, angles and torsions.
        y: coordinates of training frames, shape (n, d), which L is fitted to; with permuted hydrogens, if these count.

    Attributes:
        angles: number of circular torsions, the first columns.
        dim: width d.

    Raises:
        ShapeError, DtypeError: y has another shape, or is neither float32 nor float64.
        SingularMatrixError: y lies in a subspace.

    Cost for a batch of B: O(B d^2) in either direction. Source: ours.
    """

    def __init__(self, coordinates: Coordinates, y: Tensor) -> None:
        super().__init__()
        self.coordinates, self.angles, self.dim = coordinates, coordinates.circular, coordinates.dim
        kinds = [kind for kind, _ in coordinates.columns[self.angles :]]
        self._parts = [kinds.count(kind) for kind in ("bond", "angle", "torsion")]
        self.whitening = Whitening.fit(self._cubes(y.double()))

    @property
    def logabsdet(self) -> float:
        """log|det df/dx| (nats for lengths in nm, positions up to rigid motion)."""
        return float(self.whitening.logabsdet())

    def flat(self, y: Tensor) -> Tensor:
        """Return f for coordinates y of `Coordinates.encode`; both of shape (n, d), in the dtype of y."""
        numbers = self.whitening(self._cubes(y.double())).to(y.dtype)
        return torch.cat([y[:, : self.angles], numbers], 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(f, log|det df/dx|)`` of frames, shapes (n, d) and (n,), float64; the latter is one number.

        Args:
            x: shape (n, atoms, 3), nm.

        Raises:
            ShapeError, DtypeError: x does not fit.
        """
        f = self.flat(self.coordinates.encode(x.double())[0])
        return f, f.new_full((len(f),), self.logabsdet)

    def decode(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/df|)``, shapes (n, atoms, 3) and (n,), nm, float64.

        Where there is no bond or angle (r^3 not above 0, a cosine beyond 1), or a narrow torsion is more than pi from
        its mean, positions are finite and log|det| is -inf, so that such samples have weight 0.

        Args:
            f: shape (n, d).

        Raises:
            ShapeError: f does not fit.
        """
        if f.ndim != 2 or f.shape[1] != self.dim:
            raise ShapeError(f"coordinates of shape {tuple(f.shape)}: expected (n, {self.dim}); one sample is f[None]")
        f = f.double()
        cubes, cosines, torsions = self.whitening.inverse(f[:, self.angles :]).split(self._parts, 1)
        inside = (cubes > 0).all(1) & (cosines.abs() < 1).all(1)
        # Forces of what lies outside would be NaN at the ends.
        bonds = (3 * cubes.clamp(min=1e-9)).pow(1 / 3)
        theta = math.pi - cosines.clamp(-1 + 1e-12, 1 - 1e-12).acos()
        q = (torch.cat([bonds, theta, torsions], 1) - self._of("mean")) / self._of("std")
        x, volume = self.coordinates.decode(torch.cat([f[:, : self.angles], q], 1))
        there = inside & torch.isfinite(volume)
        return x, torch.where(there, -self.logabsdet, -math.inf).to(x)

    def _cubes(self, y: Tensor) -> Tensor:
        q = y[:, self.angles :] * self._of("std") + self._of("mean")
        bonds, theta, torsions = q.split(self._parts, 1)
        return torch.cat([bonds.pow(3) / 3, -theta.cos(), torsions], 1)

    def _of(self, name: str) -> Any:
        return getattr(self.coordinates, name)
