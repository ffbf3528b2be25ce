"""Who is ahead in a race of recurrent networks, and what each kind of weights costs."""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np

from p4lab.problems.recurrent import CELLS
from p4lab.training.race import at_equal_steps
from p4lab.training.records import Snapshot
from p4lab.training.rnn_setup import TARGET, RnnConfig, cells_of, shown_task


@dataclass(frozen=True)
class Standing:
    """One lane of a race.

    Attributes:
        lane: its name.
        label: what its weights are called.
        share: test loss as a share of the best one without memory; NaN if the lane has stopped.
        at_step: the same when the slowest lane's number of steps was done.
        steps: optimizer steps done.
        step_ms: mean time of a step.
        violation: ``max |W^T W - I|`` now.
        worst: the largest one so far.
        solved: seconds of training until the task was solved (a share below 0.1); NaN if it never was.
        merged: perturbations merged.
        stopped: why it has stopped, "" if it has not.
    """

    lane: str
    label: str
    share: float
    at_step: float
    steps: int
    step_ms: float
    violation: float
    worst: float
    solved: float
    merged: int
    stopped: str


def config_of(snapshot: Snapshot) -> RnnConfig:
    """Return the config of a snapshot of a race of recurrent networks."""
    return cast(RnnConfig, snapshot.config)


def baseline_of(config: RnnConfig) -> float:
    """Return the best loss without memory."""
    return shown_task(config.task, config.delay, config.seed + 1, config.device, config.dtype).baseline


def labels_of(config: RnnConfig) -> dict[str, str]:
    """Return what the lanes are called."""
    return {lane: CELLS[cell].label for lane, cell in cells_of(config).items()}


def standings(snapshot: Snapshot) -> list[Standing]:
    """Return one row per lane, in the lanes' order."""
    config = config_of(snapshot)
    labels, baseline = labels_of(config), baseline_of(config)
    at_step = at_equal_steps(snapshot.lanes)
    return [
        Standing(
            lane=name,
            label=labels[name],
            share=math.nan if lane.message else lane.last("test_loss") / baseline,
            at_step=at_step[name] / baseline,
            steps=lane.step,
            step_ms=1e3 * lane.last("seconds") / lane.step if lane.step else math.nan,
            violation=lane.last("residual"),
            worst=_worst(lane),
            solved=lane.seconds_below(TARGET * baseline),
            merged=lane.counts["merge"],
            stopped=lane.message,
        )
        for name, lane in snapshot.lanes.items()
    ]


def leader(rows: list[Standing]) -> Standing | None:
    """Return the lane with the lowest loss at equal time; None as long as all have the same."""
    running = [row for row in rows if not math.isnan(row.share)]
    return min(running, key=lambda row: row.share) if len({row.share for row in running}) > 1 else None


def _worst(lane: Snapshot) -> float:
    steps, violations = lane.curves["residual"]
    return float(np.max(violations[steps <= lane.step]))
