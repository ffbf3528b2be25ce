"""Folded layers through casts, states and the meta device: inverse and log|det| stay those of the weight."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from flows.examples import ARCHITECTURES, amid_training
from torch import Tensor, nn

from p4lab.errors import SingularMatrixError
from p4lab.flows import (
    ActNorm,
    AffineCoupling,
    Flow,
    FoldedLinear,
    Permutation,
    Standardize,
    VolumePreservingCoupling,
    Whitening,
    p4inv_bent,
    spline_flow,
)
from p4lab.flows.torus import BesideAngles, TorusCoupling

DOUBLE = torch.float64
D = 6


def ill_conditioned(seed: int = 0) -> Tensor:
    """Singular values from 1 to 1e4."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=DOUBLE)).Q for _ in range(2))
    return left * torch.logspace(0, 4, D, dtype=DOUBLE) @ right


def whitening() -> Whitening:
    return Whitening.fit(
        torch.randn(400, D, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) @ ill_conditioned()
    )


MAKERS: dict[str, Callable[[], FoldedLinear]] = {
    "folded": lambda: FoldedLinear(ill_conditioned(), torch.arange(D, dtype=DOUBLE)),
    "whitening": whitening,
}
makers = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def check(layer: FoldedLinear, rtol: float = 1e-9) -> None:
    """Compare inverse and log|det| with those of the weight as it is."""
    exact = torch.linalg.inv(layer.weight.double())
    assert float((layer.weight_inverse.double() - exact).abs().max() / exact.abs().max()) < rtol
    torch.testing.assert_close(layer.logabsdet(), torch.linalg.slogdet(layer.weight.double()).logabsdet)


@makers
@pytest.mark.parametrize(
    "widen",
    [
        pytest.param(lambda layer: layer.double(), id="double"),
        pytest.param(lambda layer: layer.to(DOUBLE), id="to"),
        pytest.param(lambda layer: layer.to(torch.ones(1, dtype=DOUBLE)), id="to like"),
        pytest.param(lambda layer: nn.Sequential(nn.ModuleList([layer])).double()[0][0], id="inside"),
        pytest.param(lambda layer: copy.deepcopy(layer).double(), id="copied"),
        pytest.param(lambda layer: layer.double().float().double(), id="there and back"),
    ],
)
def test_casting_up_renews_what_was_narrow(make, widen) -> None:
    layer = widen(make().float())
    assert layer.weight_inverse.dtype is DOUBLE
    check(layer)


@makers
def test_a_narrow_inverse_would_be_noticed(make) -> None:
    layer = make().float()
    layer.weight_inverse = layer.weight_inverse.double()
    exact = torch.linalg.inv(layer.weight.double())
    assert float((layer.weight_inverse - exact).abs().max() / exact.abs().max()) > 1e-6


@makers
def test_casting_down_rounds_and_computes_nothing(make) -> None:
    wide = make()
    narrow = copy.deepcopy(wide).float()
    assert torch.equal(narrow.weight_inverse, wide.weight_inverse.float())
    assert torch.equal(narrow.logabsdet(), wide.logabsdet())
    assert torch.equal(copy.deepcopy(wide).double().weight_inverse, wide.weight_inverse)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_with_an_inverse(narrow: torch.dtype) -> None:
    layer = FoldedLinear(torch.eye(D) + 0.1 * ill_conditioned().float() / 1e4).to(narrow).float()
    check(layer, rtol=1e-6)


def test_what_a_cast_made_singular_is_refused_when_cast_up() -> None:
    layer = FoldedLinear(torch.diag(torch.tensor([1.0, 1e-50], dtype=DOUBLE))).float()
    with pytest.raises(SingularMatrixError, match="have no inverse"):
        layer.double()


@makers
def test_a_narrow_state_in_a_wide_layer_is_renewed(make) -> None:
    layer = FoldedLinear(torch.eye(D, dtype=DOUBLE), torch.zeros(D, dtype=DOUBLE))
    layer.load_state_dict(make().float().state_dict())
    assert layer.weight.dtype is DOUBLE
    check(layer)


@makers
def test_a_wide_state_in_a_narrow_layer_is_rounded(make) -> None:
    layer, wide = FoldedLinear(torch.eye(D), torch.zeros(D)), make()
    layer.load_state_dict(wide.state_dict())
    assert torch.equal(layer.weight_inverse, wide.weight_inverse.float())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_folded_flow_cast_up_undoes_itself(name: str) -> None:
    folded = amid_training(name, 4, torch.float32).fold().double()
    x = torch.randn(50, 4, dtype=DOUBLE)
    z, logabsdet = folded(x)
    # Splines end with a square root that cancels: zuko's own rounding.
    tight = {"rtol": 1e-7, "atol": 1e-7} if "spline" in name else {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(folded.inverse(z), x, **tight)
    back, minus = folded.inverse_with_logabsdet(z)
    torch.testing.assert_close(back, x, **tight)
    torch.testing.assert_close(minus, -logabsdet, **tight)


# --- the meta device --------------------------------------------------------------------------------------------------


def layers() -> dict[str, Callable[[torch.dtype], nn.Module]]:
    """Makers of layers, from a dtype."""
    return {
        "folded": lambda dtype: FoldedLinear(ill_conditioned().to(dtype), torch.ones(D, dtype=dtype)),
        "folded, no bias": lambda dtype: FoldedLinear(ill_conditioned().to(dtype)),
        "whitening": lambda dtype: whitening().to(dtype),
        "permutation": lambda dtype: Permutation([3, 1, 2, 5, 4, 0]),
        "standardize": lambda dtype: Standardize(torch.arange(D).to(dtype), 1 + torch.arange(D).to(dtype)),
        "actnorm": lambda dtype: ActNorm(D, dtype),
        "coupling": lambda dtype: AffineCoupling(D, 8, seed=1, dtype=dtype),
        "volume": lambda dtype: VolumePreservingCoupling(D, 8, seed=1, dtype=dtype),
        "torus": lambda dtype: TorusCoupling(2, D - 2, 8, seed=1, dtype=dtype),
        "beside angles": lambda dtype: BesideAngles(FoldedLinear(torch.eye(D - 2, dtype=dtype)), 2),
        "spline": lambda dtype: spline_flow(D, 1, hidden=8, seed=1, dtype=dtype).layers[0],
    }


def on_meta(name: str) -> nn.Module:
    """Return the layer of that name, with other values, made under the meta device."""
    meta: dict[str, Callable[[], nn.Module]] = {
        "folded": lambda: FoldedLinear(torch.eye(D), torch.ones(D)),
        "folded, no bias": lambda: FoldedLinear(torch.eye(D)),
        "whitening": lambda: Whitening.fit(torch.randn(9, D)),
        "permutation": lambda: Permutation.reverse(D),
        "standardize": lambda: Standardize.fit(torch.randn(9, D)),
        "beside angles": lambda: BesideAngles(FoldedLinear(torch.eye(D - 2)), 2),
    }
    with torch.device("meta"):
        layer = meta.get(name, lambda: layers()[name](torch.float32))()
    assert {tensor.device.type for tensor in [*layer.parameters(), *layer.buffers()]} == {"meta"}
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("name", layers())
def test_a_state_is_assigned_to_a_layer_without_values(name: str, dtype: torch.dtype) -> None:
    source, layer = layers()[name](dtype), on_meta(name)
    layer.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(5, D, dtype=dtype)
    torch.testing.assert_close(layer(x), source(x), rtol=0, atol=0)
    torch.testing.assert_close(layer.inverse(x), source.inverse(x), rtol=0, atol=0)
    if hasattr(source, "logabsdet"):
        assert torch.equal(layer.logabsdet(), source.logabsdet())


@pytest.mark.parametrize("name", layers())
def test_a_layer_gets_memory_and_then_a_state(name: str) -> None:
    source, layer = layers()[name](DOUBLE), on_meta(name)
    layer.double().to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(5, D, dtype=DOUBLE)
    torch.testing.assert_close(layer.inverse(x), source.inverse(x))


@pytest.mark.parametrize("name", sorted(layers().keys() - {"spline"}))  # zuko prints values
def test_a_layer_without_values_can_be_printed(name: str) -> None:
    assert type(layers()[name](DOUBLE)).__name__ in repr(on_meta(name))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_state_is_assigned_to_a_flow_without_values(name: str, dtype: torch.dtype) -> None:
    source = amid_training(name, 4, dtype)
    with torch.device("meta"):
        flow = ARCHITECTURES[name](4)
    flow.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(5, 4, dtype=dtype)
    torch.testing.assert_close(flow.log_prob(x), source.log_prob(x))
    samples = [one.sample(3, generator=torch.Generator().manual_seed(0)) for one in (flow, source)]
    torch.testing.assert_close(*samples)


def test_a_folded_flow_without_values_takes_a_state() -> None:
    source = p4inv_bent(4, 2, seed=3, dtype=DOUBLE).fold()
    with torch.device("meta"):
        flow: Flow = p4inv_bent(4, 2).fold()
    flow.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(5, 4, dtype=DOUBLE)
    assert torch.equal(flow.log_prob(x), source.log_prob(x))
    torch.testing.assert_close(flow.inverse(flow(x)[0]), x)
