"""Boltzmann generators of molecules: train every architecture with several seeds, and print a table.

python -m p4lab.experiments.molecules --file molecules.jsonl
python -m p4lab.experiments.molecules --checkpoint alanine_flow.pt --methods spline_p4 --budgets long
python -m p4lab.experiments.molecules --molecules A+AA+AAA --nanoseconds 2 --ways example+energy --budgets sized

Without more it is alanine dipeptide, whose frames come with p4lab. Others are simulated first, by replica exchange
(into a folder of ``--folder``, if given). Flows learn by example, from these frames and from the energy, or by energy
alone, cooled from 1200 K; then the frames are there to judge them only.
"""

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from p4lab.bench.store import Described, Result, append, perform, read
from p4lab.bench.tables import Runs, machine, method_table
from p4lab.command import Names, command, say
from p4lab.errors import ConfigError
from p4lab.files import writable
from p4lab.flows.counting import trainable
from p4lab.molecules.checkpoint import save
from p4lab.molecules.cooling import Cooling, cool
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import reference, simulate
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.evaluate import Evaluation, evaluate
from p4lab.molecules.flow import ARCHITECTURES, molecule_flow
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.problem import Problem
from p4lab.molecules.train import Record, Stage, Training, train

RATES = {"realnvp": 1e-3, "realnvp_p4inv": 1e-3, "spline": 2e-3, "spline_p4": 2e-3}
"""Peak learning rates by architecture; those of the two RealNVPs are the same, and those of the two others."""
MERGES = {"realnvp_p4inv": 2, "spline_p4": 8}
"""Steps between two merges by architecture; for swaps 2 was the best of 1, 2, 4 and 8 on other seeds (NLL, short)."""
KINDS = ("example", "forces", "mixed")
"""Stages of a training: maximum likelihood, examples with forces, and these mixed with the energy of samples."""


@dataclass(frozen=True)
class Budget:
    """What a training may take.

    Attributes:
        realnvp, spline: steps of the stages in `KINDS`, by the couplings of the flow.
        cooling: the training by energy alone.
    """

    realnvp: tuple[int, int, int]
    spline: tuple[int, int, int]
    cooling: Cooling


BUDGETS = {
    "quick": Budget(
        (8, 5, 4),
        (8, 5, 4),
        Cooling(levels=2, first_steps=8, steps=5, last_steps=4, candidates=500, samples=32, examples=32),
    ),
    "short": Budget((300, 400, 450), (500, 600, 700), Cooling(levels=4, first_steps=500, steps=250)),
    "long": Budget((600, 1000, 1400), (700, 1400, 2400), Cooling()),
    "longer": Budget(
        (600, 1000, 6000),
        (700, 1400, 8000),
        Cooling(levels=7, first_steps=1500, steps=200, last_steps=400, rounds=8, candidates=60_000),
    ),
    "longest": Budget(
        (600, 1000, 15_000),
        (700, 1400, 20_000),
        Cooling(levels=7, first_steps=1500, steps=200, last_steps=400, rounds=24, candidates=60_000),
    ),
}
"""Steps of the stages: "short" takes up to 3 CPU minutes on one core of 2026 for alanine dipeptide, "long" up to 8,
"quick" seconds; the others are for larger molecules."""
WAYS = ("example", "energy")
"""What flows learn from: frames and the energy, or the energy alone."""
ALANINE = "A"
"""The molecule whose frames and reference come with p4lab."""
ITS_ATOMS = 22
"""So many atoms it has, which is known without OpenMM."""
SIZED = {ITS_ATOMS: "long", 32: "longer", math.inf: "longest"}
"""The budget "sized", by the largest number of atoms: alanine dipeptide has 22, two residues have 32, three 42."""
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
    "energies": ("evaluations", ".2g"),
    "CPU minutes": ("minutes", ".1f"),
}


@dataclass(frozen=True)
class MoleculeRun(Described):
    """One training run, described in full.

    Attributes:
        method: name of the architecture.
        seed: of start, batches and samples; the data's split is always the same.
        example_steps, forces_steps, mixed_steps: optimizer steps of the stages in `KINDS`; 0 in a training by energy.
        rate: peak learning rate; of the mixed stage, half of it.
        merge_every: steps between two merges of P4 layers; 0 where there are none.
        samples: that the flow is judged by.
        molecule: a sequence, or a PDB file with its `Molecule.digest`.
        nanoseconds: of the simulation that made the frames; 0 for those that come with p4lab.
        cooling: how it learns by energy alone (None: by example).
    """

    method: str
    seed: int
    example_steps: int
    forces_steps: int
    mixed_steps: int
    rate: float
    merge_every: int
    samples: int
    molecule: str = ALANINE
    nanoseconds: float = 0.0
    cooling: Cooling | None = None

    @property
    def label(self) -> str:
        """The row of its table."""
        molecule = f"{self.molecule}, " * (self.molecule != ALANINE)
        return molecule + self.method + ", by energy alone" * (self.cooling is not None)

    @property
    def steps(self) -> int:
        """Optimizer steps, if it does not end early."""
        if self.cooling is None:
            return self.example_steps + self.forces_steps + self.mixed_steps
        return self.cooling.all_steps

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
class Trained:
    """What came of a training.

    Attributes:
        flow: as it trained.
        training: what became of it.
        coordinates: what the flow is a density of.
        evaluations: energies that it took; those of a simulation, from which frames come, are not among them.
    """

    flow: MoleculeFlow
    training: Training
    coordinates: Coordinates
    evaluations: int


def fit(run: MoleculeRun, problem: Problem) -> Trained:
    """Train one flow, by example or by energy alone."""
    if run.cooling:
        molecule, temperature = problem.coordinates.molecule, problem.data.temperature
        cooled = cool(molecule, temperature, run.cooling, run.method, run.seed, on_record=_minutely(run))
        training = Training(cooled.flow, cooled.records, [], cooled.minutes, cooled.reason)
        return Trained(cooled.trained, training, cooled.coordinates, cooled.evaluations)
    flow = molecule_flow(run.method, problem.examples.y[:, 0], run.seed, problem.coordinates.circular)
    validation = problem.coordinates.encode(problem.parts[1].x.double())[0].float()
    before = problem.energy.evaluations
    target, stages = problem.target(), run.stages()
    training = train(flow, problem.examples, target, stages, validation, run.seed, _minutely(run), run.merge_every)
    training.minutes += problem.minutes
    return Trained(flow, training, problem.coordinates, len(problem.examples) + problem.energy.evaluations - before)


def _minutely(run: MoleculeRun) -> Callable[[Record], None]:
    """Return what says after each CPU minute how far a training is."""
    told = 0.0

    def tell(record: Record) -> None:
        nonlocal told
        if record.minutes >= told + 1:
            told = record.minutes
            step = f"step {record.step} of {run.steps}"
            say(f"{run.label}, seed {run.seed}: {step}, {told:.0f} min, {record.loss:.2f} nats")

    return tell


def judged(run: MoleculeRun, problem: Problem) -> tuple[Result, Trained]:
    """Train and judge one flow; return figures by name, and the training."""
    trained = fit(run, problem)
    training = trained.training
    figures: Evaluation = evaluate(
        training.flow,
        trained.coordinates,
        problem.energy,
        problem.data,
        problem.parts[2],
        run.samples,
        problem.reference,
        seed=10_000 + run.seed,
    )
    more = {
        "parameters": trainable(trained.flow),
        "steps": len(training.records),
        "skipped": sum(not record.taken for record in training.records),
        "evaluations": trained.evaluations,
        "minutes": training.minutes,
        "reason": training.reason,
    }
    return {**vars(figures), **more}, trained


def entropy(runs: Iterable[Mapping[str, Any]]) -> float:
    """Return the entropy of the test frames' distribution (nats) as the run with the largest ESS estimates it.

    What a flow with a small ESS makes of it depends on a few weights.
    """
    best = max(runs, key=lambda run: float(run["ess"]))
    return float(best["test_nll"] - best["test_kl"])


def table(results: Mapping[str, Runs]) -> str:
    """Return one row for each method, medians [min, max] over seeds."""
    return method_table(results, COLUMNS, lambda run: bool(run["reason"]))


@command(
    "p4lab.experiments.molecules",
    __doc__,
    {"seeds": 1, "samples": LEAST_SAMPLES, "budgets": ("quick",), "nanoseconds": 0.05},
    methods=Names(ARCHITECTURES),
    seeds=3,
    budgets=Names((*BUDGETS, "sized"), ("short", "long")),
    ways=Names(WAYS, ("example",)),
    samples=50_000,
    molecules=ALANINE,
    nanoseconds=4.0,
    folder=None,
    file=None,
    known=False,
    save=None,
)
def main(options: argparse.Namespace) -> None:
    """Run what is missing and print the table; with a checkpoint, the first method with the first seed alone.

    Raises:
        ConfigError: what is known is asked for without a file.
    """
    torch.set_num_threads(1)
    budgets = runs_for(options)
    if options.known:
        if options.file is None:
            raise ConfigError("--known without --file: say which file")
        done = read(options.file)
        budgets = {budget: [run for run in runs if run.key() in done] for budget, runs in budgets.items()}
    if options.save:
        writable(options.save, folders=True)
        budgets = {budget: runs[:1] for budget, runs in budgets.items()}

    @lru_cache
    def problem(molecule: str) -> Problem:
        return problem_of(molecule.rpartition(", ")[0] or molecule, options.nanoseconds, options.folder)

    def work(run: MoleculeRun) -> Result:
        result, trained = judged(run, problem(run.molecule))
        if options.save:
            loss = save(options.save, trained.training.flow, run.method, trained.coordinates, result)
            say(f"saved {options.save}; storage moved log q by {loss:.4f} nats (root mean square)")
            if options.file:
                append(options.file, run, result)
        return result

    everything = [run for runs in budgets.values() for run in runs]
    results = perform(everything, work, summary, None if options.save else options.file)
    print(machine())
    report(budgets, results)


def report(budgets: Mapping[str, Iterable[MoleculeRun]], results: Mapping[str, Result]) -> None:
    """Print a table for each budget, of runs whose results are found by their keys."""
    of_molecule: dict[str, list[Result]] = {}
    for run in itertools.chain.from_iterable(budgets.values()):
        of_molecule.setdefault(run.molecule, []).append(results[run.key()])
    entropies = {molecule: entropy(some) for molecule, some in of_molecule.items()}
    title = ", ".join("Alanine dipeptide" if molecule == ALANINE else molecule for molecule in entropies)
    for budget, runs in budgets.items():
        rows: dict[str, list[Result]] = {}
        for run in runs:
            result = results[run.key()]
            divergence = result["test_nll"] - entropies[run.molecule]
            rows.setdefault(run.label, []).append({**result, "test_kl": divergence})
        print(f"\n### {title}, {budget}\n\n{table(rows)}")
    if ALANINE in entropies:
        truth = reference()
        print(f"\nReference: phi > 0 {truth.phi_positive:.2%} ± {truth.phi_positive_error:.2%} ({truth.provenance}).")


def molecules_of(text: str) -> dict[str, int]:
    """Return the atoms of the sequences and PDB files that are joined by +, by what runs call them.

    Raises:
        MoleculeError: something is none.
    """
    return dict(map(_known, text.split("+")))


def _known(name: str) -> tuple[str, int]:
    if name == ALANINE:
        return name, ITS_ATOMS
    molecule = Molecule.named(name)
    return f"{name}, {molecule.digest}" if name.lower().endswith(".pdb") else name, len(molecule)


def problem_of(molecule: str, nanoseconds: float, folder: Path | None) -> Problem:
    """Return the problem of a molecule by its sequence or PDB file; other frames than alanine's are simulated.

    Args:
        molecule: see `Molecule.named`.
        nanoseconds: of the simulation.
        folder: where it is kept, in a folder of its name.
    """
    if molecule == ALANINE:
        return Problem.of()
    made = Molecule.named(molecule)
    return Problem.of(simulate(made, nanoseconds, folder and folder / Path(molecule).stem), made)


def runs_for(options: argparse.Namespace) -> dict[str, list[MoleculeRun]]:
    """Return by budget the runs that the options ask for: all methods with the first seed, then with the next one.

    Raises:
        ConfigError: too few samples.
    """
    if options.samples < LEAST_SAMPLES:
        raise ConfigError(f"--samples {options.samples}: expected at least {LEAST_SAMPLES}")
    molecules = molecules_of(options.molecules)
    return {
        budget: [
            MoleculeRun(
                method,
                seed,
                *(_steps(method, _budget(budget, atoms)) if way == "example" else (0, 0, 0)),
                RATES[method],
                MERGES.get(method, 0),
                options.samples,
                molecule,
                0.0 if molecule == ALANINE else options.nanoseconds,
                None if way == "example" else _cooling(method, _budget(budget, atoms)),
            )
            for seed in range(options.seeds)
            for molecule, atoms in molecules.items()
            for way in options.ways
            for method in options.methods
        ]
        for budget in options.budgets
    }


def _budget(name: str, atoms: int) -> Budget:
    if name == "sized":
        name = next(budget for most, budget in SIZED.items() if atoms <= most)
    return BUDGETS[name]


def _cooling(method: str, budget: Budget) -> Cooling:
    cooling = budget.cooling
    return replace(cooling, rate=RATES[method], merge_every=MERGES.get(method, cooling.merge_every))


def _steps(method: str, budget: Budget) -> tuple[int, int, int]:
    return budget.realnvp if method.startswith("realnvp") else budget.spline


def summary(run: MoleculeRun, result: Result) -> str:
    """Return a line about a finished run."""
    early = f", ended early: {result['reason']}" * bool(result["reason"])
    return (
        f"{run.label}, seed {run.seed}: ESS {result['ess']:.1%}, energy {result['energy_shift']:+.2f} kJ/mol, "
        f"{result['minutes']:.1f} min{early}"
    )


if __name__ == "__main__":
    main()
