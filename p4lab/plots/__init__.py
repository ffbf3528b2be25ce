"""Records in, plotly figures out."""

from p4lab.plots.curves import RUN_COLORS, VIEWS, Figure, Loss, Shown, training_curves

__all__ = ["RUN_COLORS", "VIEWS", "Figure", "Loss", "Shown", "training_curves"]
