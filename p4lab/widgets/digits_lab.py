"""The lab of the first notebook: handwritten digits, live."""

from typing import Any

from p4lab.training import DigitsConfig, Engine
from p4lab.widgets import settings_items as shared
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.image_grid import ImageGrid, Panel
from p4lab.widgets.old_dashboard import Dashboard, Picture
from p4lab.widgets.spectrum import show_spectrum, spectrum_plane

COLUMNS = 8
REAL = 16
SPECTRUM_INTERVAL = 0.5
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
INTERVALS = (1, 2, 5, 10, 20, 50, 100, 200)


def digits_lab(config: DigitsConfig | None = None, name: str | None = None, **changes: Any) -> Dashboard:
    """Return a lab that models handwritten digits by P4Inv layers and Bent identities.

    Args:
        config: the first settings (None: `DigitsConfig`'s defaults).
        name: see `Dashboard`.
        changes: settings over those of ``config``, such as ``learning_rate=1e-3``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    config = (config or DigitsConfig()).replace(**changes)
    samples = ImageGrid([Panel("Samples", "live, from fixed latents", COLUMNS)], top=16)
    real = ImageGrid([Panel("Real digits", "from the test set", COLUMNS)], top=16)
    eigenvalues = spectrum_plane("of the first layer's matrix")
    return Dashboard(
        config,
        Engine,
        title="P4Inv flow on handwritten digits",
        subtitle="Layers that carry their inverse and determinant",
        settings=settings(config),
        pictures=[
            Picture(samples, lambda frame: samples.show(0, frame.snapshot.pictures["samples"])),
            Picture(real, lambda frame: real.show(0, frame.snapshot.pictures["real"][:REAL])),
            Picture(eigenvalues, lambda frame: show_spectrum(eigenvalues, frame), SPECTRUM_INTERVAL),
        ],
        name=name,
    )


def settings(config: DigitsConfig) -> list[Group]:
    """Return the settings that the lab offers; the values of ``config`` are among the choices, whatever they are."""
    grid = shared.grid(config)
    return [
        Group(
            "Preset",
            [
                Item(
                    "segments",
                    "preset",
                    "Rank, directions, merges",
                    choices=("recommended", "paper"),
                    texts=("Recommended", "Paper"),
                    live=True,
                )
            ],
        ),
        Group(
            "Optimizer",
            [
                shared.learning_rate(config, *RATES),
                shared.method("adam", "sgd"),
            ],
        ),
        Group(
            "Perturbations",
            [
                shared.merge_every(config, *INTERVALS),
                Item(
                    "choice",
                    "rank",
                    "Rank",
                    choices=grid("rank", 1, 2, 4, 8, 16),
                    live=False,
                    help="Rank-one terms per layer",
                ),
                shared.directions("How new directions are drawn after a merge"),
                shared.skip(),
                shared.refine_every(
                    config, 1, 2, 5, 10, 20, 50, 100, help="Iterative refinement of the inverses after so many merges"
                ),
                shared.penalty("Add a penalty on vanishing and exploding determinants to the loss"),
            ],
        ),
        Group(
            "Run",
            [
                Item(
                    "choice",
                    "blocks",
                    "Blocks",
                    choices=grid("blocks", 4, 8, 12, 16, 24),
                    live=False,
                    help="Nonlinearities",
                ),
                shared.seed(),
                shared.device(config),
                shared.precision(),
                shared.slow_speed_limit(),
            ],
        ),
    ]
