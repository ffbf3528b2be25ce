"""What stands in a dashboard's panels, as plain data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from p4lab.labs.curves import run_color
from p4lab.labs.lab import Number, Try
from p4lab.labs.numbers import REFUSED, loss_text, total
from p4lab.plots import Loss
from p4lab.plots.format import DASH
from p4lab.training import Frame, Snapshot, State
from p4lab.training.runs import RunView
from p4lab.widgets.controls import Group, Item

FEW = 3
"""Lanes whose losses are told in one cell."""
HINTS = {
    State.IDLE: "Press Start. Settings act at once; those marked “at reset” do so as long as no step has been taken.",
    State.RUNNING: "Move a slider: it acts on the next step and leaves a dotted mark on the curves.",
    State.PAUSED: "Step does one optimizer step, To merge goes on until the perturbations have been merged.",
    State.FAILED: "",
    State.CLOSED: "Closed. Run the cell again.",
}


def header(title: str, subtitle: str, numbers: Sequence[Number]) -> list[Group]:
    """Return title, transport, readouts and message."""
    transport = (
        Item("title", "title", title, help=subtitle),
        Item("badge", "state"),
        Item("button", "start", "▶ Start", help="Train until paused", look="primary"),
        Item("button", "step", "Step", help="One optimizer step"),
        Item("button", "merge", "To merge", help="Train until the next merge has been tried"),
        Item("button", "restart", "Reset", help="Start over with these settings"),
    )
    return [Group("", transport), Group("", (Item("message", "message"),)), readouts(numbers)]


def readouts(numbers: Sequence[Number]) -> Group:
    """Return the places of the numbers of a header."""
    return Group(
        "",
        [
            Item("readout", number.name, number.label, number.unit, number.help, color=number.color)
            for number in numbers
        ],
    )


def tabs(place: str, pages: Sequence[str]) -> list[Group]:
    """Return what chooses the page of a place."""
    return [Group("", (Item("tabs", f"page:{place}", f"Pages: {place}", choices=tuple(pages)),))]


def cards(tries: Sequence[Try]) -> Item:
    """Return things to try, one at a time; the value that it tells is the number of the one to set up."""
    texts = tuple((one.title, one.text, bool(one.changes)) for one in tries)
    return Item("cards", "try", "Things to try", choices=texts, texts=tuple(one.title for one in tries))


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
        download("replay.html", "Replay", "Pictures and curves of the whole run as a page that plays by itself"),
        download("html", "HTML", "The curves as a page of its own"),
        download("png", "PNG", "The curves as a picture"),
    )
    return [Group("", (Item("runs", "runs", "Runs"),)), Group("", actions)]


def run_rows(frame: Frame, loss: Loss) -> dict[str, Any]:
    """Return the table of runs."""
    active = next(run for run in frame.runs if run.active)
    columns = ["step", "loss" if loss.exact else "mean train loss", "test loss", "merged", "skipped", "differs in"]
    rows = [_row(run, active, loss) for run in frame.runs]
    if not loss.test:
        del columns[2]
        rows = [{**row, "cells": row["cells"][:2] + row["cells"][3:]} for row in rows]
    return {"columns": columns, "rows": rows}


def _row(run: RunView, active: RunView, loss: Loss) -> dict[str, Any]:
    snapshot = run.snapshot
    lanes = [*snapshot.lanes.values()] or [snapshot]
    differs = snapshot.config.differences(active.snapshot.config)
    briefs = {name: snapshot.config.settings[name].brief for name in differs if name in snapshot.config.settings}
    texts = [
        brief(here) if (brief := briefs.get(name)) else f"{name.replace('_', ' ')} {here}"
        for name, (here, _) in differs.items()
    ]
    return {
        "number": run.number,
        "name": run.name,
        "origin": run.origin,
        "active": run.active,
        "color": run_color(run.number),
        "cells": [
            f"{snapshot.step:,}",
            _losses(lanes, loss.line, loss),
            _losses(lanes, "test_loss", loss),
            f"{sum(total(lane, 'merge') for lane in lanes):,}",
            f"{sum(total(lane, *REFUSED) for lane in lanes):,}",
            ", ".join(texts) or "–",
        ],
    }


def _losses(lanes: Sequence[Snapshot], key: str, loss: Loss) -> str:
    """Return the losses of a few lanes; many have no room in a table."""
    return " | ".join(loss_text(lane.last(key), loss)["value"] for lane in lanes) if len(lanes) <= FEW else DASH


def hint(frame: Frame, label: Callable[[str], str]) -> dict[str, str]:
    """Return what to do next; ``label`` says what a setting is called on its control."""
    if frame.shown is not None:
        live = frame.snapshot.config.live
        text = f"This is step {frame.shown:,}."
        if not frame.pending:
            text += " Change settings and press Branch here to go on from it."
        if for_branch := ", ".join(label(name) for name in frame.pending if name in live):
            text += f" Press Branch here to go on with: {for_branch}."
        if for_reset := ", ".join(label(name) for name in frame.pending if name not in live):
            text += f" Only Reset will apply: {for_reset}."
        return {"level": "notice", "text": text}
    if frame.pending:
        return {"level": "notice", "text": f"Press Reset to apply: {', '.join(map(label, frame.pending))}."}
    return {"level": "info", "text": HINTS[frame.state]}


def stopped_lanes(frame: Frame, names: Mapping[str, str]) -> str:
    """Return which lanes have stopped, and why; ``names`` says what they are called, if not by their names."""
    lanes = frame.snapshot.lanes.items()
    return "; ".join(f"{names.get(name, name)} stopped: {lane.message}" for name, lane in lanes if lane.message)
