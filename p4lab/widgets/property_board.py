"""The table of the lab of properties: what each way costs, and how well it keeps the property."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from p4lab.plots import RUN_COLORS
from p4lab.training import Frame, Snapshot
from p4lab.training.property_setup import PropertyConfig, best_error
from p4lab.training.property_ways import WAYS, label_of
from p4lab.widgets.controls import ControlPanel, Group, Item

COLORS = dict(zip(WAYS, RUN_COLORS, strict=False))
"""Of the lanes."""
GOAL = 1e-2
"""Error above the least possible one that the table measures time to."""
DASH = "–"
COLUMNS = {
    "": "",
    "kept by": "What keeps the property in this lane",
    "error": "|W − T|² / d, exact: without noise",
    "s to 1e-2": "Seconds of training until the error was 0.01 above the least that the property allows",
    "violation": "How far the effective weights are from the property, in float64",
    "worst": "Largest violation so far",
    "ms/step": "Median time of a step of this lane, its merges and projections among them",
    "merged": "Perturbations merged into their frozen matrices",
    "skipped": "Merges refused",
}
KEEPS = {
    "p4": "perturbation",
    "usual": "parametrization",
    "other": "parametrization",
    "penalty": "penalty",
    "plain": "nothing",
}
"""What keeps the property in the lanes, but for a projection."""


def config_of(snapshot: Snapshot) -> PropertyConfig:
    """Return the config of a snapshot, which is this lab's."""
    return cast(PropertyConfig, snapshot.config)


def label(config: PropertyConfig, lane: str) -> str:
    """Return what the lane of a run is called."""
    return label_of(config.prop, lane, config.orthogonal_map)


class Board:
    """A table with one row for each lane.

    Args:
        touched: of `ControlPanel`.
    """

    def __init__(self, touched: Callable[[str, Any], None]) -> None:
        self.widget = ControlPanel([Group("", (Item("table", "board", "Lanes"),))], touched, direction="row")
        self.widget.add_class("p4-property-board")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        lanes = frame.snapshot.lanes
        rows = [{"color": COLORS[lane], "cells": _row(lane, lanes[lane])} for lane in lanes]
        value = {"columns": list(COLUMNS), "help": list(COLUMNS.values()), "rows": rows, "label": "Lanes"}
        self.widget.show({"board": value})


def _row(lane: str, snapshot: Snapshot) -> list[str]:
    config, (steps, violations) = config_of(snapshot), snapshot.curves["residual"]
    seconds = snapshot.curves["step_seconds"][1]
    name = label(config, lane)
    projected = (config.prop, lane) == ("lipschitz", "other")
    return [
        f"{name} (stopped)" if snapshot.message else name,
        "projection" if projected else KEEPS[lane],
        number(snapshot.last("test_loss"), ".1e"),
        number(seconds_to(snapshot), ".2f"),
        violation_text(snapshot.last("residual")),
        violation_text(float(np.max(violations[steps <= snapshot.step]))),
        number(1e3 * float(np.median(seconds[-100:])), ".2f") if len(seconds) else DASH,
        _count(snapshot.counts["merge"]),
        _count(snapshot.counts["skip"] + snapshot.counts["discard"]),
    ]


def seconds_to(snapshot: Snapshot, goal: float = GOAL) -> float:
    """Return the training time of a lane until its error was below the least possible one plus a goal; NaN if never."""
    config = config_of(snapshot)
    least = best_error(config.prop, config.dim, config.seed, config.bound)
    return snapshot.seconds_below(least + goal)


def violation_text(value: float) -> str:
    """Return how a violation reads.

    Example:
        >>> violation_text(3.21e-7), violation_text(0.0), violation_text(math.nan)
        ('3e−07', '0', '–')
    """
    return "0" if value == 0 else number(value, ".0e")


def number(value: float, form: str) -> str:
    """Return a number in some format, a dash if it is not finite."""
    return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else DASH


def _count(count: int) -> str:
    return f"{count:,}" if count else DASH
