"""Autocast may lower the products with a batch; inverse, determinant and merge keep the layer's own precision."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from p4.dense_twin import amid_training, assert_bitwise, state_of

from p4lab.p4 import P4Inv

ranks = pytest.mark.parametrize("rank", [1, 2, 8], ids="k{}".format)
train_v = pytest.mark.parametrize("train_v", [False, True], ids=["v-fixed", "v-trained"])


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@ranks
@train_v
@pytest.mark.parametrize("operation", ["forward", "inverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_products_with_a_batch_are_lowered(operation: str, dtype: torch.dtype, train_v: bool, rank: int) -> None:
    layer = amid_training(16, rank, dtype=torch.float32, train_v=train_v)
    x = torch.randn(4, 16).to(dtype)
    with autocast():
        low = getattr(layer, operation)(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), getattr(layer, operation)(x.float()), rtol=0.1, atol=0.1)


@ranks
@train_v
@pytest.mark.parametrize("figure", ["logabsdet", "sign", "penalty", "weight", "weight_inverse"])
def test_figures_keep_their_precision(figure: str, train_v: bool, rank: int) -> None:
    layer = amid_training(16, rank, dtype=torch.float32, train_v=train_v)

    def look() -> torch.Tensor:
        value = getattr(layer, figure)
        return value if torch.is_tensor(value) else value()

    full = look()
    with autocast():
        assert torch.equal(look(), full)


@ranks
@train_v
@pytest.mark.parametrize("reset", ["gaussian", "gradient"])
@pytest.mark.parametrize(
    "maintain",
    [lambda m: m.merge(), lambda m: m.refine(), lambda m: m.recompute()],
    ids=["merge", "refine", "recompute"],
)
def test_maintenance_inside_autocast_is_the_same(
    maintain: Callable[[P4Inv], object], reset: str, train_v: bool, rank: int
) -> None:
    layer = amid_training(16, rank, dtype=torch.float32, train_v=train_v, reset=reset)
    twin = copy.deepcopy(layer)
    maintain(layer)
    with autocast():
        maintain(twin)
    assert_bitwise(state_of(twin), state_of(layer))


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@ranks
def test_training_under_autocast_merges_in_directions_of_its_gradient(rank: int, inverse: bool) -> None:
    layer = P4Inv(16, rank=rank, reset="gradient", seed=0)
    x = torch.outer(torch.ones(4), torch.linspace(0.1, 1.0, 16))
    with autocast():
        loss = (layer.inverse(x) if inverse else layer(x)).float().square().sum()
    loss.backward()
    assert layer.merge().merged
    cosine = torch.nn.functional.cosine_similarity(layer.v[0], x[0], dim=0).abs()
    assert cosine > 0.99  # the weight gradient has rank one: its only row direction is that of the input
