"""Free energies at several temperatures from flows that have seen data of T = 1 only.

    python -m p4lab.experiments.temperature                    # both systems, all methods, 3 seeds
    python -m p4lab.experiments.temperature --systems double_well --methods steered --seeds 1

"steered" flows have a constant determinant, and their temperature is that of their prior; all others read log T as a
context. Of these "trade" learns T = 1 by example and is made consistent in T (`p4lab.boltzmann.by_consistency`), and
"energy" learns T = 1 by example and all other temperatures by energy. The particles (DW4) are learnt as they lie
("steered"), and as shapes: without their centre and rotation, and averaged over permutations and reflections
("shapes", which is steered, "trade" and "energy").

The double well is compared with quadrature, the particles with a replica-exchange run of their own. Prints Markdown;
the same seeds give the same numbers on the same machine.
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from p4lab.bench.tables import median, table
from p4lab.boltzmann import (
    Estimate,
    GroupAverage,
    SteerableFlow,
    Steered,
    TemperedFlow,
    by_example,
    clipped_ess,
    ess,
    free_energy_difference,
    log_weights,
    of_temperature,
    representatives,
    spread_out,
    steerable_flow,
    widening,
)
from p4lab.command import Names, command, say
from p4lab.fit import Fit, fit
from p4lab.flows.latent import LatentDensity
from p4lab.molecules.flow import spline_flow
from p4lab.p4 import RECOMMENDED
from p4lab.problems.energies import DoubleWell, Energy
from p4lab.problems.particles import DoubleWellParticles, metropolis
from p4lab.problems.planar import PlanarShapes, ShapeEnergy

TEMPERATURES = (0.5, 1.0, 2.0)
"""Temperatures at which free energies are told; flows that read a temperature train between the outer ones."""
LADDER = (0.5, 0.6, 0.72, 0.86, 1.0, 1.2, 1.45, 1.7, 2.0)
"""Temperatures of the replicas that simulate the particles."""
REFERENCE_STEPS, KEEP_EVERY = 40_000, 40
"""Length of that simulation, and steps between two frames of it."""
CHUNK = 10_000
"""Samples that are drawn from a flow at a time."""
CLIP = 10.0
"""Largest norm of a gradient, as of the flow of alanine dipeptide."""
FIRST = 4000
"""Points that flows of shapes and splines take their first centre and widths from."""
THRESHOLD = 100.0
"""Energies (nats) above it are compressed where a flow learns by energy."""


@dataclass(frozen=True)
class Settings:
    """How a flow is built and trained.

    Attributes:
        kind: "steered", "trade" or "energy".
        momenta, blocks, hidden: of `steerable_flow`; of the others, which have no momenta, of splines.
        steps, batch_size, learning_rate: of Adam; the learning rate falls to a hundredth along a cosine.
        drawn: samples of the flow in each step; steered ones draw none.
        samples: of the flow at each temperature.
    """

    kind: str = "steered"
    momenta: int = 2
    blocks: int = 8
    hidden: int = 32
    steps: int = 3000
    batch_size: int = 512
    learning_rate: float = 5e-3
    drawn: int = 128
    samples: int = 1_000_000


@dataclass(frozen=True)
class View:
    """The coordinates in which a flow sees a system.

    Attributes:
        energy: u.
        batch: draws training data of T = 1: size and generator to shape (size, d).
        in_b: which points lie in basin b.
        images: what permutations and reflections make of points (None: nothing).
    """

    energy: Energy
    batch: Callable[[int, torch.Generator], Tensor]
    in_b: Callable[[Tensor], Tensor]
    images: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class System:
    """What is learnt.

    Attributes:
        name: heading.
        basins: what a and b are.
        exact: free energy of b minus a in kT, by temperature.
        methods: what a flow sees, and the settings that suit it, by the name of the method.
    """

    name: str
    basins: str
    exact: dict[float, Estimate]
    methods: dict[str, tuple[View, Settings]]


TEMPERED = Settings("energy", 0, 4, 64, 500, 256, 3e-3, 64, 40_000)
"""Of splines that read log T."""


def double_well() -> System:
    """Return the double well, with quadrature for the truth."""
    truth = DoubleWell()
    exact = {t: Estimate(truth.free_energy_difference(t), 0.0) for t in TEMPERATURES}

    def batch(size: int, generator: torch.Generator) -> Tensor:
        return truth.sample(size, generator).float()

    view = View(truth, batch, truth.in_b)
    tempered = dataclasses.replace(TEMPERED, steps=1500, drawn=256, samples=1_000_000)
    methods = {
        "steered": (view, Settings()),
        "trade": (view, dataclasses.replace(tempered, kind="trade")),
        "energy": (view, tempered),
    }
    return System("Double well", "right − left", exact, methods)


def particles() -> System:
    """Return four particles in the plane (DW4), with replica exchange for the data and the truth."""
    energy, shapes = DoubleWellParticles(4), PlanarShapes(4)
    generator = torch.Generator().manual_seed(0)
    start = 3 * torch.randn(500, energy.dim, generator=generator, device="cpu")
    run = metropolis(energy, start, REFERENCE_STEPS, generator, LADDER, 0.35, KEEP_EVERY)
    frames = run.x[len(run.x) // 10 :]

    def is_open(x: Tensor) -> Tensor:
        """Return whether four or more of the six pairs are at the short distance."""
        return (energy.distances(x) < energy.distance).sum(-1) >= 4

    exact = {}
    for t in TEMPERATURES:
        # Walkers are independent of each other, frames of one walker are not: so blocks are made of walkers.
        in_b = is_open(frames[:, LADDER.index(t)].transpose(0, 1).reshape(-1, energy.dim))
        exact[t] = free_energy_difference(torch.zeros(len(in_b)), ~in_b, in_b)
    data = frames[:, LADDER.index(1.0)].reshape(-1, energy.dim)

    def batch_of(x: Tensor) -> Callable[[int, torch.Generator], Tensor]:
        return lambda size, generator: x[torch.randint(len(x), (size,), generator=generator, device="cpu")]

    whole = View(energy, batch_of(data), is_open)
    of_shapes = batch_of(shapes.encode(data))
    shape = View(ShapeEnergy(energy, shapes), of_shapes, lambda f: is_open(shapes.decode(f)[0]), shapes.images)
    plain = Settings(momenta=4, blocks=16, hidden=64, learning_rate=2e-3, samples=400_000)
    methods = {
        "steered": (whole, plain),
        "shapes": (shape, Settings("steered", 3, 8, 48, 1500, 256, 3e-3, samples=40_000)),
        "trade": (shape, dataclasses.replace(TEMPERED, kind="trade")),
        "energy": (shape, TEMPERED),
    }
    return System("Four particles (DW4)", "≥ 4 − ≤ 3 short pairs", exact, methods)


SYSTEMS: dict[str, Callable[[], System]] = {"double_well": double_well, "dw4": particles}
METHODS = ("steered", "shapes", "trade", "energy")
"""Names of the methods of all systems."""


def build(view: View, settings: Settings, seed: int) -> tuple[LatentDensity | TemperedFlow, Steered]:
    """Return a flow at its start, and the density that it stands for: itself, or its average over images."""
    first = view.batch(FIRST, torch.Generator().manual_seed(0)).double()
    if view.images is not None:
        first = representatives(view.images(first))
    flow: LatentDensity | TemperedFlow
    if settings.kind == "steered":
        sizes = view.energy.dim, settings.momenta, settings.blocks
        flow = steerable_flow(*sizes, hidden=settings.hidden, mean=first.mean(0), std=first.std(0), seed=seed)
    else:
        kind: dict[str, Any] = {"bins": (8,), "rank": RECOMMENDED.rank, "tempered": True}
        flow = TemperedFlow(spline_flow(first, 0, "p4inv", seed, settings.blocks, settings.hidden, **kind))
    return flow, flow if view.images is None else GroupAverage(flow, view.images, view.energy.dim)


def train(view: View, settings: Settings, seed: int) -> Steered:
    """Return a density with a dial that has learnt a system from data of T = 1 and energies.

    Args:
        view: what is learnt.
        settings: how.
        seed: of the flow, the batches, momenta and samples.
    """
    flow, model = build(view, settings, seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(flow.parameters(), settings.learning_rate)
    step = 0

    def loss() -> Tensor:
        nonlocal step
        y = view.batch(settings.batch_size, generator)
        if isinstance(flow, SteerableFlow):
            y = flow.augment(y, generator)
        if isinstance(model, GroupAverage):
            y = model.drawn(y, generator)
        total = by_example(flow, y)
        if settings.kind == "steered":
            return total
        step += 1
        # Consistency spreads from T = 1: the temperatures that are asked for do so, too, in the first half.
        reach = widening(step, settings.steps) if settings.kind == "trade" else 1.0
        t = spread_out(step, TEMPERATURES[0], TEMPERATURES[-1], reach)
        return total + of_temperature(settings.kind, model, view.energy, t, settings.drawn, generator, THRESHOLD)

    def rate(now: Fit) -> float:
        return settings.learning_rate * (0.01 + 0.99 * math.cos(math.pi / 2 * now.progress) ** 2)

    merges = RECOMMENDED.schedule(flow, optimizer)
    fit(loss, optimizer, settings.steps, schedules=[merges], rate=rate, clip=CLIP, not_finite="skip")
    return model


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
def evaluate(model: Steered, view: View, temperature: float, samples: int, seed: int = 1000) -> Result:
    """Return what a density says at a temperature, with and without weights."""
    generator = torch.Generator().manual_seed(seed)
    log_w, in_b = [], []
    for n in chunks_of(samples, CHUNK):
        y, log_q = model.sample_with_log_prob(n, generator=generator, temperature=temperature)
        x, momenta = y.split((view.energy.dim, y.shape[1] - view.energy.dim), 1)
        u = view.energy(x).double() + 0.5 * momenta.double().square().sum(-1)
        log_w.append(log_weights(u / temperature, log_q.double()))
        in_b.append(view.in_b(x))
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


Results = dict[str, dict[float, list[Result]]]
"""Of each method and temperature, for each seed."""


def table_of(system: System, results: Results) -> str:
    """Return one row for each temperature, method and seed, as Markdown."""
    header = ["T", "method", "seed", "exact", "reweighted", "reweighted − exact", "raw", "raw − exact"]
    rows = []
    for t, exact in system.exact.items():
        truth = f"{exact.value:.3f}" if exact.error == 0 else str(exact)
        for method, of_temperatures in results.items():
            for seed, result in enumerate(of_temperatures[t]):
                cells = [f"{t:g}", method, seed, truth]
                for estimate in (result.reweighted, result.raw):
                    cells += [estimate, f"{estimate.value - exact.value:+.3f}"]
                rows.append([*cells, f"{100 * result.ess:.1f}", f"{100 * result.clipped_ess:.1f}"])
    return table([*header, "ESS %", "clipped %"], rows)


def verdict(system: System, results: dict[float, list[Result]]) -> str:
    """Return in a sentence by how much the medians of a method over the seeds miss, and the largest miss of all."""
    parts = []
    for kind in ("reweighted", "raw"):
        misses = [
            [abs(getattr(result, kind).value - system.exact[t].value) for result in of_seeds]
            for t, of_seeds in results.items()
        ]
        medians = ", ".join(f"{median(values):.3f}" for values in misses)
        parts.append(f"{kind} median {medians} (largest {max(map(max, misses)):.3f})")
    return f"Misses in kT at T = {', '.join(f'{t:g}' for t in results)}: {'; '.join(parts)}."


@command(
    "p4lab.experiments.temperature",
    __doc__,
    systems=Names(SYSTEMS),
    methods=Names(METHODS),
    seeds=3,
    steps=None,
    samples=None,
)
def main(options: argparse.Namespace) -> None:
    """Train, evaluate and print the tables."""
    torch.set_num_threads(1)
    changes = {key: getattr(options, key) for key in ("steps", "samples") if getattr(options, key) is not None}
    for name in options.systems:
        system, results, said = SYSTEMS[name](), Results(), list[str]()
        for method in (method for method in options.methods if method in system.methods):
            view, settings = system.methods[method]
            settings = dataclasses.replace(settings, **changes)
            results[method], seconds = {t: [] for t in TEMPERATURES}, []
            for seed in range(options.seeds):
                start = time.process_time()
                model = train(view, settings, seed)
                seconds.append(time.process_time() - start)
                for t in TEMPERATURES:
                    results[method][t].append(evaluate(model, view, t, settings.samples))
            line = (
                f"{method}: {verdict(system, results[method])} {median(seconds):.0f} CPU seconds of training per seed; "
            )
            said.append(f"{line}{settings}")
            say(said[-1])
        heading = f"{system.name}: free energy, {system.basins}, in kT of each temperature; data of T = 1 only"
        print(f"\n### {heading}\n\n{table_of(system, results)}\n\n" + "\n\n".join(said), flush=True)


if __name__ == "__main__":
    main()
