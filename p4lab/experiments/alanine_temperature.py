"""Alanine dipeptide at three temperatures from a flow that has seen frames of 300 K only.

    python -m p4lab.experiments.alanine_temperature                 # 3 seeds, 60 CPU seconds of training each
    python -m p4lab.experiments.alanine_temperature --seeds 1 --seconds 20 --samples 2000 --nanoseconds 0.2

The flow is steerable (volume-preserving, prior N(0, T I) and uniform angles, with momenta) and learns by example in
coordinates whose volume element is constant, so that the law of temperature holds for them. What it says at 300, 600
and 1000 K is compared with molecular dynamics at each, and weighted with exp(-E / kT) / q. References at 600 and
1000 K are simulated (and kept in ``--folder``, if given). Prints Markdown.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.bench.tables import median, table
from p4lab.boltzmann import Estimate, SteerableFlow, by_example, clipped_ess, ess, log_weights
from p4lab.boltzmann.weights import normalized, weighted_share
from p4lab.command import command, say
from p4lab.experiments.temperature import CLIP, chunks_of
from p4lab.fit import Fit, fit
from p4lab.flows import Flow
from p4lab.flows.torus import BesideAngles, TorusCoupling
from p4lab.molecules import alanine
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import (
    Frames,
    dihedral,
    histogram,
    histogram_kl,
    is_natural,
    load,
    phi_positive,
    reference,
    split,
)
from p4lab.molecules.evaluate import LARGEST_ENERGY
from p4lab.molecules.flat import FlatCoordinates
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.replica_exchange import Settings as Simulation
from p4lab.molecules.replica_exchange import chunks, run
from p4lab.molecules.units import BOLTZMANN
from p4lab.p4 import MergeSchedule, P4Inv

TRAINED, TEMPERATURES = 300.0, (300.0, 600.0, 1000.0)
"""Temperature of the frames that are trained on, and those at which the flow is judged (K)."""
HOTTEST = 1000.0
"""Temperature of the hotter replica of a simulation (K)."""
BLOCKS = 20
"""Blocks of a simulation, whose means tell its error bars."""
CHUNK = 4000
"""Samples that are drawn from a flow at a time."""


@dataclass(frozen=True)
class Settings:
    """How a flow is built, trained and judged.

    Attributes:
        momenta, blocks, hidden: of the flow.
        rank, merge_every: of its P4Inv layers.
        seconds: CPU time of training; at most ``steps`` steps.
        steps: most steps of training.
        batch_size, learning_rate: of Adam; the rate falls to a hundredth along a cosine.
        look_every: steps between two looks at the validation frames; the best flow is kept.
        samples: of the flow at each temperature.
    """

    momenta: int = 9
    blocks: int = 8
    hidden: int = 64
    rank: int = 16
    merge_every: int = 10
    seconds: float = 60.0
    steps: int = 1_000_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    look_every: int = 200
    samples: int = 20_000


# --- the flow ---------------------------------------------------------------------------------------------------------


def molecule(settings: Settings, seed: int) -> SteerableFlow:
    """Return a steerable flow of `FlatCoordinates` and momenta at its start: P4Inv layers and torus couplings in turn.

    Args:
        settings: momenta, blocks, hidden and rank count.
        seed: of networks and matrices.
    """
    angles = FlatCoordinates.angles
    numbers = FlatCoordinates.dim - angles + settings.momenta
    generator = torch.Generator().manual_seed(seed)

    def mixing(init: Tensor) -> BesideAngles:
        linear = P4Inv(numbers, rank=settings.rank, init=init, reset="gradient", seed=generator)
        return BesideAngles(linear, angles)

    layers: list[BesideAngles | TorusCoupling] = [mixing(torch.eye(numbers))]
    for _ in range(settings.blocks):
        coupling = TorusCoupling(angles, numbers, settings.hidden, seed=generator)
        layers += [coupling, mixing(torch.eye(numbers).flip(0))]  # a swap of halves
    return SteerableFlow(Flow(layers), settings.momenta, angles)


@dataclass(frozen=True)
class Trained:
    """A flow that has been trained.

    Attributes:
        flow: at its best look.
        nll: of validation frames and momenta, less the entropy of the momenta (nats).
        steps: of training, and ``best`` that of the best look.
        seconds: CPU time.
    """

    flow: SteerableFlow
    nll: float
    steps: int
    best: int
    seconds: float


def train(flat: FlatCoordinates, y: Tensor, validation: Tensor, settings: Settings, seed: int) -> Trained:
    """Return a flow that has learnt frames by example.

    Args:
        flat: the coordinates.
        y: of training frames after `Coordinates.encode`, shape (n, 60); their methyl hydrogens are permuted at random.
        validation: likewise.
        settings: how.
        seed: of the flow, the batches and the momenta.
    """
    flow = molecule(settings, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), settings.learning_rate)
    heldout = flow.augment(flat.flat(validation).float(), torch.Generator().manual_seed(0))
    y, least, best, state = y.float(), float("inf"), 0, flow.state_dict()

    def loss() -> Tensor:
        rows = torch.randint(len(y), (settings.batch_size,), generator=generator, device="cpu")
        batch = flow.augment(flat.flat(flat.coordinates.augment(y[rows], generator)), generator)
        return by_example(flow, batch)

    @torch.no_grad()
    def look(now: Fit) -> None:
        nonlocal least, best, state
        if now.step % settings.look_every and now.progress < 1:
            return
        value = float(by_example(flow, heldout))
        if value < least:
            least, best, state = value, now.step, copy.deepcopy(flow.state_dict())

    end = fit(
        loss,
        optimizer,
        settings.steps,
        seconds=settings.seconds,
        schedules=[MergeSchedule(flow, optimizer, every=settings.merge_every)],
        rate=lambda now: settings.learning_rate * (0.01 + 0.99 * float(np.cos(np.pi / 2 * now.progress) ** 2)),
        clip=CLIP,
        after=look,
        clock=time.process_time,
    )
    flow.load_state_dict(state)
    entropy = 0.5 * settings.momenta * float(np.log(2 * np.pi * np.e))
    return Trained(flow, least - entropy, end.step, best, end.elapsed)


# --- molecular dynamics -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What molecular dynamics says at one temperature, of frames of the L form with trans amides.

    Attributes:
        temperature: K.
        energy: mean energy (kJ/mol).
        highest: highest energy of a frame (kJ/mol).
        phi_positive: share of frames with phi in (0, 2.4).
        torsions: histogram of phi and psi, shape (32, 32).
        frames: number of frames.
    """

    temperature: float
    energy: Estimate
    highest: float
    phi_positive: Estimate
    torsions: NDArray[np.float64]
    frames: int


def shipped(frames: Frames) -> Truth:
    """Return what the data and the reference that come with p4lab say at 300 K."""
    long = reference()
    return Truth(
        frames.temperature,
        Estimate(long.energy, long.energy_error),
        float(frames.energy.max()),
        Estimate(long.phi_positive, long.phi_positive_error),
        coarse(long.histogram),
        long.frames,
    )


def simulated(temperature: float, nanoseconds: float, folder: Path, seed: int = 2) -> Truth:
    """Return what a run of two replicas says, the colder at this temperature, the hotter at 1000 K.

    Args:
        temperature: K.
        nanoseconds: length.
        folder: where the run is kept, or is already.
        seed: of the run.
    """
    frames = Simulation().frames(nanoseconds)
    settings = Simulation(seed=seed, coldest=temperature, hottest=HOTTEST, replicas=2, chunk=min(1000, frames))
    run(folder, nanoseconds, settings, progress=False)
    parts = list(chunks(folder))
    x = torch.from_numpy(np.concatenate([part for part, _ in parts])).double()
    energy = torch.from_numpy(np.concatenate([part[:, 0] for _, part in parts]))
    natural = is_natural(x)
    x, energy = x[natural], energy[natural]
    phi = dihedral(x, alanine.PHI)
    return Truth(
        temperature,
        in_blocks(energy),
        float(energy.max()),
        in_blocks(phi_positive(phi).double()),
        coarse(histogram(phi, dihedral(x, alanine.PSI))),
        len(x),
    )


def in_blocks(values: Tensor) -> Estimate:
    """Return the mean of a time series with the standard error that the means of its blocks tell."""
    means = torch.stack([part.mean() for part in values.tensor_split(min(BLOCKS, len(values)))])
    return Estimate(float(values.mean()), float(means.std() / len(means) ** 0.5))


def coarse(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a histogram of 64 x 64 bins in 32 x 32, so that short runs do not differ by noise alone."""
    half = len(shares) // 2
    return shares.reshape(half, 2, half, 2).sum((1, 3))


# --- what a flow says -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a flow says at one temperature; energies above 10^4 kJ/mol count as that.

    Attributes:
        valid: share of samples that are molecules of the L form with trans amides; all others have weight 0.
        energy, weighted_energy: mean energy, without and with weights (kJ/mol).
        below: share of samples below the reference's highest energy.
        ess, clipped_ess: effective sample size of positions and momenta, as shares.
        torsion_kl, weighted_torsion_kl: KL of the histogram of phi and psi from the reference's (nats).
        phi_positive, weighted_phi_positive: share of phi in (0, 2.4).
    """

    valid: float
    energy: float
    weighted_energy: float
    below: float
    ess: float
    clipped_ess: float
    torsion_kl: float
    weighted_torsion_kl: float
    phi_positive: float
    weighted_phi_positive: Estimate


@torch.no_grad()
def evaluate(
    flow: SteerableFlow, flat: FlatCoordinates, energy: OpenMMEnergy, truth: Truth, samples: int, seed: int = 1000
) -> Result:
    """Return what a flow that was trained at 300 K says at the temperature of a reference."""
    generator = torch.Generator().manual_seed(seed)
    t = truth.temperature / TRAINED
    columns: list[tuple[Tensor, ...]] = []
    for n in chunks_of(samples, CHUNK):
        y, log_q = flow.sample_with_log_prob(n, generator=generator, temperature=t)
        y = y.double()
        x, logabsdet = flat.decode(y[:, : flow.positions])
        kilojoules = energy.kilojoules(x)
        # u of positions and momenta at T, with the volume element: that of f is one number, -inf where there is no x.
        u = kilojoules / (BOLTZMANN * truth.temperature) - logabsdet
        u = u + 0.5 * y[:, flow.positions :].square().sum(-1) / t
        valid = Coordinates.valid(x) & torch.isfinite(logabsdet)
        log_w = torch.where(valid, log_weights(u, log_q.double()), -torch.inf)
        columns.append((log_w, valid, kilojoules, dihedral(x, alanine.PHI), dihedral(x, alanine.PSI)))
    log_w, valid, kilojoules, phi, psi = (torch.cat(parts) for parts in zip(*columns, strict=True))
    w, rare = normalized(log_w), phi_positive(phi)
    tame = torch.nan_to_num(kilojoules, nan=LARGEST_ENERGY).clamp(max=LARGEST_ENERGY)
    return Result(
        float(valid.double().mean()),
        float(tame.mean()),
        float((w * tame).sum()),
        float((kilojoules < truth.highest).double().mean()),
        float(ess(log_w)),
        float(clipped_ess(log_w)),
        histogram_kl(truth.torsions, coarse(histogram(phi, psi))),
        histogram_kl(truth.torsions, coarse(histogram(phi, psi, w))) if bool(w.sum() > 0) else float("inf"),
        float(rare.double().mean()),
        weighted_share(log_w, rare),
    )


def table_of(truths: Sequence[Truth], results: dict[float, list[Result]]) -> str:
    """Return a row for each temperature's reference, and one for each seed, as Markdown."""
    header = ["T [K]", "", "energy [kJ/mol]", "weighted", "below MD's highest %", "ESS %", "clipped %"]
    header += ["phi/psi KL", "weighted", "phi > 0 %", "weighted", "valid %"]
    rows = []
    for truth in truths:
        t, e = f"{truth.temperature:g}", truth.energy
        energy = f"{e.value:.1f} ± {e.error:.1f}"
        rows.append(
            [t, f"MD, {truth.frames:,} frames", energy, "", 100, *[""] * 4, _percent(truth.phi_positive), "", 100]
        )
        for seed, r in enumerate(results[truth.temperature]):
            cells = [f"{r.energy - e.value:+.1f}", f"{r.weighted_energy - e.value:+.1f}", f"{100 * r.below:.1f}"]
            cells += [f"{100 * r.ess:.2f}", f"{100 * r.clipped_ess:.2f}"]
            cells += [f"{r.torsion_kl:.3f}", f"{r.weighted_torsion_kl:.3f}", f"{100 * r.phi_positive:.1f}"]
            rows.append([t, f"flow, seed {seed}", *cells, _percent(r.weighted_phi_positive), f"{100 * r.valid:.1f}"])
    return table(header, rows)


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} ± {100 * share.error:.1f}"


@command(
    "p4lab.experiments.alanine_temperature",
    __doc__,
    seeds=3,
    seconds=Settings.seconds,
    steps=Settings.steps,
    samples=Settings.samples,
    nanoseconds=1.5,
    folder=None,
)
def main(options: argparse.Namespace) -> None:
    """Simulate, train, evaluate and print the table."""
    torch.set_num_threads(1)
    settings = Settings(seconds=options.seconds, steps=options.steps, samples=options.samples)
    frames = load()
    training, validation, _ = split(frames)
    truths = [shipped(frames)]
    with tempfile.TemporaryDirectory() as scratch:
        for temperature in TEMPERATURES[1:]:
            folder = (options.folder or Path(scratch)) / f"{temperature:.0f}K"
            truths.append(simulated(temperature, options.nanoseconds, folder))
    coordinates = Coordinates.fit(training.x.double())
    y, heldout = (coordinates.encode(part.x.double())[0] for part in (training, validation))
    flat = FlatCoordinates(coordinates, coordinates.augment(y, torch.Generator().manual_seed(0)))
    results: dict[float, list[Result]] = {t: [] for t in TEMPERATURES}
    flows = []
    with OpenMMEnergy(temperature=TRAINED) as energy:
        for seed in range(options.seeds):
            flows.append(train(flat, y, heldout, settings, seed))
            for truth in truths:
                result = evaluate(flows[-1].flow, flat, energy, truth, settings.samples)
                results[truth.temperature].append(result)
            say(f"after {seed + 1} of {options.seeds} seeds:\n{table_of(truths, results)}")
    print("\nAlanine dipeptide, trained at 300 K by example; energies of flows are differences from MD\n")
    print(settings)
    for seed, one in enumerate(flows):
        print(
            f"seed {seed}: validation NLL {one.nll:.2f} nats in whitened coordinates, best at step {one.best:,} "
            f"of {one.steps:,}, {one.seconds:.0f} CPU seconds"
        )
    medians = ", ".join(f"{100 * median(r.ess for r in rows):.2f} % at {t:g} K" for t, rows in results.items())
    print(f"\n{table_of(truths, results)}\n\nMedian ESS: {medians}", flush=True)


if __name__ == "__main__":
    main()
