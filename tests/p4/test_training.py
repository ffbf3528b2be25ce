"""What training relies on: crossing det = 0, the way through the inverse, recovery from NaN, gradient directions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from p4.dense_twin import amid_training, assert_bitwise, perturb, state_of, well_conditioned

from p4lab.p4 import MergeSchedule, MergeStatus, P4Inv, Preset, penalty
from p4lab.p4.presets import PAPER, RECOMMENDED

RANK1 = Preset("rank 1, gradient", rank=1, reset="gradient", train_v=False, every=10, refine_every=20)
presets = pytest.mark.parametrize(
    "preset", [PAPER, RANK1, RECOMMENDED], ids=lambda p: p.name.replace(", ", "-").replace(" ", "")
)
optimizers = pytest.mark.parametrize(
    "make_optimizer",
    [
        pytest.param(lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), id="sgd-momentum"),
        pytest.param(lambda p: torch.optim.Adam(p, lr=0.01), id="adam"),
        pytest.param(lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True, amsgrad=True), id="adamw-foreach-amsgrad"),
        pytest.param(lambda p: torch.optim.Adam(p, lr=0.01, fused=True), id="adam-fused"),
    ],
)


def toward(target: torch.Tensor, layer: P4Inv, inverse: bool = False) -> Callable[[], torch.Tensor]:
    """The squared error of one random batch against a linear target, through either direction of the layer."""

    def loss() -> torch.Tensor:
        x = torch.randn(64, layer.dim)
        y = x @ target.T
        return ((layer.inverse(y) - x) if inverse else (layer(x) - y)).square().sum(-1).mean()

    return loss


def descend(layer: P4Inv, preset: Preset, loss: Callable[[], torch.Tensor], steps: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr)
    merges = preset.schedule(layer, optimizer)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        merges.step()
        losses.append(float(value.detach()))
    return losses


@pytest.mark.parametrize(
    ("preset", "dim", "steps", "lr"),
    [
        pytest.param(PAPER, 3, 500, 0.02, id="paper-d3"),
        pytest.param(RANK1, 5, 400, 0.1, id="rank1-gradient-d5"),
        pytest.param(RECOMMENDED, 5, 100, 0.1, id="rank8-d5"),
        pytest.param(RECOMMENDED, 9, 100, 0.1, id="rank8-d9"),
    ],
)
def test_training_crosses_det_0(preset: Preset, dim: int, steps: int, lr: float) -> None:
    """From I to -I with odd d, det from 1 to -1: log|det| and inverse come out right without being recomputed."""
    layer = preset.layer(dim, seed=0, bias=False)
    losses = descend(layer, preset, toward(-torch.eye(dim), layer), steps, lr)
    assert losses[-1] < 1e-4
    assert layer.sign() == -1
    expected = torch.linalg.slogdet(layer.weight.detach().double())
    torch.testing.assert_close(layer.logabsdet().detach(), expected.logabsdet, rtol=0, atol=1e-3)
    assert layer.refine() < 1e-5


@presets
def test_the_penalty_keeps_training_on_its_side_of_det_0(preset: Preset) -> None:
    layer = preset.layer(3, seed=0, bias=False)
    loss = toward(-torch.eye(3), layer)
    losses = descend(layer, preset, lambda: loss() + 100 * penalty(layer), 400, 0.001)
    assert layer.sign() == 1
    assert losses[-1] > 0.5


@presets
def test_training_through_the_inverse(preset: Preset) -> None:
    layer = preset.layer(8, seed=0, bias=False)
    target = torch.diag(torch.linspace(0.7, 1.4, 8))
    losses = descend(layer, preset, toward(target, layer, inverse=True), 700, 0.03)
    assert losses[-1] < 1e-3 * losses[0]
    torch.testing.assert_close(layer.weight.detach(), target, rtol=0, atol=0.05)


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "through-the-inverse"])
@pytest.mark.parametrize("rank", [1, 2, 8], ids="k{}".format)
def test_gradient_directions_come_from_the_weight_gradient(rank: int, inverse: bool) -> None:
    layer = P4Inv(12, rank=rank, reset="gradient", init=well_conditioned(12), dtype=torch.float64, seed=0)
    x, cotangent = torch.randn(2, 6, 12, dtype=torch.float64)
    weight = layer.frozen_weight.clone().requires_grad_()
    for output, inputs in (
        (layer.inverse(x) if inverse else layer(x), layer.u),
        (torch.linalg.solve(weight, x.T).T if inverse else x @ weight.T, weight),
    ):
        (gradient,) = torch.autograd.grad((output * cotangent).sum(), inputs)
    generator = torch.Generator()
    generator.set_state(layer.generator.get_state())
    omega = torch.randn(rank, 12, generator=generator, dtype=torch.float64)
    count = min(rank, 6)  # by a batch of 6
    explicit = torch.linalg.qr((omega @ gradient.T @ gradient).T).Q[:, :count]
    layer.merge()
    v = layer.v[:count]
    torch.testing.assert_close(v.T @ v, explicit @ explicit.T, rtol=0, atol=1e-6)


def test_gradient_directions_without_a_backward_pass_are_random_and_orthonormal() -> None:
    layer = P4Inv(12, rank=3, reset="gradient", dtype=torch.float64, seed=0)
    first = layer.v.clone()
    layer.merge()
    assert not torch.isclose(layer.v, first).any()
    torch.testing.assert_close(layer.v @ layer.v.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_an_evaluation_between_backward_and_merge_changes_no_direction() -> None:
    twins = [P4Inv(6, rank=2, reset="gradient", seed=0) for _ in range(2)]
    x, force = torch.randn(2, 5, 6)
    for evaluated, layer in enumerate(twins):
        layer(x).square().sum().backward()
        if evaluated:
            layer.eval()
            layer(force.requires_grad_()).sum().backward()
            layer.train()
        layer.zero_grad()
        layer.merge()
    assert torch.equal(twins[0].v, twins[1].v)


@optimizers
@pytest.mark.parametrize("reset", ["gaussian", "gradient"])
@pytest.mark.parametrize("train_v", [False, True], ids=["v-fixed", "v-trained"])
def test_a_batch_of_nan_costs_no_more_than_the_steps_since_the_last_merge(
    make_optimizer: Callable[..., torch.optim.Optimizer], reset: str, train_v: bool
) -> None:
    layer = P4Inv(6, rank=2, reset=reset, train_v=train_v, seed=0)  # type: ignore[arg-type]
    optimizer = make_optimizer(layer.parameters())
    merges = MergeSchedule(layer, optimizer, every=5)
    target = torch.diag(torch.linspace(0.7, 1.4, 6))
    loss = toward(target, layer)

    def step(factor: float = 1.0) -> float:
        optimizer.zero_grad()
        value = loss() * factor
        value.backward()
        optimizer.step()
        return float(value.detach())

    before = [(step(), merges.step()) for _ in range(20)][-1][0]
    last = {name: t for name, t in state_of(layer).items() if name.startswith(("frozen", "bias"))}
    step()
    step(torch.nan)
    (report,) = merges.merge()
    assert report.status is MergeStatus.DISCARDED_NOT_FINITE
    assert_bitwise({name: state_of(layer)[name] for name in last}, last)
    assert torch.equal(layer.weight, last["frozen_weight"])
    moments = [
        t for p in layer.parameters() for t in optimizer.state[p].values() if torch.is_tensor(t) and t.shape == p.shape
    ]
    assert moments
    assert not any(t.any() for t in moments)
    after = [(step(), merges.step()) for _ in range(200)][-1][0]
    assert after < 0.5 * before
    assert all(torch.isfinite(t).all() for t in state_of(layer).values())


def test_a_skipped_perturbation_trains_on_and_merges_later() -> None:
    layer = perturb(P4Inv(3, seed=0, bias=False), -torch.eye(3)[:1] * (1 - 1e-5), torch.eye(3)[:1])
    assert layer.merge().status is MergeStatus.SKIPPED_SINGULAR
    losses = descend(layer, RANK1, toward(torch.diag(torch.tensor([-1.0, 1.0, 1.0])), layer), 300, 0.1)
    assert losses[-1] < 1e-3 * losses[0]
    assert layer.sign() == -1
    assert layer.merge().merged


def test_amid_training_is_what_it_says() -> None:
    """The harness itself: a twin comparison would be empty if u, v or the bias were zero."""
    layer = amid_training(5, 2)
    assert all(bool(t.any()) for t in (layer.u, layer.v, layer.bias))
