"""Records in, plotly figures out; nothing here knows of models, threads or widgets."""

from p4lab.plots.curves import Figure, training_curves

__all__ = ["Figure", "training_curves"]
