"""The lab of densities in the plane: RealNVP and P4Inv + Bent learn one side by side, or what you draw."""

from typing import Any

import numpy as np

from p4lab.plots import Figure, Loss
from p4lab.training import Frame, Snapshot
from p4lab.training.density_setup import (
    AREA,
    DRAWING,
    LEVELS,
    SIDE,
    DensityConfig,
    decode_drawing,
    encode_drawing,
    entropy,
    side_by_side,
    sketched,
)
from p4lab.widgets.controls import ControlPanel, Item
from p4lab.widgets.dashboard import PANEL_INTERVAL, WAIT, Dashboard, Picture, Style
from p4lab.widgets.density_board import BOARD_INTERVAL, Board
from p4lab.widgets.density_pictures import Copies, FlowPicture, LaneDensity, Look, TruthPicture, config_of
from p4lab.widgets.density_settings import looks, settings
from p4lab.widgets.panels import Readout, run_rows, speed_text, with_stopped
from p4lab.widgets.sketch import Ink, Sketch

NAMES = {"p4inv_bent": "P4Inv + Bent", "realnvp": "RealNVP"}
"""What the lanes are called; see `p4lab.training.density_setup.FLOWS`."""
ORDER = ("realnvp", "p4inv_bent")
"""From left to right."""
DENSITY_INTERVAL = 0.5
FLOW_INTERVAL = 0.1
LOSS = Loss("loss −log q (nats)", bits=False)
SPANS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""How far above the entropy the axis of the losses reaches."""
ENTROPY = "entropy of the truth"
LEGEND = {"x": 0.55, "y": 0.99, "xanchor": "right", "yanchor": "top", "bgcolor": "rgba(0,0,0,0)", "font": {"size": 11}}
"""In the upper right of the losses, from where they have come down."""


def density_lab(config: DensityConfig | None = None, name: str | None = None, **changes: Any) -> "DensityLab":
    """Return a lab in which RealNVP and P4Inv + Bent learn a density side by side.

    Args:
        config: the first settings (None: `DensityConfig`'s defaults).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``density="two_moons"``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    return DensityLab((config or DensityConfig()).replace(**changes), name)


class DensityLab(Dashboard):
    """The lab: a dashboard over two lanes, with their densities and flows, and a canvas to draw another density on.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: DensityConfig, name: str | None = None) -> None:
        self._look, copies = Look(), Copies()
        self._sketch = Sketch(SIDE, LEVELS, AREA, "Draw your own", "", self._use, self._copy)
        self._drawing = ""
        self._board = Board(NAMES, ORDER, copies, self._touched)
        self._bar = ControlPanel(looks(), self._touched, direction="row")
        self._bar.add_class("p4-density-bar")
        truth = TruthPicture(self._look)
        densities = [LaneDensity(lane, NAMES[lane], copies, self._look) for lane in ORDER]
        routes = [FlowPicture(lane, f"{NAMES[lane]}, z → x", copies, self._look) for lane in ORDER]
        super().__init__(
            config,
            side_by_side,
            title="Densities in the plane",
            subtitle="Same data, as many parameters each",
            settings=settings(config),
            pictures=[
                Picture(truth.widget, truth.draw),
                *(Picture(picture.widget, picture.draw, DENSITY_INTERVAL) for picture in densities),
                Picture(self._bar, self._show_bar, PANEL_INTERVAL),
                Picture(self._sketch, self._show_sketch, PANEL_INTERVAL),
                *(Picture(picture.widget, picture.draw, FLOW_INTERVAL) for picture in routes),
                # Above the others on the page, but the slowest of them.
                Picture(self._board.widget, self._board.draw, BOARD_INTERVAL),
            ],
            style=Style(loss=LOSS, lanes=NAMES, readouts=numbers()),
            name=name,
        )
        self.root.add_class("p4-density")

    # --- from the browser --------------------------------------------------------------------------------------------

    def _touched(self, name: str, value: Any) -> None:
        if name in ("depth", "log", "samples", "lattice"):
            setattr(self._look, name, value)
            self.player.poke()
        elif name == "density" and value == DRAWING and self._sketch.ink.any():
            self.player.set(density=DRAWING, drawing=encode_drawing(self._sketch.ink))
        else:
            super()._touched(name, value)

    def _use(self, ink: Ink) -> None:
        self._refused = None
        self.player.set(density=DRAWING, drawing=encode_drawing(ink))
        self.player.reset()
        self.player.start()

    def _copy(self) -> None:
        config = self.player.frame(WAIT).snapshot.config
        self._sketch.show(sketched(config))  # type: ignore[arg-type]

    # --- to the browser ----------------------------------------------------------------------------------------------

    def _show_bar(self, frame: Frame) -> None:
        look = self._look
        self._bar.show({"depth": look.depth, "log": look.log, "samples": look.samples, "lattice": look.lattice})

    def _show_sketch(self, frame: Frame) -> None:
        drawing = frame.planned.to_dict()["drawing"]
        if drawing != self._drawing:  # another run, or a config that was pasted
            self._drawing = drawing
            if drawing:
                self._sketch.show(decode_drawing(drawing))

    def _show_runs(self, frame: Frame) -> None:
        rows = run_rows(frame, self._style.loss)
        for row, run in zip(rows["rows"], frame.runs, strict=True):
            drawing = run.snapshot.config.to_dict()["drawing"]
            row["cells"][-1] = row["cells"][-1].replace(
                f"drawing {drawing}", "another drawing" if drawing else "no drawing"
            )
        self._runs.show({"runs": rows, "config": frame.planned.to_text()})

    def _message(self, frame: Frame) -> dict[str, str]:
        return with_stopped(super()._message(frame), frame, self._style.lanes)

    def _curves(self, frame: Frame) -> Figure:
        return with_entropy(super()._curves(frame), frame)


def with_entropy(figure: Figure, frame: Frame) -> Figure:
    """Return curves whose losses stand above a line at the entropy of the truth; a tenth of a run may be cut off."""
    floor = entropy(config_of(frame.snapshot))
    early = [_early(lane) for lane in frame.snapshot.lanes.values()]
    highest = max((value - floor for value in early if np.isfinite(value)), default=SPANS[-1])
    span = next((span for span in SPANS if 1.1 * highest < span), None)
    line = {"xref": "x domain", "yref": "y", "x0": 0, "x1": 1, "y0": floor, "y1": floor}
    label = {"xref": "x domain", "yref": "y", "x": 0.99, "y": floor, "xanchor": "right", "yanchor": "bottom"}
    layout = dict(figure["layout"])
    layout["shapes"] = [
        *layout["shapes"],
        {"type": "line", **line, "line": {"color": "#8a8f98", "width": 1.5, "dash": "dash"}, "layer": "below"},
    ]
    layout["annotations"] = [
        *layout["annotations"],
        {**label, "text": f"{ENTROPY}, {floor:.3f}", "showarrow": False, "font": {"size": 11, "color": "#8a8f98"}},
    ]
    layout["legend"] = LEGEND
    if span is not None:
        layout["yaxis"] = {**layout["yaxis"], "range": [floor - 0.08 * span, floor + span]}
    return {"data": [_shortened(trace) for trace in figure["data"]], "layout": layout}


def _shortened(trace: dict[str, Any]) -> dict[str, Any]:
    """Return a curve whose name in the legend leaves room for the others."""
    name = str(trace.get("name", ""))
    if name.endswith(": train"):  # it is the faint line under its running mean
        return {**trace, "showlegend": False}
    short = name.removesuffix(": train, running mean").replace(": test", ", test")
    return {**trace, "name": short}


def _early(lane: Snapshot) -> float:
    """Return the loss after a tenth of the run."""
    _, values = lane.curves["smooth_loss"]
    return float(values[len(values) // 10]) if len(values) else float("nan")


def numbers() -> list[Readout]:
    """Return the numbers in the header."""

    def divergence(lane: str) -> Any:
        def shown(frame: Frame) -> str:
            snapshot = frame.snapshot.lanes[lane]
            if snapshot.message:
                return "stopped"
            value = snapshot.last("test_loss") - entropy(config_of(frame.snapshot))
            return f"{value:.3f}".replace("-", "−") if np.isfinite(value) else "–"

        return shown

    help = "Kullback-Leibler divergence of the flow from the truth: test loss minus entropy"
    return [
        Readout(Item("readout", "count", "step", help="Optimizer steps"), lambda frame: f"{frame.snapshot.step:,}"),
        Readout(Item("readout", "rate", "steps/s"), speed_text),
        *(
            Readout(Item("readout", f"kl_{lane}", f"KL, {NAMES[lane]}", help=help, unit="nats"), divergence(lane))
            for lane in ORDER
        ),
        Readout(
            Item("readout", "merges", "merged layers", help="Perturbations merged into their frozen matrices"),
            lambda frame: f"{frame.snapshot.counts['merge']:,}",
        ),
        Readout(
            Item("readout", "skips", "skipped", help="Merges refused, because a matrix would become nearly singular"),
            lambda frame: f"{frame.snapshot.counts['skip'] + frame.snapshot.counts['discard']:,}",
        ),
    ]
