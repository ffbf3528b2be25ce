"""Layers of every method amid training, and their effective weights by explicit float64 algebra."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from p4.dense_twin import ON_MANIFOLD, WEIGHTS, Tensors, well_conditioned
from torch import Tensor, nn

from p4lab.baselines import METHODS
from p4lab.baselines.dense import Dense, Plain, SoftDeterminant, SoftOrthogonal
from p4lab.baselines.designed import Butterfly, Woodbury
from p4lab.baselines.orthogonal import CayleyNeumann, GeotorchOrthogonal, Householder, TorchOrthogonal, TorchTrivialized
from p4lab.baselines.packages import GeotorchGL, Nflows
from p4lab.baselines.reparameterized import PLU, QR, SVD, MatrixExponential
from p4lab.baselines.riemannian import CayleyLinear, NearLinear, RelativeLinear, StiefelLinear
from p4lab.baselines.self_normalizing import SelfNormalizing

BASELINES = [name for name, method in METHODS.items() if method.linear and not name.startswith("p4")]
WITH_INVERSE = [name for name in BASELINES if METHODS[name].exact_inverse]
ORTHOGONAL = [name for name in BASELINES if METHODS[name].group == "orthogonal"]
NEARLY = [name for name in BASELINES if METHODS[name].group == "nearly_orthogonal"]
REBASED = [name for name in BASELINES if METHODS[name].schedule_of]
IDENTITY_ONLY = (
    "nflows_lu",
    "nflows_qr",
    "nflows_svd",
    "torch_matrix_exp",
    "torch_cayley",
    "cayley_neumann",
    "butterfly",
)


# --- effective weights ---


def reflections(vectors: Tensor) -> Tensor:
    product = torch.eye(vectors.shape[1], dtype=torch.float64)
    for v in vectors:
        product = product - 2 * torch.outer(product @ v, v) / (v @ v)
    return product


def diagonal(t: Tensors) -> Tensor:
    return torch.diag(t["signs"] * t["log_scale"].exp())


def plu(t: Tensors) -> Tensor:
    eye = torch.eye(len(t["order"]), dtype=torch.float64)
    return eye[t["order"].long()] @ (t["lower"].tril(-1) + eye) @ (t["upper"].triu(1) + diagonal(t))


def woodbury(t: Tensors) -> Tensor:
    return torch.eye(t["u"].shape[1], dtype=torch.float64) + t["u"].T @ t["v"]


def butterfly(t: Tensors) -> Tensor:
    eye = torch.eye(t["own"].shape[1], dtype=torch.float64)
    product = eye
    for own, other, partner in zip(t["own"], t["other"], t["partner"].long(), strict=True):
        paired = partner != torch.arange(len(eye))
        product = (torch.diag(own) + torch.diag(other * paired) @ eye[partner]) @ product
    return product


def cayley_neumann(t: Tensors) -> Tensor:
    """With five terms, which is the default."""
    q = t["upper"].triu(1) - t["upper"].triu(1).T
    powers = [torch.linalg.matrix_power(q, i) for i in range(6)]
    return (powers[0] + q) @ torch.stack(powers).sum(0)


WEIGHTS |= {kind: lambda t: t["matrix"] for kind in (Dense, Plain, SoftOrthogonal, SoftDeterminant, SelfNormalizing)}
WEIGHTS |= {kind: lambda t: t["matrix"] for kind in (RelativeLinear, CayleyLinear, StiefelLinear, NearLinear)}
WEIGHTS |= {
    PLU: plu,
    QR: lambda t: reflections(t["vectors"]) @ (t["upper"].triu(1) + diagonal(t)),
    SVD: lambda t: reflections(t["left"]) @ diagonal(t) @ reflections(t["right"]).T,
    MatrixExponential: lambda t: t["base"] @ torch.linalg.matrix_exp(t["exponent"]),
    CayleyNeumann: cayley_neumann,
    Householder: lambda t: reflections(t["vectors"]) @ torch.diag(t["signs"]),
    Woodbury: woodbury,
    Butterfly: butterfly,
}
ON_MANIFOLD |= {CayleyLinear, StiefelLinear}
PARAMETRIZED = (Nflows, GeotorchGL, GeotorchOrthogonal, TorchOrthogonal, TorchTrivialized)


class _WeightOf(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.weight


def packaged(layer: nn.Module) -> Callable[[Tensors], Tensor]:
    """The weights that the package of a layer makes of float64 tensors; only inverse and determinant are checked."""
    twin = _WeightOf(copy.deepcopy(layer).double())
    return lambda t: torch.func.functional_call(twin, {f"layer.{name}": tensor for name, tensor in t.items()})


# --- layers amid training ---


def haar(dim: int) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q


def start_for(name: str, dim: int) -> Tensor:
    """A random matrix that the method can start at."""
    if name in IDENTITY_ONLY:
        return torch.eye(dim, dtype=torch.float64)
    if name in (*ORTHOGONAL, *NEARLY):
        return haar(dim)
    if name == "woodbury":
        return torch.eye(dim, dtype=torch.float64) + torch.outer(haar(dim)[0], haar(dim)[0]) / 2
    return well_conditioned(dim)


def amid(name: str, dim: int, dtype: torch.dtype = torch.float64, **options: object) -> nn.Module:
    """A layer of a method, off its start in every parameter."""
    layer = METHODS[name].build(dim, init=start_for(name, dim), dtype=dtype, seed=0, **options)
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if key == "bias":
                parameter.normal_()
            elif parameter.requires_grad and type(layer) not in ON_MANIFOLD:
                noise = 0.3 * torch.randn_like(parameter) / dim**0.5
                # torch keeps the fixed signs of its Householder map on the diagonal of the parameter.
                parameter.add_(noise.tril(-1) if isinstance(layer, TorchOrthogonal) else noise)
    if type(layer) in PARAMETRIZED:
        WEIGHTS[type(layer)] = packaged(layer)
    return layer
