"""The settings that the lab of densities offers."""

from typing import Any

from p4lab.problems.densities import DENSITIES, density
from p4lab.training import devices
from p4lab.training.density_setup import DRAWING, DensityConfig
from p4lab.widgets.controls import Group, Item

RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
INTERVALS = (1, 2, 4, 10, 20, 50, 100)
SPEEDS = (5, 20, 100, None)


def settings(config: DensityConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""

    def grid(name: str, *values: Any) -> tuple[Any, ...]:
        return tuple(sorted({*values, getattr(config, name)}))

    labels = (*(density(name).label for name in DENSITIES), "Your drawing")
    blocks, couplings = "Nonlinearities of P4Inv + Bent", "Of RealNVP; its networks get as wide as it takes"
    skip = "Refuse merges that would make a matrix nearly singular"
    train_v = "As in the paper; else v is fixed between merges"
    gradient = ("gradient", "gaussian")
    speeds = tuple("none" if speed is None else f"{speed} / s" for speed in SPEEDS)
    return [
        Group("Truth", [Item("choice", "density", "Density", choices=(*DENSITIES, DRAWING), texts=labels, live=False)]),
        Group(
            "Flows",
            [
                Item("choice", "blocks", "Blocks", choices=grid("blocks", 4, 8, 16, 32, 64), live=False, help=blocks),
                Item(
                    "choice",
                    "couplings",
                    "Couplings",
                    choices=grid("couplings", 2, 4, 6, 8),
                    live=False,
                    help=couplings,
                ),
            ],
        ),
        Group(
            "Optimizer",
            [
                Item(
                    "slider", "learning_rate", "Learning rate", choices=grid("learning_rate", *RATES), help="Step size"
                ),
                Item("choice", "optimizer", "Method", choices=("adam", "sgd"), texts=("Adam", "SGD"), live=False),
                Item("choice", "batch_size", "Batch", choices=grid("batch_size", 64, 256, 1024), live=False),
            ],
        ),
        Group(
            "P4Inv",
            [
                Item("slider", "merge_every", "Merge every", unit="steps", choices=grid("merge_every", *INTERVALS)),
                Item("choice", "reset", "Directions", choices=gradient, texts=("gradient", "Gaussian")),
                Item("choice", "rank", "Rank", choices=grid("rank", 1, 2), live=False, help="Rank-one terms per layer"),
                Item("toggle", "train_v", "Train v, too", live=False, help=train_v),
                Item("slider", "refine_every", "Refine every", unit="merges", choices=grid("refine_every", *INTERVALS)),
                Item("toggle", "skip", "Skip bad merges", help=skip),
                Item("toggle", "penalty", "Penalty on det", help="Add a penalty on vanishing determinants to the loss"),
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
