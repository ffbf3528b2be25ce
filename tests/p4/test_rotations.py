"""Rotations and shears against their dense twins, over merges, and amid everything that may go wrong."""

from __future__ import annotations

import pytest
import torch
from p4.dense_twin import (
    BATCHES,
    DIMS,
    OPERATIONS,
    RANKS,
    WEIGHTS,
    assert_bitwise,
    assert_like_twin,
    state_of,
    twin_tensors,
)
from p4.rotations import KINDS, ORTHOGONAL, WITH_DIRECTIONS, amid, descend, orthogonal, perturb, unimodular
from p4.test_gradcheck import as_function

from p4lab.p4 import Changes, MergeSchedule, MergeStatus, P4Linear, P4Orthogonal, P4Reflections, P4SpecialLinear, fold

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
directed = pytest.mark.parametrize("kind", WITH_DIRECTIONS, ids=lambda k: k.__name__)
rotations = pytest.mark.parametrize("kind", ORTHOGONAL, ids=lambda k: k.__name__)
dims = pytest.mark.parametrize("dim", DIMS, ids="d{}".format)
ranks = pytest.mark.parametrize("rank", RANKS, ids="k{}".format)
batches = pytest.mark.parametrize("batch", BATCHES, ids=lambda b: "batch" + "x".join(map(str, b)) if b else "no-batch")
operations = pytest.mark.parametrize("operation", OPERATIONS)
inverted = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "through-the-inverse"])


@operations
@batches
@ranks
@dims
@kinds
def test_value_and_gradients_in_float64(
    kind: type[P4Linear], dim: int, rank: int, batch: tuple[int, ...], operation: str
) -> None:
    assert_like_twin(amid(kind, dim, rank), operation, batch, dim, tolerance=1e-9, floor=1e-3)


@operations
@ranks
@pytest.mark.parametrize("dim", [1, 3, 32], ids="d{}".format)
@kinds
def test_value_and_gradients_in_float32(kind: type[P4Linear], dim: int, rank: int, operation: str) -> None:
    layer = amid(kind, dim, rank, dtype=torch.float32)
    assert_like_twin(layer, operation, (5,), dim, tolerance=1e-3, floor=1e-3)


@operations
@kinds
def test_value_and_gradients_without_a_bias(kind: type[P4Linear], operation: str) -> None:
    assert_like_twin(amid(kind, 7, 2, bias=False), operation, (5,), 7, tolerance=1e-10, floor=1e-3)


@operations
@kinds
def test_value_and_gradients_after_merges(kind: type[P4Linear], operation: str) -> None:
    layer = amid(kind, 7, 2)
    for _ in range(5):
        assert layer.merge().merged
        perturb(layer)
    assert_like_twin(layer, operation, (5,), 7, tolerance=1e-9, floor=1e-3)


@pytest.mark.parametrize("figure", ["weight", "weight_inverse", "sign"])
@ranks
@dims
@kinds
def test_figures_are_the_twins(kind: type[P4Linear], dim: int, rank: int, figure: str) -> None:
    layer = amid(kind, dim, rank)
    weight = WEIGHTS[kind](twin_tensors(layer))
    if figure == "sign":
        assert layer.sign() == torch.linalg.slogdet(weight).sign
    else:
        expected = weight if figure == "weight" else torch.linalg.inv(weight)
        torch.testing.assert_close(getattr(layer, figure), expected, rtol=1e-10, atol=1e-10, check_stride=False)


@pytest.mark.parametrize("operation", ["forward", "inverse", "weight", "weight_inverse"])
@pytest.mark.parametrize("check", ["gradcheck", "gradgradcheck"])
@pytest.mark.parametrize("rank", [1, 2], ids="k{}".format)
@kinds
def test_derivatives(kind: type[P4Linear], rank: int, check: str, operation: str) -> None:
    reset = {"reset": "gradient"} if kind in WITH_DIRECTIONS else {}
    assert getattr(torch.autograd, check)(*as_function(amid(kind, 4, rank, **reset), operation))


@rotations
@ranks
@dims
def test_rotations_are_orthogonal_between_merges(dim: int, rank: int, kind: type[P4Linear]) -> None:
    layer = perturb(amid(kind, dim, rank), 3.0)
    weight = layer.weight.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(dim, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool((weight - layer.frozen_weight).abs().max() > 0.01) or dim == 1


@ranks
@dims
def test_shears_keep_the_volume_between_merges(dim: int, rank: int) -> None:
    layer = perturb(amid(P4SpecialLinear, dim, rank), 3.0)
    assert abs(float(torch.linalg.slogdet(layer.weight.detach()).logabsdet)) < 1e-11
    assert bool((layer.weight - layer.frozen_weight).abs().max() > 0.1) or dim == 1


# --- merges ---


@pytest.mark.parametrize("figure", ["weight", "weight_inverse", "logabsdet", "sign", "forward", "inverse", "fold"])
@kinds
def test_merges_are_invisible(kind: type[P4Linear], figure: str) -> None:
    layer, x = amid(kind, 9, 3), torch.randn(4, 9, dtype=torch.float64)

    def look() -> torch.Tensor:
        with torch.no_grad():
            if figure == "fold":
                return fold(layer)(x)
            value = getattr(layer, figure)
            return (
                value.clone() if torch.is_tensor(value) else value(x) if figure in ("forward", "inverse") else value()
            )

    for _ in range(3):
        before, frozen = look(), layer.frozen_weight.clone()
        assert layer.merge().merged
        torch.testing.assert_close(look(), before, rtol=0, atol=1e-11)
        assert not layer.u.any()
        assert not torch.isclose(layer.frozen_weight, frozen).all()
        perturb(layer)


@directed
def test_a_merge_draws_new_orthonormal_directions(kind: type[P4Linear]) -> None:
    layer = amid(kind, 9, 3)
    old = layer.v.clone()
    assert layer.merge().merged
    assert not torch.isclose(layer.v, old).any()
    torch.testing.assert_close(layer.v @ layer.v.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", ["u", "bias"])
@kinds
def test_what_is_not_finite_is_discarded(kind: type[P4Linear], where: str, bad: float) -> None:
    layer = amid(kind, 9)
    assert layer.merge().merged
    frozen = {name: t for name, t in state_of(layer).items() if name.startswith("frozen")}
    with torch.no_grad():
        perturb(layer)
        getattr(layer, where).view(-1)[-1] = bad
    report = layer.merge()
    assert report.status is MergeStatus.DISCARDED_NOT_FINITE
    assert "back at its last merge" in report.reason
    assert_bitwise({name: state_of(layer)[name] for name in frozen}, frozen)
    assert torch.equal(layer.bias, frozen["frozen_bias"])
    torch.testing.assert_close(layer.weight, frozen["frozen_weight"], rtol=0, atol=1e-15)
    assert layer.merge().merged


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e15, 1e25, 3e38], ids="u{:g}".format)
@kinds
def test_a_huge_perturbation_never_corrupts(kind: type[P4Linear], size: float) -> None:
    layer = amid(kind, 9, 3, dtype=torch.float32)
    layer.merge()
    before = {name: t for name, t in state_of(layer).items() if name.startswith("frozen")}
    with torch.no_grad():
        layer.u.normal_().mul_(size)
    report = layer.merge()
    after = {name: state_of(layer)[name] for name in before}
    if not report.merged:
        assert_bitwise(after, before)
    weight = layer.frozen_weight.double()
    assert torch.isfinite(weight).all()
    if kind in ORTHOGONAL:
        torch.testing.assert_close(weight.T @ weight, torch.eye(9, dtype=torch.float64), rtol=0, atol=2e-3)
    elif report.merged:
        assert float(layer.inverse_error()) < 0.1


@pytest.mark.parametrize("size", [1.0, 10.0], ids="u{:g}".format)
@kinds
def test_a_large_perturbation_merges(kind: type[P4Linear], size: float) -> None:
    report = perturb(amid(kind, 9, 3, dtype=torch.float32), size).merge()
    assert report.merged, report.reason


def test_a_vanishing_reflection_is_refused() -> None:
    layer = P4Reflections(5, rank=1, seed=0)
    with torch.no_grad():
        layer.u.copy_(-2 * layer.v)
    assert layer.merge().status is MergeStatus.DISCARDED_NOT_FINITE
    assert torch.equal(layer.frozen_weight, torch.eye(5))


def test_a_rotation_by_half_a_turn_is_within_reach_of_reflections() -> None:
    layer = P4Reflections(4, rank=1, dtype=torch.float64, seed=0)
    with torch.no_grad():
        across = torch.linalg.qr(torch.cat([layer.v, torch.randn(1, 4, dtype=torch.float64)]).T).Q[:, 1]
        layer.u.copy_(2 * across - 2 * layer.v)
    eigenvalues = torch.linalg.eigvals(layer.weight.detach()).real.sort().values
    expected = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(eigenvalues, expected, rtol=0, atol=1e-12)


def test_the_permutation_of_a_sweep_is_undone() -> None:
    """Turned by a very small angle, coordinates stay where they are; put back wrongly, they would not."""
    layer = amid(KINDS[2], 7, 1, bias=False)
    with torch.no_grad():
        layer.u.fill_(1e-9)
    torch.testing.assert_close(layer.weight.detach(), layer.frozen_weight, rtol=0, atol=1e-8)
    assert not torch.equal(layer.order[0], layer.place[0])  # an involution would hide the mistake


# --- corrections ---


@rotations
@pytest.mark.parametrize("noise", [1e-6, 1e-3, 0.05])
def test_a_correction_brings_back_an_orthogonal_matrix(kind: type[P4Linear], noise: float) -> None:
    layer = amid(kind, 16)
    layer.frozen_weight.add_(noise * torch.randn(16, 16, dtype=torch.float64) / 4)
    before = float(layer.violation())
    after = [float(layer.correct()) for _ in range(5)]
    assert after[0] < 4 * before**2 + 1e-14
    assert after[-1] < 1e-14


@rotations
def test_a_correction_that_would_diverge_is_not_made(kind: type[P4Linear]) -> None:
    layer = amid(kind, 5)
    layer.frozen_weight.mul_(2)
    before = layer.frozen_weight.clone()
    assert float(layer.correct()) >= 1
    assert torch.equal(layer.frozen_weight, before)


@pytest.mark.parametrize("drift", [1e-5, -1e-2, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_correction_brings_the_determinant_back(dtype: torch.dtype, drift: float) -> None:
    layer = amid(P4SpecialLinear, 16, dtype=dtype)
    layer.frozen_weight.mul_(1 + drift)
    layer.frozen_inverse.div_(1 + drift)
    assert float(layer.correct()) < (5e-7 if dtype == torch.float32 else 1e-14)
    layer.correct()  # the inverse, too, was off by the drift of one row, and a refinement is quadratic
    assert float(layer.violation()) < (5e-7 if dtype == torch.float32 else 1e-14)
    assert float(layer.inverse_error()) < (1e-5 if dtype == torch.float32 else 1e-13)


# --- directions and momentum ---


def skew_gradient(layer: P4Linear, x: torch.Tensor, cotangent: torch.Tensor, inverse: bool) -> torch.Tensor:
    """The gradient with respect to E at 0 in ``W <- (I + E) W``."""
    e = torch.zeros(layer.dim, layer.dim, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach()
    neighbour = weight + e @ weight
    y = torch.linalg.solve(neighbour, (x - layer.bias).T).T if inverse else x @ neighbour.T
    return torch.autograd.grad((y * cotangent).sum(), e)[0]


@inverted
@directed
def test_gradient_directions_come_from_the_relative_gradient(kind: type[P4Linear], inverse: bool) -> None:
    """A batch of one has a gradient of rank one, whose directions the sketch has to find (of a skew one: half)."""
    layer = amid(kind, 12, 4, reset="gradient")
    x, cotangent = torch.randn(2, 1, 12, dtype=torch.float64)
    gradient = skew_gradient(layer, x, cotangent, inverse)
    ((layer.inverse(x) if inverse else layer(x)) * cotangent).sum().backward()
    omega = torch.randn(4, 12, dtype=torch.float64)
    sketch = layer.sketch(omega, layer.batch, Changes())
    row = torch.linalg.svd(sketch).Vh[:1]
    if kind is P4SpecialLinear:
        expected = torch.linalg.svd(gradient).Vh[:1]
        torch.testing.assert_close(expected.T @ expected, row.T @ row, rtol=0, atol=1e-9)
    else:
        outside = torch.eye(12, dtype=torch.float64) - row.T @ row
        skew = gradient - gradient.T
        assert float(skew.abs().max()) > 0.1
        torch.testing.assert_close(outside @ skew @ outside, torch.zeros_like(skew), rtol=0, atol=1e-9)


@inverted
@directed
def test_the_gradient_of_u_is_that_of_its_directions(kind: type[P4Linear], inverse: bool) -> None:
    layer = amid(kind, 6, 2)
    layer.merge()
    x, cotangent = torch.randn(2, 3, 6, dtype=torch.float64)
    g = skew_gradient(layer, x, cotangent, inverse)
    (derivative,) = torch.autograd.grad(((layer.inverse(x) if inverse else layer(x)) * cotangent).sum(), layer.u)
    expected = layer.v @ (g.T @ (torch.eye(6) - layer.v.T @ layer.v) if kind is P4SpecialLinear else g - g.T)
    if kind is P4Reflections:
        expected, derivative = (t - t @ layer.v.T @ layer.v for t in (expected, derivative))
    torch.testing.assert_close(derivative, expected, rtol=0, atol=1e-10)


def test_momentum_is_carried_as_far_as_the_old_directions_know_the_gradient() -> None:
    layer = P4Orthogonal(8, rank=3, reset="gradient", dtype=torch.float64, seed=0)
    skew = torch.randn(8, 8, dtype=torch.float64)
    skew = skew - skew.T
    old = layer.v.clone()
    momentum = old @ skew
    changes = layer.plan()
    projector = old.T @ old
    projection = projector @ skew + skew @ projector - projector @ skew @ projector
    carried = layer.carry_momentum(layer.u, momentum, changes)
    changes.commit()
    torch.testing.assert_close(carried, layer.v @ projection, rtol=0, atol=1e-12)


def test_momentum_stays_where_nothing_merged() -> None:
    layer = P4Orthogonal(8, rank=3, dtype=torch.float64, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    layer(torch.randn(4, 8, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.u[0, 0] = 1e100  # too large a turn
    momentum = optimizer.state[layer.u]["momentum_buffer"].clone()
    assert not MergeSchedule(layer, optimizer).merge()[0]
    assert torch.equal(optimizer.state[layer.u]["momentum_buffer"], momentum)


@pytest.mark.parametrize("target", ["rotation", "half-turn"])
@rotations
def test_training_reaches_a_rotation(kind: type[P4Linear], target: str) -> None:
    goal = orthogonal(6).float() if target == "rotation" else torch.diag(torch.tensor([1.0, 1, 1, 1, -1, -1]))
    options = {"reset": "gradient"} if kind in WITH_DIRECTIONS else {}
    layer = kind(6, rank=2, seed=0, bias=False, **options)

    def loss() -> torch.Tensor:
        x = torch.randn(32, 6)
        return (layer(x) - x @ goal.T).square().sum(-1).mean()

    losses = descend(layer, loss, 800, 0.1)
    assert losses[-1] < 1e-4 * losses[0]
    assert float(layer.violation()) < 1e-6


@pytest.mark.parametrize("target", ["general", "symmetric"])
@pytest.mark.parametrize("reset", ["gaussian", "gradient"])
def test_training_reaches_a_map_of_unit_determinant(reset: str, target: str) -> None:
    goal = unimodular(6).float() if target == "general" else torch.diag(torch.tensor([2.0, 2, 1, 1, 0.5, 0.5]))
    layer = P4SpecialLinear(6, rank=3, seed=0, bias=False, reset=reset)  # type: ignore[arg-type]

    def loss() -> torch.Tensor:
        x = torch.randn(32, 6)
        return (layer(x) - x @ goal.T).square().sum(-1).mean()

    losses = descend(layer, loss, 1500, 0.05)
    assert losses[-1] < 1e-3 * losses[0]
    assert float(layer.violation()) < 1e-5


@kinds
def test_a_schedule_merges_and_corrects(kind: type[P4Linear]) -> None:
    layer = amid(kind, 6)
    merges = MergeSchedule(layer, torch.optim.Adam(layer.parameters()), every=2, refine_every=1)
    layer.frozen_weight.mul_(1 + 1e-6)
    assert merges.step() == []
    (report,) = merges.step()
    assert report.merged
    assert float(merges.violations[0]) < 1e-11
