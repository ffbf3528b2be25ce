"""Numbers of the header and columns of tables that several labs show, so that they read the same everywhere."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from p4lab.labs.lab import Number, Sight
from p4lab.plots import RUN_COLORS, Loss
from p4lab.plots.format import DASH, count, number
from p4lab.plots.layers import Row, Rows
from p4lab.problems import bits
from p4lab.training import Snapshot
from p4lab.training.records import Kind

STOPPED = "stopped"
REFUSED: tuple[Kind, ...] = ("skip", "discard")
"""Kinds of events at which a merge was refused."""


def total(snapshot: Snapshot, *kinds: Kind) -> int:
    """Return how many events of some kinds there were."""
    return sum(snapshot.counts[kind] for kind in kinds)


# --- the header -------------------------------------------------------------------------------------------------------


def steps(help: str = "Optimizer steps", rate_help: str = "", label: str = "step") -> tuple[Number, Number]:
    """Return the number of steps, and the speed."""
    return (
        Number("count", label, lambda sight: f"{sight.snapshot.step:,}", help=help),
        Number("rate", "steps/s", rate, help=rate_help),
    )


def rate(sight: Sight[Any, Any]) -> str:
    """Return how the speed reads, in steps per second: a dash unless the run goes on."""
    return f"{sight.frame.steps_per_second:.0f}" if sight.running else DASH


def merges(
    lanes: bool = False,
    label: str = "merged layers",
    help: str = "Perturbations merged into their frozen matrices",
    refused: str = "",
) -> tuple[Number, Number]:
    """Return how many merges were done and how many refused, of the first lane or of all; with what explains both."""
    usual = "Merges refused, all lanes" if lanes else "Merges refused, because a matrix would become nearly singular"

    def text(*kinds: Kind) -> Callable[[Sight[Any, Any]], str]:
        def read(sight: Sight[Any, Any]) -> str:
            snapshots = sight.lanes.values() if lanes else (sight.snapshot,)
            return f"{sum(total(snapshot, *kinds) for snapshot in snapshots):,}"

        return read

    return (
        Number("merges", label, text("merge"), help=help),
        Number("skips", "skipped", text(*REFUSED), help=refused or usual),
    )


def of_lane(
    name: str, label: str, lane: str, read: Callable[[Snapshot], str], unit: str = "", help: str = "", color: str = ""
) -> Number:
    """Return a number of one lane, which says so, without a unit, when the lane has stopped."""

    def text(sight: Sight[Any, Any]) -> Any:
        snapshot = sight.lanes[lane]
        if not snapshot.message:
            return read(snapshot)
        return {"value": STOPPED, "unit": ""} if unit else STOPPED

    return Number(name, label, text, unit, help, color)


def usual(loss: Loss) -> list[Number]:
    """Return what a lab of one model shows: steps, speed, losses, merges and refinements."""
    numbers = [
        *steps(),
        Number(
            "train",
            "train loss",
            lambda sight: loss_text(sight.snapshot.last("smooth_loss"), loss),
            help=f"{loss.label}, running mean",
        ),
        Number(
            "test",
            "test loss",
            lambda sight: loss_text(sight.snapshot.last("test_loss"), loss),
            help=f"{loss.label}, as last measured",
        ),
        *merges(),
        Number(
            "refines",
            "refined",
            lambda sight: f"{total(sight.snapshot, 'refine'):,}",
            help="Corrections of the frozen inverses",
        ),
    ]
    return [item for item in numbers if loss.test or item.name != "test"]


def loss_text(value: float, loss: Loss) -> dict[str, str]:
    """Return how a loss reads in the header."""
    if not math.isfinite(value):
        return {"value": DASH, "unit": ""}
    if loss.bits:
        return {"value": number(value, ".3f"), "unit": f"nats = {number(bits(value), '.2f')} bits"}
    return {"value": number(value, ".2e" if loss.log else ".4g"), "unit": ""}


# --- tables -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of a table with one row per lane: its heading, the text of a lane, and what explains the heading."""

    heading: str
    read: Callable[[Snapshot], str]
    help: str = ""


def lane_table(
    sight: Sight[Any, Any],
    columns: Sequence[Column],
    names: Mapping[str, str],
    heading: str = "",
    label: str = "Lanes",
    colors: Mapping[str, str] | None = None,
    active: str | None = None,
) -> Rows:
    """Return a table with one row per lane, in the order of ``names``; ``heading`` is that of the names.

    The row of the lane that is ``active`` is set in bold.
    """
    colors = colors or dict(zip(sight.lanes, RUN_COLORS, strict=False))
    rows = []
    for lane, name in names.items():
        snapshot = sight.lanes[lane]
        title = f"{name} ({STOPPED})" if snapshot.message else name
        rows.append(Row([title, *(column.read(snapshot) for column in columns)], colors[lane], lane == active))
    return Rows({heading: "", **{column.heading: column.help for column in columns}}, rows, label)


def step_time(form: str = ".1f", help: str = "Median time of a step of this lane, its merges among them") -> Column:
    """Return the column of the median time of the last hundred steps."""

    def read(snapshot: Snapshot) -> str:
        seconds = snapshot.curves["step_seconds"][1]
        return number(1e3 * float(np.median(seconds[-100:])), form) if len(seconds) else DASH

    return Column("ms/step", read, help)


def violation_text(value: float) -> str:
    """Return how a violation reads.

    Example:
        >>> violation_text(3.21e-7), violation_text(0.0), violation_text(math.nan)
        ('3e−07', '0', '–')
    """
    return "0" if value == 0 else number(value, ".0e")


def worst_violation() -> Column:
    """Return the column of the largest violation so far, which the measurements call "residual"."""

    def read(snapshot: Snapshot) -> str:
        steps, violations = snapshot.curves["residual"]
        return violation_text(float(np.max(violations[steps <= snapshot.step])))

    return Column("worst", read, "Largest violation so far")


def merge_columns() -> tuple[Column, Column]:
    """Return the columns of merges that were done and refused."""
    return (
        Column("merged", lambda lane: count(total(lane, "merge")), "Perturbations merged into their frozen matrices"),
        Column("skipped", lambda lane: count(total(lane, *REFUSED)), "Merges refused"),
    )
