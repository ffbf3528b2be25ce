"""Every method in training: it learns, keeps its property, and survives copies, files and folding."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from baselines.twins import BASELINES, ORTHOGONAL, REBASED, WITH_INVERSE, amid
from p4.dense_twin import assert_bitwise, state_of
from torch import Tensor, nn

from p4lab.baselines import METHODS, Method, penalty

LINEAR = [name for name, method in METHODS.items() if method.linear]
FIXED_SIGN = [
    name
    for name in WITH_INVERSE
    if METHODS[name].group == "invertible" and name not in ("dense", "relative", "relative_adam")
]


def rotation(dim: int, angle: float = 0.8) -> Tensor:
    """A rotation in one plane: within reach of every method, from the identity."""
    skew = torch.zeros(dim, dim, dtype=torch.float64)
    skew[0, 1], skew[1, 0] = angle, -angle
    return torch.linalg.matrix_exp(skew)


def train(method: Method, layer: nn.Module, target: Tensor, steps: int, rate: float | None = None) -> list[float]:
    x = torch.randn(8 * layer.dim, layer.dim, dtype=target.dtype)
    kind = "adam" if "adam" in method.optimizers else "sgd"
    optimizer = method.optimizer(layer, rate or (3e-2 if kind == "adam" else 0.1), kind)
    schedule = method.schedule(layer, optimizer)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (layer(x) - x @ target.T).square().mean()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", LINEAR)
def test_learns_a_rotation(name: str) -> None:
    layer = METHODS[name].build(5, dtype=torch.float64, seed=0)
    losses = train(METHODS[name], layer, rotation(5), steps=200)
    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.parametrize("name", ["nice", "realnvp"])
def test_a_coupling_learns_a_map_of_its_kind(name: str) -> None:
    method = METHODS[name]
    layer = method.build(4, dtype=torch.float64, seed=0)
    target = torch.eye(4, dtype=torch.float64)
    target[3, 0] = 0.7
    losses = train(method, layer, target, steps=300)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_stays_orthogonal(name: str) -> None:
    layer = METHODS[name].build(6, dtype=torch.float64)
    sign = torch.linalg.det(layer.weight).sign()
    train(METHODS[name], layer, torch.randn(6, 6, dtype=torch.float64), steps=20)
    assert layer.violation() < 1e-12
    assert torch.linalg.det(layer.weight).sign() == sign
    assert layer.logabsdet() == 0


@pytest.mark.parametrize("name", FIXED_SIGN)
@pytest.mark.parametrize("mirrored", [False, True], ids=["det>0", "det<0"])
def test_keeps_the_sign_of_the_determinant(name: str, mirrored: bool) -> None:
    if mirrored and name.startswith("nflows"):
        pytest.skip("starts at the identity only")
    start = torch.diag(torch.tensor([1.0, 1.0, -1.0 if mirrored else 1.0], dtype=torch.float64))
    layer = METHODS[name].build(3, init=start, dtype=torch.float64)
    train(METHODS[name], layer, -start, steps=200)
    assert torch.linalg.det(layer.weight).sign() == torch.linalg.det(start).sign()


@pytest.mark.parametrize("name", WITH_INVERSE)
def test_inverse_and_determinant_follow_training(name: str) -> None:
    layer = METHODS[name].build(6, dtype=torch.float64, seed=0)
    train(METHODS[name], layer, rotation(6), steps=20)
    x = torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=1e-10, atol=1e-10)
    expected = torch.linalg.slogdet(layer.weight).logabsdet
    torch.testing.assert_close(layer.logabsdet(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", BASELINES)
def test_fold_is_the_layer(name: str) -> None:
    layer, x = amid(name, 6).eval(), torch.randn(3, 6, dtype=torch.float64)
    folded = layer.fold()
    assert type(folded) is nn.Linear
    assert not folded.training
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-12, atol=1e-12)
    assert amid(name, 6, bias=False).fold().bias is None


@pytest.mark.parametrize("name", BASELINES)
def test_a_state_dict_carries_everything(name: str) -> None:
    method = METHODS[name]
    layer = method.build(5, dtype=torch.float64, seed=0)
    train(method, layer, rotation(5), steps=5)
    if name in REBASED:
        layer.rebase()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = method.build(5, dtype=torch.float64, seed=1)
    other.load_state_dict(torch.load(file))
    assert_bitwise(state_of(other), state_of(layer))
    assert torch.equal(other.weight, layer.weight)
    if method.exact_logabsdet:
        torch.testing.assert_close(other.logabsdet(), layer.logabsdet(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_a_deep_copy_is_independent(name: str) -> None:
    method = METHODS[name]
    layer = method.build(5, dtype=torch.float64, seed=0)
    train(method, layer, rotation(5), steps=5)
    before = layer.weight.detach().clone()
    twin = copy.deepcopy(layer)
    assert torch.equal(twin.weight, before)
    train(method, twin, rotation(5), steps=5)
    assert torch.equal(layer.weight, before)
    assert not torch.equal(twin.weight, before)
    if method.exact_logabsdet:
        expected = torch.linalg.slogdet(twin.weight).logabsdet
        torch.testing.assert_close(twin.logabsdet(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", WITH_INVERSE)
def test_casting_to_float64_and_back(name: str) -> None:
    layer = amid(name, 5, torch.float32).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=1e-5, atol=1e-5)
    assert layer(x).dtype == torch.float64
    assert layer.float()(x.float()).dtype == torch.float32


# --- penalties ---


@pytest.mark.parametrize("name", ["soft_orthogonal", "soft_determinant"])
def test_a_penalty_pulls_towards_the_property(name: str) -> None:
    layer = METHODS[name].build(4, init=torch.diag(torch.tensor([0.05, 0.05, 0.05, 0.05])), dtype=torch.float64)
    optimizer = METHODS[name].optimizer(layer, 1e-2)
    before = layer.violation()
    for _ in range(50):
        optimizer.zero_grad()
        layer.penalty(1.0).backward()
        optimizer.step()
    assert layer.violation() < before


@torch.no_grad()
def test_soft_penalties_by_hand() -> None:
    matrix = torch.diag(torch.tensor([2.0, 0.5e-3]))
    orthogonal = METHODS["soft_orthogonal"].build(2, init=matrix)
    determinant = METHODS["soft_determinant"].build(2, init=matrix)
    assert float(orthogonal.penalty(0.5)) == pytest.approx(0.5 * (3.0**2 + (0.25e-6 - 1) ** 2))
    level = torch.log(torch.tensor(1e-3)) / 2
    assert float(determinant.penalty(0.5)) == pytest.approx(float(0.5 * (-2 - level) ** 2), rel=1e-5)
    assert float(determinant.penalty(0.5, floor=-4.0)) == 0
    assert float(determinant.penalty(0.5, floor=-9.0, ceiling=-5.0)) == pytest.approx(float(0.5 * (level + 5) ** 2))


@torch.no_grad()
def test_penalty_collects_penalized_layers_and_leaves_out_what_is_optional() -> None:
    soft = METHODS["soft_determinant"].build(2, init=1e-4 * torch.eye(2))
    p4 = METHODS["p4inv_paper"].build(2, init=1e-4 * torch.eye(2))
    assert float(soft.penalty()) > 0
    assert float(p4.penalty()) > 0
    model = nn.Sequential(soft, p4, METHODS["dense"].build(2))
    assert float(penalty(model)) == float(soft.penalty())
    assert float(penalty(nn.Linear(2, 2))) == 0
