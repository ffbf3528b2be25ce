"""Race recurrent networks with orthogonal weights on memory tasks, each with its own best rates and the same time."""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from p4lab.bench.tables import machine, median, spread, table
from p4lab.command import Names, command, say
from p4lab.errors import TrainingError
from p4lab.problems.recurrent import CELLS
from p4lab.problems.sequences import TASKS
from p4lab.training import Engine
from p4lab.training.rnn import P4, TARGET, Choice, RnnConfig, known, rnn_lane, rnn_race

RATES = (1e-3, 3e-3, 1e-2)
FACTORS = (0.1, 1.0)
"""The grid, the same for all: Adam's rate, and that of the recurrent weights as a multiple of it."""
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.thread_time}
"""What tells the seconds; on a busy machine, those of the processor are the ones that repeat."""
SEED = 1000
"""The seed of tuning; the reported runs have others."""
COLUMNS = (
    "weights",
    "rate, × recurrent",
    "reached",
    "s to target",
    "steps to target",
    "best loss / baseline",
    "at equal steps",
    "steps",
    "ms/step",
    "max abs(Q^T Q - I)",
)


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        reached: seconds of training until the test loss was below the target; infinite if it never was.
        reached_steps: optimizer steps until then.
        best: lowest test loss, as a share of the baseline.
        steps: optimizer steps done.
        seconds: that they took.
        violation: largest ``max |W^T W - I|`` at a measurement.
        curve: steps and test losses as shares of the baseline.
    """

    reached: float
    reached_steps: float
    best: float
    steps: int
    seconds: float
    violation: float
    curve: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

    def at(self, step: float) -> float:
        """Return the lowest test loss up to a step, as a share of the baseline."""
        steps, losses = self.curve
        return float(np.nanmin(losses[steps <= step], initial=math.inf))


def outcome(lane: Engine) -> Outcome:
    """Return how the run of a lane ended."""
    measures = lane.records.measures.columns
    steps = np.array(measures["step"])
    losses = np.array(measures["test_loss"]) / lane.problem.baseline
    seconds = np.concatenate([[0.0], lane.records.steps.columns["seconds"]])
    below = np.flatnonzero(losses < TARGET)
    first = int(steps[below[0]]) if len(below) else None
    return Outcome(
        reached=math.inf if first is None else float(seconds[first]),
        reached_steps=math.inf if first is None else first,
        best=float(np.nanmin(losses)),
        steps=lane.step,
        seconds=lane.seconds,
        violation=float(np.nanmax(measures["residual"])),
        curve=(steps, losses),
    )


def trial(config: RnnConfig, cell: str, choice: Choice, seconds: float, clock: str) -> tuple[bool, float]:
    """Train until the target is reached or time is over; return a merit, the smaller the better.

    The merit is whether the target was missed, then the seconds it took, or else the lowest loss.
    """
    lane = rnn_lane(config.replace(seed=SEED, measure_every=5), cell, choice, CLOCKS[clock])
    try:
        while lane.seconds < seconds:
            lane.run(5)
            if lane.records.measures.columns["test_loss"][-1] < TARGET * lane.problem.baseline:
                return False, lane.seconds
    except TrainingError:  # it diverged
        pass
    return True, float(np.nanmin(lane.records.measures.columns["test_loss"]))


def tune(config: RnnConfig, cell: str, seconds: float, clock: str) -> Choice:
    """Return the choice of the grid with the least merit, see `trial`."""
    grid = [Choice(rate, factor) for rate in RATES for factor in FACTORS]
    merits = [trial(config, cell, choice, seconds, clock) for choice in grid]
    best = grid[merits.index(min(merits))]
    say(f"{config.task}: {cell} tuned, {best}")
    return best


def compare(config: RnnConfig, cells: Sequence[str], seeds: Sequence[int], tuning: float, clock: str = "wall") -> str:
    """Tune every kind of weights, race all of them with each seed, and return a Markdown table.

    Args:
        config: task, width, seconds of training.
        cells: names of `CELLS`.
        seeds: of the reported races.
        tuning: seconds for each trial; 0 takes the rates that are known.
        clock: one of `CLOCKS`.
    """
    choices = {cell: tune(config, cell, tuning, clock) if tuning else known(config.task, cell) for cell in cells}
    runs: dict[str, list[Outcome]] = {cell: [] for cell in cells}
    for seed in seeds:
        race = rnn_race(config.replace(seed=seed), cells, choices, CLOCKS[clock])
        while not race.finished:
            race.run()
        for cell, lane in race.engines.items():
            runs[cell].append(outcome(lane))
        say(f"{config.task}: seed {seed} done")
    common = [min(runs[cell][i].steps for cell in cells) for i in range(len(seeds))]
    rows = [_row(cell, choices[cell], runs[cell], common) for cell in cells]
    return f"{table(COLUMNS, rows)}\n\n{verdict(runs)}"


def _row(cell: str, choice: Choice, runs: Sequence[Outcome], common: Sequence[int]) -> list[object]:
    return [
        CELLS[cell].label,
        choice,
        f"{sum(run.reached < math.inf for run in runs)}/{len(runs)}",
        spread([run.reached for run in runs], ".2f", "–"),
        spread([run.reached_steps for run in runs], ".0f", "–"),
        spread([run.best for run in runs], ".4f", "–"),
        f"{median(run.at(step) for run, step in zip(runs, common, strict=True)):.4f}",
        f"{median(run.steps for run in runs):.0f}",
        f"{median(1e3 * run.seconds / max(1, run.steps) for run in runs):.1f}",
        f"{max(run.violation for run in runs):.0e}",
    ]


def verdict(outcomes: dict[str, list[Outcome]]) -> str:
    """Return a sentence on who was first at the target, and how far from it P4Orthogonal was."""
    times = {cell: median(run.reached for run in runs) for cell, runs in outcomes.items()}
    first = min(times, key=lambda cell: times[cell])
    if math.isinf(times[first]):
        return "None reached the target in time (median over seeds)."
    text = f"First at the target: {CELLS[first].label}, {times[first]:.2f} s (median over seeds)."
    rivals = {cell: time for cell, time in times.items() if CELLS[cell].orthogonal and cell != P4}
    if P4 not in times or not rivals:
        return text
    best = min(rivals, key=lambda cell: rivals[cell])
    if math.isinf(times[P4]):
        return f"{text} P4Orthogonal did not get there in time."
    took = "not in time" if math.isinf(rivals[best]) else f"{rivals[best] / times[P4]:.2f} × the time of P4Orthogonal"
    return f"{text} Best other orthogonal one: {CELLS[best].label}, {took}."


@command(
    "p4lab.experiments.recurrent",
    __doc__,
    {"seconds": 1.0, "tuning": 0.0, "seeds": 1},
    tasks=Names(TASKS),
    cells=Names(CELLS),
    dim=256,
    delay=100,
    batch=16,
    seconds=9.0,
    tuning=4.0,
    seeds=3,
    clock=Names(CLOCKS, "wall", one=True),
)
def main(options: argparse.Namespace) -> None:
    """Tune, race, and print a table for each task."""
    shared = RnnConfig(
        dim=options.dim, delay=options.delay, batch_size=options.batch, budget=options.seconds, turn=100.0
    )
    torch.set_num_threads(1)  # as in training
    print(machine())
    for config in (shared.replace(task=task) for task in options.tasks):
        print(
            f"\n### {config.task}, T = {config.delay}, d = {config.dim}, batch {config.batch_size}, "
            f"{config.budget:g} s of training each ({options.clock} time, one thread); "
            f"target: {TARGET:g} of the best loss without memory\n"
        )
        print(compare(config, options.cells, range(options.seeds), options.tuning, options.clock), flush=True)


if __name__ == "__main__":
    main()
