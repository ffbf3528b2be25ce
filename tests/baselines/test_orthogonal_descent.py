"""Steps on random submanifolds of O(n) and next to it, against explicit algebra."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from baselines.twins import haar
from torch import Tensor, nn

from p4lab.baselines import (
    METHODS,
    CayleyLinear,
    LandingDescent,
    MissingPackageError,
    NearLinear,
    Pogo,
    SubmanifoldDescent,
)
from p4lab.errors import OptionError

D = 12
batches = pytest.mark.parametrize("batch", [1, 5, 12, 30], ids="B{}".format)


def data(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, D, dtype=torch.float64), torch.randn(batch, D, dtype=torch.float64)


def fit(layer: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return (layer(x) - target).square().sum()


def gradients(layer: nn.Module, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Those of `fit` with respect to weights and bias, by autograd alone."""
    w, b = (p.detach().clone().requires_grad_() for p in (layer.matrix, layer.bias))
    return torch.autograd.grad((x @ w.T + b - target).square().sum(), (w, b))


# --- random submanifolds ---

samplings = pytest.mark.parametrize("sampling", ["permutation", "orthogonal"])


def directions(sampling: str, rank: int, seed: int) -> Tensor:
    """P of the first step, shape (rank, D)."""
    generator = torch.Generator().manual_seed(seed)
    if sampling == "permutation":
        return torch.eye(D, dtype=torch.float64)[torch.randperm(D, generator=generator)[:rank]]
    return torch.linalg.qr(torch.randn(D, rank, generator=generator).double()).Q.T


@batches
@samplings
@pytest.mark.parametrize("rank", [1, 2, 5, D], ids="r{}".format)
def test_a_step_on_a_submanifold_by_hand(batch: int, sampling: str, rank: int) -> None:
    layer = CayleyLinear(D, init=haar(D), dtype=torch.float64)
    optimizer = SubmanifoldDescent(layer, lr=0.01, rank=rank, sampling=sampling, seed=3)
    x, target = data(batch)
    w, (g, g_bias) = layer.weight.detach().clone(), gradients(layer, x, target)
    p, eye = directions(sampling, rank, seed=3), torch.eye(rank, dtype=torch.float64)
    relative = p @ g @ w.T @ p.T
    q, r = torch.linalg.qr(eye - 0.01 * (relative - relative.T))
    turn = torch.eye(D, dtype=torch.float64) + p.T @ (q @ r.diagonal().sign().diag() - eye) @ p
    fit(layer, x, target).backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), turn @ w, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.bias.detach(), -0.01 * g_bias, rtol=1e-10, atol=1e-10)
    assert torch.equal(layer.weight, w) == (rank == 1)


@samplings
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.float64, 1e-13)], ids=["f32", "f64"])
def test_submanifold_steps_stay_orthogonal(sampling: str, dtype: torch.dtype, limit: float) -> None:
    layer = CayleyLinear(D, init=haar(D), dtype=dtype)
    optimizer = SubmanifoldDescent(layer, lr=0.1, sampling=sampling)
    sign = torch.linalg.det(layer.weight).sign()
    for _ in range(300):
        x, target = (t.to(dtype) for t in data(4))
        optimizer.zero_grad()
        fit(layer, x, target).backward()
        optimizer.step()
    assert layer.violation() < limit
    assert torch.linalg.det(layer.weight).sign() == sign


@samplings
def test_each_step_has_its_own_submanifold_and_a_resumed_run_the_same_ones(sampling: str) -> None:
    start, batches = haar(D), [data(4) for _ in range(4)]

    def stepped(optimizer: SubmanifoldDescent, x: Tensor, target: Tensor) -> Tensor:
        (layer,) = optimizer.layers
        before = layer.weight.detach().clone()
        fit(layer, x, target).backward()
        optimizer.step()
        return layer.weight.detach() - before

    def optimizer_at(matrix: Tensor, seed: int) -> SubmanifoldDescent:
        layer = CayleyLinear(D, init=matrix, bias=False, dtype=torch.float64)
        return SubmanifoldDescent(layer, lr=0.01, rank=2, sampling=sampling, seed=seed)

    one = optimizer_at(start, seed=0)
    changes = [stepped(one, *batches[i]) for i in (0, 1)]
    assert torch.linalg.matrix_rank(torch.cat(changes, 1)) > 2
    other = optimizer_at(one.layers[0].weight.detach(), seed=1)
    other.load_state_dict(one.state_dict())
    for batch in batches[2:]:
        torch.testing.assert_close(stepped(other, *batch), stepped(one, *batch), rtol=1e-12, atol=1e-12)
    different = stepped(optimizer_at(start, seed=1), *batches[0])
    assert not torch.allclose(different, changes[0])


def test_options_of_submanifolds_that_are_refused() -> None:
    layer = CayleyLinear(3)
    with pytest.raises(OptionError, match="rank=0: expected a whole number"):
        SubmanifoldDescent(layer, lr=0.1, rank=0)
    with pytest.raises(OptionError, match=r"sampling='gauss' is not known: choose one of \('permutation'"):
        METHODS["rsdm"].optimizer(layer, 0.1, "sgd", sampling="gauss")


# --- landing ---


def nearly(size: float) -> Tensor:
    """A matrix whose W W^T is off the identity by about this in norm."""
    noise = torch.randn(D, D, dtype=torch.float64)
    return haar(D) + size / 2 * noise / torch.linalg.matrix_norm(noise)


def distance(w: Tensor) -> float:
    return float(torch.linalg.matrix_norm(w @ w.T - torch.eye(len(w), dtype=w.dtype)))


def nearly_orthogonal(size: float, dtype: torch.dtype = torch.float64) -> NearLinear:
    layer = NearLinear(D, dtype=dtype)
    with torch.no_grad():
        layer.matrix.copy_(nearly(size))
    return layer


@batches
@pytest.mark.parametrize("size", [0.0, 0.1], ids=["on", "off"])
def test_a_landing_step_by_hand(batch: int, size: float) -> None:
    layer = nearly_orthogonal(size)
    optimizer = LandingDescent(layer, lr=1e-4, attraction=0.3)
    x, target = data(batch)
    w, (g, g_bias) = layer.weight.detach().clone(), gradients(layer, x, target)
    off = w @ w.T - torch.eye(D, dtype=torch.float64)
    expected = w - 1e-4 * (g @ w.T - w @ g.T) @ w - 0.3 * off @ w
    fit(layer, x, target).backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.bias.detach(), -1e-4 * g_bias, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("attraction", [0.01, 0.2, 0.5], ids="rho{}".format)
@pytest.mark.parametrize("rate", [1e-2, 1.0, 1e3], ids="lr{}".format)
@pytest.mark.parametrize("size", [0.0, 0.1, 0.3], ids="off{}".format)
def test_landing_never_leaves_its_tolerance(size: float, rate: float, attraction: float) -> None:
    layer = nearly_orthogonal(size)
    optimizer = LandingDescent(layer, lr=rate, attraction=attraction, tolerance=0.4)
    farthest = 0.0
    for _ in range(100):
        x, target = data(4)
        optimizer.zero_grad()
        fit(layer, x, target).backward()
        optimizer.step()
        farthest = max(farthest, distance(layer.weight.detach()))
    assert farthest <= 0.4 + 1e-9
    assert farthest > 1e-3  # it does leave O(n)


def test_landing_lands() -> None:
    layer = nearly_orthogonal(0.3)
    optimizer = LandingDescent(layer, lr=0.1)
    distances = []
    for _ in range(100):
        optimizer.step()
        distances.append(distance(layer.weight.detach()))
    assert distances == sorted(distances, reverse=True) or distances[-1] < 1e-12
    assert distances[-1] < 1e-12


def test_options_of_landing_that_are_refused() -> None:
    layer = NearLinear(3)
    for attraction in (0, 0.6):
        with pytest.raises(OptionError, match=f"attraction={attraction}: expected more than 0 and at most 1/2"):
            LandingDescent(layer, lr=0.1, attraction=attraction)
    for tolerance in (0, 1.0):
        with pytest.raises(OptionError, match=f"tolerance={tolerance}: expected more than 0 and less than 1"):
            METHODS["landing"].optimizer(layer, 0.1, "sgd", tolerance=tolerance)


# --- POGO ---


@pytest.mark.parametrize("base", ["SGD", "VectorAdam"])
@batches
def test_a_step_of_pogo_by_hand(batch: int, base: str) -> None:
    layer = NearLinear(D, init=haar(D), dtype=torch.float64)
    optimizer = Pogo(layer, lr=1e-3, base=base)
    x, target = data(batch)
    w, (g, g_bias) = layer.weight.detach().clone(), gradients(layer, x, target)
    # The first direction of VectorAdam is the gradient over its norm, that of Adam has entries of 1.
    step = 2e-3 * g if base == "SGD" else 1e-3 * D * g / torch.linalg.matrix_norm(g)
    middle = w - 0.5 * (step @ w.T - w @ step.T) @ w
    expected = middle + 0.5 * (torch.eye(D, dtype=torch.float64) - middle @ middle.T) @ middle
    fit(layer, x, target).backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-9, atol=1e-9)
    bias = -1e-3 * (g_bias if base == "SGD" else g_bias.sign())
    torch.testing.assert_close(layer.bias.detach(), bias, rtol=1e-6, atol=1e-9)


def test_pogo_stays_near() -> None:
    layer = NearLinear(D, init=haar(D), dtype=torch.float64)
    optimizer = Pogo(layer, lr=2e-3, momentum=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        fit(layer, *data(4)).backward()
        optimizer.step()
    assert 1e-13 < layer.violation() < 1e-2


@pytest.mark.parametrize("base", ["SGD", "VectorAdam"])
def test_pogo_begins_at_its_first_gradient_and_its_state_comes_back(base: str) -> None:
    start, options = haar(D), {"momentum": 0.5} if base == "SGD" else {}
    layers = [NearLinear(D, init=start, dtype=torch.float64) for _ in range(2)]
    one, other = (Pogo(layer, lr=1e-3, base=base, **options) for layer in layers)
    one.step()  # there is no gradient yet
    assert torch.equal(layers[0].weight, start)
    batches = [data(4) for _ in range(4)]
    for optimizer, layer in ((one, layers[0]), (other, layers[1])):
        for x, target in batches[:2]:
            optimizer.zero_grad()
            fit(layer, x, target).backward()
            optimizer.step()
    assert torch.equal(layers[0].weight, layers[1].weight)
    resumed = NearLinear(D, dtype=torch.float64)
    resumed.load_state_dict(layers[0].state_dict())
    third = Pogo(resumed, lr=1e-3, base=base, **options)
    third.load_state_dict(copy.deepcopy(one.state_dict()))
    for optimizer, layer in ((one, layers[0]), (third, resumed)):
        for x, target in batches[2:]:
            optimizer.zero_grad()
            fit(layer, x, target).backward()
            optimizer.step()
    assert torch.equal(layers[0].weight, resumed.weight)


def test_pogo_takes_over_a_layer_that_landing_had() -> None:
    layer = NearLinear(D, dtype=torch.float64)
    LandingDescent(layer, lr=0.1)
    optimizer = Pogo(nn.Sequential(layer), lr=0.1)
    fit(layer, *data(4)).backward()
    optimizer.step()
    assert not torch.equal(layer.weight, torch.eye(D, dtype=torch.float64))


def test_options_of_pogo_that_are_refused() -> None:
    layer = NearLinear(3)
    with pytest.raises(OptionError, match="contains no NearLinear layers"):
        Pogo(nn.Linear(2, 2), lr=0.1)
    with pytest.raises(OptionError, match="lr=0"):
        Pogo(layer, lr=0)
    with pytest.raises(OptionError, match="base='Muon' is not known"):
        Pogo(layer, lr=0.1, base="Muon")
    with pytest.raises(OptionError, match="POGO with VectorAdam has no option 'momentum'"):
        METHODS["pogo"].optimizer(layer, 0.1, "adam", momentum=0.3)


def test_without_its_package_pogo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = METHODS["pogo"].build(3)
    for module in [module for module in sys.modules if module.partition(".")[0] == "pogo"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pogo", None)
    with pytest.raises(MissingPackageError, match=r"pogo.*pip install 'p4lab\[baselines\]'"):
        METHODS["pogo"].optimizer(layer, 0.1, "sgd")


# --- layers that are next to O(n) ---


def test_log_det_is_0_in_training_and_the_truth_in_evaluation() -> None:
    layer = nearly_orthogonal(0.3)
    truth = torch.linalg.slogdet(layer.weight.detach()).logabsdet
    assert truth.abs() > 1e-3
    claimed = layer.logabsdet()
    assert claimed == 0
    assert not claimed.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(layer.logabsdet(), truth)
    evaluated = layer.eval().logabsdet()
    torch.testing.assert_close(evaluated.detach(), truth)
    evaluated.backward()
    torch.testing.assert_close(layer.matrix.grad, torch.linalg.inv(layer.weight.detach()).T)


def test_the_inverse_is_the_transpose() -> None:
    layer, y = nearly_orthogonal(0.3), torch.randn(5, D, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(y), (y - layer.bias) @ layer.weight)
    assert 1e-3 < layer.violation() < 0.3
