"""Boltzmann generators of alanine dipeptide: train every architecture with several seeds, and print a table.

python -m p4lab.experiments.molecules --file molecules.jsonl
python -m p4lab.experiments.molecules --checkpoint alanine_flow.pt --methods spline_p4 --budgets long
"""

import argparse
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from p4lab.bench.store import Described, Result, append, perform
from p4lab.bench.tables import Runs, machine, method_table
from p4lab.command import Names, command, say
from p4lab.errors import ConfigError
from p4lab.flows.counting import trainable
from p4lab.molecules.checkpoint import save
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import Frames, Reference, load, reference, split
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.evaluate import Evaluation, evaluate
from p4lab.molecules.flow import ARCHITECTURES, molecule_flow
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.target import Examples, InternalEnergy
from p4lab.molecules.train import Stage, Training, train

RATES = {"realnvp": 1e-3, "realnvp_p4inv": 1e-3, "spline": 2e-3, "spline_p4": 2e-3}
"""Peak learning rates by architecture; those of the two RealNVPs are the same, and those of the two others."""
MERGES = {"realnvp_p4inv": 2, "spline_p4": 8}
"""Steps between two merges by architecture; for swaps 2 was the best of 1, 2, 4 and 8 on other seeds (NLL, short)."""
KINDS = ("example", "forces", "mixed")
"""Stages of a training: maximum likelihood, examples with forces, and these mixed with the energy of samples."""
REALNVP_STEPS = {"quick": (8, 5, 4), "short": (300, 400, 450), "long": (600, 1000, 1400)}
SPLINE_STEPS = {"quick": (8, 5, 4), "short": (500, 600, 700), "long": (700, 1400, 2400)}
BUDGETS = tuple(SPLINE_STEPS)
"""Steps of the stages: "short" takes up to 3 CPU minutes on one core of 2026, "long" up to 8, "quick" seconds."""
LEAST_SAMPLES = 1000
"""Fewer samples do not judge a flow."""
COLUMNS = {
    "energy shift, kJ/mol": ("energy_shift", "+.2f"),
    "below maximum %": ("below_maximum", ".2%"),
    "ESS %": ("ess", ".1%"),
    "clipped %": ("ess_clipped", ".1%"),
    "test NLL": ("test_nll", ".3f"),
    "KL(p, q)": ("test_kl", ".3f"),
    "torsion KL": ("torsion_kl", ".3f"),
    "phi > 0 %": ("phi_positive", ".2%"),
    "reweighted %": ("phi_positive_weighted", ".2%"),
    "its error": ("phi_positive_weighted_error", ".2%"),
    "CPU minutes": ("minutes", ".1f"),
}


@dataclass(frozen=True)
class MoleculeRun(Described):
    """One training run, described in full.

    Attributes:
        method: name of the architecture.
        seed: of start, batches and samples; the data's split is always the same.
        example_steps, forces_steps, mixed_steps: optimizer steps of the stages in `KINDS`.
        rate: peak learning rate; of the mixed stage, half of it.
        merge_every: steps between two merges of P4 layers; 0 where there are none.
        samples: that the flow is judged by.
    """

    method: str
    seed: int
    example_steps: int
    forces_steps: int
    mixed_steps: int
    rate: float
    merge_every: int
    samples: int

    def stages(self) -> list[Stage]:
        """Return the stages of the training, see `KINDS`; those without steps are left out."""
        steps = (self.example_steps, self.forces_steps, self.mixed_steps)
        examples, rates = {"mixed": 256}, {"mixed": self.rate / 2}
        return [
            Stage(kind, steps=number, examples=examples.get(kind, 512), rate=rates.get(kind, self.rate))
            for kind, number in zip(KINDS, steps, strict=True)
            if number
        ]


@dataclass(frozen=True)
class Problem:
    """Data, coordinates and energy of alanine dipeptide, as all runs share them.

    Attributes:
        data: all frames.
        parts: of them for training, validation and test.
        coordinates: fitted to the training frames.
        examples: the training frames in these coordinates, with forces.
        energy: OpenMM's.
        reference: of a longer simulation.
        minutes: CPU minutes that all this took; they count as part of each run.
    """

    data: Frames
    parts: tuple[Frames, Frames, Frames]
    coordinates: Coordinates
    examples: Examples
    energy: OpenMMEnergy
    reference: Reference
    minutes: float

    @classmethod
    def of(cls, data: Frames | None = None) -> "Problem":
        """Return the problem of the frames that come with p4lab, or of others."""
        start = time.process_time()
        data = load() if data is None else data
        parts = split(data)
        energy = OpenMMEnergy(temperature=data.temperature)
        coordinates = Coordinates.fit(parts[0].x.double())
        examples = Examples.of(coordinates, parts[0].x, energy)
        minutes = (time.process_time() - start) / 60
        return cls(data, parts, coordinates, examples, energy, reference(), minutes)

    def target(self) -> InternalEnergy:
        """Return the reduced energy of internal coordinates."""
        return InternalEnergy(self.coordinates, self.energy)


def fit(run: MoleculeRun, problem: Problem) -> tuple[MoleculeFlow, Training]:
    """Train one flow; return it as it trained, and what became of it."""
    flow = molecule_flow(run.method, problem.examples.y[:, 0], run.seed)
    validation = problem.coordinates.encode(problem.parts[1].x.double())[0].float()
    target, stages = problem.target(), run.stages()
    return flow, train(flow, problem.examples, target, stages, validation, run.seed, merge_every=run.merge_every)


def judged(run: MoleculeRun, problem: Problem) -> tuple[Result, Training]:
    """Train and judge one flow; return figures by name, and the training."""
    flow, training = fit(run, problem)
    figures: Evaluation = evaluate(
        training.flow,
        problem.coordinates,
        problem.energy,
        problem.data,
        problem.parts[2],
        run.samples,
        problem.reference,
        seed=10_000 + run.seed,
    )
    more = {
        "parameters": trainable(flow),
        "steps": len(training.records),
        "skipped": sum(not record.taken for record in training.records),
        "minutes": training.minutes + problem.minutes,
        "reason": training.reason,
    }
    return {**vars(figures), **more}, training


def entropy(runs: Iterable[Mapping[str, Any]]) -> float:
    """Return the entropy of the test frames' distribution (nats) as the run with the largest ESS estimates it.

    What a flow with a small ESS makes of it depends on a few weights.
    """
    best = max(runs, key=lambda run: float(run["ess"]))
    return float(best["test_nll"] - best["test_kl"])


def table(results: Mapping[str, Runs], of_frames: float) -> str:
    """Return one row for each method, medians [min, max] over seeds.

    Args:
        results: figures of the runs of each method.
        of_frames: entropy of the test frames' distribution: what their likelihood is above it is the divergence.
    """
    rows = {
        method: [{**run, "test_kl": run["test_nll"] - of_frames} for run in runs] for method, runs in results.items()
    }
    return method_table(rows, COLUMNS, lambda run: bool(run["reason"]))


@command(
    "p4lab.experiments.molecules",
    __doc__,
    {"seeds": 1, "samples": LEAST_SAMPLES, "budgets": ("quick",)},
    methods=Names(ARCHITECTURES),
    seeds=3,
    budgets=Names(BUDGETS, ("short", "long")),
    samples=50_000,
    file=None,
    save=None,
)
def main(options: argparse.Namespace) -> None:
    """Run what is missing and print the table; with a checkpoint, the first method with the first seed alone."""
    torch.set_num_threads(1)
    budgets = runs_for(options)
    if options.save:
        budgets = {budget: runs[:1] for budget, runs in budgets.items()}
    problem = lru_cache(Problem.of)

    def work(run: MoleculeRun) -> Result:
        result, training = judged(run, problem())
        if options.save:
            loss = save(options.save, training.flow, run.method, problem().coordinates, result)
            say(f"saved {options.save}; storage moved log q by {loss:.4f} nats (root mean square)")
            if options.file:
                append(options.file, run, result)
        return result

    everything = [run for runs in budgets.values() for run in runs]
    results = perform(everything, work, summary, None if options.save else options.file)
    print(machine())
    for budget, runs in budgets.items():
        by_method: dict[str, list[Result]] = {}
        for run in runs:
            by_method.setdefault(run.method, []).append(results[run.key()])
        print(f"\n{budget}\n\n{table(by_method, entropy(results.values()))}")
    truth = reference()
    print(f"\nReference: phi > 0 {truth.phi_positive:.2%} ± {truth.phi_positive_error:.2%} ({truth.provenance}).")


def runs_for(options: argparse.Namespace) -> dict[str, list[MoleculeRun]]:
    """Return by budget the runs that the options ask for: all methods with the first seed, then with the next one.

    Raises:
        ConfigError: too few samples.
    """
    if options.samples < LEAST_SAMPLES:
        raise ConfigError(f"--samples {options.samples}: expected at least {LEAST_SAMPLES}")
    return {
        budget: [
            MoleculeRun(method, seed, *_steps(method, budget), RATES[method], MERGES.get(method, 0), options.samples)
            for seed in range(options.seeds)
            for method in options.methods
        ]
        for budget in options.budgets
    }


def _steps(method: str, budget: str) -> tuple[int, int, int]:
    return (REALNVP_STEPS if method.startswith("realnvp") else SPLINE_STEPS)[budget]


def summary(run: MoleculeRun, result: Result) -> str:
    """Return a line about a finished run."""
    early = f", ended early: {result['reason']}" * bool(result["reason"])
    return (
        f"{run.method} seed {run.seed}: ESS {result['ess']:.1%}, energy {result['energy_shift']:+.2f} kJ/mol, "
        f"{result['minutes']:.1f} min{early}"
    )


if __name__ == "__main__":
    main()
