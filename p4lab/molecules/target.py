"""The Boltzmann distribution of a molecule in its internal coordinates, and examples of it with their forces."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from p4lab.boltzmann.losses import compress
from p4lab.errors import OptionError, ShapeError
from p4lab.molecules.coordinates import Coordinates, random_turns

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
        only_valid: whether u is inf for frames that are not `Molecule.valid`.

    Source: Noé et al., arXiv:1812.01729.
    """

    def __init__(
        self, coordinates: Coordinates, energy: ReducedEnergy, threshold: float = math.inf, only_valid: bool = False
    ) -> None:
        self.coordinates, self.energy, self.threshold, self.only_valid = coordinates, energy, threshold, only_valid

    def __call__(self, y: Tensor) -> Tensor:
        """Return u_Y of shape (n,), float64, for y of shape (n, d); differentiable."""
        x, logabsdet = self.coordinates.decode(y.double())
        u = self.energy(x)
        if self.only_valid:
            u = torch.where(self.coordinates.molecule.valid(x), u, torch.inf)
        return (compress(u, self.threshold) if self.threshold < math.inf else u) - logabsdet

    def score(self, y: Tensor) -> Tensor:
        """Return the gradient of log p at y, shape (n, d), in the dtype of y; what is not finite stays so."""
        return self.value_and_score(y)[1]

    def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return u_Y, float64, and `score`."""
        with torch.inference_mode(False), torch.enable_grad():
            wide = y.detach().double().clone().requires_grad_()
            value = self(wide)
            (slope,) = torch.autograd.grad(value.sum(), wide)
        return value.detach(), -slope.to(y.dtype)


@dataclass(frozen=True)
class Examples:
    """Frames in internal coordinates, each with the score of the Boltzmann distribution there.

    Atoms of rotors, such as methyl hydrogens, may be permuted without a change of energy. Columns that belong to one
    rotor move together, so that a few variants of each row hold all permutations.

    Attributes:
        y: shape (n, v, d), float32: all rotors turned 0, 1, ... times, up to the largest fold.
        score: the gradient of log p, same shape.
        group: for each column the number of its rotor from 1 on, 0 if it has none; shape (d,).
        folds: how many turns bring each rotor back.
        counts: how often each row is there, shape (n,), integers (None: once).
    """

    y: Tensor
    score: Tensor
    group: Tensor
    folds: tuple[int, ...] = ()
    counts: Tensor | None = None

    @classmethod
    @torch.inference_mode(False)
    @torch.enable_grad()
    def of(
        cls,
        coordinates: Coordinates,
        x: Tensor,
        energy: ReducedEnergy,
        chunk: int = 4096,
        counts: Tensor | None = None,
    ) -> "Examples":
        """Return examples of frames.

        Args:
            coordinates: the map.
            x: positions, shape (n, n_atoms, 3), nm.
            energy: reduced energy of positions; called once for each frame.
            chunk: frames at a time.
            counts: how often each frame is there, shape (n,), integers (None: once).

        Raises:
            ShapeError: x does not fit, or not a count for each frame.
            OptionError: counts that are no whole numbers from 0 on, or all 0.

        Cost: one energy with forces for each frame.
        """
        if x.ndim != 3 or not len(x):
            raise ShapeError(f"frames of shape {tuple(x.shape)}: expected (n, n_atoms, 3) with n >= 1")
        if counts is not None:
            if counts.shape != x.shape[:1]:
                raise ShapeError(f"counts of shape {tuple(counts.shape)}: expected ({len(x)},), one for each frame")
            if counts.is_floating_point() or not 0 <= int(counts.min()) <= int(counts.max()) != 0:
                raise OptionError(f"counts of {counts.dtype}: expected integers from 0 on, and some above")
        target = InternalEnergy(coordinates, energy)
        ys, scores = [], []
        for part in x.double().split(chunk):
            y = coordinates.encode(part)[0]
            score = target.score(y)
            variants = [(y, score)]
            folds = torch.tensor(coordinates.folds, device=y.device)
            for shift in range(1, max(coordinates.folds, default=1)):
                back = (-shift % folds).expand(len(y), -1)
                turned = coordinates.permute(y, (shift % folds).expand(len(y), -1)).requires_grad_()
                # u is the same at both, so that its gradient at the turned point is the one at y taken back; the volume
                # element of a ring, which is cut open somewhere, is not
                there = coordinates.permute(turned, back)
                volume = coordinates.decode(turned)[1] - coordinates.decode(there)[1]
                (of_turned,) = torch.autograd.grad((there * score).sum() + volume.sum(), turned)
                variants.append((turned.detach(), of_turned))
            ys.append(torch.stack([a for a, _ in variants], 1).float())
            scores.append(torch.stack([b for _, b in variants], 1).float())
        return cls(torch.cat(ys), torch.cat(scores), coordinates.rotor_of_columns(), coordinates.folds, counts)

    def __len__(self) -> int:
        return len(self.y)

    @cached_property
    def _rows(self) -> Tensor:
        counts = 1 if self.counts is None else self.counts.cpu()
        return torch.arange(len(self.y), device="cpu").repeat_interleave(counts)

    def batch(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw rows with replacement, each with its rotors turned at random.

        Args:
            n: number of rows.
            generator: CPU generator (None: torch's default).

        Returns:
            y and score, both of shape (n, d).
        """
        rows = torch.randint(len(self._rows), (n,), generator=generator, device="cpu")
        turned = random_turns(self.folds, n, generator)
        shifts = torch.cat([turned.new_zeros(n, 1), turned], 1)
        which = shifts[:, self.group].unsqueeze(1).to(self.y.device)
        rows = self._rows[rows].to(self.y.device)
        return self.y[rows].gather(1, which).squeeze(1), self.score[rows].gather(1, which).squeeze(1)
