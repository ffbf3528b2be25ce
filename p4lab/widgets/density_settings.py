"""The settings that the lab of densities offers, and what it shows of densities and flows."""

from p4lab.problems.densities import DENSITIES, density
from p4lab.training.density_setup import DRAWING, DensityConfig
from p4lab.widgets import settings_items as shared
from p4lab.widgets.controls import Group, Item

RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
INTERVALS = (1, 2, 4, 10, 20, 50, 100)
SPEEDS = (5, 20, 100, None)
DEPTHS = tuple(k / 48 for k in range(49))
"""Shares of the way from the latent space to the data."""


def looks() -> list[Group]:
    """Return depth with a button that plays it, and what is shown of densities and flows."""
    texts = tuple("latent z" if d == 0 else "data x" if d == 1 else f"{100 * d:.0f} %" for d in DEPTHS)
    depth = "How far samples and grid below have come on their way from the latent space to the data"
    return [
        Group(
            "",
            [
                Item("slider", "depth", "Depth", choices=DEPTHS, texts=texts, help=depth, look="play"),
                Item("toggle", "lattice", "Grid", help="A lattice of latent lines, on its way with the samples"),
                Item("toggle", "samples", "Samples", help="Data and samples over the densities"),
                Item("segments", "log", "", choices=(False, True), texts=("Density", "Log-density")),
            ],
        )
    ]


def settings(config: DensityConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    labels = (*(density(name).label for name in DENSITIES), "Your drawing")
    blocks, couplings = "Nonlinearities of P4Inv + Bent", "Of RealNVP; its networks get as wide as it takes"
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
                shared.learning_rate(config, *RATES),
                shared.method("adam", "sgd"),
                Item("choice", "batch_size", "Batch", choices=grid("batch_size", 64, 256, 1024), live=False),
            ],
        ),
        Group(
            "P4Inv",
            [
                shared.merge_every(config, *INTERVALS),
                shared.directions(),
                Item("choice", "rank", "Rank", choices=grid("rank", 1, 2), live=False, help="Rank-one terms per layer"),
                shared.train_v(),
                shared.refine_every(config, *INTERVALS),
                shared.skip(),
                shared.penalty(),
            ],
        ),
        Group(
            "Run",
            [
                shared.seed(),
                shared.device(config),
                shared.precision(),
                shared.speed_limit(*SPEEDS),
            ],
        ),
    ]
