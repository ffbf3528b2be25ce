"""P4Relative: its step is the relative gradient's to the last digits, and everything else is that of a P4 layer."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from p4.relative_twin import Twin, layer_of
from torch import Tensor

from p4lab.errors import MergeOrderError, OptionError
from p4lab.p4 import RELATIVE, MergeSchedule, MergeStatus, P4Relative

RATE = 0.05
SHAPES = pytest.mark.parametrize(("dim", "rank"), [(80, 32), (40, 32), (6, 6)], ids=["rows", "many-rows", "dense"])
TURNS = pytest.mark.parametrize("turn", [1.0, 3.0])


def forward_loss(model: P4Relative | Twin, x: Tensor) -> Tensor:
    y = model(x)
    return (y.tanh() * y).sum(-1).mean() - 1.5 * model.logabsdet()


def inverse_loss(model: P4Relative | Twin, x: Tensor) -> Tensor:
    return 0.02 * model.inverse(x).square().sum(-1).mean() + model.logabsdet() / 4


def both(model: P4Relative | Twin, x: Tensor) -> Tensor:
    return forward_loss(model, x) + inverse_loss(model, x[:4])


LOSSES = pytest.mark.parametrize("loss", [forward_loss, inverse_loss, both])


def relative_gradient(model: Twin, loss: Callable[..., Tensor], x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(model, x), [model.weight])
    return gradient @ model.weight.detach().T


def step_of(e: Tensor, layer: P4Relative) -> Tensor:
    """R for a step against the relative gradient."""
    n = -RATE * ((e + e.T) / 2 + layer.turn * (e - e.T) / 2)
    n = n / (1 + n.square().sum()).sqrt()
    return torch.eye(len(e), dtype=e.dtype) + n + n @ n / 2


@SHAPES
@TURNS
@LOSSES
@pytest.mark.parametrize("inputs", ["data", "activations"])
def test_a_step_is_that_of_the_relative_gradient(
    dim: int, rank: int, turn: float, loss: Callable[..., Tensor], inputs: str
) -> None:
    layer = layer_of(dim, rank, turn=turn)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)
    merges = MergeSchedule(layer, optimizer, every=1)
    for seed in range(4):
        x = torch.randn(12, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        x.requires_grad_(inputs == "activations")
        twin = Twin(layer)
        expected = step_of(relative_gradient(twin, loss, x), layer) @ twin.weight.detach()
        optimizer.zero_grad()
        value = loss(layer, x)
        assert float(value.detach()) == pytest.approx(float(loss(twin, x).detach()), abs=1e-12)
        value.backward()
        optimizer.step()
        perturbed = layer.weight.detach().clone()
        assert torch.allclose(perturbed, expected, atol=1e-13, rtol=0)
        sign, logabsdet = torch.linalg.slogdet(expected)
        assert float(layer.logabsdet().detach()) == pytest.approx(float(logabsdet), abs=1e-12)
        assert float(layer.sign()) == float(sign)
        with torch.no_grad():
            assert torch.allclose(layer.inverse(layer(x)), x, atol=1e-12)
        (report,) = merges.step()
        assert report.merged
        assert torch.allclose(layer.weight.detach(), perturbed, atol=1e-13, rtol=0)
        assert float(layer.logabsdet().detach()) == pytest.approx(float(logabsdet), abs=1e-12)
        assert float(layer.violation()) < 1e-12


@SHAPES
def test_the_gradient_at_the_input_and_of_the_bias(dim: int, rank: int) -> None:
    layer = layer_of(dim, rank)
    twin = Twin(layer)
    twin.bias.requires_grad_()
    x = torch.randn(5, dim, dtype=torch.float64, requires_grad=True)
    for loss in (forward_loss, inverse_loss):
        mine = torch.autograd.grad(loss(layer, x), [x, layer.bias])
        for a, b in zip(mine, torch.autograd.grad(loss(twin, x), [x, twin.bias]), strict=True):
            assert torch.allclose(a, b, atol=1e-12)


@SHAPES
def test_batches_of_one_step_add_up(dim: int, rank: int) -> None:
    layer = layer_of(dim, rank)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)
    xs = torch.randn(3, 8, dim, dtype=torch.float64).unbind()
    twin = Twin(layer)
    e = sum(relative_gradient(twin, forward_loss, x) for x in xs)
    for x in xs:
        forward_loss(layer, x).backward()
    optimizer.step()
    assert torch.allclose(layer.weight.detach(), step_of(e, layer) @ twin.weight.detach(), atol=1e-12)


def test_steps_between_merges_add_up_too() -> None:
    layer = layer_of(40, 32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)
    total = torch.zeros(40, 40, dtype=torch.float64)
    start = layer.weight.detach().clone()
    for seed in range(3):
        x = torch.randn(8, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        total += relative_gradient(Twin(layer), forward_loss, x)
        optimizer.zero_grad()
        forward_loss(layer, x).backward()
        optimizer.step()
    assert torch.allclose(layer.weight.detach(), step_of(total, layer) @ start, atol=1e-12)
    with pytest.raises(MergeOrderError, match=r"8 rows left .* a batch of 9 samples"):
        forward_loss(layer, torch.randn(9, 40, dtype=torch.float64)).backward()
    assert layer.merge()
    forward_loss(layer, torch.randn(9, 40, dtype=torch.float64)).backward()


def test_a_batch_larger_than_the_rank_is_right_in_the_mean() -> None:
    layer, x = layer_of(30, 20), torch.randn(50, 30, dtype=torch.float64)
    twin = Twin(layer)
    e = relative_gradient(twin, forward_loss, x)
    total = torch.zeros_like(e)
    count = 3000
    for _ in range(count):
        layer.zero_grad()
        forward_loss(layer, x).backward()
        total += (layer.u.grad[:-1, None] * layer.p).T @ layer.q + layer.u.grad[-1] * torch.eye(30, dtype=torch.float64)
        layer.reset()
    noise = torch.linalg.vector_norm(total / count - e) / torch.linalg.vector_norm(e)
    assert float(noise) < 0.1
    assert float(noise) > 1e-3  # folded with other signs each time


@SHAPES
def test_whoever_looks_changes_nothing(dim: int, rank: int) -> None:
    """Two runs, one of which is asked for inverses now and then, go the same way."""
    layers = [layer_of(dim, rank, dtype=torch.float32) for _ in range(2)]
    for layer in layers:
        layer.track_for = 2
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.002) for layer in layers]
    schedules = [MergeSchedule(layer, o, every=1) for layer, o in zip(layers, optimizers, strict=True)]
    for step in range(40):
        x = torch.randn(12, dim, generator=torch.Generator().manual_seed(step))
        for layer, optimizer, merges in zip(layers, optimizers, schedules, strict=True):
            optimizer.zero_grad()
            forward_loss(layer, x).backward()
            optimizer.step()
            merges.step()
        if step % 10 == 9:
            with torch.no_grad():
                assert torch.allclose(layers[0].inverse(layers[0](x)), x, atol=1e-4)
                assert float(layers[0].violation()) < 1e-4
    assert torch.equal(layers[0].frozen_weight, layers[1].frozen_weight)
    assert torch.equal(layers[0].frozen_logabsdet, layers[1].frozen_logabsdet)
    assert [layer.factorizations for layer in layers] == [4, 0]


def test_an_inverse_in_use_is_never_factorized() -> None:
    layer = layer_of(40, 32, dtype=torch.float32)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    merges = MergeSchedule(layer, optimizer, every=1)
    for step in range(100):
        x = torch.randn(12, 40, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        both(layer, x).backward()
        optimizer.step()
        merges.step()
    assert layer.factorizations == 0
    assert float(layer.violation()) < 1e-5


@SHAPES
@pytest.mark.parametrize("way", ["deepcopy", "state", "pickle-like", "cast"])
@pytest.mark.parametrize("merged", [True, False])
def test_a_copy_goes_on_alike(dim: int, rank: int, way: str, merged: bool) -> None:
    layer = layer_of(dim, rank)
    x = torch.randn(8, dim, dtype=torch.float64)

    def train(layer: P4Relative) -> None:
        optimizer = torch.optim.SGD(layer.parameters(), lr=RATE)
        forward_loss(layer, x).backward()
        optimizer.step()
        layer.zero_grad()

    train(layer)
    if merged:
        layer.merge()
    if way == "deepcopy":
        twin = copy.deepcopy(layer)
    elif way == "cast":
        twin = copy.deepcopy(layer).to(torch.float64)
    else:
        file = io.BytesIO()
        torch.save(layer if way == "pickle-like" else layer.state_dict(), file)
        file.seek(0)
        twin = torch.load(file, weights_only=way == "state")
        if way == "state":
            state, twin = twin, layer_of(dim, rank, init="identity")
            twin.load_state_dict(state)
    for one in (layer, twin):
        train(one)
        one.merge()
    assert torch.equal(layer.frozen_weight, twin.frozen_weight)
    assert torch.allclose(layer.inverse(x), twin.inverse(x), atol=1e-12)


@SHAPES
@pytest.mark.parametrize("size", [1.0, 1e3, 1e12])
def test_no_step_is_too_long(dim: int, rank: int, size: float) -> None:
    layer = layer_of(dim, rank)
    for seed in range(20):
        forward_loss(layer, torch.randn(8, dim, dtype=torch.float64)).backward()
        with torch.no_grad():
            layer.u.normal_(std=size, generator=torch.Generator().manual_seed(seed))
        before, weight = layer.frozen_weight.clone(), layer.weight.detach()
        assert layer.merge()
        assert torch.allclose(layer.weight.detach(), weight, rtol=1e-9, atol=1e-9)
        step = torch.linalg.solve(before.T, weight.T)
        assert float(torch.linalg.eigvals(step).abs().min()) > 0.3
        assert float(layer.sign()) == float(torch.linalg.slogdet(weight).sign)
    assert float(layer.violation()) < 1e-7
    logabsdet = torch.linalg.slogdet(layer.weight.detach()).logabsdet
    assert float(layer.logabsdet().detach()) == pytest.approx(float(logabsdet), abs=1e-7)


@SHAPES
def test_what_is_not_finite_is_dropped(dim: int, rank: int) -> None:
    layer = layer_of(dim, rank)
    with torch.no_grad():
        layer.u.view(-1)[0] = torch.nan
    assert layer.merge().status is MergeStatus.DISCARDED_NOT_FINITE
    x = torch.randn(4, dim, dtype=torch.float64)
    assert torch.allclose(layer.inverse(layer(x)), x)


def test_optimizers_that_would_go_elsewhere_are_refused() -> None:
    rows, dense = layer_of(40, 32), layer_of(6, 6)
    with pytest.raises(OptionError, match=r"P4Relative\(dim=40, rank=32\) under Adam"):
        MergeSchedule(rows, torch.optim.Adam(rows.parameters()))
    MergeSchedule(dense, torch.optim.Adam(dense.parameters()))
    with pytest.raises(OptionError, match="several replicas"):
        rows.plan(lambda rows: rows)
    assert dense.plan(lambda rows: rows).report.merged


def test_a_gradient_along_the_matrix_itself() -> None:
    """Without rows it is right, and refused with them; a derivative of a gradient is refused always."""
    target = torch.randn(6, 6, dtype=torch.float64)
    for name in ("weight", "weight_inverse"):
        layer = layer_of(6, 6, turn=1.0)
        twin = Twin(layer)
        matrix = twin.weight if name == "weight" else torch.linalg.inv(twin.weight)
        (gradient,) = torch.autograd.grad((matrix * target).sum(), [twin.weight])
        ((getattr(layer, name) * target).sum() - 0).backward()
        assert torch.allclose(layer.u.grad.T, gradient @ twin.weight.detach().T)
        rows = layer_of(40, 32)
        with pytest.raises(OptionError, match="depends on the matrix W itself"):
            getattr(rows, name).sum().backward()
    for layer in (layer_of(6, 6), layer_of(40, 32)):
        x = torch.randn(3, layer.dim, dtype=torch.float64, requires_grad=True)
        with pytest.raises(OptionError, match="create_graph=True"):
            torch.autograd.grad(layer(x).square().sum(), [x], create_graph=True)


def test_fused_optimizers_are_refused() -> None:
    layer = layer_of(6, 6)
    with pytest.raises(OptionError, match="fused=True"):
        MergeSchedule(layer, torch.optim.SGD(layer.parameters(), fused=True))


@SHAPES
def test_tensors_without_the_rest_of_a_state(dim: int, rank: int) -> None:
    layer, x = layer_of(dim, rank), torch.randn(4, dim, dtype=torch.float64)
    for seed in range(5):
        forward_loss(layer, torch.randn(8, dim, generator=torch.Generator().manual_seed(seed)).double()).backward()
        torch.optim.SGD(layer.parameters(), lr=0.01).step()
        layer.merge()
    twin = layer_of(dim, rank, init="identity")
    tensors = {name: value for name, value in layer.state_dict().items() if not name.startswith("_extra")}
    twin.load_state_dict(tensors, strict=False)
    assert torch.allclose(twin.inverse(layer(x)), x, atol=1e-10)


def test_rows_that_no_step_follows_are_taken_again() -> None:
    layer, x = layer_of(40, 32), torch.randn(12, 40, dtype=torch.float64)
    for _ in range(5):
        torch.autograd.grad(forward_loss(layer, x.requires_grad_()), [x])
    twin = layer_of(40, 32)
    for one in (layer, twin):
        forward_loss(one, x.detach()).backward()
        torch.optim.SGD(one.parameters(), lr=RATE).step()
    assert torch.allclose(layer.weight.detach(), twin.weight.detach(), atol=1e-12)


@pytest.mark.parametrize("turn", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_turns(turn: float) -> None:
    with pytest.raises(OptionError, match="turn="):
        P4Relative(3, turn=turn)


@SHAPES
def test_transforms_get_the_derivatives_by_u_itself(dim: int, rank: int) -> None:
    layer = layer_of(dim, rank)
    x = torch.randn(3, dim, dtype=torch.float64)
    jacobian = torch.func.vmap(torch.func.jacrev(layer))(x)
    assert torch.allclose(jacobian, layer.weight.expand_as(jacobian))
    forward_loss(layer, torch.randn(8, dim, dtype=torch.float64)).backward()
    with torch.no_grad():
        layer.u.normal_(std=0.05)
    parameters = dict(layer.named_parameters())

    def value(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    gradient = torch.func.grad(value)(parameters)["u"].detach()
    moved = {name: p.detach().clone() for name, p in parameters.items()}
    moved["u"].view(-1)[2] += 1e-6
    slope = (value(moved) - value({n: p.detach() for n, p in parameters.items()})).detach() / 1e-6
    assert float(gradient.view(-1)[2]) == pytest.approx(float(slope), rel=1e-3)


@SHAPES
def test_the_rest_of_the_contract(dim: int, rank: int) -> None:
    layer = layer_of(dim, rank)
    x = torch.randn(4, dim, dtype=torch.float64)
    forward_loss(layer, x).backward()
    torch.optim.SGD(layer.parameters(), lr=RATE).step()
    assert torch.allclose(layer.fold()(x), layer(x), atol=1e-12)
    assert torch.allclose(layer.weight @ layer.weight_inverse, torch.eye(dim, dtype=torch.float64), atol=1e-10)
    weight = torch.randn(dim, dim, dtype=torch.float64) + 3 * torch.eye(dim)
    layer.start_at(weight)
    assert torch.equal(layer.weight.detach(), weight)
    assert float(layer.recompute()) < 1e-10
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    merges = MergeSchedule(layer, optimizer, every=1, weight_decay=0.5)
    layer.zero_grad()
    optimizer.step()
    merges.step()
    assert torch.allclose(layer.weight.detach(), 0.95 * weight)
    assert float(layer.logabsdet().detach()) == pytest.approx(float(torch.linalg.slogdet(0.95 * weight).logabsdet))
    assert float(layer.violation()) < 1e-10
    value = forward_loss(layer, x)
    layer.merge()
    with pytest.raises(MergeOrderError):
        value.backward()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "steps", [2_000, pytest.param(100_000, marks=pytest.mark.long)], ids=["2000-steps", "100000-steps"]
)
@pytest.mark.parametrize(("dim", "batch"), [(255, 64), (64, 64)], ids=["rows", "dense"])
def test_a_soak_in_float32(dim: int, batch: int, steps: int, record_property: Callable[[str, object], None]) -> None:
    """Sources are unmixed for as long as anybody likes, and the mixture changes; inverse and log|det| stay right."""
    layer = RELATIVE.layer(dim, bias=False, seed=0)
    layer.track_for = steps
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.004 * dim)
    merges = RELATIVE.schedule(layer, optimizer)
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(dim)
    worst = {"inverse": 0.0, "logabsdet": 0.0}
    for step in range(steps):
        if step % 5_000 == 1_000:
            mixing = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
        # Heavy tails, as photo patches have them.
        s = torch.randn(batch, dim, generator=generator) * torch.randn(batch, dim, generator=generator).abs().exp() / 2
        optimizer.zero_grad()
        y = layer(s @ mixing.T)
        (
            (y.abs() + torch.nn.functional.softplus(-2 * y.abs())).sum(-1).mean() / dim - layer.logabsdet() / dim
        ).backward()
        optimizer.step()
        merges.step()
        if step % (steps // 40) == 0:
            weight = layer.frozen_weight.double()
            sign, logabsdet = torch.linalg.slogdet(weight)
            residual = weight @ layer.frozen_inverse.double() - torch.eye(dim, dtype=torch.float64)
            assert float(sign) == float(layer.frozen_sign)
            worst["inverse"] = max(worst["inverse"], float(residual.abs().max()))
            worst["logabsdet"] = max(worst["logabsdet"], abs(float(logabsdet - layer.frozen_logabsdet)))
    assert layer.factorizations == 0
    print(worst)
    for name, value in worst.items():
        record_property(name, value)
    assert worst["inverse"] <= 1e-4
    assert worst["logabsdet"] <= 1e-3
