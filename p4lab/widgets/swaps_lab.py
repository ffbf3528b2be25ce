"""The lab of swaps: RealNVP with five kinds of mixing between its couplings, side by side."""

from dataclasses import replace
from statistics import median
from typing import Any

from p4lab.plots import Figure, Loss, Shown
from p4lab.plots.exact_loss import exact_loss
from p4lab.problems.densities import DENSITIES, density
from p4lab.training import Frame, Snapshot, State, devices
from p4lab.training.swaps_setup import DIGITS, LANES, SwapsConfig, side_by_side
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.dashboard import Dashboard, Picture, Style
from p4lab.widgets.panels import Readout
from p4lab.widgets.swaps_pictures import Board, LaneImages, Look, MatrixPicture

NAMES = {
    "swap": "Swap",
    "permutation": "Permutation",
    "plu": "PLU (Glow)",
    "p4inv": "P4Inv",
    "p4orthogonal": "P4Orthogonal",
}
"""What the lanes are called; see `p4lab.training.swaps_setup.LANES`."""
LOSS = Loss("−log q (nats; digits: per pixel)", bits=False, test=False)
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
INTERVALS = (1, 2, 4, 10, 20, 50, 100)
SPEEDS = (1, 5, 20, None)
MATRIX_INTERVAL = 0.2
IMAGE_INTERVAL = 0.5
BOARD_INTERVAL = 1.0
FINITE, FAR = 1e6, 4.0
"""Losses that are drawn; times that most lanes fit below the top of the curves, should one of them run away."""
LEGEND = {"x": 0.55, "y": 0.99, "xanchor": "right", "yanchor": "top", "bgcolor": "rgba(0,0,0,0)", "font": {"size": 11}}
"""In the upper right of the losses, from where they have come down."""


def swaps_lab(config: SwapsConfig | None = None, name: str | None = None, **changes: Any) -> "SwapsLab":
    """Return a lab in which RealNVP learns with five kinds of mixing layers, side by side.

    Args:
        config: the first settings (None: `SwapsConfig`'s defaults, the digits).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``data="two_moons"``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    return SwapsLab((config or SwapsConfig()).replace(**changes), name)


class SwapsLab(Dashboard):
    """The lab: a dashboard over lanes by mixing, with heatmaps of their matrices and what their flows make.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: SwapsConfig, name: str | None = None) -> None:
        self._look, self._on_test = Look(), True
        self._matrices = MatrixPicture(NAMES, self._look)
        self._images = LaneImages(NAMES)
        self._board = Board(NAMES, self._touched)
        super().__init__(
            config,
            side_by_side,
            title="What better mixing buys",
            subtitle="RealNVP with five kinds of layers between its couplings: same networks, same batches",
            settings=settings(config),
            pictures=[
                Picture(self._matrices.widget, self._matrices.draw, MATRIX_INTERVAL),
                Picture(self._images.widget, self._images.draw, IMAGE_INTERVAL),
                # Above the others on the page, but the slowest of them.
                Picture(self._board.widget, self._board.draw, BOARD_INTERVAL),
            ],
            style=Style(loss=LOSS, view="training", lanes=NAMES, readouts=numbers()),
            name=name,
        )
        self.root.add_class("p4-swaps")

    def _touched(self, name: str, value: Any) -> None:
        if name == "block":
            self._look.block = int(value) - 1
        elif name == "matrix":
            self._look.change = value == "change"
        elif name == "curve":
            self._on_test = value == "test"
        else:
            super()._touched(name, value)
            return
        self._refused = None
        self.player.poke()

    def _show_side(self, frame: Frame) -> None:
        look = self._look
        values = {
            **frame.planned.to_dict(),
            "speed": frame.speed,
            "block": look.shown(frame.snapshot) + 1,
            "matrix": "change" if look.change else "matrix",
            "curve": "test" if self._on_test else "train",
        }
        shown = {name: values[name] for name in values if name in self._names}
        self._side.show({**shown, "view": self._view}, pending=frame.pending)

    def _message(self, frame: Frame) -> dict[str, str]:
        message = super()._message(frame)
        stopped = [
            f"{NAMES[name]} stopped: {lane.message}" for name, lane in frame.snapshot.lanes.items() if lane.message
        ]
        return {"level": "notice", "text": "; ".join(stopped)} if stopped and message["level"] == "info" else message

    def _lane(self, name: str, number: int, lane: Snapshot) -> Shown:
        shown = super()._lane(name, number, lane)
        curve = lane.curves["test_loss" if self._on_test else "smooth_loss"]
        return replace(shown, curves={**lane.curves, "loss": curve, "smooth_loss": curve})

    def _curves(self, frame: Frame) -> Figure:
        figure = exact_loss(super()._curves(frame))
        layout = {**figure["layout"], "legend": LEGEND}
        axis = {key: value for key, value in layout["yaxis"].items() if key not in ("dtick", "range", "nticks")}
        layout["yaxis"] = {**axis, **self._reach(frame)}
        return {**figure, "layout": layout}

    def _reach(self, frame: Frame) -> dict[str, Any]:
        """Return a range that leaves out the first steep fall of a long run, and lanes far above most others."""
        curves = [lane.curves["test_loss" if self._on_test else "smooth_loss"][1] for lane in _lanes(frame)]
        lanes = [
            [float(value) for value in curve[len(curve) // 10 :] if abs(value) < FINITE]
            for curve in curves
            if len(curve)
        ]
        tops, low = [max(lane) for lane in lanes if lane], min((min(lane) for lane in lanes if lane), default=0.0)
        if not tops or not low < max(tops):
            return {}
        high = min(max(tops), low + FAR * (median(tops) - low)) if low < median(tops) else max(tops)
        margin = 0.06 * (high - low)
        return {"range": [low - margin, high + margin]}


def _lanes(frame: Frame) -> list[Snapshot]:
    return list(frame.snapshot.lanes.values())


def numbers() -> list[Readout]:
    """Return the numbers in the header."""

    def loss(lane: str) -> Any:
        def shown(frame: Frame) -> str:
            snapshot = frame.snapshot.lanes[lane]
            value = snapshot.last("test_loss")
            return "stopped" if snapshot.message else f"{value:.3f}".replace("-", "−") if abs(value) < 1e4 else "–"

        return shown

    def rate(frame: Frame) -> str:
        return f"{frame.steps_per_second:.0f}" if frame.state is State.RUNNING else "–"

    def total(*kinds: Any) -> Any:
        return lambda frame: f"{sum(lane.counts[kind] for lane in _lanes(frame) for kind in kinds):,}"

    def item(name: str, label: str, help: str, unit: str = "") -> Item:
        return Item("readout", name, label, help=help, unit=unit)

    nll = "Test NLL: mean of −log q, nats per pixel of the digits, else nats"
    return [
        Readout(item("count", "step", "Optimizer steps of every lane"), lambda frame: f"{frame.snapshot.step:,}"),
        Readout(item("rate", "steps/s", "Steps of all lanes together"), rate),
        *(Readout(item(f"nll_{lane}", NAMES[lane], nll), loss(lane)) for lane in LANES),
        Readout(item("merges", "merged", "Perturbations merged, all lanes"), total("merge")),
        Readout(item("skips", "skipped", "Merges refused, all lanes"), total("skip", "discard")),
    ]


def settings(config: SwapsConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""

    def grid(name: str, *values: Any) -> tuple[Any, ...]:
        return tuple(sorted({*values, getattr(config, name)}))

    labels = ("Digits (64 pixels)", *(density(name).label for name in DENSITIES))
    hidden = "Width of the hidden layer of each coupling's network"
    merge = "Of P4Inv and P4Orthogonal"
    speeds = tuple("none" if speed is None else f"{speed} / s" for speed in SPEEDS)
    couplings = grid("blocks", 2, 4, 8, 12)
    layers = tuple(range(1, couplings[-1]))
    shown = "Which mixing layer, in the order in which the data meets them"
    rank = "Directions of a perturbation, no more than fit the width (42 of 64 for P4Inv, 32 for P4Orthogonal)"
    parts = {"matrix": "Matrix", "change": "Change"}
    rate = "Of all lanes"
    return [
        Group("Data", [Item("choice", "data", "Problem", choices=(DIGITS, *DENSITIES), texts=labels, live=False)]),
        Group(
            "Show",
            [
                Item("choice", "block", "Mixing layer", choices=layers, help=shown),
                Item(
                    "segments",
                    "matrix",
                    "Heatmaps",
                    choices=tuple(parts),
                    texts=tuple(parts.values()),
                    help="The matrix W, or W minus what it was at the start",
                ),
                Item("segments", "curve", "Loss on", choices=("test", "train"), texts=("Test data", "Batches")),
            ],
        ),
        Group(
            "Flows",
            [
                Item("choice", "blocks", "Couplings", choices=couplings, live=False),
                Item(
                    "choice", "hidden", "Hidden width", choices=grid("hidden", 16, 32, 64, 128), live=False, help=hidden
                ),
            ],
        ),
        Group(
            "Optimizer",
            [
                Item("slider", "learning_rate", "Learning rate", choices=grid("learning_rate", *RATES), help=rate),
                Item("choice", "batch_size", "Batch", choices=grid("batch_size", 64, 128, 256, 512), live=False),
            ],
        ),
        Group(
            "P4 layers",
            [
                Item(
                    "slider",
                    "merge_every",
                    "Merge every",
                    unit="steps",
                    choices=grid("merge_every", *INTERVALS),
                    help=merge,
                ),
                Item("choice", "rank", "Rank", choices=grid("rank", 1, 2, 8, 64), live=False, help=rank),
            ],
        ),
        Group(
            "Run",
            [
                Item("number", "seed", "Seed", live=False),
                Item("choice", "device", "Device", choices=grid("device", *devices()), live=False),
                Item("choice", "dtype", "Precision", choices=("float32", "float64"), live=False),
                Item("choice", "speed", "Speed limit", choices=SPEEDS, texts=speeds),
            ],
        ),
    ]
