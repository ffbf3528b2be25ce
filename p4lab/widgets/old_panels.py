"""What stands in a dashboard's panels, as plain data."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from p4lab.plots import RUN_COLORS, Loss
from p4lab.problems import bits
from p4lab.training import Frame, State
from p4lab.training.runs import RunView
from p4lab.widgets.controls import Group, Item

HINTS = {
    State.IDLE: "Press Start. Settings act at once; those marked “at reset” do so as long as no step has been taken.",
    State.RUNNING: "Move a slider: it acts on the next step and leaves a dotted mark on the curves.",
    State.PAUSED: "Step does one optimizer step, To merge goes on until the perturbations have been merged.",
    State.FAILED: "",
    State.CLOSED: "Closed. Run the cell again.",
}


@dataclass(frozen=True)
class Readout:
    """A number in the header.

    Attributes:
        item: how it reads.
        value: the text of a frame, or {"value": ..., "unit": ...}.
    """

    item: Item
    value: Callable[[Frame], Any]


def readout(name: str, label: str, help: str, value: Callable[[Frame], Any], unit: str = "") -> Readout:
    """Return a number in the header."""
    return Readout(Item("readout", name, label, help=help, unit=unit), value)


def speed_text(frame: Frame) -> str:
    """Return how the speed reads, in steps per second: a dash unless the run goes on."""
    return f"{frame.steps_per_second:.0f}" if frame.state is State.RUNNING else "–"


def readouts(loss: Loss) -> list[Readout]:
    """Return the usual numbers: step, speed, losses, merges."""

    def item(name: str, label: str, help: str = "", unit: str = "") -> Item:
        return Item("readout", name, label, help=help, unit=unit)

    usual = [
        Readout(item("count", "step", "Optimizer steps"), lambda frame: f"{frame.snapshot.step:,}"),
        Readout(item("rate", "steps/s"), speed_text),
        Readout(
            item("train", "train loss", f"{loss.label}, running mean"),
            lambda frame: loss_text(frame.snapshot.last("smooth_loss"), loss),
        ),
        Readout(item("test", "test loss", loss.label), lambda frame: loss_text(frame.snapshot.last("test_loss"), loss)),
        Readout(
            item("merges", "merged layers", "Perturbations merged into their frozen matrices"),
            lambda frame: f"{frame.snapshot.counts['merge']:,}",
        ),
        Readout(
            item("skips", "skipped", "Merges refused, because a matrix would become nearly singular"),
            lambda frame: f"{frame.snapshot.counts['skip'] + frame.snapshot.counts['discard']:,}",
        ),
        Readout(
            item("refines", "refined", "Corrections of the frozen inverses"),
            lambda frame: f"{frame.snapshot.counts['refine']:,}",
        ),
    ]
    return [number for number in usual if loss.test or number.item.name != "test"]


def loss_text(value: float, loss: Loss) -> dict[str, str]:
    """Return how a loss reads in the header."""
    if math.isnan(value):
        return {"value": "–", "unit": ""}
    if loss.bits:
        return {"value": f"{value:.3f}", "unit": f"nats = {bits(value):.2f} bits"}
    return {"value": f"{value:.2e}" if loss.log else f"{value:.4g}", "unit": ""}


def header(title: str, subtitle: str, shown: Sequence[Readout]) -> list[Group]:
    """Return title, transport, readouts and message."""
    transport = (
        Item("title", "title", title, help=subtitle),
        Item("badge", "state"),
        Item("button", "start", "▶ Start", help="Train until paused", look="primary"),
        Item("button", "step", "Step", help="One optimizer step"),
        Item("button", "merge", "To merge", help="Train until the next merge has been tried"),
        Item("button", "restart", "Reset", help="Start over with these settings"),
    )
    return [
        Group("", transport),
        Group("", [readout.item for readout in shown]),
        Group("", (Item("message", "message"),)),
    ]


VIEW_TEXTS = {"inverse": "Inverse", "training": "Training", "accuracy": "Accuracy"}


def view_group(view: str) -> Group:
    """Return the choice of diagnostics; ``view`` is the one that is shown first."""
    choices = ("inverse" if view == "training" else view, "training")
    item = Item(
        "segments",
        "view",
        "Curves on the right",
        choices=choices,
        texts=tuple(VIEW_TEXTS[name] for name in choices),
        help="Determinant and inverse; or gradients, perturbations and step time",
    )
    return Group("Diagnostics", (item,))


def time_bar() -> list[Group]:
    """Return the scrubber, and what can be done at a moment."""
    return [
        Group(
            "",
            (
                Item("scrubber", "scrub", "Time travel", help="Look at any moment of the run, in all pictures at once"),
                Item("button", "now", "Now", help="Back to the present"),
                Item("button", "branch", "Branch here", help="Start a second run from this moment with these settings"),
                Item("button", "keep", "New run", help="Keep this run for comparison and start another"),
            ),
        )
    ]


def runs_panel() -> list[Group]:
    """Return the table of runs, and what can be saved and loaded."""

    def download(kind: str, label: str, help: str) -> Item:
        return Item("button", f"download:{kind}", label, help=help)

    actions = (
        Item("text", "config", "Config", help="Copy it to a colleague, or paste one and press Enter", look="copy"),
        download("p4run", "Save run", "Settings, records and weights as a file"),
        Item("upload", "upload", "Load run", help="A file that was saved here", choices=(".p4run",)),
        download("csv", "CSV", "Records of the active run"),
        download("parquet", "Parquet", "Records of the active run"),
        download("html", "HTML", "The curves as a page of its own"),
        download("png", "PNG", "The curves as a picture"),
    )
    return [Group("", (Item("runs", "runs", "Runs"),)), Group("", actions)]


def run_rows(frame: Frame, loss: Loss) -> dict[str, Any]:
    """Return the table of runs."""
    active = next(run for run in frame.runs if run.active)
    columns = ["step", "train loss", "test loss", "merged", "skipped", "differs in"]
    rows = [_row(run, active, loss) for run in frame.runs]
    if not loss.test:
        del columns[2]
        rows = [{**row, "cells": row["cells"][:2] + row["cells"][3:]} for row in rows]
    return {"columns": columns, "rows": rows}


def _row(run: RunView, active: RunView, loss: Loss) -> dict[str, Any]:
    snapshot = run.snapshot
    differs = snapshot.config.differences(active.snapshot.config)
    texts = [f"{name.replace('_', ' ')} {here}" for name, (here, _) in differs.items()]
    counts = snapshot.counts
    return {
        "number": run.number,
        "name": run.name,
        "origin": run.origin,
        "active": run.active,
        "color": RUN_COLORS[(run.number - 1) % len(RUN_COLORS)],
        "cells": [
            f"{snapshot.step:,}",
            loss_text(snapshot.last("smooth_loss"), loss)["value"],
            loss_text(snapshot.last("test_loss"), loss)["value"],
            f"{counts['merge']:,}",
            f"{counts['skip'] + counts['discard']:,}",
            ", ".join(texts) or "–",
        ],
    }


def hint(frame: Frame) -> dict[str, str]:
    """Return what to do next."""
    names = ", ".join(name.replace("_", " ") for name in frame.pending)
    if frame.shown is not None:
        changed = f" with {names} changed" if names else ""
        return {
            "level": "notice",
            "text": f"This is step {frame.shown:,}. Change settings and press Branch here to go on{changed} from it.",
        }
    if frame.pending:
        return {"level": "notice", "text": f"Press Reset to apply: {names}."}
    return {"level": "info", "text": HINTS[frame.state]}


def with_stopped(
    message: dict[str, str], frame: Frame, lanes: Mapping[str, str], level: str = "notice"
) -> dict[str, str]:
    """Return a message that tells which lanes have stopped and why, unless it has something more pressing to tell.

    Args:
        message: what it says otherwise.
        frame: with the lanes.
        lanes: what they are called, if not by their names.
        level: of the new message.
    """
    now = frame.snapshot.lanes.items()
    stopped = [f"{lanes.get(name, name)} stopped: {lane.message}" for name, lane in now if lane.message]
    return {"level": level, "text": "; ".join(stopped)} if stopped and message["level"] == "info" else message
