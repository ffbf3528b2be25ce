"""What holds for every matrix, shape and perturbation (hypothesis draws them)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from p4.dense_twin import amid_training, perturb

from p4lab.p4 import P4Inv, fold

layers = st.builds(
    lambda dim, rank, train_v, reset, seed: (
        torch.manual_seed(seed),
        amid_training(dim, rank, train_v=train_v, reset=reset),
    )[1],
    dim=st.integers(1, 24),
    rank=st.integers(1, 10),
    train_v=st.booleans(),
    reset=st.sampled_from(["gaussian", "gradient"]),
    seed=st.integers(0, 2**31),
).filter(lambda layer: float(torch.linalg.cond(layer.weight.detach())) < 1e4)
shapes = st.lists(st.integers(0, 4), max_size=3)


@given(layer=layers, batch=shapes)
def test_inverse_undoes_forward(layer: P4Inv, batch: list[int]) -> None:
    x = torch.randn(*batch, layer.dim, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=1e-7, atol=1e-8)


@given(layer=layers, batch=shapes)
def test_forward_undoes_inverse(layer: P4Inv, batch: list[int]) -> None:
    y = torch.randn(*batch, layer.dim, dtype=torch.float64)
    torch.testing.assert_close(layer(layer.inverse(y)), y, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("figure", ["weight", "weight_inverse", "logabsdet", "sign", "forward", "inverse"])
@given(layer=layers, times=st.integers(1, 4))
def test_merges_are_invisible(figure: str, layer: P4Inv, times: int) -> None:
    x = torch.randn(3, layer.dim, dtype=torch.float64)

    def look() -> torch.Tensor:
        value = getattr(layer, figure)
        with torch.no_grad():
            return (
                value.clone() if torch.is_tensor(value) else value(x) if figure in ("forward", "inverse") else value()
            )

    for _ in range(times):
        before = look()
        layer.merge()
        torch.testing.assert_close(look(), before, rtol=1e-7, atol=1e-9)
        perturb(layer, 0.1 * torch.randn_like(layer.u) / (layer.rank * layer.dim) ** 0.5)


@given(layer=layers)
def test_folding_changes_nothing(layer: P4Inv) -> None:
    x = torch.randn(3, layer.dim, dtype=torch.float64)
    torch.testing.assert_close(fold(layer)(x), layer(x), rtol=1e-9, atol=1e-10)


@given(layer=layers, noise=st.floats(1e-8, 0.5))
def test_refine_never_worsens_a_convergent_inverse(layer: P4Inv, noise: float) -> None:
    r = torch.randn(layer.dim, layer.dim, dtype=torch.float64)
    layer.frozen_inverse.sub_(layer.frozen_inverse @ (noise * r / torch.linalg.matrix_norm(r)))
    before = float(torch.linalg.matrix_norm(layer.frozen_weight @ layer.frozen_inverse - torch.eye(layer.dim)))
    after = layer.refine()
    assert float(after) <= before**2 + 1e-11
    torch.testing.assert_close(layer.violation(), after, rtol=0, atol=0)


@given(layer=layers)
def test_recompute_repairs_any_inverse(layer: P4Inv) -> None:
    expected = torch.linalg.slogdet(layer.weight.detach())
    layer.frozen_inverse.fill_(torch.nan)
    layer.frozen_logabsdet.fill_(torch.nan)
    layer.frozen_sign.fill_(torch.nan)
    assert layer.recompute() < 1e-9
    torch.testing.assert_close(layer.logabsdet(), expected.logabsdet, rtol=1e-7, atol=1e-8)
    assert layer.sign() == expected.sign
