"""Handwritten digits, modelled by P4Inv layers and Bent identities."""

from dataclasses import dataclass
from typing import Any

from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import PRESET, SLOW, Axes, Grid, Grids, Lab, Picture, Sight, View
from p4lab.plots import Figure, Loss, gallery
from p4lab.plots.layers import Images, Plot, Tile
from p4lab.training import DigitsConfig, Engine
from p4lab.training.config import setting

COLUMNS = 8
REAL = 16
"""Digits of the test set that are shown."""
LOSS = Loss()
Look = Sight[DigitsConfig, View]


@dataclass(frozen=True)
class DigitsView(View):
    """What is looked at."""

    speed: float | None = setting(None, choices=SLOW)


def samples(sight: Look) -> Images:
    """Return what the flow makes of fixed latents."""
    return Images([Tile(sight.snapshot.pictures["samples"])])


def real_digits(sight: Look) -> Images:
    """Return digits of the test set."""
    return Images([Tile(sight.snapshot.pictures["real"][:REAL])])


def eigenvalues(sight: Sight[Any, Any]) -> Plot:
    """Return the eigenvalues of the watched matrix, at present and before."""
    spectrum = sight.snapshot.spectrum
    return Plot(*gallery.spectrum(spectrum.steps, spectrum.values))


def curves(sight: Look) -> Figure:
    """Return the training curves."""
    return training_figure(sight, LOSS)


DIGITS = Lab(
    name="digits",
    title="P4Inv flow on handwritten digits",
    subtitle="Layers that carry their inverse and determinant",
    config=DigitsConfig(),
    view=DigitsView(),
    trainer=Engine,
    controls={"preset": PRESET},
    groups={
        "Preset": ("preset",),
        "Optimizer": ("learning_rate", "optimizer"),
        "Perturbations": ("merge_every", "rank", "reset", "skip", "refine_every", "penalty"),
        "Run": ("blocks", "seed", "device", "dtype", "speed"),
        "Diagnostics": ("view",),
    },
    pictures=(
        Picture(Grids([Grid("Samples", "live, from fixed latents", COLUMNS)], top=16), samples, area="samples"),
        Picture(Grids([Grid("Real digits", "from the test set", COLUMNS)], top=16), real_digits, area="real"),
        Picture(
            Axes("Eigenvalues", "of the first layer's matrix", "real part", "imaginary part", height=200),
            eigenvalues,
            0.5,
            "eigenvalues",
        ),
    ),
    numbers=numbers.usual(LOSS),
    curves=curves,
    loss=LOSS,
)
