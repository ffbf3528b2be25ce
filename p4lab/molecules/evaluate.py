"""How good a flow of a molecule is: energies, importance weights, likelihood, torsions."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.boltzmann.weights import clipped_ess, ess, log_weights, normalized, weighted_share
from p4lab.errors import OptionError
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import Frames, Reference, histogram, histogram_kl, phi_positive
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.target import ReducedEnergy
from p4lab.molecules.units import BOLTZMANN

LARGEST_ENERGY = 1e4
"""Energies (kJ/mol) above this count as this in means: one clash of two atoms can have 10^20."""


@dataclass(frozen=True)
class Samples:
    """Samples of a flow with what is needed to weigh them.

    Attributes:
        y: internal coordinates, shape (n, 60).
        log_q: their log-density under the flow, shape (n,), float64.
        energy: kJ/mol, shape (n,), float64; inf where there is none.
        log_weights: of the Boltzmann distribution, shape (n,), float64, up to a constant; -inf for frames that are not
            `Coordinates.valid`.
    """

    y: Tensor
    log_q: Tensor
    energy: Tensor
    log_weights: Tensor

    @property
    def phi(self) -> Tensor:
        """Phi (radians), shape (n,)."""
        return self.y[:, 0]

    @property
    def psi(self) -> Tensor:
        """Psi (radians), shape (n,)."""
        return self.y[:, 1]


@dataclass(frozen=True)
class Evaluation:
    """Figures of one flow.

    Attributes:
        energy_shift: mean energy of samples minus that of the data (kJ/mol); energies above 10^4 count as that.
        energy_shift_error: its standard error, from samples alone.
        below_maximum: share of samples below the highest energy of the data.
        ess: effective sample size as a share of the samples.
        ess_clipped: the same with the largest 0.1 % of the weights set to the smallest of them.
        test_nll: mean of -log q over test frames; q per nm^60, up to rigid motion (nats).
        test_kl: what that is above -log p: an estimate of KL(p | q) (nats).
        torsion_kl: KL of the samples' histogram of phi and psi from the reference's (nats).
        torsion_kl_weighted: the same with weights.
        phi_positive: share of samples with phi in (0, 2.4).
        phi_positive_error: its standard error.
        phi_positive_weighted: the same with weights.
        phi_positive_weighted_error: its standard error, by a jackknife over 50 blocks.
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
        OptionError: n < 1.
        TrainingError: the energy failed.

    Cost: n samples and n energies.
    """
    if n < 1:
        raise OptionError(f"n={n}: expected at least 1 sample")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, n, chunk):
        y, log_q = flow.sample_with_log_prob(min(chunk, n - start), generator=generator)
        x, logabsdet = coordinates.decode(y.double())
        u = energy(x)
        log_w = torch.where(coordinates.valid(x), log_weights(u - logabsdet, log_q.double()), -torch.inf)
        parts.append((y, log_q.double(), u * (BOLTZMANN * temperature), log_w))
    return Samples(*(torch.cat(column) for column in zip(*parts, strict=True)))


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
        reference: of a longer simulation, for the torsions.
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
    """Return the figures of `evaluate` from samples that are already there."""
    n = len(samples.y)
    w = samples.log_weights
    of_test = frame_log_probs(flow, coordinates, test)
    u_test = test.energy / (BOLTZMANN * data.temperature)
    log_z = float(torch.logsumexp(w, 0)) - math.log(n)
    energies = torch.nan_to_num(samples.energy, nan=LARGEST_ENERGY).clamp(max=LARGEST_ENERGY)
    wanted = reference.histogram if reference else _torsions(coordinates, data)
    rare = phi_positive(samples.phi.double())
    raw = float(rare.double().mean())
    weighted = weighted_share(w, rare)
    weights = normalized(w)
    return Evaluation(
        energy_shift=float(energies.mean() - data.energy.mean()),
        energy_shift_error=float(energies.std() / math.sqrt(n)),
        below_maximum=float((samples.energy < data.energy.max()).double().mean()),
        ess=float(ess(w)),
        ess_clipped=float(clipped_ess(w)),
        test_nll=float(-of_test.mean()),
        test_kl=float((-u_test - of_test).mean()) - log_z,
        torsion_kl=histogram_kl(wanted, histogram(samples.phi, samples.psi)),
        torsion_kl_weighted=histogram_kl(wanted, histogram(samples.phi, samples.psi, weights)),
        phi_positive=raw,
        phi_positive_error=math.sqrt(raw * (1 - raw) / n),
        phi_positive_weighted=weighted.value,
        phi_positive_weighted_error=weighted.error,
        samples=n,
    )


@torch.no_grad()
def frame_log_probs(flow: MoleculeFlow, coordinates: Coordinates, frames: Frames) -> Tensor:
    """Return log q of frames as a density of positions up to rigid motion, per nm^60, shape (n,), float64."""
    y, logabsdet = coordinates.encode(frames.x.double())
    like = next(flow.parameters())
    return torch.cat([flow.log_prob(part).double() for part in y.to(like.dtype).split(2048)]) + logabsdet


def _torsions(coordinates: Coordinates, data: Frames) -> NDArray[np.float64]:
    y = coordinates.encode(data.x.double())[0]
    return histogram(y[:, 0], y[:, 1])
