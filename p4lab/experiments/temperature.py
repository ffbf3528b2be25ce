"""Free energies at several temperatures from flows that are trained at T = 1 only.

    python -m p4lab.experiments.temperature                    # both systems, 3 seeds
    python -m p4lab.experiments.temperature --systems double_well --seeds 1

The double well is compared with quadrature, the particles (DW4) with a replica-exchange run of their own. Prints
Markdown; the same seeds give the same numbers on the same machine.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from p4lab.bench.tables import median, table
from p4lab.boltzmann import (
    Estimate,
    SteerableFlow,
    by_example,
    clipped_ess,
    ess,
    free_energy_difference,
    log_weights,
    steerable_flow,
)
from p4lab.command import Names, command
from p4lab.fit import fit
from p4lab.p4 import RECOMMENDED
from p4lab.problems.energies import DoubleWell, Energy
from p4lab.problems.particles import DoubleWellParticles, metropolis

TEMPERATURES = (0.5, 1.0, 2.0)
"""Temperatures at which free energies are told."""
LADDER = (0.5, 0.6, 0.72, 0.86, 1.0, 1.2, 1.45, 1.7, 2.0)
"""Temperatures of the replicas that simulate the particles."""
CHUNK = 50_000
"""Samples that are drawn from a flow at a time."""
CLIP = 10.0
"""Largest norm of a gradient, as of the flow of alanine dipeptide."""


@dataclass(frozen=True)
class Settings:
    """How a flow is built and trained.

    Attributes:
        momenta, blocks, hidden: of `steerable_flow`.
        steps, batch_size, learning_rate: of Adam; the learning rate falls to a hundredth along a cosine.
        samples: of the flow at each temperature.
    """

    momenta: int = 2
    blocks: int = 8
    hidden: int = 32
    steps: int = 3000
    batch_size: int = 512
    learning_rate: float = 5e-3
    samples: int = 1_000_000


@dataclass(frozen=True)
class System:
    """What is learnt.

    Attributes:
        name: heading.
        energy: u.
        batch: draws training data of T = 1: size and generator to shape (size, d).
        in_b: which points lie in basin b.
        basins: what a and b are.
        exact: free energy of b minus a in kT, by temperature.
        mean, std: of the positions, shape (d,).
        settings: what suits it.
    """

    name: str
    energy: Energy
    batch: Callable[[int, torch.Generator], Tensor]
    in_b: Callable[[Tensor], Tensor]
    basins: str
    exact: dict[float, Estimate]
    mean: Tensor
    std: Tensor
    settings: Settings


def double_well() -> System:
    """Return the double well, with quadrature for the truth."""
    truth = DoubleWell()
    data = truth.sample(10_000, torch.Generator().manual_seed(0))
    exact = {t: Estimate(truth.free_energy_difference(t), 0.0) for t in TEMPERATURES}

    def batch(size: int, generator: torch.Generator) -> Tensor:
        return truth.sample(size, generator).float()

    return System("Double well", truth, batch, truth.in_b, "right − left", exact, *_moments(data), Settings())


def particles() -> System:
    """Return four particles in the plane (DW4), with replica exchange for the data and the truth."""
    energy = DoubleWellParticles(4)
    generator = torch.Generator().manual_seed(0)
    run = metropolis(
        energy, 3 * torch.randn(500, energy.dim, generator=generator, device="cpu"), 12_000, generator, LADDER, 0.35, 20
    )
    frames = run.x[len(run.x) // 4 :]

    def is_open(x: Tensor) -> Tensor:
        """Return whether four or more of the six pairs are at the short distance."""
        return (energy.distances(x) < energy.distance).sum(-1) >= 4

    exact = {}
    for t in TEMPERATURES:
        # Walkers are independent of each other, frames of one walker are not: so blocks are made of walkers.
        in_b = is_open(frames[:, LADDER.index(t)].transpose(0, 1).reshape(-1, energy.dim))
        exact[t] = free_energy_difference(torch.zeros(len(in_b)), ~in_b, in_b)
    data = frames[:, LADDER.index(1.0)].reshape(-1, energy.dim)

    def batch(size: int, generator: torch.Generator) -> Tensor:
        return data[torch.randint(len(data), (size,), generator=generator, device="cpu")]

    settings = Settings(momenta=4, blocks=16, hidden=64, steps=3000, learning_rate=2e-3, samples=400_000)
    return System(
        "Four particles (DW4)", energy, batch, is_open, "≥ 4 − ≤ 3 short pairs", exact, *_moments(data), settings
    )


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.double().mean(0), x.double().std(0)


SYSTEMS: dict[str, Callable[[], System]] = {"double_well": double_well, "dw4": particles}


def train(system: System, settings: Settings, seed: int) -> SteerableFlow:
    """Return a flow that has learnt a system at T = 1 by example.

    Args:
        system: what is learnt.
        settings: how.
        seed: of the flow, the batches and the momenta.
    """
    flow = steerable_flow(
        system.energy.dim,
        settings.momenta,
        settings.blocks,
        hidden=settings.hidden,
        mean=system.mean,
        std=system.std,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), settings.learning_rate)
    merges = RECOMMENDED.schedule(flow, optimizer)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps, 0.01 * settings.learning_rate)
    fit(
        lambda: by_example(flow, flow.augment(system.batch(settings.batch_size, generator), generator)),
        optimizer,
        settings.steps,
        schedules=[merges, rate],
        clip=CLIP,
    )
    return flow


@dataclass(frozen=True)
class Result:
    """What a flow says at one temperature.

    Attributes:
        raw, reweighted: free energy of b minus a (kT).
        ess, clipped_ess: effective sample size of positions and momenta, as shares.
    """

    raw: Estimate
    reweighted: Estimate
    ess: float
    clipped_ess: float


@torch.no_grad()
def evaluate(flow: SteerableFlow, system: System, temperature: float, samples: int, seed: int = 1000) -> Result:
    """Return what a flow says at a temperature, with and without weights."""
    generator = torch.Generator().manual_seed(seed)
    target = flow.joint(system.energy)
    log_w, in_b = [], []
    for n in chunks_of(samples, CHUNK):
        y, log_q = flow.sample_with_log_prob(n, generator=generator, temperature=temperature)
        log_w.append(log_weights(target(y).double() / temperature, log_q.double()))
        in_b.append(system.in_b(y[:, : flow.positions]))
    weights, inside = torch.cat(log_w), torch.cat(in_b)
    return Result(
        free_energy_difference(torch.zeros_like(weights), ~inside, inside),
        free_energy_difference(weights, ~inside, inside),
        float(ess(weights)),
        float(clipped_ess(weights)),
    )


def chunks_of(n: int, size: int) -> Iterator[int]:
    """Yield numbers that add up to n, each ``size`` but the last."""
    while n > 0:
        yield min(n, size)
        n -= size


def table_of(system: System, results: dict[float, list[Result]]) -> str:
    """Return one row for each temperature and seed, as Markdown."""
    header = ["T", "seed", "exact", "reweighted", "error of it", "raw", "error of it", "ESS %", "clipped %"]
    rows = []
    for t, of_seeds in results.items():
        exact = system.exact[t]
        truth = f"{exact.value:.3f}" if exact.error == 0 else str(exact)
        for seed, result in enumerate(of_seeds):
            cells = [f"{t:g}", seed, truth]
            for estimate in (result.reweighted, result.raw):
                cells += [estimate, f"{estimate.value - exact.value:+.3f}"]
            rows.append([*cells, f"{100 * result.ess:.1f}", f"{100 * result.clipped_ess:.1f}"])
    return table(header, rows)


def verdict(system: System, results: dict[float, list[Result]]) -> str:
    """Return in a sentence by how much the medians over the seeds miss, and the largest miss of all."""
    parts = []
    for kind in ("reweighted", "raw"):
        misses = [
            [abs(getattr(result, kind).value - system.exact[t].value) for result in of_seeds]
            for t, of_seeds in results.items()
        ]
        medians = ", ".join(f"{median(values):.3f}" for values in misses)
        parts.append(f"{kind} median {medians} (largest {max(map(max, misses)):.3f})")
    return f"Misses in kT at T = {', '.join(f'{t:g}' for t in results)}: {'; '.join(parts)}."


@command("p4lab.experiments.temperature", __doc__, systems=Names(SYSTEMS), seeds=3, steps=None, samples=None)
def main(options: argparse.Namespace) -> None:
    """Train, evaluate and print the tables."""
    torch.set_num_threads(1)
    for name in options.systems:
        system = SYSTEMS[name]()
        changes = {key: getattr(options, key) for key in ("steps", "samples") if getattr(options, key) is not None}
        settings = dataclasses.replace(system.settings, **changes)
        results: dict[float, list[Result]] = {t: [] for t in TEMPERATURES}
        seconds = []
        for seed in range(options.seeds):
            start = time.process_time()
            flow = train(system, settings, seed)
            seconds.append(time.process_time() - start)
            for t in TEMPERATURES:
                results[t].append(evaluate(flow, system, t, settings.samples))
        print(f"\n{system.name}: free energy, {system.basins}, in kT of each temperature; trained at T = 1 by example")
        print(f"{settings}; {median(seconds):.0f} CPU seconds of training per seed\n")
        print(table_of(system, results))
        print(f"\n{verdict(system, results)}", flush=True)


if __name__ == "__main__":
    main()
