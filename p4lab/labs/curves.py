"""The figure of curves of a lab, made from what is seen."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from p4lab.labs.lab import Sight
from p4lab.plots import RUN_COLORS, Figure, Loss, Shown, training_curves
from p4lab.plots.curves import Curves
from p4lab.training import Snapshot

Change = Callable[[Snapshot], Curves]


def run_color(number: int) -> str:
    """Return the colour of a run, by its number from 1 on."""
    return RUN_COLORS[(number - 1) % len(RUN_COLORS)]


def training_figure(
    sight: Sight[Any, Any],
    loss: Loss,
    names: Mapping[str, str] = MappingProxyType({}),
    change: Change = lambda snapshot: snapshot.curves,
    colors: Mapping[str, str] | None = None,
) -> Figure:
    """Return the training curves of all runs; those of the active one in full, or of each of its lanes.

    Of a run with lanes that is there for comparison the lane is drawn that comes first.

    Args:
        sight: what is seen.
        loss: how losses read.
        names: what the lanes are called, if not by their names; the first ones come first.
        change: the curves of a run, or of a lane, that are drawn.
        colors: of the lanes (None: of runs, in order).
    """
    frame, lanes = sight.frame, sight.lanes
    runs = sorted(frame.runs, key=lambda run: not run.active)
    order = [*(name for name in names if name in lanes), *(name for name in lanes if name not in names)]
    shown = []
    for run in runs:
        snapshot = frame.snapshot if run.active else run.snapshot
        first = snapshot.lanes.get(order[0], snapshot) if order else snapshot
        shown.append(Shown(run.name, run_color(run.number), change(first), first.events))
    if lanes:
        colors = colors or dict(zip(lanes, RUN_COLORS, strict=False))
        shown[:1] = [
            Shown(names.get(name, name), colors[name], change(lanes[name]), lanes[name].events) for name in order
        ]
    return training_curves(shown, sight.view.view, loss, frame.shown, frame.run)
