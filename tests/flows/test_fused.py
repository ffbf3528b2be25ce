"""The fused path against the layers one by one: values, gradients, and what merges need."""

from __future__ import annotations

import copy

import pytest
import torch
from flows.examples import disturb

from p4lab.flows import BentIdentity, Flow, fused, p4inv_bent
from p4lab.p4 import RECOMMENDED, MergeSchedule, P4Inv


def shared(**options) -> Flow:
    layer = P4Inv(3, seed=0, **options)
    return Flow([layer, BentIdentity(), layer, BentIdentity(True), layer])


LAYOUTS = {
    "a layer three times": shared,
    "alternating": lambda **o: p4inv_bent(3, 4, seed=0, **o),
    "ends with b": lambda **o: Flow([BentIdentity(), P4Inv(3, seed=0, **o), BentIdentity(), BentIdentity(True)]),
    "two linear": lambda **o: Flow([P4Inv(3, seed=i, **o) for i in range(2)]),
}
ranks = pytest.mark.parametrize("rank", [1, 2, 3], ids="k{}".format)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def make(layout: str, rank: int = 2, dtype: torch.dtype = torch.float64, **options) -> Flow:
    flow = LAYOUTS[layout](rank=rank, dtype=dtype, **{"reset": "gradient", **options})
    disturb(flow, 0.3)
    return flow


def points(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 2 * torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)


def loss(z: torch.Tensor, logabsdet: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 2, len(z), dtype=z.dtype)
    return (weights * logabsdet).sum() + (z.sin() * weights[:, None]).sum()


@pytest.mark.parametrize("input_gradient", [False, True], ids=["data", "input gradient"])
@ranks
@layouts
def test_values_gradients_and_the_next_directions(layout: str, rank: int, input_gradient: bool) -> None:
    flow = make(layout, rank)
    twin = copy.deepcopy(flow)
    x, y = (points().requires_grad_(input_gradient) for _ in range(2))
    assert fused.fusible(list(flow.layers), x)
    together, apart = flow(x), twin.layered(y)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    loss(*together).backward()
    loss(*apart).backward()
    if input_gradient:
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-11, atol=1e-11)
    for (name, p), other in zip(flow.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-11, atol=1e-11, msg=name)
    # What the backward pass remembers of the batch shows in the directions of the next merge.
    for model in (flow, twin):
        MergeSchedule(model, every=1).merge()
    for layer, other in zip(flow.linear_layers(), twin.linear_layers(), strict=True):
        torch.testing.assert_close(layer.v, other.v, rtol=1e-8, atol=1e-8)


@ranks
@layouts
def test_samples_are_those_of_the_layers(layout: str, rank: int) -> None:
    flow, z = make(layout, rank), points()
    apart = flow.inverse(z)  # with gradients: layer by layer
    assert apart.requires_grad
    with torch.no_grad():
        assert fused.fusible(list(flow.layers), z, gradients=False)
        together = flow.inverse(z)
        torch.testing.assert_close(together, apart, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(flow(together)[0], z, rtol=1e-11, atol=1e-11)


@layouts
def test_gradgradcheck(layout: str) -> None:
    flow, x = make(layout), points()[:2].requires_grad_()
    assert torch.autograd.gradcheck(flow, (x,))
    assert torch.autograd.gradgradcheck(flow, (x,))


def test_twenty_steps_with_merges_are_those_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(flow: Flow) -> Flow:
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        merges = RECOMMENDED.schedule(flow, optimizer)
        for _ in range(20):
            optimizer.zero_grad()
            (-flow.log_prob(points()).mean()).backward()
            optimizer.step()
            assert all(merges.step())
        return flow

    flow = make("alternating")
    twin = copy.deepcopy(flow)
    train(flow)
    monkeypatch.setattr(fused, "fusible", lambda layers, x: False)
    train(twin)
    torch.testing.assert_close(flow.log_prob(points()), twin.log_prob(points()), rtol=1e-8, atol=1e-8)


def test_precision_of_float32() -> None:
    flow = make("alternating", dtype=torch.float32)
    exact = copy.deepcopy(flow).double()
    z, logabsdet = flow(points(torch.float32))
    expected, expected_logabsdet = exact(points(torch.float32).double())
    torch.testing.assert_close(z.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logabsdet.double(), expected_logabsdet, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in forward mode
def test_functional_transforms_and_forward_mode_go_through_the_layers() -> None:
    flow, x = make("alternating", reset="gaussian"), points()
    backward = torch.func.vmap(torch.func.jacrev(lambda t: flow(t[None])[0][0]))(x)
    forward = torch.func.vmap(torch.func.jacfwd(lambda t: flow(t[None])[0][0]))(x)
    torch.testing.assert_close(backward, forward)
    torch.testing.assert_close(torch.linalg.slogdet(backward).logabsdet, flow(x)[1])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda flow, x: (flow, x.reshape(3, 3, 3)), id="shape"),
        pytest.param(lambda flow, x: (flow, x[:0]), id="empty"),
        pytest.param(lambda flow, x: (flow.requires_grad_(False), x), id="frozen"),
        pytest.param(lambda flow, x: (make("alternating", train_v=True), x), id="train_v"),
        pytest.param(lambda flow, x: (make("alternating", bias=False), x), id="no bias"),
        pytest.param(lambda flow, x: (Flow([P4Inv(3), P4Inv(3, rank=2)]).double(), x), id="two ranks"),
        pytest.param(lambda flow, x: (Flow([BentIdentity()], dim=3), x), id="no linear layer"),
        pytest.param(lambda flow, x: (p4inv_bent(66, 1, dtype=x.dtype), x.repeat(1, 22)), id="wide"),
    ],
)
def test_anything_unusual_runs_layer_by_layer(change) -> None:
    flow, x = change(make("alternating"), points())
    assert not fused.fusible(list(flow.layers), x)
    assert bool(torch.isfinite(flow(x)[0]).all())


def test_hooks_are_called() -> None:
    flow, seen = make("alternating"), []
    flow.layers[1].register_forward_hook(lambda *_: seen.append(1))
    flow(points())
    assert seen == [1]
