"""Every architecture as a density: normalized, differentiated, sampled and inverted."""

from __future__ import annotations

import copy

import pytest
import torch
from flows.examples import ARCHITECTURES, amid_training

from p4lab.errors import OptionError
from p4lab.flows import BentIdentity, Flow, FoldedLinear
from p4lab.p4 import MergeSchedule, P4Inv, P4Module, p4_modules

architectures = pytest.mark.parametrize("name", ARCHITECTURES)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tensors(value: torch.Tensor | dict) -> list[torch.Tensor]:
    return list(value.values()) if isinstance(value, dict) else [value]


@architectures
def test_density_integrates_to_one(name: str) -> None:
    flow = amid_training(name, 2)
    side = torch.linspace(-40, 40, 641, dtype=torch.float64)
    with torch.no_grad():
        total = flow.log_prob(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-3)


@architectures
@pytest.mark.parametrize("dim", [2, 3, 5], ids="d{}".format)
def test_logabsdet_is_that_of_the_jacobian(name: str, dim: int) -> None:
    flow = amid_training(name, dim)
    x = X[:3].repeat(1, 2)[:, :dim]
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda t: flow(t)[0], row) for row in x])
    torch.testing.assert_close(flow(x)[1], torch.linalg.slogdet(jacobians)[1], rtol=1e-9, atol=1e-9)


@architectures
def test_each_layer_against_its_jacobian(name: str) -> None:
    x = X[0]
    for layer in amid_training(name, 4).layers:
        there, back = Flow([layer], 4), layer.inverse
        jacobian = torch.autograd.functional.jacobian(lambda t, flow=there: flow(t)[0], x)
        y, logabsdet = there(x)
        torch.testing.assert_close(logabsdet, torch.linalg.slogdet(jacobian).logabsdet, rtol=1e-9, atol=1e-9)
        home = back(y)
        if isinstance(home, tuple):
            home, ladj = home
            torch.testing.assert_close(ladj, -logabsdet, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(home, x, rtol=1e-8, atol=1e-8)


@architectures
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)], ids=str)
def test_inverse_and_its_logabsdet(name: str, batch: tuple[int, ...]) -> None:
    flow = amid_training(name, 4)
    z = torch.randn(*batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, back = flow.inverse_with_logabsdet(z)
    again, there = flow(x)
    assert back.shape == batch
    torch.testing.assert_close(x, flow.inverse(z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again, z, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(there, -back, rtol=1e-8, atol=1e-8)


@architectures
def test_samples_follow_the_density(name: str) -> None:
    """Chi-square of a histogram against the density's integral over its cells."""
    flow = amid_training(name, 2)
    n, cells, fine, edge = 20_000, 12, 16, 6.0
    side = (torch.arange(cells * fine, dtype=torch.float64) + 0.5) * (2 * edge / (cells * fine)) - edge
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(side, side)).exp().view(cells, fine, cells, fine)
    expected = n * density.sum((1, 3)).flatten() * (side[1] - side[0]) ** 2
    x = flow.sample(n, generator=torch.Generator().manual_seed(2))
    inside = x[(x.abs() < edge).all(-1)]
    index = ((inside + edge) * (cells / (2 * edge))).long()
    counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells * cells).double()
    usual = expected > 20
    rest = n - expected[usual].sum()
    statistic = ((counts[usual] - expected[usual]) ** 2 / expected[usual]).sum()
    statistic += (n - counts[usual].sum() - rest) ** 2 / rest.clamp_min(20)
    freedom = int(usual.sum())
    assert freedom > 20
    assert float(statistic) < freedom + 4.5 * (2 * freedom) ** 0.5


@architectures
def test_float32_inverse(name: str) -> None:
    flow = amid_training(name, 4, torch.float32)
    x = X.float()
    torch.testing.assert_close(flow.inverse(flow(x)[0]), x, rtol=1e-5, atol=1e-5)


@architectures
def test_stages_lead_from_one_end_to_the_other(name: str) -> None:
    flow = amid_training(name, 4)
    down, up = flow.stages(X), flow.stages(flow.inverse(X), to="latent")
    assert len(down) == len(up) == len(flow.layers) + 1
    assert torch.equal(down[0], X)
    torch.testing.assert_close(down[-1], flow.inverse(X), rtol=1e-12, atol=1e-12)
    for a, b in zip(down, reversed(up), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


def test_stages_refuse_another_direction() -> None:
    with pytest.raises(OptionError, match="to='up'"):
        amid_training("mixed", 2).stages(X[:, :2], to="up")


@architectures
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_fold_is_plain_and_the_same(name: str, dtype: torch.dtype) -> None:
    flow = amid_training(name, 4, dtype)
    x, before = X.to(dtype), copy.deepcopy(flow.state_dict())
    folded, tolerance = flow.fold(), 1e-5 if dtype is torch.float32 else 1e-9
    assert not any(isinstance(module, P4Module) for module in folded.modules())
    assert not any(p.requires_grad for layer in folded.linear_layers() for p in layer.parameters())
    torch.testing.assert_close(folded.log_prob(x), flow.log_prob(x), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(folded.inverse(x), flow.inverse(x), rtol=tolerance, atol=10 * tolerance)
    first, second = (f.sample(5, generator=torch.Generator().manual_seed(3)) for f in (folded, flow))
    torch.testing.assert_close(first, second, rtol=tolerance, atol=10 * tolerance)
    assert len(folded.layers) == len(flow.layers)
    for key, value in flow.state_dict().items():  # nothing was changed, and nothing is shared
        for old, new in zip(tensors(before[key]), tensors(value), strict=True):
            assert torch.equal(old, new), key
    with torch.no_grad():
        for tensor in [*folded.parameters(), *folded.buffers()]:
            tensor.zero_()
    torch.testing.assert_close(flow.log_prob(x), flow.log_prob(x).clone())
    assert bool(torch.isfinite(flow.log_prob(x)).all())


def test_fold_twice_and_shared_layers() -> None:
    shared = P4Inv(2, seed=0, init="orthogonal", dtype=torch.float64)
    flow = Flow([shared, BentIdentity(), shared])
    folded = flow.fold().fold()
    assert isinstance(folded.layers[0], FoldedLinear)
    assert folded.layers[0] is folded.layers[2]
    torch.testing.assert_close(folded.log_prob(X[:, :2]), flow.log_prob(X[:, :2]))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if p4_modules(ARCHITECTURES[name](2))])
def test_one_schedule_merges_the_whole_flow_and_changes_nothing(name: str) -> None:
    flow = amid_training(name, 4)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    merges = MergeSchedule(flow, optimizer, every=3, refine_every=1)
    for _ in range(3):
        optimizer.zero_grad()
        (flow.penalty() - flow.log_prob(X).mean()).backward()
        optimizer.step()
        before = flow.log_prob(X)
        reports = merges.step()
    assert len(reports) == len(p4_modules(flow))
    assert all(reports)
    assert not any(parameter.any() for layer in p4_modules(flow) for parameter in layer.perturbation()[:1])
    torch.testing.assert_close(flow.log_prob(X), before, rtol=1e-9, atol=1e-9)


def test_penalty_is_the_sum_over_the_layers_and_reaches_the_parameters() -> None:
    flow = amid_training("realnvp-p4inv", 2)
    first, second = flow.linear_layers()
    for layer in (first, second):
        with torch.no_grad():  # next to det = 0: 1 + v A^-1 u^T = 0.01
            layer.u.copy_(-0.99 * layer.v @ layer.frozen_weight.t())
    total = flow.penalty(strength=3.0)
    torch.testing.assert_close(total, first.penalty(strength=3.0) + second.penalty(strength=3.0))
    assert total > 0
    total.backward()
    assert first.u.grad is not None
    assert bool(first.u.grad.any())
    assert float(amid_training("realnvp-swap", 2).penalty()) == 0


@architectures
def test_state_dict_and_deepcopy(name: str) -> None:
    flow = amid_training(name, 4)
    expected = flow.log_prob(X)
    expected.sum().backward()  # a copy in the middle of a step
    twin = copy.deepcopy(flow)
    assert torch.equal(twin.log_prob(X), expected)
    fresh = ARCHITECTURES[name](4)
    assert not torch.equal(fresh.log_prob(X), expected)
    fresh.load_state_dict(flow.state_dict())
    assert torch.equal(fresh.log_prob(X), expected)
    folded, other = flow.fold(), fresh.fold()
    with torch.no_grad():
        for tensor in other.parameters():
            tensor.zero_()
    other.load_state_dict(folded.state_dict())
    assert torch.equal(other.log_prob(X), folded.log_prob(X))


@architectures
def test_gradient_of_the_log_density(name: str) -> None:
    flow = amid_training(name, 3)
    x = X[:2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda t: flow.log_prob(t), (x,), atol=1e-6)


def test_batched_logabsdets_are_those_of_the_layers() -> None:
    kinds = [{"rank": 1}, {"rank": 3}, {"rank": 3, "train_v": True}, {"rank": 1, "init": "reverse"}, {"rank": 3}]
    layers = [P4Inv(4, seed=i, dtype=torch.float64, **kind) for i, kind in enumerate(kinds)]
    flow = Flow([P4Inv(4, seed=9, dtype=torch.float64), *layers])
    with torch.no_grad():
        for i, layer in enumerate(flow.layers):
            layer.u.normal_(std=0.3, generator=torch.Generator().manual_seed(i))
    together, apart = flow.logabsdet(), torch.stack([layer.logabsdet() for layer in flow.layers]).sum()
    torch.testing.assert_close(together, apart, rtol=1e-13, atol=1e-13)
    u = [layer.u for layer in flow.layers]
    torch.testing.assert_close(torch.autograd.grad(together, u), torch.autograd.grad(apart, u), rtol=1e-12, atol=1e-12)
