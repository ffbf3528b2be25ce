"""A state of another layer is refused, also where its tensors happen to fit."""

from __future__ import annotations

import pytest
import torch

from p4lab.p4 import P4Lipschitz, P4Spectrum, P4Stiefel


def test_a_transposed_frame_is_not_loaded() -> None:
    tall, wide = P4Stiefel(2, 5, bias=False, seed=0), P4Stiefel(5, 2, bias=False, seed=1)
    before = wide.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"a layer with \[2\.0, 5\.0\], expected \(5, 2\)"):
        wide.load_state_dict(tall.state_dict())
    assert torch.equal(wide.weight, before)


def test_a_state_above_the_bound_is_not_loaded() -> None:
    layer = P4Lipschitz(4, 4, rank=2, bound=10.0, seed=0)
    with pytest.raises(RuntimeError, match=r"expected \(4, 4, 1\.0\)"):
        P4Lipschitz(4, 4, rank=2, bound=1.0, seed=0).load_state_dict(layer.state_dict())
    P4Lipschitz(4, 4, rank=2, bound=10.0, seed=1).load_state_dict(layer.state_dict())


def test_states_of_before_are_loaded() -> None:
    layer = P4Stiefel(2, 5, seed=0)
    state = layer.state_dict()
    del state["_extra_state"]["made"]
    twin = P4Stiefel(2, 5, seed=1)
    twin.load_state_dict(state)
    assert torch.equal(twin.weight, layer.weight)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_a_spectrum_of_any_scale_merges(scale: float) -> None:
    torch.manual_seed(0)
    layer = P4Spectrum(4, 4, rank=2, seed=0, init=scale * torch.randn(4, 4))
    torch.nn.init.normal_(layer.u)
    before = layer.weight.detach().clone()
    assert layer.merge().merged
    torch.testing.assert_close(layer.weight / scale, before / scale, rtol=0, atol=1e-5)
