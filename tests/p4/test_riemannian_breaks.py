"""P4Riemannian where few would look, against explicit float64 algebra; what is common to `Following`, for both."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import p4lab
from p4lab.errors import P4Error
from p4lab.p4 import AveragedWeights, P4Linear, P4Relative, P4Riemannian

D, RANK, RATE = 12, 8, 0.05
F64 = torch.float64
RANKS = pytest.mark.parametrize("rank", [RANK, D], ids=["rows", "dense"])
KINDS = pytest.mark.parametrize("kind", [P4Riemannian, P4Relative], ids=lambda kind: kind.__name__)


def layer_of(rank: int = RANK, kind: type[P4Linear] = P4Riemannian, **options: object) -> P4Linear:
    torch.manual_seed(0)
    return kind(D, **{"rank": rank, "init": "orthogonal", "seed": 0, "dtype": F64, **options})


def batch(size: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(size, D, dtype=F64, generator=torch.Generator().manual_seed(seed))


def value(y: Tensor) -> Tensor:
    """A loss whose gradients have nothing special."""
    return (y.tanh() * y).sum() + (y.roll(1, -1) * y.square()).sum() / 3


def stepped(layer: P4Linear) -> P4Linear:
    optimizer = torch.optim.SGD([layer.u], lr=RATE)
    optimizer.step()
    return layer


def descended(weight: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The Cayley retraction of one step along the whole Riemannian gradient, by dense algebra."""
    weight = weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(weight), weight)
    half = gradient @ weight.detach().T * (RATE / 2)
    skew, eye = half - half.T, torch.eye(len(weight), dtype=F64)
    return torch.linalg.solve(eye + skew, (eye - skew) @ weight.detach())


def miss(layer: P4Linear, loss: Callable[[Tensor], Tensor], work: Callable[[], object]) -> float:
    """How far a step and its merge after ``work`` end from the algebra; 0 if it was refused by name."""
    expected = descended(layer.weight, loss)
    try:
        work()
    except P4Error:
        return 0.0
    stepped(layer).merge()
    error = float((layer.weight.detach() - expected).abs().max())
    return error if error == error else float("inf")


# --- silently wrong --------------------------------------------------------------------------------------------------


@RANKS
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside-a-batch"])
@pytest.mark.parametrize("name", ["weight", "weight_inverse"])
def test_a_loss_of_the_matrix_is_right_or_refused(rank: int, beside: bool, name: str) -> None:
    """With rows its gradient is 0 (or torch's version error), without them its step is twice too long."""
    layer, target, x = layer_of(rank), batch(D, 5), batch()

    def loss(weight: Tensor) -> Tensor:
        matrix = weight if name == "weight" else weight.T
        return (matrix * target).sum() + (value(x @ weight.T) if beside else 0)

    def work() -> None:
        other = value(layer(x)) if beside else 0
        ((getattr(layer, name) * target).sum() + other).backward()

    assert miss(layer, loss, work) < 1e-12


@RANKS
def test_functional_call_with_a_u_of_its_own(rank: int) -> None:
    """As in P4Relative: fast weights get their true derivative, and the layer's rows are left alone."""
    layer = layer_of(rank)
    value(layer(batch(seed=9))).backward()
    stepped(layer).zero_grad()
    x, u, outside = batch(seed=3), (2 * layer.u.detach()).requires_grad_(), copy.deepcopy(layer.outside)

    def loss(u: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"u": u}, (x,)).tanh().square().sum()

    (mine,) = torch.autograd.grad(loss(u), u)
    assert torch.allclose(mine, torch.func.grad(loss)(u.detach()))
    assert outside is None or torch.equal(layer.outside, outside)


def skip_a_bad_batch(layer: P4Linear) -> None:
    x = batch()
    x[3, 0] = torch.nan
    value(layer(x)).backward()
    layer.zero_grad()


def test_a_bad_batch_that_was_skipped_does_not_reach_a_smaller_one() -> None:
    """The next good step must be seen before its merge, and be merged; it is NaN, and is discarded."""
    layer, x = layer_of(), batch(2, 2)
    expected = descended(layer.weight, lambda weight: value(x @ weight.T))
    skip_a_bad_batch(layer)
    value(layer(x) - layer.bias).backward()
    stepped(layer)
    assert torch.allclose(layer(x) - layer.bias, x @ expected.T)
    assert torch.allclose(layer.inverse(layer(x)), x)
    assert layer.merge()
    assert torch.allclose(layer.weight, expected)


@pytest.mark.parametrize("look", ["weight", "fold", "average", "jacobian"])
def test_a_bad_batch_that_was_skipped_does_not_reach_the_weights(look: str) -> None:
    """The forward pass is right, but ``weight`` is NaN until the next merge, and a running average stays so."""
    layer = layer_of()
    average = AveragedWeights(layer, decay=0.9)
    skip_a_bad_batch(layer)
    if look == "weight":
        weight = layer.weight
    elif look == "fold":
        weight = layer.fold().weight
    elif look == "average":
        average.update()
        weight = average.model().weight
    else:
        weight = torch.func.jacrev(layer)(batch(1)[0])
    assert torch.allclose(weight, layer.frozen_weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@KINDS
def test_a_sample_without_a_gradient_may_be_anything(kind: type[P4Linear], bad: float) -> None:
    """P4Relative goes on without it; P4Riemannian drops the step of the others."""
    layer, x = layer_of(kind=kind), batch()
    x[3, 2] = bad
    value(layer(x)[:3]).backward()
    assert stepped(layer).merge()


@KINDS
def test_a_state_between_step_and_merge_without_its_extra_part(kind: type[P4Linear]) -> None:
    """Without the extra state (strict=False, safetensors) the perturbation was dropped without a word."""
    layer, twin, x = layer_of(kind=kind), layer_of(kind=kind, init="identity"), batch()
    value(layer(x)).backward()
    state = stepped(layer).state_dict()
    del state["_extra_state"]
    try:
        twin.load_state_dict(state, strict=False)
    except P4Error:
        return
    assert torch.allclose(twin(x), layer(x))


def test_a_loaded_state_does_not_keep_the_gradient_of_other_rows() -> None:
    """Rows come with the state, a pending u.grad does not: it is cleared, or gone on from rightly."""
    layer, x = layer_of(), batch()
    state, first = copy.deepcopy(layer.state_dict()), batch(3, 8)
    value(layer(first) - layer.bias).backward()
    layer.load_state_dict(state)
    expected = descended(layer.weight, lambda weight: value(x @ weight.T))
    value(layer(x) - layer.bias).backward()
    stepped(layer).merge()
    assert torch.allclose(layer.weight, expected)


# --- refused without need, or without help ---------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["skipped", "saliency"])
@KINDS
def test_a_batch_larger_than_the_rank_after_one_that_no_step_followed(kind: type[P4Linear], before: str) -> None:
    """Rows that belong to nobody are taken, but the batch is not folded: "has 8 rows left, 10 samples came"."""
    layer, x = layer_of(kind=kind), batch(10).requires_grad_()
    if before == "skipped":
        value(layer(x)).backward()
        layer.zero_grad()
    else:
        torch.autograd.grad(value(layer(x)), x)
    value(layer(x)).backward()


@pytest.mark.parametrize("name", ["P4Riemannian", "RIEMANNIAN"])
def test_it_is_at_hand_where_its_sister_is(name: str) -> None:
    """README imports RELATIVE from p4lab, and says of RIEMANNIAN that it does the same."""
    assert hasattr(p4lab, name)
