"""What is trained on."""

from p4lab.problems.densities import DENSITIES, Density2D, DensityProblem, density, grid_density
from p4lab.problems.digits import Digits, bits
from p4lab.problems.images import Images
from p4lab.problems.metrics import density_metrics
from p4lab.problems.tables import TABLES, TableProblem, table_problem

__all__ = [
    "DENSITIES",
    "TABLES",
    "Density2D",
    "DensityProblem",
    "Digits",
    "Images",
    "TableProblem",
    "bits",
    "density",
    "density_metrics",
    "grid_density",
    "table_problem",
]
