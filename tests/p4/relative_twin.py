"""A P4Relative layer amid nothing special, and plain weights that do the same, for all tests of that layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from p4lab.p4 import P4Relative


def layer_of(dim: int, rank: int, **options: object) -> P4Relative:
    torch.manual_seed(0)
    layer = P4Relative(dim, **{"rank": rank, "init": "orthogonal", "seed": 0, "dtype": torch.float64, **options})
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


class Twin(nn.Module):
    """The same function with plain weights, whose gradient autograd finds."""

    def __init__(self, layer: P4Relative) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().clone())
        self.bias = torch.zeros(layer.dim).to(self.weight) if layer.bias is None else layer.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias

    def inverse(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.weight, (y - self.bias).T).T

    def logabsdet(self) -> Tensor:
        return torch.linalg.slogdet(self.weight).logabsdet
