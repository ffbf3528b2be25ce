"""How good a flow of a molecule is: energies, importance weights, likelihood, torsions."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.boltzmann.weights import clipped_ess, ess, log_weights, normalized, weighted_share
from p4lab.errors import OptionError
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import Frames, Reference, dihedral, histogram, histogram_kl, phi_positive
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.target import ReducedEnergy
from p4lab.molecules.units import BOLTZMANN

LARGEST_ENERGY = 1e4
"""Energies (kJ/mol) above this count as this in means: one clash of two atoms can have 10^20."""


@dataclass(frozen=True)
class Samples:
    """Samples of a flow with what is needed to weigh them.

    Attributes:
        y: internal coordinates, shape (n, d).
        x: positions, shape (n, n_atoms, 3), nm, float64.
        log_q: their log-density under the flow, shape (n,), float64.
        energy: kJ/mol, shape (n,), float64; inf where there is none.
        log_weights: of the Boltzmann distribution, shape (n,), float64, up to a constant; -inf for frames that are not
            `Molecule.valid`.
        torsions: those of `Molecule.torsions` by name (radians), each of shape (n,).
    """

    y: Tensor
    x: Tensor
    log_q: Tensor
    energy: Tensor
    log_weights: Tensor
    torsions: dict[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one flow.

    Attributes:
        energy_shift: mean energy of samples minus that of the data (kJ/mol); energies above 10^4 count as that.
        energy_shift_error: its standard error, from samples alone.
        below_maximum: share of samples below the highest energy of the data.
        ess: effective sample size as a share of the samples.
        ess_clipped: the same with the largest 0.1 % of the weights set to the smallest of them.
        test_nll: mean of -log q over test frames; q per nm^d, up to rigid motion (nats).
        test_kl: what that is above -log p: an estimate of KL(p | q) (nats).
        torsion_kl: KL of the samples' histogram of phi and psi from the reference's (nats); mean over `Molecule.maps`.
        torsion_kl_weighted: the same with weights.
        phi_positive: share of samples with phi, or the first of `Molecule.torsions`, in (0, 2.4).
        phi_positive_error: its standard error, likewise.
        phi_positive_weighted: the same with weights.
        phi_positive_weighted_error: its standard error, by a jackknife over 50 blocks; inf if too few are there.
        samples: number of samples.
    """

    energy_shift: float
    energy_shift_error: float
    below_maximum: float
    ess: float
    ess_clipped: float
    test_nll: float
    test_kl: float
    torsion_kl: float
    torsion_kl_weighted: float
    phi_positive: float
    phi_positive_error: float
    phi_positive_weighted: float
    phi_positive_weighted_error: float
    samples: int


@torch.no_grad()
def draw(
    flow: MoleculeFlow,
    coordinates: Coordinates,
    energy: ReducedEnergy,
    n: int,
    seed: int = 0,
    temperature: float = 300.0,
    chunk: int = 2048,
) -> Samples:
    """Draw samples, and weigh them.

    Args:
        flow: the flow.
        coordinates: the map to positions.
        energy: reduced energy of positions at ``temperature``.
        n: number of samples, at least 1.
        seed: of the samples.
        temperature: K.
        chunk: samples at a time.

    Raises:
        OptionError: a number below 1; an energy that is known to be at another temperature.
        TrainingError: the energy failed.

    Cost: n samples and n energies.
    """
    for name, number in (("n", n), ("chunk", chunk)):
        if not isinstance(number, int) or number < 1:
            raise OptionError(f"{name}={number}: expected a whole number of at least 1")
    if (kelvin := getattr(energy, "temperature", temperature)) != temperature:
        raise OptionError(f"temperature={temperature} K and an energy at {kelvin} K: expected the same")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, n, chunk):
        y, log_q = flow.sample_with_log_prob(min(chunk, n - start), generator=generator)
        x, logabsdet = coordinates.decode(y.double())
        u = energy(x)
        log_w = torch.where(coordinates.molecule.valid(x), log_weights(u - logabsdet, log_q.double()), -torch.inf)
        parts.append((y, log_q.double(), u * (BOLTZMANN * temperature), log_w, x))
    y, log_q, kilojoules, log_w, x = (torch.cat(column) for column in zip(*parts, strict=True))
    return Samples(y, x, log_q, kilojoules, log_w, torsions_of(coordinates.molecule, x))


def evaluate(
    flow: MoleculeFlow,
    coordinates: Coordinates,
    energy: ReducedEnergy,
    data: Frames,
    test: Frames,
    n: int = 50_000,
    reference: Reference | None = None,
    seed: int = 0,
) -> Evaluation:
    """Return figures of a flow, from samples of it and from test frames.

    Args:
        flow: the flow.
        coordinates: the map to positions.
        energy: reduced energy of positions at the data's temperature.
        data: all frames: for their energies, and their torsions if there is no reference.
        test: frames that training did not see.
        n: number of samples.
        reference: of a longer simulation, for the torsions of the first of `Molecule.maps`.
        seed: of the samples.
    """
    return judge(draw(flow, coordinates, energy, n, seed, data.temperature), flow, coordinates, data, test, reference)


def judge(
    samples: Samples,
    flow: MoleculeFlow,
    coordinates: Coordinates,
    data: Frames,
    test: Frames,
    reference: Reference | None = None,
) -> Evaluation:
    """Return the figures of `evaluate` from samples that are already there.

    Raises:
        OptionError: fewer than 2 samples.
    """
    n = len(samples.y)
    w = samples.log_weights
    of_test = frame_log_probs(flow, coordinates, test)
    u_test = test.energy / (BOLTZMANN * data.temperature)
    if n < 2:
        raise OptionError(f"{n} samples: expected at least 2, better thousands, to judge a flow by")
    log_z = float(torch.logsumexp(w, 0)) - math.log(n)
    energies = torch.nan_to_num(samples.energy, nan=LARGEST_ENERGY).clamp(max=LARGEST_ENERGY)
    first, *_ = samples.torsions.values()
    rare = phi_positive(first.double())
    raw = float(rare.double().mean())
    weighted = weighted_share(w, rare)
    weights = normalized(w)
    maps = coordinates.molecule.maps
    wanted = (
        [reference.histogram] if reference else histograms(maps, torsions_of(coordinates.molecule, data.x.double()))
    )
    raw_kl, weighted_kl = (
        float(
            np.mean([histogram_kl(p, q) for p, q in zip(wanted, histograms(maps, samples.torsions, by), strict=False)])
        )
        for by in (None, weights)
    )
    return Evaluation(
        energy_shift=float(energies.mean() - data.energy.mean()),
        energy_shift_error=float(energies.std() / math.sqrt(n)),
        below_maximum=float((samples.energy < data.energy.max()).double().mean()),
        ess=float(ess(w)),
        ess_clipped=float(clipped_ess(w)),
        test_nll=float(-of_test.mean()),
        test_kl=float((-u_test - of_test).mean()) - log_z,
        torsion_kl=raw_kl,
        torsion_kl_weighted=weighted_kl,
        phi_positive=raw,
        phi_positive_error=weighted_share(torch.zeros_like(w), rare).error,
        phi_positive_weighted=weighted.value,
        phi_positive_weighted_error=weighted.error,
        samples=n,
    )


@torch.no_grad()
def frame_log_probs(flow: MoleculeFlow, coordinates: Coordinates, frames: Frames) -> Tensor:
    """Return log q of frames as a density of positions up to rigid motion, per nm^d, shape (n,), float64."""
    y, logabsdet = coordinates.encode(frames.x.double())
    like = next(flow.parameters())
    return torch.cat([flow.log_prob(part).double() for part in y.to(like.dtype).split(2048)]) + logabsdet


def torsions_of(molecule: Molecule, x: Tensor) -> dict[str, Tensor]:
    """Return the torsions of `Molecule.torsions` of frames (radians), by name.

    Args:
        molecule: whose frames they are.
        x: shape (B, n, 3).
    """
    return {name: dihedral(x, atoms) for name, atoms in molecule.torsions.items()}


def histograms(
    maps: Iterable[tuple[str, str]], torsions: Mapping[str, Tensor], weights: Tensor | None = None
) -> list[NDArray[np.float64]]:
    """Return a `histogram` of each pair of torsions."""
    return [histogram(torsions[a], torsions[b], weights) for a, b in maps]
