# ruff: noqa: D102, what the methods mean is said once, in the contract
"""A property of one's own in under 40 lines, as documentation and notebook 08 show it."""

import torch
from torch import Tensor, nn

from p4lab.p4.contract import MergeReport, P4Module
from p4lab.p4.linear import NOT_FINITE


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

    def propose(self) -> tuple[MergeReport, dict[str, Tensor]]:
        largest = torch.cat(self.perturbation()).abs().max().view(1)
        report = MergeReport((NOT_FINITE,), largest, torch.full_like(largest, 80.0))
        return report, {"frozen": torch.where(report.accepted, self.weight, self.frozen)}

    def absorb(self, report: MergeReport, update: dict[str, Tensor]) -> None:
        self.frozen.copy_(update["frozen"])

    @torch.no_grad()
    def reset(self, where: Tensor | None = None, undo: Tensor | None = None) -> None:
        where = torch.tensor(True) if where is None else where
        for parameter in self.perturbation():
            parameter.masked_fill_(where, 0)
        self.v.copy_(torch.where(where, torch.randn_like(self.v), self.v))

    def violation(self) -> Tensor:
        return torch.maximum(self.frozen.tril(-1).abs().max(), -self.frozen.diagonal().min())

    correct = violation

    def fold(self) -> nn.Linear:
        linear = nn.Linear(len(self.u), len(self.u), bias=False)
        linear.weight = nn.Parameter(self.weight.detach())
        return linear
