"""The pictures of the lab of swaps: mixing matrices, what each flow makes, and a table."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from p4lab.flows import effective_parameters
from p4lab.plots import RUN_COLORS
from p4lab.problems.digits import bits
from p4lab.training import Frame, Snapshot
from p4lab.training.swaps_setup import DIGITS, TOP, SwapsConfig, distance_from_swap, entropy, mixing_matrices
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.image_grid import ImageGrid, Panel

LEVELS = 254
"""Highest level of a heatmap, an even number: half of it is 0."""
SPANS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""How far the colours may reach from 0."""
DASH = "–"


class StyledGrid(ImageGrid):
    """A grid that brings the lab's look along."""

    _css: Any = (FOLDER / "swaps_lab.css").read_text(encoding="utf-8")


class Look:
    """What is chosen for the pictures; the lab changes it.

    Attributes:
        block: which mixing layer is shown, counted from 0 in the order in which the data meets them.
        change: whether what has changed since the start is shown, and not the matrix itself.
    """

    block = 0
    change = False

    def shown(self, snapshot: Snapshot) -> int:
        """Return the mixing layer that is shown of a run, which may have fewer than was chosen."""
        return min(self.block, len(snapshot.pictures["matrices"]) - 1)


def config_of(snapshot: Snapshot) -> SwapsConfig:
    """Return the config of a snapshot, which is this lab's."""
    return cast(SwapsConfig, snapshot.config)


class Starts:
    """The mixing matrices with which the lanes of a run began."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[SwapsConfig, NDArray[np.float32]]] = {}

    def of(self, snapshot: Snapshot, lane: str) -> NDArray[np.float32]:
        """Return the matrices of a lane before the first step, shape (blocks - 1, d, d)."""
        config = config_of(snapshot)
        # What they depend on: live settings do not change them.
        key = SwapsConfig(data=config.data, mixing=lane, blocks=config.blocks, seed=config.seed, hidden=1)
        if lane not in self._of or self._of[lane][0] != key:
            self._of[lane] = key, mixing_matrices(key.model()).detach().numpy()
        return self._of[lane][1]


class MatrixPicture:
    """Heatmaps of one mixing matrix of every lane, side by side.

    Args:
        names: what the lanes are called.
        look: what is chosen.
    """

    def __init__(self, names: dict[str, str], look: Look) -> None:
        self._names, self._look, self._starts = names, look, Starts()
        panels = [Panel(name, "", 1) for name in names.values()]
        self.widget = StyledGrid(panels, LEVELS, "diverging", ("−1", "1"))
        self.widget.add_class("p4-swaps-matrices")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        matrices, notes = [], []
        for lane in self._names:
            snapshot = frame.snapshot.lanes[lane]
            block = self._look.shown(snapshot)
            matrix = snapshot.pictures["matrices"][block]
            notes.append(f"{_number(float(distance_from_swap(matrix)), '.3f')} from the swap")
            matrices.append(matrix - self._starts.of(snapshot, lane)[block] if self._look.change else matrix)
        span = span_of(matrices) if self._look.change else 1.0
        low, high = (f"{'change' if self._look.change else 'entry'} −{span:g}", f"{span:g}")
        self.widget.scale(low, high)
        for index, (matrix, note) in enumerate(zip(matrices, notes, strict=True)):
            self.widget.show(index, levels(matrix, span)[None], note)


def span_of(matrices: list[NDArray[Any]]) -> float:
    """Return how far the colours reach so that they show nearly all entries: in steps, so that it seldom moves."""
    largest = max((float(np.quantile(np.abs(np.nan_to_num(matrix)), 0.999)) for matrix in matrices), default=0.0)
    return next((span for span in SPANS if largest <= span), SPANS[-1])


def levels(matrix: NDArray[Any], span: float) -> NDArray[np.uint8]:
    """Return a matrix as levels of a diverging scale, 0 for -span and 254 for span; NaN counts as 0.

    Example:
        >>> levels(np.array([[-1.0, 0.0], [0.5, 7.0]]), 1.0).tolist()
        [[0, 127], [190, 254]]
    """
    share = np.clip(np.nan_to_num(matrix / span, nan=0.0), -1, 1)
    scaled: NDArray[np.uint8] = np.rint(LEVELS / 2 * (1 + share)).astype(np.uint8)
    return scaled


class LaneImages:
    """What each lane's flow makes: digits, or its density in the plane.

    Args:
        names: what the lanes are called.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self.widget = StyledGrid([Panel(name, "", 1) for name in names.values()], TOP, ends=("grey level 0", "16"))
        self.widget.add_class("p4-swaps-images")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        digits = config_of(frame.snapshot).data == DIGITS
        self.widget.scale(
            *(("grey level 0", "16") if digits else ("log q, 8 nats below the highest log p", "highest log p"))
        )
        for index, lane in enumerate(self._names):
            images = frame.snapshot.lanes[lane].pictures["images"]
            self.widget.show(index, images, "samples" if digits else "log-density", columns=3 if digits else 1)


COLUMNS = {
    "": "",
    "parameters": "That training moves in the long run; of a mixing layer, the dimension of its family",
    "test NLL": "Mean of −log q over data that are not trained on: nats per pixel, for densities nats",
    "bits/pixel": "For digits",
    "KL to truth": "For densities: test NLL minus entropy, nats",
    "from the swap": "|W − S| / √d, mean over all mixing layers; the layer that is shown has its own above",
    "condition": "Largest condition number of a mixing matrix",
    "merged": "Perturbations merged into their frozen matrices",
    "skipped": "Merges refused, because a matrix would become nearly singular or inexact",
    "ms/step": "Median time of a step of this lane",
}


class Board:
    """A table with one row for each lane.

    Args:
        names: what the lanes are called.
        touched: of `ControlPanel`.
    """

    def __init__(self, names: dict[str, str], touched: Callable[[str, Any], None]) -> None:
        self._names = names
        self._parameters: dict[tuple[Any, ...], int] = {}
        self.widget = ControlPanel([Group("", (Item("table", "board", "Lanes"),))], touched, direction="row")
        self.widget.add_class("p4-swaps-board")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        rows = []
        for number, (lane, name) in enumerate(self._names.items()):
            rows.append({"color": RUN_COLORS[number], "cells": self._row(frame.snapshot.lanes[lane], name)})
        value = {"columns": list(COLUMNS), "help": list(COLUMNS.values()), "rows": rows, "label": "Lanes"}
        self.widget.show({"board": value})

    def _row(self, snapshot: Snapshot, name: str) -> list[str]:
        config, loss = config_of(snapshot), snapshot.last("test_loss")
        floor = entropy(config)
        matrices = snapshot.pictures["matrices"].astype(np.float64)
        seconds = snapshot.curves["step_seconds"][1]
        return [
            f"{name} (stopped)" if snapshot.message else name,
            f"{self._size(config):,}",
            _number(loss, ".3f"),
            _number(bits(loss), ".3f") if floor is None else DASH,
            DASH if floor is None else _number(loss - floor, ".3f"),
            _number(float(distance_from_swap(matrices).mean()), ".3f"),
            _number(condition(matrices), ".3g"),
            _count(snapshot.counts["merge"]),
            _count(snapshot.counts["skip"] + snapshot.counts["discard"]),
            _number(1e3 * float(np.median(seconds[-100:])), ".1f") if len(seconds) else DASH,
        ]

    def _size(self, config: SwapsConfig) -> int:
        key = config.data == DIGITS, config.mixing, config.blocks, config.hidden
        if key not in self._parameters:
            self._parameters[key] = effective_parameters(config.model())
        return self._parameters[key]


def condition(matrices: NDArray[Any]) -> float:
    """Return the largest condition number of matrices (n, d, d); NaN if they are not all finite."""
    return float(np.linalg.cond(matrices).max()) if np.isfinite(matrices).all() else math.nan


def _count(number: int) -> str:
    return f"{number:,}" if number else DASH


def _number(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else DASH
