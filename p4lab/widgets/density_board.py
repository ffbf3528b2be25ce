"""The table of the lab of densities: how good each flow is."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from p4lab.flows import effective_parameters
from p4lab.plots import RUN_COLORS
from p4lab.problems.density2d import Density2D
from p4lab.problems.metrics import bridge_mass, mode_coverage, round_trip_error
from p4lab.training import Frame
from p4lab.training.density_setup import entropy
from p4lab.training.flow_copy import FlowCopy
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.density_pictures import Copies, config_of, moment_of

BOARD_INTERVAL = 2.0
SAMPLES = 4000
ROUND_TRIPS = 500
TRUTH = "#e0791b"
COLUMNS = {
    "": "",
    "parameters": "That training moves in the long run; a P4Inv layer counts its whole matrix",
    "test NLL": "Mean of −log q over 4,096 points that are not trained on, nats; of the truth: its entropy",
    "KL to truth": "Test NLL minus entropy, nats",
    "bridge mass": f"Share of {SAMPLES:,} samples where the truth is negligible",
    "pieces": "Arms, rings or modes that get at least half of their mass",
    "round trip": "Largest |x − F⁻¹(F(x))| over data",
}
DASH = "–"


class Board:
    """A table with one row for the truth and one for each flow.

    Args:
        names: what the lanes are called.
        order: of the rows.
        copies: of the flows.
        touched: of `ControlPanel`.
    """

    def __init__(
        self, names: dict[str, str], order: Sequence[str], copies: Copies, touched: Callable[[str, Any], None]
    ) -> None:
        self._names, self._order, self._copies = names, order, copies
        self._rows: dict[str, tuple[Any, list[str]]] = {}
        self.widget = ControlPanel([Group("", (Item("table", "board", "Flows"),))], touched, direction="row")
        self.widget.add_class("p4-density-board")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        config = config_of(frame.snapshot)
        truth, floor = config.truth(), entropy(config)
        pieces = len(truth.piece_shares)
        known = f"{pieces} of {pieces}" if pieces > 1 else DASH
        rows: list[dict[str, Any]] = [
            {"color": TRUTH, "cells": [truth.label, DASH, f"{floor:.3f}", "0", "0 %", known, DASH]}
        ]
        for lane in self._order:
            number = list(self._names).index(lane)
            rows.append({"color": RUN_COLORS[number], "cells": self._row(frame, lane, truth, floor)})
        value = {"columns": list(COLUMNS), "help": list(COLUMNS.values()), "rows": rows, "label": "Flows"}
        self.widget.show({"board": value})

    def _row(self, frame: Frame, lane: str, truth: Density2D, floor: float) -> list[str]:
        now = moment_of(frame, lane)
        if lane not in self._rows or self._rows[lane][0] != now:
            copy, snapshot = self._copies.of(frame, lane), frame.snapshot.lanes[lane]
            loss = snapshot.last("test_loss")
            numbers = [_text(loss, ".3f"), _text(loss - floor, ".3f")]
            quality = measured(copy, truth, config_of(snapshot).seed)
            name = f"{self._names[lane]} (stopped)" if snapshot.message else self._names[lane]
            self._rows[lane] = now, [name, f"{effective_parameters(copy.model):,}", *numbers, *quality]
        return self._rows[lane][1]


def measured(copy: FlowCopy, truth: Density2D, seed: int) -> list[str]:
    """Return bridge mass, pieces that are covered and round-trip error, as texts."""
    samples = copy.model.sample(SAMPLES, torch.Generator().manual_seed(seed)).cpu()
    bridges = bridge_mass(samples, truth)
    pieces = len(truth.piece_shares)
    covered = f"{round(pieces * mode_coverage(samples, truth))} of {pieces}" if pieces > 1 else DASH
    data = truth.sample(ROUND_TRIPS, torch.Generator().manual_seed(seed)).to(copy.dtype)
    trip = round_trip_error(copy.model, data.to(copy.device))
    return [f"{100 * bridges.value:.1f} %".replace("-", "−"), covered, _text(trip, ".0e")]


def _text(value: float, form: str) -> str:
    return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else DASH
