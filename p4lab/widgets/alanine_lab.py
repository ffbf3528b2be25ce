"""The lab of alanine dipeptide: a Boltzmann generator, live."""

from collections.abc import Callable
from typing import Any

import numpy as np

from p4lab.molecules.checkpoint import SHIPPED_METHOD
from p4lab.molecules.flow import ARCHITECTURES
from p4lab.plots import Loss
from p4lab.training import Engine, Frame
from p4lab.training.alanine_setup import STARTS, AlanineConfig, AlanineView, View
from p4lab.widgets import settings_items as shared
from p4lab.widgets.alanine_pictures import LOOK_EVERY, Energies, Molecule, Profile, Ramachandran, Watch
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.old_dashboard import PICTURE_INTERVAL, Dashboard, Picture, Style
from p4lab.widgets.old_panels import Readout, speed_text

TEXTS = {
    "realnvp": "RealNVP",
    "realnvp_p4inv": "RealNVP, P4Inv swaps",
    "spline": "Splines",
    "spline_p4": "Splines, P4Inv mixing",
}
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
INTERVALS = (1, 2, 5, 10, 20, 50, 100)
LOSS = Loss("loss (nats)", bits=False)
PRETRAINED = AlanineConfig(initial="pretrained", by_energy=0.5, learning_rate=1e-4)


def alanine_lab(config: AlanineConfig | None = None, name: str | None = None, **changes: Any) -> "AlanineLab":
    """Return a lab in which a flow learns the Boltzmann distribution of alanine dipeptide.

    Args:
        config: the first settings (None: the flow that comes with p4lab, trained on by example and by energy).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``by_energy=0.5``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
        MissingPackageError: openmm is not installed.
        DataFileError: data or checkpoint are missing or damaged.
    """
    return AlanineLab((config or PRETRAINED).replace(**changes), name)


class AlanineLab(Dashboard):
    """The lab: a dashboard with the Ramachandran plot, energies, free energies and a sample.

    Args:
        config: settings of the first run.
        name: see `Dashboard`.
    """

    def __init__(self, config: AlanineConfig, name: str | None = None) -> None:
        self._looks_with = AlanineView()
        watch = Watch(self._looks_with)
        plot, energies, molecule = Ramachandran(watch), Energies(watch), Molecule(watch)
        profiles = [Profile(watch, "φ", 0, lambda view: view.phi), Profile(watch, "ψ", 1, lambda view: view.psi)]
        super().__init__(
            config,
            Engine,
            title="Alanine dipeptide",
            subtitle="A Boltzmann generator at 300 K",
            settings=settings(config),
            pictures=[
                Picture(plot.widget, plot.draw, LOOK_EVERY),
                Picture(energies.widget, energies.draw, LOOK_EVERY),
                Picture(molecule.widget, molecule.draw, PICTURE_INTERVAL),
                *(Picture(profile.widget, profile.draw, LOOK_EVERY) for profile in profiles),
            ],
            style=Style(loss=LOSS, view="training", readouts=numbers(watch)),
            name=name,
        )
        self.root.add_class("p4-alanine")

    def _touched(self, name: str, value: Any) -> None:
        # Only one architecture has a flow that was trained before: another starts anew, and "Pretrained" means that.
        player = self.player
        if name == "architecture" and value != SHIPPED_METHOD:
            player.set(architecture=value, initial="new")
        elif name == "initial" and value == "pretrained":
            player.set(architecture=SHIPPED_METHOD, initial=value)
        else:
            super()._touched(name, value)

    def close(self) -> None:
        """End the threads, remove the widgets, and free what OpenMM holds."""
        super().close()
        self._looks_with.close()


def settings(config: AlanineConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    names = tuple(ARCHITECTURES)
    return [
        Group(
            "Flow",
            [
                Item(
                    "choice",
                    "architecture",
                    "Architecture",
                    choices=names,
                    texts=tuple(TEXTS[name] for name in names),
                    live=False,
                ),
                Item("segments", "initial", "Start", choices=STARTS, texts=("Pretrained", "New"), live=False),
            ],
        ),
        Group(
            "Training",
            [
                Item(
                    "slider",
                    "by_energy",
                    "By energy",
                    choices=grid("by_energy", *SHARES),
                    help="Share of the loss that comes from energies and forces; the rest comes from frames",
                ),
                shared.learning_rate(config, *RATES),
                Item("choice", "batch_size", "Batch", choices=grid("batch_size", 64, 128, 256, 512), live=False),
                shared.merge_every(config, *INTERVALS),
            ],
        ),
        Group("Run", [shared.seed(), shared.device(config), shared.slow_speed_limit()]),
    ]


def numbers(watch: Watch) -> list[Readout]:
    """Return the numbers in the header."""

    def seen(form: Callable[[View], str]) -> Callable[[Frame], str]:
        return lambda frame: "–" if watch.last is None else form(watch.last)

    def test(frame: Frame) -> str:
        value = frame.snapshot.last("test_loss")
        return f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"

    return [
        Readout(Item("readout", "count", "step", help="Optimizer steps"), lambda frame: f"{frame.snapshot.step:,}"),
        Readout(Item("readout", "rate", "steps/s"), speed_text),
        Readout(Item("readout", "test", "test NLL", unit="nats", help="Of 512 frames kept aside"), test),
        Readout(
            Item("readout", "ess", "ESS", unit="%", help="Effective sample size; behind the bar: top 0.1 % clipped"),
            seen(lambda view: f"{100 * view.ess:.0f} | {100 * view.clipped:.0f}"),
        ),
        Readout(
            Item("readout", "shift", "energy above data", unit="kJ/mol", help="Mean over the samples, not reweighted"),
            seen(lambda view: f"{view.shift:+.1f}".replace("-", "−")),
        ),
        Readout(
            Item("readout", "rare", "φ > 0", unit="%", help="Share of samples; behind the bar: reweighted"),
            seen(lambda view: " | ".join(f"{100 * share:.1f}" for share in view.rare)),
        ),
    ]
