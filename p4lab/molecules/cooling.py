"""Training without a single frame: by energy at a high temperature, and then cooled level by level."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from p4lab.boltzmann.weights import clipped, ess, normalized
from p4lab.errors import OptionError, TrainingError
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.evaluate import draw
from p4lab.molecules.flow import molecule_flow
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.target import Examples, InternalEnergy
from p4lab.molecules.train import Record, Stage, train

LARGEST_DEVIATION = 0.3
"""Directions in which the energy is flatter than a deviation of this (nm, radians) count as if it had this one."""
STEP = 1e-4
"""Distance (nm, radians) by which second derivatives are differences of forces."""
HARMONIC_FRAMES = 4000
"""Frames of the harmonic approximation that coordinates and whitening are fitted to."""
MOST_DRAWS = 20
"""Times that frames are drawn before it is said that too few of them have the hands of the molecule."""
AVERAGED = 50
"""Last steps of a level whose losses are averaged."""
CLIPPED = 0.01
"""Share of the candidates whose weights are cut, for a level not to be made of a few of them."""


@dataclass(frozen=True)
class Cooling:
    """How a flow is trained hot and cooled.

    Attributes:
        hottest: temperature at which it is trained first, by energy alone (K).
        levels: number of further temperatures, a geometric series that ends at the wanted one.
        first_steps: optimizer steps at the hottest temperature.
        steps: at each level but the last one.
        last_steps: at the last one, each time.
        rounds: how often it learns at the last one, each time from new examples: the better the flow, the more of its
            samples have a weight.
        candidates: samples of the flow that are weighted for each level; those that are drawn by their weights are the
            examples there.
        samples: new samples of the flow in each step.
        examples: examples in each step of a level.
        rate: peak learning rate at the hottest temperature; half of it at all levels.
        merge_every: steps between two merges of P4 layers.

    Raises:
        OptionError: something is out of range.
    """

    hottest: float = 1200.0
    levels: int = 6
    first_steps: int = 800
    steps: int = 300
    last_steps: int = 600
    rounds: int = 1
    candidates: int = 20_000
    samples: int = 256
    examples: int = 256
    rate: float = 2e-3
    merge_every: int = 8

    def __post_init__(self) -> None:
        steps = self.first_steps, self.steps, self.last_steps
        numbers = self.levels, self.rounds, *steps, self.samples, self.examples, self.merge_every, self.candidates - 1
        whole = all(isinstance(number, Integral) and number >= 1 for number in numbers)
        if not whole or not all(math.isfinite(value) and value > 0 for value in (self.rate, self.hottest)):
            raise OptionError(
                f"{self}: expected whole numbers of at least 1 (2 candidates), and a finite rate and heat above 0"
            )

    @property
    def all_steps(self) -> int:
        """Optimizer steps at all temperatures together."""
        return self.first_steps + (self.levels - 1) * self.steps + self.rounds * self.last_steps

    def temperatures(self, coldest: float) -> list[float]:
        """Return the temperatures (K) of all levels, the hottest first, the last one as often as there are rounds.

        Raises:
            OptionError: the coldest is not below the hottest.
        """
        if not 0 < coldest < self.hottest:
            raise OptionError(f"temperature={coldest} K: expected above 0 and below the hottest, {self.hottest} K")
        ratio = coldest / self.hottest
        return [self.hottest * ratio ** (i / self.levels) for i in range(self.levels)] + [coldest] * self.rounds


@dataclass(frozen=True)
class Level:
    """What became of one temperature.

    Attributes:
        temperature: K.
        candidates: effective sample size of the candidates that its examples were drawn from, as a share, their
            largest weights cut; NaN at the hottest, which has none.
        distinct: number of different examples.
        loss: mean of u + log q of new samples (nats, up to a constant) over the last steps, of a level with the mean
            of -log q of its examples.
        evaluations: energies that were computed until its end, counted from the start.
        minutes: CPU minutes until its end.
    """

    temperature: float
    candidates: float
    distinct: int
    loss: float
    evaluations: int
    minutes: float


@dataclass
class Cooled:
    """A flow that was trained without frames.

    Attributes:
        flow: the average of its parameters, as a plain flow: nothing of P4 is left in it.
        trained: the flow as it trained, to go on with.
        coordinates: what it is a density of.
        levels: what became of each temperature.
        records: of all steps; their stage is the place of the level.
        evaluations: energies that were computed, with forces or without.
        minutes: CPU minutes.
        reason: why it ended early, "" if it did not.
    """

    flow: MoleculeFlow
    trained: MoleculeFlow
    coordinates: Coordinates
    levels: list[Level] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    evaluations: int = 0
    minutes: float = 0.0
    reason: str = ""


def harmonic_frames(
    molecule: Molecule, energy: OpenMMEnergy, n: int = HARMONIC_FRAMES, generator: torch.Generator | None = None
) -> Tensor:
    r"""Return frames that no simulation has made, of shape (n, atoms, 3), nm, float64.

    .. math:: \varphi \sim U[-\pi, \pi)^m, \qquad q \sim N(q_0, H^{-1}), \qquad H = \nabla^2_q u_Y(q_0)

    with the torsions phi that turn, and all other internal coordinates q of ``molecule.start``. H is a difference of
    forces; directions that are flatter than a deviation of 0.3 (nm, radians), or curved downwards, count as that wide.
    They have clashes, and are good for no more than the means and deviations of coordinates.

    Args:
        molecule: what they are of.
        energy: its reduced energy at some temperature.
        n: number of frames; those with other hands or amides than the start are not among them.
        generator: CPU generator.

    Raises:
        OptionError: most frames have other hands or amides.
        TrainingError: the energy failed.

    Cost: 2 (3 atoms - 6) energies with forces, and O((3 atoms)^3).
    """
    coordinates = Coordinates.around_start(molecule)
    turning, rest = coordinates.circular, coordinates.dim - coordinates.circular
    start = coordinates.encode(molecule.start[None])[0]
    steps = torch.zeros(rest, coordinates.dim, dtype=torch.float64, device="cpu")
    steps[:, turning:] = STEP * torch.eye(rest, dtype=torch.float64, device="cpu")
    slope = -InternalEnergy(coordinates, energy).score(torch.cat([start + steps, start - steps]))[:, turning:]
    curvature = (slope[:rest] - slope[rest:]) / (2 * STEP)
    values, vectors = torch.linalg.eigh((curvature + curvature.t()) / 2)
    widths = vectors * values.clamp(min=LARGEST_DEVIATION**-2).rsqrt()
    frames: list[Tensor] = []
    for _ in range(MOST_DRAWS):
        angles = (2 * torch.rand(n, turning, generator=generator, dtype=torch.float64, device="cpu") - 1) * math.pi
        noise = torch.randn(n, rest, generator=generator, dtype=torch.float64, device="cpu")
        x = coordinates.decode(torch.cat([angles, start[:, turning:] + noise @ widths.t()], 1))[0]
        frames.append(x[molecule.valid(x)])
        if sum(map(len, frames)) >= n:
            return torch.cat(frames)[:n]
    raise OptionError(
        f"{sum(map(len, frames))} of {MOST_DRAWS * n} harmonic frames of {molecule.name} have the hands and amides of "
        "its start: minimize the energy of the start first, or lower the hottest temperature"
    )


def cool(
    molecule: Molecule,
    temperature: float = 300.0,
    cooling: Cooling | None = None,
    method: str = "spline_p4",
    seed: int = 0,
    workers: int = 1,
    on_record: Callable[[Record], object] | None = None,
    on_level: Callable[[Cooled], object] | None = None,
    **options: Any,
) -> Cooled:
    r"""Train a flow of a molecule from its energy alone.

    A flow that starts at harmonic widths learns the hottest temperature by the reverse divergence, where no state is
    far from the others. Its samples, weighted by

    .. math:: w \propto \frac{e^{-u_{k+1}(y)}}{q(y)}

    and drawn by these weights, are the examples of the next temperature, with their forces; there it learns from both,
    by `p4lab.molecules.losses.by_forces` and `by_energy`, and so on down to the wanted one. Forces of examples are
    computed once for each level.

    Args:
        molecule: what is wanted.
        temperature: at which (K).
        cooling: the settings (None: the defaults, of `Cooling`).
        method: name of the flow's architecture, see `p4lab.molecules.flow.ARCHITECTURES`.
        seed: of the flow, its directions, samples and examples.
        workers: threads that share a batch of energies.
        on_record: called after each step.
        on_level: called after each temperature with what there is so far, the same object each time: what an
            interruption leaves of it has the flow of the last temperature that was finished.
        options: of the flow's architecture, such as ``hidden=192``.

    Returns:
        The flow, and what it took. If the energy fails, gradients stay not finite, or no candidate has a weight,
        ``reason`` says why, and the flow is the one so far.

    Raises:
        OptionError: temperatures out of order; an unknown method or option; a start with other hands.
        MissingPackageError: openmm is not installed.

    Cost: ``samples`` energies with forces for each step, and up to two for each candidate; see `Cooled.evaluations`.
    Source: annealing by importance weights is that of arXiv:2501.19077 (TA-BG); the forces at examples, and the
    harmonic start, are p4lab's.
    """
    cooling = cooling or Cooling()
    generator = torch.Generator().manual_seed(seed)
    begun, hottest, *others = time.process_time(), *cooling.temperatures(temperature)
    with molecule.energy(hottest, workers) as energy:
        x = harmonic_frames(molecule, energy, generator=generator)
        coordinates = Coordinates.fit(molecule, x)
        y = coordinates.encode(x)[0].float()
        flow = molecule_flow(method, y, seed, coordinates.circular, **options)
        result = Cooled(flow, flow, coordinates)
        seeds = iter(torch.randint(2**31, (2 * len(others) + 1,), generator=generator, device="cpu").tolist())

        def minutes() -> float:
            return (time.process_time() - begun) / 60

        def recorded(record: Record) -> None:
            step = len(result.records) + 1
            result.records.append(replace(record, stage=len(result.levels), step=step, minutes=minutes()))
            if on_record:
                on_record(result.records[-1])

        def learn(kind: str, steps: int, examples: Examples | None = None, candidates: float = math.nan) -> None:
            rate = cooling.rate if kind == "energy" else cooling.rate / 2
            stage = Stage(kind, steps=steps, examples=cooling.examples, samples=cooling.samples, rate=rate)
            target = InternalEnergy(coordinates, energy)
            training = train(flow, examples, target, [stage], None, next(seeds), recorded, cooling.merge_every)
            losses = [record.loss for record in training.records if record.taken][-AVERAGED:]
            loss = sum(losses) / len(losses) if losses else math.nan
            distinct = 0 if examples is None else len(examples)
            level = Level(energy.temperature, candidates, distinct, loss, energy.evaluations, minutes())
            result.flow, result.reason = training.flow, training.reason
            result.levels.append(level)
            result.evaluations, result.minutes = level.evaluations, level.minutes
            if on_level:
                on_level(result)

        learn("energy", cooling.first_steps)
        for kelvin in others:
            if result.reason:
                break
            energy.temperature = kelvin
            try:
                examples, candidates = _examples(result, energy, cooling.candidates, next(seeds), generator)
            except TrainingError as error:
                result.reason = str(error)
                break
            steps = cooling.steps if kelvin > temperature else cooling.last_steps
            learn("mixed", steps, examples, candidates)
        result.evaluations, result.minutes = energy.evaluations, minutes()
    return result


def _examples(
    cooled: Cooled, energy: OpenMMEnergy, n: int, seed: int, generator: torch.Generator
) -> tuple[Examples, float]:
    """Draw samples of the flow by their weights at the energy's temperature; return them and their ESS."""
    samples = draw(cooled.flow, cooled.coordinates, energy, n, seed, energy.temperature)
    log_w = clipped(samples.log_weights, CLIPPED)
    w = normalized(log_w)
    if not float(w.sum()) > 0:
        raise TrainingError(
            f"none of {n} samples has a weight at {energy.temperature:.0f} K: take more levels or steps. The flow is "
            "that of the temperature before"
        )
    counts = torch.bincount(torch.multinomial(w, n, replacement=True, generator=generator), minlength=n)
    chosen = counts.nonzero()[:, 0]
    examples = Examples.of(cooled.coordinates, samples.x[chosen], energy, counts=counts[chosen])
    return examples, float(ess(log_w))
