"""The lab of properties: P4 beside the usual ways to keep a property, on a regression onto a matrix that has it."""

from collections.abc import Callable
from typing import Any

from p4lab.plots import Figure, Loss, Shown
from p4lab.plots.property_curves import property_curves
from p4lab.problems.property_targets import PROPERTIES, VIOLATIONS
from p4lab.training import Frame, Snapshot
from p4lab.training.property_setup import PropertyConfig, best_error, side_by_side
from p4lab.training.property_ways import MAP_TEXTS
from p4lab.widgets import settings_items as shared
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.old_dashboard import Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, readout, speed_text, with_stopped
from p4lab.widgets.property_board import COLORS, Board, config_of, label, number, violation_text
from p4lab.widgets.property_pictures import EigenvaluePicture, Look, MatrixPicture, SingularValuePicture, Spectra

TEXTS = {
    "orthogonal": "orthogonal",
    "volume": "volume preserving, det = 1",
    "positive_definite": "positive definite",
    "lipschitz": "Lipschitz, |W|₂ ≤ c",
    "circulant": "shift-equivariant (circulant)",
    "permutation": "permutation-equivariant",
    "invertible": "invertible",
}
"""What the properties are called."""
LOSS = Loss("error |W − T|² / d", log=True, bits=False)
WIDTHS = (8, 16, 32, 64, 128, 256)
FACTORS = (0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
NOISES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
STRENGTHS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
INTERVALS = (1, 2, 4, 10, 20, 50, 100)
FLOORS = {"float32": 1e-8, "float64": 1e-17}
"""Below rounding: where the curves show a violation of 0."""
SPEEDS = (1, 5, 20, None)
MATRIX_INTERVAL = 0.25
SPECTRUM_INTERVAL = 0.5
BOARD_INTERVAL = 0.5


def property_lab(config: PropertyConfig | None = None, name: str | None = None, **changes: Any) -> "PropertyLab":
    """Return a lab in which P4 and four other ways learn a matrix with a property, side by side.

    Args:
        config: the first settings (None: `PropertyConfig`'s defaults, an orthogonal matrix of width 64).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``prop="circulant"``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
        MissingPackageError: geotorch is not installed.
    """
    return PropertyLab((config or PropertyConfig()).replace(**changes), name)


class PropertyLab(Dashboard):
    """The lab: a dashboard over lanes by way, with a table, their matrices, eigenvalues and singular values.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: PropertyConfig, name: str | None = None) -> None:
        self._look, spectra = Look(), Spectra()
        self._board, self._matrices = Board(self._touched), MatrixPicture(self._look)
        self._eigenvalues, self._singular_values = EigenvaluePicture(spectra), SingularValuePicture(spectra)
        pictures = [
            Picture(self._matrices.widget, self._matrices.draw, MATRIX_INTERVAL),
            Picture(self._eigenvalues.widget, self._eigenvalues.draw, SPECTRUM_INTERVAL),
            Picture(self._singular_values.widget, self._singular_values.draw, SPECTRUM_INTERVAL),
            Picture(self._board.widget, self._board.draw, BOARD_INTERVAL),
        ]
        super().__init__(
            config,
            side_by_side,
            title="Every property on the poster",
            subtitle="P4 beside the usual ways: same target, start, batches",
            settings=settings(config),
            pictures=pictures,
            style=Style(loss=LOSS, view="training", readouts=numbers()),
            name=name,
        )
        self.root.add_class("p4-property")

    def _touched(self, name: str, value: Any) -> None:
        if name == "matrix":
            self._look.error = value == "error"
            self._refused = None
            self.player.poke()
        else:
            super()._touched(name, value)

    def _show_side(self, frame: Frame) -> None:
        planned = frame.planned.to_dict()
        values = {**planned, "speed": frame.speed, "matrix": "error" if self._look.error else "matrix"}
        shown = {name: values[name] for name in values if name in self._names}
        # What has no meaning for the property that is chosen.
        useless = {
            "bound": planned["prop"] != "lipschitz",
            "orthogonal_map": planned["prop"] != "orthogonal",
            "rank": planned["prop"] == "circulant",
            "reset": planned["prop"] == "circulant",
        }
        disabled = [name for name, without in useless.items() if without]
        self._side.show({**shown, "view": self._view}, disabled=disabled, pending=frame.pending)

    def _message(self, frame: Frame) -> dict[str, str]:
        config = config_of(frame.snapshot)
        labels = {lane: label(config, lane) for lane in frame.snapshot.lanes}
        return with_stopped(super()._message(frame), frame, labels)

    def _curves(self, frame: Frame) -> Figure:
        config = config_of(frame.snapshot)
        others = [run.snapshot for run in frame.runs if not run.active]
        return property_curves(
            _shown(frame.snapshot),
            VIOLATIONS[config.prop],
            frame.snapshot.events,
            [lane for snapshot in others for lane in _shown(snapshot)],
            best_error(config.prop, config.dim, config.seed, config.bound),
            frame.shown,
            frame.run,
            FLOORS[config.dtype],
        )


def _shown(snapshot: Snapshot) -> list[Shown]:
    config = config_of(snapshot)
    return [Shown(label(config, lane), COLORS[lane], of.curves, of.events) for lane, of in snapshot.lanes.items()]


def numbers() -> list[Readout]:
    """Return the numbers in the header."""

    def of(lane: str, text: Callable[[Snapshot], str]) -> Callable[[Frame], str]:
        def shown(frame: Frame) -> str:
            snapshot = frame.snapshot.lanes[lane]
            return "stopped" if snapshot.message else text(snapshot)

        return shown

    def error(snapshot: Snapshot) -> str:
        return number(snapshot.last("test_loss"), ".1e")

    def missed(snapshot: Snapshot) -> str:
        return violation_text(snapshot.last("residual"))

    how_far = "How far the effective weights are from the property"
    return [
        readout("count", "step", "Optimizer steps of every lane", lambda frame: f"{frame.snapshot.step:,}"),
        readout("rate", "steps/s", "Steps of all lanes together", speed_text),
        readout("error_p4", "P4 error", LOSS.label, of("p4", error)),
        readout("violation_p4", "P4 violation", how_far, of("p4", missed)),
        readout("violation_usual", "usual violation", how_far, of("usual", missed)),
        readout("violation_penalty", "penalty violation", how_far, of("penalty", missed)),
        readout("violation_plain", "plain violation", how_far, of("plain", missed)),
    ]


def settings(config: PropertyConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    samples = grid("samples", 0, 32, 128, 512, 2048)
    return [
        Group(
            "Property",
            [
                Item(
                    "choice",
                    "prop",
                    "Property",
                    choices=PROPERTIES,
                    texts=tuple(TEXTS[prop] for prop in PROPERTIES),
                    live=False,
                ),
                Item(
                    "choice",
                    "bound",
                    "Bound c",
                    choices=grid("bound", 0.5, 0.8, 1.0, 1.25),
                    help="Of the spectral norm; that of the target is 1",
                    live=False,
                ),
                Item(
                    "choice",
                    "orthogonal_map",
                    "torch's map",
                    choices=tuple(MAP_TEXTS),
                    texts=tuple(MAP_TEXTS.values()),
                    help="Of torch.nn.utils.parametrizations.orthogonal",
                    live=False,
                ),
                Item("choice", "dim", "Width d", choices=grid("dim", *WIDTHS), live=False),
            ],
        ),
        Group(
            "Show",
            [Item("segments", "matrix", "Heatmaps", choices=("matrix", "error"), texts=("Matrix W", "Error W − T"))],
        ),
        Group(
            "Data",
            [
                Item("slider", "noise", "Noise of y", choices=grid("noise", *NOISES), help="Standard deviation"),
                Item(
                    "choice",
                    "samples",
                    "Samples",
                    choices=samples,
                    texts=tuple(str(n) if n else "endless" for n in samples),
                    help="How many pairs (x, y) there are to learn from",
                    live=False,
                ),
                Item("choice", "batch_size", "Batch", choices=grid("batch_size", 32, 64, 128, 256, 512), live=False),
            ],
        ),
        Group(
            "Optimizer",
            [
                Item(
                    "slider",
                    "rate_factor",
                    "Learning rates ×",
                    choices=grid("rate_factor", *FACTORS),
                    help="On top of each lane's best",
                ),
                Item(
                    "slider",
                    "strength",
                    "Penalty",
                    choices=grid("strength", *STRENGTHS),
                    help="Its weight, in the lane that has one",
                ),
            ],
        ),
        Group(
            "P4",
            [
                shared.merge_every(config, *INTERVALS),
                Item(
                    "choice",
                    "rank",
                    "Rank",
                    choices=grid("rank", 1, 2, 4, 8, 16, 32),
                    help="Directions of a perturbation, no more than fit",
                    live=False,
                ),
                shared.directions("How new directions are drawn at a merge"),
            ],
        ),
        Group(
            "Run",
            [
                shared.seed("Of target, start and batches"),
                shared.device(config),
                shared.precision(),
                shared.speed_limit(*SPEEDS),
            ],
        ),
    ]
