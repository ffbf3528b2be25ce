"""A flow as an estimator of scikit-learn: the density of a table in one line. It needs the packages of p4lab[lab]."""

from p4lab.packages import require

for name in ("sklearn", "pandas"):
    require(name, "lab")

from p4lab.estimator.density import FlowDensity  # noqa: E402

__all__ = ["FlowDensity"]
