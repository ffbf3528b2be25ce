"""Handwritten digits, modelled by P4Inv layers and Bent identities."""

from dataclasses import dataclass
from typing import Any

from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import PRESET, SLOW, Axes, Grid, Grids, Lab, Picture, Sight, Try, View
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
    subtitle="Layers that know their inverse",
    config=DigitsConfig(),
    view=DigitsView(),
    trainer=Engine,
    controls={"preset": PRESET},
    groups={
        "Preset": ("preset",),
        "Optimizer": ("learning_rate", "optimizer"),
        "Perturbations": ("merge_every", "rank", "reset"),
        "Flow": ("blocks",),
        "Run": ("speed",),
    },
    more={
        "Inverse and determinant": ("skip", "refine_every", "penalty"),
        "Run": ("seed", "device", "dtype"),
        "Diagnostics": ("view",),
    },
    tries=(
        Try(
            "Just train",
            "Press *Start*. Noise turns into strokes within some hundred steps, and into digits within a few "
            "thousand. Drag a rectangle to zoom into the loss; a double click leads back.",
            {"preset": "recommended", "learning_rate": 0.002, "restart": True},
        ),
        Try(
            "Too large a rate",
            "After some 200 steps set *Learning rate* to 0.02, while it trains. The loss jumps, and the "
            "change leaves a dotted mark on the curves. Set it back to 0.002, and watch the run recover "
            "within 150 steps.",
        ),
        Try(
            "A rate that breaks it",
            "At *Learning rate* 0.05 the loss explodes, and the lab stops within some 20 steps. Then a lower "
            "rate comes too late. Set it to 0.002, go back by *Time travel*, and press *Branch here* and "
            "*Start*.",
        ),
        Try(
            "The paper's setting",
            "Press *Start*. Each layer has one random direction, which is trained along, and merges every 10 "
            "steps. After 500 steps the loss is 2.28 bits per pixel; with the recommended setting it is 2.14.",
            {"preset": "paper", "learning_rate": 0.002, "restart": True},
        ),
        Try(
            "Merge less often",
            "Press *Start*. With 42 of 64 directions, a merge every 200 steps costs nothing: 2.14 bits after "
            "500 steps, as with one every 4. Fewer directions cost more: *Rank* 4 comes to 2.25, *Rank* 1 to "
            "2.34.",
            {"rank": 42, "reset": "gradient", "train_v": False, "merge_every": 200, "restart": True},
        ),
        Try(
            "A merge changes nothing",
            "Pause, and press *To merge* several times: the loss does not notice a merge, for the effective "
            "weights stay the same.",
        ),
        Try(
            "Travel in time",
            "Pause, and drag *Time travel*: samples, curves and numbers all go back. Change *Learning rate* "
            "there, and press *Branch here* and *Start*: a second run starts from that moment, its curves "
            "over the first one's.",
        ),
        Try(
            "Pass it on",
            "Copy *Config*, one line with the seed in it, to a colleague; or press *Save run*, which takes "
            "the weights along.",
            {"page:below": "Runs and files"},
        ),
    ),
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
    style="""
.p4-pictures {
  grid-template: "samples real" 100px "samples eigenvalues" minmax(0, 1fr) / minmax(0, 0.75fr) minmax(0, 1fr);
}
.p4-digits-samples { grid-area: samples; }
.p4-digits-eigenvalues { grid-area: eigenvalues; }
.p4-digits-real .p4-scale { display: none; }
""",
)
