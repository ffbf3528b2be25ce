"""The pictures of the lab of recurrent networks: answers, gradients through time, eigenvalues, and a table."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.labs.numbers import violation_text
from p4lab.plots.format import DASH, number
from p4lab.plots.layers import Layer, Path, Points
from p4lab.plots.race import lane_style
from p4lab.problems.sequences import LENGTH
from p4lab.training import Frame, Snapshot
from p4lab.training.rnn_setup import INK, LANES, TARGET
from p4lab.training.rnn_standings import Standing, config_of, labels_of, leader, standings
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.image_grid import ImageGrid, Panel
from p4lab.widgets.plane import Plane
from p4lab.widgets.spectrum import CIRCLE

COLORS = {lane: lane_style(place)[0] for place, lane in enumerate(LANES)}
DECADES = (-4.0, 2.0)
"""Gradients between these powers of ten are always in the picture."""
LOWEST, HIGHEST = -12.0, 8.0
REACH = 1.3
"""Real and imaginary parts that the picture of eigenvalues shows."""
SUMS = (-0.2, 2.2, -0.2, 2.2)
STRIPS = ("asked", "right answer")


class StyledGrid(ImageGrid):
    """A grid that brings the lab's look along."""

    _css: Any = (FOLDER / "rnn_lab.css").read_text(encoding="utf-8")


def _on_top(snapshot: Snapshot) -> list[tuple[str, Snapshot]]:
    """Return the lanes in the order in which they are drawn: P4Orthogonal last, and so on top."""
    return list(snapshot.lanes.items())[::-1]


# --- answers ----------------------------------------------------------------------------------------------------------


class AnswerPicture:
    """The copy task: a sequence, the right answer, and each lane's, as strips with time from left to right."""

    def __init__(self) -> None:
        panels = [Panel(name, "", 1) for name in (*STRIPS, *([""] * len(LANES)))]
        self.widget = StyledGrid(panels, INK, ends=("probability 0", "1"))
        self.widget.add_class("p4-rnn-answers")

    def draw(self, frame: Frame) -> None:
        """Show a frame; hide where the task has no such picture."""
        lanes = frame.snapshot.lanes
        first = next(iter(lanes.values())).pictures
        self.widget.display("answers" in first)
        if "answers" not in first:
            return
        config = config_of(frame.snapshot)
        labels = labels_of(config)
        self.widget.show(0, first["inputs"][None], f"{LENGTH} symbols, {config.delay - 1} blanks, a sign to answer")
        self.widget.show(1, first["targets"][None], f"blanks, then the {LENGTH} symbols")
        for place, (name, lane) in enumerate(lanes.items()):
            note = f"{labels[name]}: {right(lane)} of {LENGTH} right"
            self.widget.show(len(STRIPS) + place, lane.pictures["answers"][None], note)


def right(lane: Snapshot) -> int:
    """Return how many of the ten symbols of the sequence that is shown a lane would name.

    Example:
        >>> import dataclasses
        >>> targets = np.eye(9, dtype=np.uint8)[[1, 2, 3, 4, 5, 6, 7, 8, 1, 2]].T
        >>> class Lane:
        ...     pictures = {"targets": targets, "answers": np.roll(targets, 1, axis=0)}
        >>> right(Lane()), right(type("Lane", (), {"pictures": {"targets": targets, "answers": targets}})())
        (0, 10)
    """
    said, asked = (lane.pictures[name][1:, -LENGTH:].argmax(0) for name in ("answers", "targets"))
    return int((said == asked).sum())


class SumPicture:
    """The adding task: each lane's sums over the right ones."""

    def __init__(self) -> None:
        self.widget = Plane(
            "Sums", "64 sequences of the test set", x_label="right sum", y_label="answer", equal=False, height=372
        )

    def draw(self, frame: Frame) -> None:
        """Show a frame; hide where the task has no such picture."""
        lanes = _on_top(frame.snapshot)
        self.widget.display("sums" in lanes[0][1].pictures)
        if "sums" not in lanes[0][1].pictures:
            return
        x0, x1, y0, y1 = SUMS
        layers: list[Layer] = [
            Path([[x0, y0], [x1, y1]], "grey", 1, dashed=True, label="right"),
            Path([[x0, 1.0], [x1, 1.0]], "grey", 1, label="best without memory"),
        ]
        for name, lane in lanes:
            points = lane.pictures["sums"].astype(np.float64)
            points[:, 1] = np.where((points[:, 1] >= y0) & (points[:, 1] <= y1), points[:, 1], np.nan)
            layers.append(Points(points, COLORS[name], "dot", 6))
        self.widget.show(layers, SUMS)


# --- gradients and eigenvalues ----------------------------------------------------------------------------------------


class GradientPicture:
    """How large the gradient of the loss is at the states of every time step, for each lane."""

    def __init__(self) -> None:
        self.widget = Plane(
            "Gradient through time",
            "0 is where answers begin",
            x_label="time step t",
            y_label="log₁₀ |∂L/∂hₜ|",
            equal=False,
            height=190,
        )

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        config = config_of(frame.snapshot)
        copies = config.task == "copy"
        asked = -1 - LENGTH if copies else -1  # from here back to the start nothing is added to the gradient
        curves = {name: decades(lane.pictures["through_time"], asked) for name, lane in _on_top(frame.snapshot)}
        steps = len(next(iter(curves.values())))
        values = np.concatenate([*curves.values(), DECADES])
        low, high = math.floor(float(np.nanmin(values))), math.ceil(float(np.nanmax(values)))
        layers: list[Layer] = [Path([[0, 0.0], [steps, 0.0]], "grey", 1, dashed=True, label="neither more nor less")]
        if copies:
            label = "end of the symbols, sign to answer"
            layers += [
                Path([[t, low], [t, high]], "grey", 1, label=text)
                for t, text in ((LENGTH, label), (steps - LENGTH, ""))
            ]
        for name, curve in curves.items():
            points = np.stack([np.arange(1, steps + 1), curve], axis=1)
            layers.append(Path(points, COLORS[name], width=2.5 if name == LANES[0] else 2))
        self.widget.show(layers, (0.0, float(steps), float(low), float(high)))


def decades(norms: NDArray[Any], at: int = -1) -> NDArray[np.float64]:
    """Return the decimal logarithm of norms as shares of one of them, within -12 and 8; NaN if that one is not above 0.

    Example:
        >>> decades(np.array([0.0, 1e-3, 100.0, 1.0])).tolist()
        [-12.0, -3.0, 2.0, 0.0]
    """
    wide = np.asarray(norms, np.float64)
    if not wide[at] > 0:
        return np.full(len(wide), np.nan)
    with np.errstate(divide="ignore"):
        return np.clip(np.log10(wide / wide[at]), LOWEST, HIGHEST)


class EigenvaluePicture:
    """Eigenvalues of every lane's recurrent weights in the complex plane, as at their last measurements."""

    def __init__(self) -> None:
        self.widget = Plane(
            "Eigenvalues", "of the recurrent weights", x_label="real part", y_label="imaginary part", height=372
        )

    def draw(self, frame: Frame) -> None:
        """Show a frame; hide where weights are too wide for them."""
        lanes = [(name, lane.spectrum.values) for name, lane in _on_top(frame.snapshot)]
        known = all(len(values) for _, values in lanes)
        self.widget.display(known)
        if not known:
            return
        layers: list[Layer] = [Path(CIRCLE, "grey", width=1, dashed=True, label="unit circle")]
        for name, values in lanes:
            now = values[-1]
            inside = np.isfinite(now) & (np.abs(now.real) <= REACH) & (np.abs(now.imag) <= REACH)
            points = np.where(inside[:, None], np.stack([now.real, now.imag], axis=1), np.nan)
            layers.append(Points(points, COLORS[name], "dot", 5 if name == LANES[0] else 6))
        self.widget.show(layers, (-REACH, REACH, -REACH, REACH))


# --- the table --------------------------------------------------------------------------------------------------------

COLUMNS = {
    "": "",
    "loss": "Test loss now, as a share of the best one without memory: all have trained for the same time",
    "at equal steps": "The same when as many steps were done as the slowest lane has",
    "solved after": f"Seconds of training until the loss was below {TARGET:g} of the best one without memory",
    "steps": "Optimizer steps done",
    "ms/step": "Mean time of a step, merges among them",
    "violation": "max |WᵀW − I| of the effective weights, in float64",
    "worst": "Largest violation so far",
    "merged": "Perturbations merged into the frozen matrix",
}


class Board:
    """A table with one row for each lane.

    Args:
        touched: of `ControlPanel`.
    """

    def __init__(self, touched: Callable[[str, Any], None]) -> None:
        self.widget = ControlPanel([Group("", (Item("table", "board", "Lanes"),))], touched, direction="row")
        self.widget.add_class("p4-rnn-board")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        table = standings(frame.snapshot)
        ahead = leader(table)
        rows = [{"color": COLORS[row.lane], "active": row is ahead, "cells": _cells(row)} for row in table]
        value = {"columns": list(COLUMNS), "help": list(COLUMNS.values()), "rows": rows, "label": "Lanes"}
        self.widget.show({"board": value})


def _cells(row: Standing) -> list[str]:
    solved = number(row.solved, ".2f")
    return [
        f"{row.label} (stopped)" if row.stopped else row.label,
        number(row.share, ".3g"),
        number(row.at_step, ".3g"),
        solved if solved == DASH else f"{solved} s",
        f"{row.steps:,}",
        number(row.step_ms, ".1f"),
        violation_text(row.violation),
        violation_text(row.worst),
        f"{row.merged:,}" if row.merged else DASH,
    ]
