"""The lab of temperatures: a flow that is trained at T = 1 and used at any other."""

from typing import Any

from p4lab.training import Frame
from p4lab.training.boltzmann_setup import BoltzmannEngine
from p4lab.training.temperature_setup import TemperatureConfig
from p4lab.widgets import settings_items as shared
from p4lab.widgets.boltzmann_lab import (
    BOARD_INTERVAL,
    DENSITY_INTERVAL,
    LOSS,
    mixture,
    numbers,
    training,
    truth,
)
from p4lab.widgets.controls import ControlPanel, Group, Item
from p4lab.widgets.old_dashboard import PANEL_INTERVAL, Dashboard, Picture, Style
from p4lab.widgets.temperature_pictures import (
    TEMPERATURES,
    Board,
    ExactPicture,
    Look,
    OverTemperature,
    SteerableCopies,
    SteeredPicture,
    SteeredProfile,
)

MIXING_TEXTS = {"p4inv": "P4Inv", "swap": "swap", "permutation": "permutation", "p4orthogonal": "P4Orthogonal"}
OVERVIEW_INTERVAL = 2.0
SIZES_INTERVAL = 2.2
EXACT_INTERVAL = 0.3


def temperature_lab(
    config: TemperatureConfig | None = None, name: str | None = None, **changes: Any
) -> "TemperatureLab":
    """Return a lab in which the temperature of a flow is a dial.

    Args:
        config: the first settings (None: `TemperatureConfig`'s defaults).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``momenta=2``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    return TemperatureLab((config or TemperatureConfig()).replace(**changes), name)


class Bar(ControlPanel):
    """The dial, and what is shown of the pictures below.

    Args:
        touched: as `ControlPanel`; names are "temperature", "samples" and "log".
    """

    def __init__(self, touched: Any) -> None:
        texts = tuple(f"T = {t:.2f}" for t in TEMPERATURES)
        help = "Of everything below; the flow is trained at T = 1, whatever it says here"
        items = [
            Item("slider", "temperature", "Temperature", choices=TEMPERATURES, texts=texts, help=help),
            Item("toggle", "samples", "Samples", help="Samples of the flow over its density"),
            Item("segments", "log", "", choices=(False, True), texts=("Density", "Log-density")),
        ]
        super().__init__([Group("", items)], touched, direction="row")
        self.add_class("p4-boltzmann-bar")


class TemperatureLab(Dashboard):
    """The lab: a dashboard over one steerable flow, with its densities and free energies at any temperature.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: TemperatureConfig, name: str | None = None) -> None:
        self._look, copies = Look(), SteerableCopies()
        self._bar = Bar(self._touched)
        self._exact, self._steered = ExactPicture(self._look), SteeredPicture(copies, self._look)
        self._profile, self._over = SteeredProfile(copies, self._look), OverTemperature(copies, self._look)
        self._board = Board(copies, self._look, self._touched)
        over = self._over
        super().__init__(
            config,
            BoltzmannEngine,
            title="One flow for all temperatures",
            subtitle="Trained at T = 1, steered by its prior N(0, T I)",
            settings=settings(config),
            pictures=[
                Picture(self._exact.widget, self._exact.draw, EXACT_INTERVAL),
                Picture(self._steered.widget, self._steered.draw, DENSITY_INTERVAL),
                Picture(self._profile.widget, self._profile.draw, DENSITY_INTERVAL),
                Picture(over.sizes, over.draw_sizes, SIZES_INTERVAL),
                Picture(over.differences, over.draw_differences, OVERVIEW_INTERVAL),
                Picture(self._bar, self._show_bar, PANEL_INTERVAL),
                # Above the others on the page, but the slowest of them.
                Picture(self._board.widget, self._board.draw, BOARD_INTERVAL),
            ],
            style=Style(loss=LOSS, view="training", readouts=numbers()),
            name=name,
        )
        self.root.add_class("p4-boltzmann")

    def _touched(self, name: str, value: Any) -> None:
        if name in ("temperature", "samples", "log"):
            setattr(self._look, name, value)
            self.player.poke()
        else:
            super()._touched(name, value)

    def _show_bar(self, frame: Frame) -> None:
        look = self._look
        self._bar.show({"temperature": look.temperature, "samples": look.samples, "log": look.log})


def settings(config: TemperatureConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    mixings = tuple(dict.fromkeys((*MIXING_TEXTS, config.mixing)))
    names = tuple(MIXING_TEXTS.get(name, name) for name in mixings)
    momenta = "Auxiliary coordinates with the energy v²/2, with which the flow trades volume"
    return [
        truth(),
        Group(
            "Flow",
            [
                Item("choice", "momenta", "Momenta", choices=grid("momenta", 0, 1, 2, 4), live=False, help=momenta),
                Item("choice", "mixing", "Mixing", choices=mixings, texts=names, live=False),
                Item("choice", "blocks", "Couplings", choices=grid("blocks", 4, 8, 12, 16), live=False),
                Item("choice", "hidden", "Hidden width", choices=grid("hidden", 16, 32, 64), live=False),
            ],
        ),
        Group("Loss at T = 1", [mixture(config.share)]),
        *training(config),
    ]
