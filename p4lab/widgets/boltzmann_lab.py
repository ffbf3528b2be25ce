"""The lab of Boltzmann generators in the plane: a flow learns a potential by example, by energy, or by both."""

from typing import Any

from p4lab.plots import Loss
from p4lab.problems.energies import PLANE_ENERGIES, plane_energy
from p4lab.training import Frame, RunConfig
from p4lab.training.boltzmann_setup import FLOWS, BoltzmannConfig, BoltzmannEngine
from p4lab.widgets import settings_items as shared
from p4lab.widgets.boltzmann_pictures import (
    Board,
    Copies,
    DensityPicture,
    EnergyPicture,
    EssPicture,
    LandscapePicture,
    Look,
    ProfilePicture,
    number,
)
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.old_dashboard import PANEL_INTERVAL, Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, speed_text

FLOW_TEXTS = {
    "realnvp_p4inv": "RealNVP + P4Inv swaps",
    "realnvp": "RealNVP",
    "p4inv_bent": "P4Inv + Bent",
    "spline_p4inv": "Splines + P4Inv",
}
RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
INTERVALS = (1, 2, 4, 10, 20, 50, 100)
SPEEDS = (5, 20, 100, None)
SHARES = tuple(k / 20 for k in range(21))
LOSS = Loss("KL divergence (nats)", log=True, bits=False)
DENSITY_INTERVAL = 0.5
CURVE_INTERVAL = 0.7
BOARD_INTERVAL = 1.0


def boltzmann_lab(config: BoltzmannConfig | None = None, name: str | None = None, **changes: Any) -> "BoltzmannLab":
    """Return a lab in which a flow becomes a Boltzmann generator of a potential in the plane.

    Args:
        config: the first settings (None: `BoltzmannConfig`'s defaults).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``share=0.5``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    return BoltzmannLab((config or BoltzmannConfig()).replace(**changes), name)


class Bar(ControlPanel):
    """The slider of the mixture, and what is shown of the pictures below.

    Args:
        touched: as `ControlPanel`; names are "share", "samples" and "log".
        share: a value that the slider has to know.
    """

    def __init__(self, touched: Any, share: float) -> None:
        items = [
            mixture(share),
            Item("toggle", "samples", "Samples", help="Samples of the flow over the energy"),
            Item("segments", "log", "", choices=(False, True), texts=("Density", "Log-density")),
        ]
        super().__init__([Group("", items)], touched, direction="row")
        self.add_class("p4-boltzmann-bar")


class BoltzmannLab(Dashboard):
    """The lab: a dashboard over one flow, with its energies, density, free energies and weights.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: BoltzmannConfig, name: str | None = None) -> None:
        self._look, copies = Look(), Copies()
        self._bar = Bar(self._touched, config.share)
        landscape, density = LandscapePicture(copies, self._look), DensityPicture(copies, self._look)
        profile, energies, sizes = ProfilePicture(copies), EnergyPicture(copies), EssPicture()
        self._board = Board(copies, self._touched)
        shown: list[Any] = [landscape, density, profile, energies]
        super().__init__(
            config,
            BoltzmannEngine,
            title="Boltzmann generators",
            subtitle="A flow learns exp(−u) by example, by energy, or by both",
            settings=settings(config),
            pictures=[
                *(Picture(picture.widget, picture.draw, DENSITY_INTERVAL) for picture in shown),
                Picture(sizes.widget, sizes.draw, CURVE_INTERVAL),
                Picture(self._bar, self._show_bar, PANEL_INTERVAL),
                # Above the others on the page, but the slowest of them.
                Picture(self._board.widget, self._board.draw, BOARD_INTERVAL),
            ],
            style=Style(loss=LOSS, view="training", readouts=numbers()),
            name=name,
        )
        self.root.add_class("p4-boltzmann")

    def _touched(self, name: str, value: Any) -> None:
        if name in ("samples", "log"):
            setattr(self._look, name, value)
            self.player.poke()
        else:
            super()._touched(name, value)

    def _show_bar(self, frame: Frame) -> None:
        share = frame.planned.to_dict()["share"]
        self._bar.show({"share": share, "samples": self._look.samples, "log": self._look.log})


def mixture(share: float) -> Item:
    """Return the slider of the mixture; ``share`` is a value that it has to know."""
    choices = tuple(sorted({*SHARES, share}))
    texts = tuple("by example" if s == 0 else "by energy" if s == 1 else f"{100 * s:.0f} % energy" for s in choices)
    help = "What the loss is made of: (1 − s) KL(p‖q), learnt from examples, and s KL(q‖p), learnt from the energy"
    return Item("slider", "share", "Learn", choices=choices, texts=texts, help=help)


def numbers() -> list[Readout]:
    """Return the numbers in the header."""

    def last(name: str, form: str, scale: float = 1.0) -> Any:
        return lambda frame: number(scale * float(frame.snapshot.last(name)), form)

    def item(name: str, label: str, help: str, unit: str = "") -> Item:
        return Item("readout", name, label, help=help, unit=unit)

    forward = "KL(p‖q) on data that is not trained on: sees modes that the flow misses"
    reverse = "KL(q‖p) on the flow's samples: does not see modes that the flow misses"
    size = "Effective sample size of the flow's samples"
    return [
        Readout(item("count", "step", "Optimizer steps"), lambda frame: f"{frame.snapshot.step:,}"),
        Readout(Item("readout", "rate", "steps/s"), speed_text),
        Readout(item("forward", "KL(p‖q)", forward, "nats"), last("test_loss", ".3f")),
        Readout(item("reverse", "KL(q‖p)", reverse, "nats"), last("reverse_kl", ".3f")),
        Readout(item("ess", "ESS", size, "%"), last("ess", ".1f", 100)),
        Readout(
            item("clipped", "clipped", f"{size}, the top 0.1% of weights clipped", "%"), last("clipped_ess", ".1f", 100)
        ),
        Readout(
            item("merges", "merged layers", "Perturbations merged into their frozen matrices"),
            lambda frame: f"{frame.snapshot.counts['merge']:,}",
        ),
    ]


def settings(config: BoltzmannConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    names = tuple(FLOW_TEXTS[name] for name in FLOWS)
    path = "Leave out the part of the gradient by energy whose mean is 0: its noise vanishes where q = p"
    threshold = "Energies above it grow with their logarithm only"
    return [
        truth(),
        Group(
            "Flow",
            [
                Item("choice", "flow", "Architecture", choices=FLOWS, texts=names, live=False),
                Item("choice", "blocks", "Couplings", choices=grid("blocks", 2, 4, 6, 8, 12), live=False),
                Item("choice", "hidden", "Hidden width", choices=grid("hidden", 16, 32, 64), live=False),
            ],
        ),
        Group(
            "By energy",
            [
                Item("toggle", "path_gradient", "Path gradient", help=path),
                Item(
                    "slider",
                    "threshold",
                    "Compress above",
                    unit="kT",
                    choices=grid("threshold", 10.0, 30.0, 100.0, 300.0, 1000.0),
                    help=threshold,
                ),
            ],
        ),
        *training(config),
    ]


def truth() -> Group:
    """Return the choice of the potential."""
    labels = tuple(plane_energy(name).label for name in PLANE_ENERGIES)
    choice = Item("choice", "energy", "Energy", choices=tuple(PLANE_ENERGIES), texts=labels, live=False)
    return Group("Truth", [choice])


def training(config: RunConfig) -> list[Group]:
    """Return the settings of optimizer, merges and run."""
    batch = shared.grid(config)("batch_size", 64, 128, 256, 512)
    return [
        Group(
            "Optimizer",
            [shared.learning_rate(config, *RATES), Item("choice", "batch_size", "Batch", choices=batch, live=False)],
        ),
        Group("P4Inv", [shared.merge_every(config, *INTERVALS), shared.skip()]),
        Group("Run", [shared.seed(), shared.device(config), shared.precision(), shared.speed_limit(*SPEEDS)]),
    ]
