# ruff: noqa: D102, what the methods mean is said once, in the contract
"""A property of one's own in under 40 lines, as documentation and notebook 08 show it."""

import torch
from torch import Tensor, nn

from p4lab.p4.changes import Changes
from p4lab.p4.contract import P4Module, Total, alone
from p4lab.p4.linear import NOT_FINITE
from p4lab.p4.report import MergeReport


class P4Triangular(P4Module):
    """Upper-triangular weights with a positive diagonal: ``A <- (A + strict_triu(u^T v)) diag(exp(s))``."""

    frozen: Tensor
    v: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("frozen", torch.eye(dim))
        self.register_buffer("v", torch.randn(dim))
        self.u, self.s = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.s.exp()
        above = (self.v * x).flip(-1).cumsum(-1).flip(-1) - self.v * x  # sum over j > i, in O(d)
        return nn.functional.linear(x, self.frozen) + self.u * above

    @property
    def weight(self) -> Tensor:
        return (self.frozen + torch.outer(self.u, self.v).triu(1)) * self.s.exp()

    def logabsdet(self) -> Tensor:
        return self.frozen.diagonal().log().sum() + self.s.sum()

    def perturbation(self) -> tuple[nn.Parameter, ...]:
        return self.u, self.s

    @torch.no_grad()
    def propose(self, total: Total = alone) -> Changes:
        largest = torch.cat(self.perturbation()).abs().max().view(1)
        changes = Changes(MergeReport((NOT_FINITE,), largest, torch.full_like(largest, 80.0)))
        changes.absorb(self.frozen, self.weight)
        changes.clear(self.u)
        changes.clear(self.s)
        changes.renew(self.v, torch.randn_like(self.v))
        return changes

    def violation(self) -> Tensor:
        return torch.maximum(self.frozen.tril(-1).abs().max(), -self.frozen.diagonal().min())

    correct = violation

    def fold(self) -> nn.Linear:
        linear = nn.Linear(len(self.u), len(self.u), bias=False)
        linear.weight = nn.Parameter(self.weight.detach())
        return linear
