"""One process by itself: there is nothing to agree on, and nothing is imported or waited for."""

from __future__ import annotations

import torch
from torch import nn

from p4lab.distributed import Replicas, average_gradients, check_replicas, refuse_shards
from p4lab.p4 import P4Inv


def test_one_process_has_no_replicas() -> None:
    layer = P4Inv(3, seed=0)
    assert Replicas.of(layer) is None
    check_replicas(layer, torch.optim.Adam(layer.parameters()))
    refuse_shards(nn.Sequential(layer, nn.Linear(3, 3)))


def test_gradients_of_one_process_are_left_as_they_are() -> None:
    layer = P4Inv(3, seed=0)
    layer(torch.randn(4, 3)).square().sum().backward()
    before = layer.u.grad.clone()
    average_gradients(list(layer.parameters()))
    assert torch.equal(layer.u.grad, before)
