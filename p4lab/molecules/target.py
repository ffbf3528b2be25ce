"""The Boltzmann distribution of a molecule in its internal coordinates, and examples of it with their forces."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from p4lab.boltzmann.losses import compress
from p4lab.errors import ShapeError
from p4lab.molecules.alanine import METHYLS
from p4lab.molecules.coordinates import COLUMNS, Coordinates

ReducedEnergy = Callable[[Tensor], Tensor]
"""Positions (n, n_atoms, 3) to u = E / kT of shape (n,), differentiable: `p4lab.molecules.openmm_energy`."""


class InternalEnergy:
    r"""The reduced energy of internal coordinates: -log of their Boltzmann density, but for a constant.

    .. math:: u_Y(y) = c(u(x(y))) - \log\left|\det \frac{\partial x}{\partial y}\right|

    Args:
        coordinates: the map.
        energy: u of positions.
        threshold: reduced energies above it are compressed to their logarithm (inf: none are); see
            `p4lab.boltzmann.compress`.

    Source: Noé et al., arXiv:1812.01729.
    """

    def __init__(self, coordinates: Coordinates, energy: ReducedEnergy, threshold: float = math.inf) -> None:
        self.coordinates, self.energy, self.threshold = coordinates, energy, threshold

    def __call__(self, y: Tensor) -> Tensor:
        """Return u_Y of shape (n,), float64, for y of shape (n, d); differentiable."""
        x, logabsdet = self.coordinates.decode(y.double())
        u = self.energy(x)
        return (compress(u, self.threshold) if self.threshold < math.inf else u) - logabsdet

    def score(self, y: Tensor) -> Tensor:
        """Return the gradient of log p at y, shape (n, d), in the dtype of y; what is not finite stays so."""
        return self.value_and_score(y)[1]

    def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return u_Y, float64, and `score`."""
        with torch.enable_grad():
            wide = y.detach().double().requires_grad_()
            value = self(wide)
            (slope,) = torch.autograd.grad(value.sum(), wide)
        return value.detach(), -slope.to(y.dtype)


@dataclass(frozen=True)
class Examples:
    """Frames in internal coordinates, each with the score of the Boltzmann distribution there.

    Methyl hydrogens may be permuted without a change of energy. Columns that belong to one methyl group move together,
    so that three variants of each row hold all 27.

    Attributes:
        y: shape (n, 3, d), float32: hydrogens of all groups shifted by 0, 1, 2.
        score: the gradient of log p, same shape.
        group: for each column the number of its methyl group from 1 on, 0 if it has none; shape (d,).
    """

    y: Tensor
    score: Tensor
    group: Tensor

    @classmethod
    def of(cls, coordinates: Coordinates, x: Tensor, energy: ReducedEnergy, chunk: int = 4096) -> "Examples":
        """Return examples of frames.

        Args:
            coordinates: the map.
            x: positions, shape (n, n_atoms, 3), nm.
            energy: reduced energy of positions; called once for each frame.
            chunk: frames at a time.

        Raises:
            ShapeError: x does not fit.

        Cost: one energy with forces for each frame.
        """
        if x.ndim != 3 or not len(x):
            raise ShapeError(f"frames of shape {tuple(x.shape)}: expected (n, n_atoms, 3) with n >= 1")
        target = InternalEnergy(coordinates, energy)
        ys, scores = [], []
        for part in x.double().split(chunk):
            y = coordinates.encode(part)[0]
            score = target.score(y)
            variants = [(y, score)]
            for shift in (1, 2):
                back = torch.full((len(y), len(METHYLS)), 3 - shift, device=y.device)
                turned = coordinates.permute(y, 3 - back).requires_grad_()
                # u is the same at both, so that its gradient at the turned point is the one at y taken back
                (of_turned,) = torch.autograd.grad(coordinates.permute(turned, back), turned, score)
                variants.append((turned.detach(), of_turned))
            ys.append(torch.stack([a for a, _ in variants], 1).float())
            scores.append(torch.stack([b for _, b in variants], 1).float())
        place = {atom: i + 1 for i, atoms in enumerate(METHYLS) for atom in atoms}
        group = torch.tensor([place.get(atom, 0) for _, atom in COLUMNS], device="cpu")
        return cls(torch.cat(ys), torch.cat(scores), group)

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw rows with replacement, each with a random permutation of methyl hydrogens.

        Args:
            n: number of rows.
            generator: CPU generator (None: torch's default).

        Returns:
            y and score, both of shape (n, d).
        """
        rows = torch.randint(len(self.y), (n,), generator=generator, device="cpu")
        groups = len(METHYLS)
        turned = torch.randint(3, (n, groups), generator=generator, device="cpu")
        shifts = torch.cat([turned.new_zeros(n, 1), turned], 1)
        which = shifts[:, self.group].unsqueeze(1).to(self.y.device)
        rows = rows.to(self.y.device)
        return self.y[rows].gather(1, which).squeeze(1), self.score[rows].gather(1, which).squeeze(1)
