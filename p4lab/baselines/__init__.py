"""What P4 is compared with: dense, reparameterized, trivialized, Riemannian, designed and penalized layers."""

from p4lab.baselines.dense import Dense, Penalized, Plain, SoftDeterminant, SoftOrthogonal, penalty
from p4lab.baselines.descent import CayleyDescent, RelativeAdam, RelativeGradient
from p4lab.baselines.designed import Butterfly, Coupling, Woodbury
from p4lab.baselines.layer import Baseline, NearlyOrthogonal, OrthogonalBaseline, UnsupportedError
from p4lab.baselines.orthogonal import CayleyNeumann, GeotorchOrthogonal, Householder, TorchOrthogonal, TorchTrivialized
from p4lab.baselines.orthogonal_descent import LandingDescent, Pogo, SubmanifoldDescent
from p4lab.baselines.packages import GeotorchGL, Nflows
from p4lab.baselines.registry import METHODS, ORTHOGONAL_GROUPS, Method
from p4lab.baselines.reparameterized import PLU, QR, SVD, MatrixExponential
from p4lab.baselines.riemannian import CayleyLinear, NearLinear, RelativeLinear, StiefelLinear
from p4lab.baselines.schedule import Rebasable, Rebase
from p4lab.baselines.self_normalizing import SelfNormalizing
from p4lab.errors import MissingPackageError

__all__ = [
    "METHODS",
    "ORTHOGONAL_GROUPS",
    "PLU",
    "QR",
    "SVD",
    "Baseline",
    "Butterfly",
    "CayleyDescent",
    "CayleyLinear",
    "CayleyNeumann",
    "Coupling",
    "Dense",
    "GeotorchGL",
    "GeotorchOrthogonal",
    "Householder",
    "LandingDescent",
    "MatrixExponential",
    "Method",
    "MissingPackageError",
    "NearLinear",
    "NearlyOrthogonal",
    "Nflows",
    "OrthogonalBaseline",
    "Penalized",
    "Plain",
    "Pogo",
    "Rebasable",
    "Rebase",
    "RelativeAdam",
    "RelativeGradient",
    "RelativeLinear",
    "SelfNormalizing",
    "SoftDeterminant",
    "SoftOrthogonal",
    "StiefelLinear",
    "SubmanifoldDescent",
    "TorchOrthogonal",
    "TorchTrivialized",
    "UnsupportedError",
    "Woodbury",
    "penalty",
]
