"""P4Relative where few would look: gradients by hand, odd orders, tensors written by others, compilers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from p4.relative_twin import Twin, layer_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from p4lab import boltzmann
from p4lab.errors import P4Error
from p4lab.flows import p4inv_bent, realnvp
from p4lab.flows.architectures import bent_stack
from p4lab.p4 import RELATIVE, MergeSchedule, P4Relative

RATE = 0.05
SHAPES = pytest.mark.parametrize(("dim", "rank"), [(40, 32), (6, 6)], ids=["rows", "dense"])
F64 = torch.float64


def batch(dim: int, size: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(size, dim, dtype=F64, generator=torch.Generator().manual_seed(seed))


def nll(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return (y.tanh() * y).sum(-1).mean() - 1.5 * model.logabsdet()


def step(layer: P4Relative, x: Tensor) -> None:
    """One step of plain descent that is not merged yet."""
    layer.zero_grad()
    nll(layer, x).backward()
    torch.optim.SGD(layer.parameters(), lr=RATE).step()
    layer.zero_grad()


def error_of_gradient(layer: P4Relative, loss: Callable[[nn.Module], Tensor], work: Callable[[], object]) -> float:
    """Relative error of the layer's gradient in its own coordinates, after ``work``; 0 if it refused by name."""
    twin = Twin(layer)
    (gradient,) = torch.autograd.grad(loss(twin), [twin.weight])
    expected = gradient @ twin.weight.detach().T
    try:
        work()
    except P4Error:
        return 0.0
    assert layer.u.grad is not None
    if layer.is_narrow:
        mine = layer.u.grad.T
    else:
        mine = (layer.u.grad[:-1, None] * layer.p).T @ layer.q
        mine = mine + layer.u.grad[-1] * torch.eye(layer.dim, dtype=mine.dtype)
    return float((mine - expected).abs().max() / expected.abs().max())


def defect(layer: P4Relative, x: Tensor) -> float:
    """How far forward, log|det| and inverse are from the algebra of the effective weights at most; NaN if any is."""
    with torch.no_grad():
        weight = layer.weight
        y = F.linear(x, weight, layer.bias)
        logabsdet = torch.linalg.slogdet(weight).logabsdet
        parts = (layer(x) - y).abs().max(), (layer.logabsdet() - logabsdet).abs(), (layer.inverse(y) - x).abs().max()
        return float(torch.stack(parts).max())


# --- what a bad batch or a long step leaves behind -------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("stepped", [True, False], ids=["stepped", "skipped"])
def test_a_sample_that_is_not_finite_does_not_destroy_the_layer(bad: float, stepped: bool) -> None:
    """The step is dropped, or was skipped, as by GradScaler, or it goes on without a sample whose gradient is 0."""
    layer = layer_of(40, 32)
    x = batch(40)
    x[3, 2] = bad
    (layer(x).tanh().sum() - layer.logabsdet()).backward()
    if stepped:
        torch.optim.SGD(layer.parameters(), lr=RATE).step()
    report = layer.merge()
    assert bool(report) == (not stepped or bad == float("inf"))
    assert defect(layer, batch(40)) < 1e-12


def test_reverse_kl_with_too_large_a_rate_keeps_its_logabsdet() -> None:
    """The same by itself: too long a step through the inverse is dropped; it had merged NaN into log|det| for good."""
    for seed in range(20):
        layer = layer_of(5, 4)
        (layer.inverse(batch(5, 4, seed)).square().sum(-1).mean() / 2 + layer.logabsdet()).backward()
        torch.optim.SGD(layer.parameters(), lr=1.5).step()
        layer.merge()
        assert defect(layer, batch(5)) < 1e-9


# --- gradients -------------------------------------------------------------------------------------------------------


@SHAPES
def test_a_gradient_penalty_is_right_or_refused(dim: int, rank: int) -> None:
    """Derivatives of derivatives see that W is trained (P4Inv's do), or an error says that they do not."""
    layer = layer_of(dim, rank)
    x = batch(dim).requires_grad_()

    def loss(model: nn.Module) -> Tensor:
        (score,) = torch.autograd.grad(model(x).cosh().log().sum(), x, create_graph=True)
        return score.square().sum()

    assert error_of_gradient(layer, loss, lambda: loss(layer).backward()) < 1e-10


@SHAPES
def test_a_penalty_on_the_weights_beside_a_batch_is_right_or_refused(dim: int, rank: int) -> None:
    """The gradient by ``weight`` is in the rows of another batch (or by u, in another metric): they cannot be added."""
    layer = layer_of(dim, rank)
    step(layer, batch(dim, 7))
    layer.merge()
    x = batch(dim, seed=2)

    def loss(model: nn.Module) -> Tensor:
        return nll(model, x) + 0.1 * model.weight.square().sum()

    assert error_of_gradient(layer, loss, lambda: loss(layer).backward()) < 1e-10


@pytest.mark.parametrize("both", [True, False], ids=["both", "first"])
def test_a_shared_layer_in_checkpoints_without_reentry(both: bool) -> None:
    """The forward pass is run again amid the backward pass: the rows that are taken already stay."""
    layer = layer_of(40, 32)
    x = batch(40).requires_grad_()

    def loss(model: nn.Module) -> Tensor:
        return model(model(x).tanh()).square().sum()

    def work() -> None:
        h = checkpoint(layer, x, use_reentrant=False).tanh()
        y = checkpoint(layer, h, use_reentrant=False) if both else layer(h)
        y.square().sum().backward()

    assert error_of_gradient(layer, loss, work) < 1e-10


@pytest.mark.parametrize("way", ["autograd.grad", "put aside"])
def test_gradients_of_two_batches_may_be_added_by_hand(way: str) -> None:
    """Rows of the first batch are not overwritten by the second while somebody holds its gradient."""
    layer, xs = layer_of(40, 32), (batch(40, seed=1), batch(40, seed=2))
    parameters = [p for p in layer.parameters() if p is not layer.bias]

    def work() -> None:
        parts = []
        for x in xs:
            if way == "autograd.grad":
                parts.append(torch.autograd.grad(nll(layer, x), parameters))
            else:
                layer.zero_grad()
                nll(layer, x).backward()
                parts.append([p.grad for p in parameters])
        for p, *gradients in zip(parameters, *parts, strict=True):
            p.grad = torch.stack(gradients).sum(0)

    assert error_of_gradient(layer, lambda model: nll(model, xs[0]) + nll(model, xs[1]), work) < 1e-10


def test_gradients_that_a_merge_finds_are_not_mixed_with_the_next_batch() -> None:
    """A gradient whose rows are gone (merged between micro-batches, or never cleared) is cleared or refused."""
    layer = layer_of(40, 32)
    nll(layer, batch(40, seed=1)).backward()
    layer.merge()
    x = batch(40, seed=2)
    assert error_of_gradient(layer, lambda model: nll(model, x), lambda: nll(layer, x).backward()) < 1e-10


@SHAPES
def test_functional_call_with_tensors_of_its_own(dim: int, rank: int) -> None:
    """A u that is not the layer's own (fast weights, a hypernetwork) gets its true derivative, and q is left alone."""
    layer = layer_of(dim, rank)
    step(layer, batch(dim))
    x, u, q = batch(dim, seed=2), (2 * layer.u.detach()).requires_grad_(), copy.deepcopy(layer.q)
    (mine,) = torch.autograd.grad(torch.func.functional_call(layer, {"u": u}, (x,)).square().sum(), u)
    weight = torch.func.grad(
        lambda u: torch.func.functional_call(layer, {"u": u}, (x,)).square().sum()
    )  # transforms are right
    assert torch.allclose(mine, weight(u.detach()))
    assert q is None or torch.equal(layer.q, q)


def test_input_gradients_take_no_rows() -> None:
    """Scores and saliencies of any number of batches, between a merge and zero_grad, are nobody's gradient by u."""
    layer = layer_of(40, 32)
    nll(layer, batch(40)).backward()
    torch.optim.SGD(layer.parameters(), lr=RATE).step()
    layer.merge()
    for seed in range(8):
        x = batch(40, seed=seed).requires_grad_()
        (score,) = torch.autograd.grad(layer(x).square().sum() / 2, x)
        assert torch.allclose(score, layer(x).detach() @ layer.weight.detach())


def test_a_jacobian_wider_than_the_rank() -> None:
    """`torch.autograd.functional.jacobian` by the input works for a trained layer, row by row."""
    layer = layer_of(40, 32)
    jacobian = torch.autograd.functional.jacobian(layer, batch(40)[0])
    assert torch.allclose(jacobian, layer.weight.detach())


def test_training_by_energy_needs_room_for_its_samples_only() -> None:
    """The path gradient's scores take no rows: 100 samples fit into 128."""
    flow = bent_stack(1, lambda: RELATIVE.layer(200, seed=0))
    boltzmann.by_energy(flow, lambda x: x.square().sum(-1) / 2, 100).backward()


@SHAPES
def test_operations_in_place_may_follow(dim: int, rank: int) -> None:
    """As behind nn.Linear and P4Inv, an activation may be in place: ``nn.ReLU(inplace=True)``."""
    layer = layer_of(dim, rank)
    x = batch(dim)
    assert (
        error_of_gradient(
            layer, lambda model: model(x).relu().square().sum(), lambda: layer(x).relu_().square().sum().backward()
        )
        < 1e-10
    )


def test_a_perturbed_layer_in_a_deep_model() -> None:
    """With ``every=2`` and room for both batches the second step's backward pass, with an input gradient, works."""
    layer = layer_of(40, 32)
    step(layer, batch(40))
    x = batch(40, seed=2)
    twin, mine, theirs = Twin(layer), x.clone().requires_grad_(), x.clone().requires_grad_()
    nll(layer, mine).backward()
    nll(twin, theirs).backward()
    assert torch.allclose(mine.grad, theirs.grad)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@SHAPES
def test_autocast(dim: int, rank: int, bias: bool) -> None:
    """Under autocast a training step works, to the digits of bfloat16."""
    layer = layer_of(dim, rank, dtype=torch.float32, bias=bias)
    x = batch(dim).float()

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.float().square().sum().backward()

    assert error_of_gradient(layer, lambda model: model(x).square().sum(), work) < 0.05


@SHAPES
def test_clearing_to_zeros_frees_rows(dim: int, rank: int) -> None:
    """`zero_grad(set_to_none=False)` and `reset` without a step leave room for the next batch, as ``None`` does."""
    layer = layer_of(dim, rank)
    for seed in range(8):
        nll(layer, batch(dim, seed=seed)).backward()
        layer.zero_grad(set_to_none=False)
        layer.reset()


# --- what the layer believes of itself -------------------------------------------------------------------------------


def trained(dim: int, rank: int) -> P4Relative:
    layer = layer_of(dim, rank)
    for seed in range(5):
        step(layer, batch(dim, seed=seed))
        layer.merge()
    return layer


# --- compilers -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of dynamo's own tracing, which would count as its failure
@SHAPES
def test_compiled(dim: int, rank: int) -> None:
    """A compiled training step has the gradient of the plain one; its graph ends where the batch is told."""
    torch.compiler.reset()
    layer = layer_of(dim, rank)
    x = batch(dim)
    compiled = torch.compile(layer, backend="aot_eager")
    assert (
        error_of_gradient(
            layer, lambda model: model(x).tanh().square().sum(), lambda: compiled(x).tanh().square().sum().backward()
        )
        < 1e-10
    )


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [p4inv_bent, realnvp])
def test_a_preset_of_another_layer_is_refused_or_followed(make: Callable[..., nn.Module]) -> None:
    """``preset=RELATIVE`` makes P4Relative layers, or an error says that it cannot; P4Inv layers it does not make."""
    options = {"mixing": "p4inv"} if make is realnvp else {}
    try:
        flow = make(8, 2, preset=RELATIVE, **options)
    except P4Error:
        return
    assert any(isinstance(layer, P4Relative) for layer in flow.modules())


def test_a_schedule_trains_a_flow_with_merges_every_second_step() -> None:
    """Room for all batches between merges is all that ``every=2`` needs."""
    flow = bent_stack(1, lambda: P4Relative(40, rank=32, seed=0))
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.1)
    merges = MergeSchedule(flow, optimizer, every=2)
    for seed in range(4):
        optimizer.zero_grad()
        (-flow.log_prob(batch(40, 12, seed).float()).mean() / 40).backward()
        optimizer.step()
        merges.step()
