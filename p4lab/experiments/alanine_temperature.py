"""Alanine dipeptide, or another molecule, at three temperatures from a flow that has seen frames of 300 K only.

    python -m p4lab.experiments.alanine_temperature                 # 3 seeds
    python -m p4lab.experiments.alanine_temperature --quick         # little of everything: a look, no result

Of three methods, "steered" is a flow with a constant determinant, prior N(0, T I), uniform angles and momenta, which
learns by example in coordinates whose volume element is constant, so that the law of temperature holds for them. The
two others are spline flows that read log T and learn the frames of 300 K with their forces: "trade" is made consistent
between 300 and 1000 K from energies (`p4lab.boltzmann.by_consistency`), "energy" learns these temperatures from
energies and forces of its own samples. ``--seconds`` ends the training of the first one only; the others take 900
steps (``--steps`` for fewer), some 50 CPU seconds each. What they say at 300, 600 and 1000 K is compared with
molecular dynamics at each, and weighted with exp(-E / kT) / q. References at 600 and 1000 K, and all frames of other
molecules than alanine dipeptide, are simulated (and kept in ``--folder``, if given).
Prints Markdown.
"""

import argparse
import copy
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.bench.tables import median, table
from p4lab.boltzmann import Estimate, SteerableFlow, Steered, TemperedFlow, by_example, clipped_ess, ess, log_weights
from p4lab.boltzmann.tempered import KINDS
from p4lab.boltzmann.weights import normalized, told, weighted_share
from p4lab.command import Names, command, say
from p4lab.experiments.temperature import CLIP, chunks_of
from p4lab.fit import Fit, fit
from p4lab.flows import Flow
from p4lab.flows.torus import BesideAngles, TorusCoupling
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import (
    Frames,
    dihedral,
    histogram,
    histogram_kl,
    load,
    phi_positive,
    reference,
    simulate,
    split,
)
from p4lab.molecules.evaluate import LARGEST_ENERGY
from p4lab.molecules.flat import FlatCoordinates
from p4lab.molecules.flow import molecule_flow
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.replica_exchange import Settings as Simulation
from p4lab.molecules.replica_exchange import chunks, run
from p4lab.molecules.target import Examples
from p4lab.molecules.tempering import temper
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


@dataclass(frozen=True)
class TemperedSettings:
    """How a flow that reads log T is trained; its architecture is "spline_p4".

    Attributes:
        kind, first_steps, steps, rows, rate: of `p4lab.molecules.tempering.temper`.
    """

    kind: str
    first_steps: int = 300
    steps: int = 600
    rows: int = 256
    rate: float = 2e-3


METHODS: tuple[str, ...] = ("steered", *KINDS)
"""What is compared."""


# --- the flow ---------------------------------------------------------------------------------------------------------


def steerable(flat: FlatCoordinates, settings: Settings, seed: int) -> SteerableFlow:
    """Return a steerable flow of `FlatCoordinates` and momenta at its start: P4Inv layers and torus couplings in turn.

    Args:
        flat: the coordinates.
        settings: momenta, blocks, hidden and rank count.
        seed: of networks and matrices.
    """
    angles = flat.angles
    numbers = flat.dim - angles + settings.momenta
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
        nll: of validation frames and momenta, less the entropy of the momenta (nats); of flows that read log T in
            other coordinates, which are no flat ones.
        steps: of training, and ``best`` that of the best look.
        seconds: CPU time.
    """

    flow: Steered
    nll: float
    steps: int
    best: int
    seconds: float


def train(flat: FlatCoordinates, y: Tensor, validation: Tensor, settings: Settings, seed: int) -> Trained:
    """Return a flow that has learnt frames by example.

    Args:
        flat: the coordinates.
        y: of training frames after `Coordinates.encode`, shape (n, d); their rotors are turned at random.
        validation: likewise.
        settings: how.
        seed: of the flow, the batches and the momenta.
    """
    flow = steerable(flat, settings, seed)
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


def train_tempered(
    coordinates: Coordinates,
    examples: Examples,
    validation: Tensor,
    energy: OpenMMEnergy,
    settings: TemperedSettings,
    seed: int,
) -> Trained:
    """Return a flow that reads log(T / 300 K), trained on frames of 300 K and on energies up to 1000 K.

    Args:
        coordinates: of the examples.
        examples: training frames with forces.
        validation: frames after `Coordinates.encode`, shape (n, d).
        energy: at 300 K.
        settings: how.
        seed: of the flow, the batches and samples.
    """
    start = time.process_time()
    flow = molecule_flow("spline_p4", examples.y[:, 0], seed, coordinates.circular, tempered=True)
    training = temper(flow, examples, coordinates, energy, hottest=HOTTEST, seed=seed, **vars(settings))
    if training.reason:
        say(f"seed {seed} ended early: {training.reason}")
    tempered, steps = TemperedFlow(training.flow), len(training.records)
    with torch.no_grad():
        nll = float(by_example(tempered, validation.float()))
    return Trained(tempered, nll, steps, steps, time.process_time() - start)


# --- molecular dynamics -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What molecular dynamics says at one temperature, of frames of the L form with trans amides.

    Attributes:
        temperature: K.
        energy: mean energy (kJ/mol).
        highest: highest energy of a frame (kJ/mol).
        phi_positive: share of frames with phi (of the first residue) in (0, 2.4).
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


def simulated(
    temperature: float, nanoseconds: float, folder: Path, seed: int = 2, molecule: Molecule | None = None
) -> Truth:
    """Return what a run of two replicas says, the colder at this temperature, the hotter at 1000 K.

    Args:
        temperature: K.
        nanoseconds: length.
        folder: where the run is kept, or is already.
        seed: of the run.
        molecule: what is simulated (None: alanine dipeptide).
    """
    molecule = molecule or Molecule.from_sequence("A")
    frames = Simulation().frames(nanoseconds)
    settings = Simulation(seed=seed, coldest=temperature, hottest=HOTTEST, replicas=2, chunk=min(1000, frames))
    run(folder, nanoseconds, settings, progress=False, molecule=molecule)
    parts = list(chunks(folder))
    x = molecule.canonical(torch.from_numpy(np.concatenate([part for part, _ in parts])).double())
    energy = torch.from_numpy(np.concatenate([part[:, 0] for _, part in parts]))
    natural = molecule.valid(x)
    x, energy = x[natural], energy[natural]
    phi, psi = mapped(molecule, x)
    return Truth(
        temperature,
        in_blocks(energy),
        float(energy.max()),
        share_in_blocks(phi_positive(phi)),
        coarse(histogram(phi, psi)),
        len(x),
    )


def mapped(molecule: Molecule, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return phi and psi of frames, or the first pair of torsions that is plotted (radians), each of shape (n,)."""
    first, second = molecule.maps[0]
    return dihedral(x, molecule.torsions[first]), dihedral(x, molecule.torsions[second])


def in_blocks(values: Tensor) -> Estimate:
    """Return the mean of a time series with the standard error that the means of its blocks tell."""
    means = torch.stack([part.mean() for part in values.tensor_split(min(BLOCKS, len(values)))])
    return Estimate(float(values.mean()), float(means.std() / len(means) ** 0.5))


def share_in_blocks(inside: Tensor) -> Estimate:
    """Return the share of a time series that is inside of a region; its error is inf if too few blocks have seen it."""
    share = in_blocks(inside.double())
    sums = torch.stack([part.double().sum() for part in inside.tensor_split(min(BLOCKS, len(inside)))])
    return share if told(sums) else Estimate(share.value, float("inf"))


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
    flow: Steered,
    decode: Callable[[Tensor], tuple[Tensor, Tensor]],
    energy: OpenMMEnergy,
    truth: Truth,
    molecule: Molecule,
    samples: int,
    seed: int = 1000,
) -> Result:
    """Return what a flow that was trained at 300 K says at the temperature of a reference.

    Args:
        flow: of coordinates, and of momenta if it is a `SteerableFlow`.
        decode: coordinates to positions, with log|det|: of `FlatCoordinates` or `Coordinates`.
        energy: of positions.
        truth: the reference.
        molecule: what it is.
        samples: of the flow.
        seed: of the samples.
    """
    generator = torch.Generator().manual_seed(seed)
    t = truth.temperature / TRAINED
    width = 3 * len(molecule) - 6
    columns: list[tuple[Tensor, ...]] = []
    for n in chunks_of(samples, CHUNK):
        y, log_q = flow.sample_with_log_prob(n, generator=generator, temperature=t)
        y = y.double()
        x, logabsdet = decode(y[:, :width])
        kilojoules = energy.kilojoules(x)
        # u of positions and momenta at T, with the volume element: that of f is one number, -inf where there is no x.
        u = kilojoules / (BOLTZMANN * truth.temperature) - logabsdet
        u = u + 0.5 * y[:, width:].square().sum(-1) / t
        valid = molecule.valid(x) & torch.isfinite(logabsdet)
        log_w = torch.where(valid, log_weights(u, log_q.double()), -torch.inf)
        columns.append((log_w, valid, kilojoules, *mapped(molecule, x)))
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


Results = dict[str, dict[float, list[Result]]]
"""Of each method and temperature, for each seed."""


def table_of(truths: Sequence[Truth], results: Results) -> str:
    """Return a row for each temperature's reference, and one for each method and seed, as Markdown."""
    header = ["T [K]", "by", "energy [kJ/mol]", "energy, weighted", "below MD's highest %", "ESS %", "clipped %"]
    header += ["phi/psi KL", "phi/psi KL, weighted", "phi > 0 %", "phi > 0 %, weighted", "valid %"]
    rows = []
    for truth in truths:
        t, e = f"{truth.temperature:g}", truth.energy
        energy = f"{e.value:.1f} ± {e.error:.1f}"
        rows.append(
            [t, f"MD, {truth.frames:,} frames", energy, "", 100, *[""] * 4, _percent(truth.phi_positive), "", 100]
        )
        for method, of_temperatures in results.items():
            for seed, r in enumerate(of_temperatures.get(truth.temperature, [])):
                cells = [f"{r.energy - e.value:+.1f}", f"{r.weighted_energy - e.value:+.1f}", f"{100 * r.below:.1f}"]
                cells += [f"{100 * r.ess:.2f}", f"{100 * r.clipped_ess:.2f}"]
                cells += [f"{r.torsion_kl:.3f}", f"{r.weighted_torsion_kl:.3f}", f"{100 * r.phi_positive:.1f}"]
                by = f"{method}, seed {seed}"
                rows.append([t, by, *cells, _percent(r.weighted_phi_positive), f"{100 * r.valid:.1f}"])
    return table(header, rows)


def medians(results: Results) -> str:
    """Return one row for each method, medians over its seeds, as Markdown."""
    header = ["method"]
    header += [f"{kind} %, {t:g} K" for t in TEMPERATURES for kind in ("ESS", "clipped ESS")]
    rows = []
    for method, of_temperatures in results.items():
        shares = [
            median(getattr(r, kind) for r in of_temperatures[t])
            for t in TEMPERATURES
            for kind in ("ess", "clipped_ess")
        ]
        rows.append([method, *(f"{100 * share:.1f}" for share in shares)])
    return table(header, rows)


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} ± {100 * share.error:.1f}"


@command(
    "p4lab.experiments.alanine_temperature",
    __doc__,
    {"seeds": 1, "seconds": 5.0, "steps": 30, "samples": 1000, "nanoseconds": 0.05},
    methods=Names(METHODS),
    seeds=3,
    seconds=Settings.seconds,
    steps=None,
    samples=Settings.samples,
    molecule="A",
    nanoseconds=1.5,
    folder=None,
)
def main(options: argparse.Namespace) -> None:
    """Simulate, train, evaluate and print the table."""
    torch.set_num_threads(1)
    known, molecule = options.molecule == "A", Molecule.named(options.molecule)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        frames = load() if known else simulate(molecule, options.nanoseconds, folder / "frames", progress=False)
        truths = [shipped(frames)] if known else []
        for temperature in TEMPERATURES[len(truths) :]:
            place = folder / f"{temperature:.0f}K"
            truths.append(simulated(temperature, options.nanoseconds, place, molecule=molecule))
    training, validation, _ = split(frames)
    coordinates = Coordinates.fit(molecule, training.x.double())
    y, heldout = (coordinates.encode(part.x.double())[0] for part in (training, validation))
    flat = FlatCoordinates(coordinates, coordinates.augment(y, torch.Generator().manual_seed(0)))
    settings: dict[str, Settings | TemperedSettings] = {kind: TemperedSettings(kind) for kind in KINDS}
    settings["steered"] = Settings(seconds=options.seconds, samples=options.samples)
    if options.steps is not None:
        for method, old in settings.items():
            first = {"first_steps": min(old.first_steps, options.steps)} if isinstance(old, TemperedSettings) else {}
            settings[method] = dataclasses.replace(old, steps=options.steps, **first)
    results: Results = {method: {t: [] for t in TEMPERATURES} for method in options.methods}
    said = []
    with molecule.energy(TRAINED) as energy:
        examples = Examples.of(coordinates, training.x, energy) if set(KINDS) & set(options.methods) else None
        for seed in range(options.seeds):
            for method, of_temperatures in results.items():
                how = settings[method]
                decode: Callable[[Tensor], tuple[Tensor, Tensor]]
                if isinstance(how, Settings):
                    one, decode = train(flat, y, heldout, how, seed), flat.decode
                elif examples is not None:
                    one, decode = train_tempered(coordinates, examples, heldout, energy, how, seed), coordinates.decode
                for truth in truths:
                    result = evaluate(one.flow, decode, energy, truth, molecule, options.samples)
                    of_temperatures[truth.temperature].append(result)
                said.append(
                    f"{method}, seed {seed}: validation NLL {one.nll:.2f} nats, best at step {one.best:,} of "
                    f"{one.steps:,}, {one.seconds:.0f} CPU seconds"
                )
                say(f"{said[-1]}\n{table_of(truths, results)}")
    title = "Alanine dipeptide" if known else molecule.name
    print(f"\n### {title}, trained on frames of 300 K; energies of flows are differences from MD\n")
    print(table_of(truths, results))
    said += [f"{method}: {settings[method]}" for method in results]
    print("\n" + "\n\n".join(said))
    print(f"\n### Medians of {options.seeds} seeds\n\n{medians(results)}", flush=True)


if __name__ == "__main__":
    main()
