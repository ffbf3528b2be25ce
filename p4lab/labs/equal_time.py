"""What labs share whose lanes train for the same time: its numbers, columns, curves and hint."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p4lab.labs.lab import Number, Sight, View
from p4lab.labs.numbers import Column
from p4lab.plots import Figure, Shown
from p4lab.plots.format import number
from p4lab.plots.property_curves import step_times
from p4lab.plots.race import race_curves
from p4lab.training import Snapshot, State
from p4lab.training.config import setting


@dataclass(frozen=True)
class RaceView(View):
    """What is looked at."""

    axis: str = setting(
        "seconds", "Curves over", choices={"seconds": "Time", "steps": "Steps"}, kind="segments", live=True
    )


def clock(snapshot: Snapshot) -> float:
    """Return the seconds that each lane may have trained."""
    config: Any = snapshot.config
    return float(snapshot.step * config.turn / 1000)


def clock_text(sight: Sight[Any, Any]) -> str:
    """Return how much of its time each lane has had."""
    return f"{clock(sight.snapshot):.1f} of {sight.config.budget:g}"


def time_is_up(sight: Sight[Any, Any]) -> bool:
    """Return whether the race has come to its end."""
    return sight.frame.state is State.PAUSED and clock(sight.snapshot) >= sight.config.budget


def hint(sight: Sight[Any, Any], hints: Mapping[State, str]) -> str | None:
    """Return what to do next: what the state asks for, unless time is up."""
    if time_is_up(sight):
        budget = sight.config.budget
        return f"Time is up: {budget:g} s of training each. New run keeps this race; Start goes on a little."
    return hints.get(sight.frame.state)


TURNS = (
    Number("count", "turn", lambda sight: f"{sight.snapshot.step:,}", help="Turns that every lane has had"),
    Number("clock", "time each", clock_text, "s", "Training time of each lane; measurements and pictures do not count"),
)
"""Numbers of the header."""
STEPS = Column("steps", lambda lane: f"{lane.step:,}", "Optimizer steps done")
MEAN_STEP = Column(
    "ms/step",
    lambda lane: number(1e3 * lane.last("seconds") / lane.step if lane.step else None, ".1f"),
    "Mean time of a step, merges among them",
)


def lines(
    snapshot: Snapshot,
    names: Mapping[str, str],
    colors: Mapping[str, str],
    own: Callable[[Snapshot], Mapping[str, Any]] = lambda lane: {},
) -> list[Shown]:
    """Return the curves of all lanes, their step times ("step_ms") and what a lab has of its own among them."""
    return [
        Shown(
            names[name], colors[name], {**lane.curves, "step_ms": step_times(lane.curves["step_seconds"]), **own(lane)}
        )
        for name, lane in snapshot.lanes.items()
    ]


def in_bits(lane: Snapshot) -> dict[str, Any]:
    """Return the test losses of a lane in bits, for `lines`."""
    steps, losses = lane.curves["test_loss"]
    return {"test_loss": (steps, losses / math.log(2))}


def moment_in_time(sight: Sight[Any, Any]) -> float | None:
    """Return the seconds of training at the moment that is shown; None at the present, and on an axis of steps."""
    turns = sight.frame.shown
    return None if turns is None or sight.view.axis != "seconds" else turns * sight.config.turn / 1000


def curves(
    sight: Sight[Any, Any],
    shown: Callable[[Snapshot], Sequence[Shown]],
    marks: Callable[[Snapshot], Sequence[float]] = lambda snapshot: (),
    **options: Any,
) -> Figure:
    """Return the test losses of all lanes, and three more curves of each (`race_curves`).

    Args:
        sight: what is seen.
        shown: from a run to the curves of its lanes.
        marks: from a run to the seconds of training that are marked.
        options: of `race_curves`.
    """
    frame = sight.frame
    return race_curves(
        shown(sight.snapshot),
        [line for run in frame.runs if not run.active for line in shown(run.snapshot)],
        sight.view.axis,
        run=frame.run,
        marks=marks(sight.snapshot) if sight.view.axis == "seconds" else (),
        cursor=moment_in_time(sight),
        **options,
    )
