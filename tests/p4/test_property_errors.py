"""Named errors of the P4 properties, the bound of whole networks, and directions that follow the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from p4.property_zoo import CASES, INVERTIBLE, Case, perturb, spd, width_in
from torch import Tensor, nn

from p4lab.errors import DeviceError, DtypeError, OptionError, P4Error, ShapeError, SingularMatrixError
from p4lab.p4 import (
    Changes,
    P4Circulant,
    P4Inv,
    P4Lipschitz,
    P4Permutation,
    P4PositiveDefinite,
    lipschitz_bound,
)

single = [c for c in CASES if c.name != "permutation"]
calls = pytest.mark.parametrize(
    ("case", "operation"),
    [
        pytest.param(c, o, id=f"{c.name}-{o}")
        for c in single
        for o in (("forward", "inverse") if c in INVERTIBLE else ("forward",))
    ],
)


@calls
@pytest.mark.parametrize("shape", [(), (1,), (2, 5), (4, 0)], ids=str)
def test_wrong_shape(shape: tuple[int, ...], case: Case, operation: str) -> None:
    with pytest.raises(ShapeError, match=r"P4\w+\(dim=4\) got shape .*expected \(\.\.\., 4\)"):
        getattr(case.make(4, 1), operation)(torch.ones(shape))


@calls
def test_wrong_dtype_and_device(case: Case, operation: str) -> None:
    layer = case.make(4, 1, dtype=torch.float32)
    with pytest.raises(DtypeError, match=r"P4\w+ is torch\.float32 but got torch\.float64"):
        getattr(layer, operation)(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(DeviceError, match=r"P4\w+ is on cpu but got an input on meta"):
        getattr(layer, operation)(torch.ones(2, 4, device="meta"))


@pytest.mark.parametrize("shape", [(2,), (3, 4), (0, 2), ()], ids=str)
def test_sets_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"P4Permutation\(channels=2\).*expected \(\.\.\., items, 2\) with at least"):
        P4Permutation(2)(torch.ones(shape))


@pytest.mark.parametrize("items", [0, -1, 2.0], ids=str)
def test_a_number_of_items(items: Any) -> None:
    with pytest.raises(OptionError, match=r"items=.*expected a whole number of at least 1"):
        P4Permutation(2).logabsdet(items)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        pytest.param(lambda: P4PositiveDefinite(0), OptionError, "dim=0", id="spd-dim"),
        pytest.param(lambda: P4PositiveDefinite(3, rank=0), OptionError, "rank=0", id="spd-rank"),
        pytest.param(lambda: P4PositiveDefinite(3, reset="no"), OptionError, "reset='no' is not known", id="spd-reset"),
        pytest.param(lambda: P4PositiveDefinite(3, init="no"), OptionError, "init='no' is not known", id="spd-init"),
        pytest.param(lambda: P4PositiveDefinite(3, min_factor=1.0), OptionError, "min_factor=1.0", id="spd-factor"),
        pytest.param(lambda: P4PositiveDefinite(3, init=torch.eye(2)), ShapeError, r"shape \(2, 2\)", id="spd-shape"),
        pytest.param(lambda: P4PositiveDefinite(2, init=torch.ones(2, 2)), SingularMatrixError, "singular", id="spd-0"),
        pytest.param(
            lambda: P4PositiveDefinite(2, init=torch.tensor([[1.0, 2.0], [0.0, 1.0]])),
            OptionError,
            r"not symmetric .*pass \(A \+ A\^T\) / 2",
            id="spd-asymmetric",
        ),
        pytest.param(
            lambda: P4PositiveDefinite(2, init=torch.diag(torch.tensor([1.0, -2.0]))),
            SingularMatrixError,
            "not positive definite: its smallest eigenvalue is -2",
            id="spd-indefinite",
        ),
        pytest.param(lambda: P4Lipschitz(3, 0), OptionError, "dim=0", id="lipschitz-dim"),
        pytest.param(lambda: P4Lipschitz(3, 2, rank=0), OptionError, "rank=0", id="lipschitz-rank"),
        pytest.param(lambda: P4Lipschitz(3, 2, bound=0.0), OptionError, "bound=0.0", id="lipschitz-bound"),
        pytest.param(lambda: P4Lipschitz(3, 2, bound=math.nan), OptionError, "bound=nan", id="lipschitz-nan"),
        pytest.param(lambda: P4Lipschitz(3, 2, init="no"), OptionError, "init='no'", id="lipschitz-init"),
        pytest.param(
            lambda: P4Lipschitz(3, 2, init=torch.ones(3, 2)), ShapeError, r"expected \(2, 3\)", id="lipschitz-shape"
        ),
        pytest.param(
            lambda: P4Lipschitz(2, 2, init=4 * torch.eye(2), bound=2.0),
            OptionError,
            "spectral norm 4, above bound=2: scale it by 0.5",
            id="lipschitz-above",
        ),
        pytest.param(
            lambda: P4Lipschitz(2, 2, init=torch.full((2, 2), torch.nan)),
            OptionError,
            "norm inf",
            id="lipschitz-nan-init",
        ),
        pytest.param(lambda: P4Circulant(0), OptionError, "dim=0", id="circulant-dim"),
        pytest.param(lambda: P4Circulant(3, min_factor=-1.0), OptionError, "min_factor=-1.0", id="circulant-factor"),
        pytest.param(lambda: P4Circulant(3, init="no"), OptionError, "pass a kernel", id="circulant-init"),
        pytest.param(lambda: P4Circulant(3, init=torch.eye(3)), ShapeError, r"expected \(3,\)", id="circulant-shape"),
        pytest.param(
            lambda: P4Circulant(4, init=torch.ones(4)),
            SingularMatrixError,
            "no response at frequency",
            id="circulant-0",
        ),
        pytest.param(lambda: P4Permutation(0), OptionError, "dim=0", id="permutation-channels"),
        *(
            pytest.param(lambda c=c: c.make(3, 1, dtype=torch.bfloat16), DtypeError, "bfloat16", id=f"{c.name}-dtype")
            for c in CASES
        ),
    ],
)
def test_arguments_out_of_range(make: Callable[[], object], error: type[P4Error], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize("kind", [P4PositiveDefinite, P4Circulant])
def test_an_option_set_later_is_checked_and_keeps_its_value(kind: Any) -> None:
    layer = kind(3)
    with pytest.raises(OptionError, match=r"min_factor=7\.0"):
        layer.min_factor = 7.0
    with pytest.raises(OptionError, match="reset='bad'"):
        layer.reset_kind = "bad"
    assert (layer.min_factor, layer.reset_kind) == (math.exp(-6), "gaussian")


def test_a_limit_set_later_judges_the_next_merge() -> None:
    layer = P4Circulant(4)
    torch.nn.init.constant_(layer.u, -0.1)  # the constant loses 40 percent
    layer.min_factor = 0.9
    assert not layer.merge()
    layer.double().min_factor = 0.5
    assert layer.merge()


# --- the bound of a network ---


def test_the_bound_of_a_network_is_the_product() -> None:
    linear = nn.Linear(4, 3)
    model = nn.Sequential(
        P4Lipschitz(5, 4, bound=2.0), nn.ReLU(), nn.Sequential(linear, nn.Tanh()), P4Inv(3, init="orthogonal")
    )
    assert lipschitz_bound(model) == pytest.approx(2 * float(torch.linalg.matrix_norm(linear.weight.detach(), 2)))


def test_a_network_stays_within_its_bound() -> None:
    model = nn.Sequential(P4Lipschitz(5, 8, rank=2, seed=0), nn.ReLU(), P4Lipschitz(8, 2, bound=0.5, rank=2, seed=1))
    assert lipschitz_bound(model) == 0.5
    for scale in (0.1, 10.0):
        perturb(model, scale)
        x, y = torch.randn(2, 100, 5)
        ratio = (model(x) - model(y)).norm(dim=-1) / (x - y).norm(dim=-1)
        assert ratio.max() <= 0.5 * (1 + 1e-5)


def test_an_unknown_module_has_no_bound() -> None:
    with pytest.raises(OptionError, match="constant of Conv1d is not known: give it a method lipschitz_constant"):
        lipschitz_bound(nn.Sequential(nn.Conv1d(1, 1, 3)))


# --- gradient resets ---


def gradient_by_v(layer: nn.Module, loss: Callable[[], Tensor], rank: int, v: Tensor) -> Tensor:
    """Gradient by u if the directions were v."""
    changes = Changes()
    layer.set_directions(changes, v)
    changes.commit()
    (gradient,) = torch.autograd.grad(loss(), layer.u)
    assert len(gradient) == rank
    return gradient


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        pytest.param("positive-definite", lambda m, x: m(x).square().mean(), id="positive-definite-forward"),
        pytest.param("positive-definite", lambda m, x: m.inverse(x).square().mean(), id="positive-definite-inverse"),
        pytest.param("positive-definite", lambda m, x: -m.log_density(x).mean(), id="positive-definite-density"),
        pytest.param("lipschitz", lambda m, x: (m(x) - 3 * x).square().mean(), id="lipschitz"),
        pytest.param("lipschitz-oblong", lambda m, x: (m(x) - 1).square().mean(), id="lipschitz-oblong"),
    ],
)
def test_gradient_directions_catch_more_of_the_gradient(name: str, loss: Callable[[Any, Tensor], Tensor]) -> None:
    case, rank, dim = next(c for c in CASES if c.name == name), 2, 12
    extra = {"init": spd(dim)} if name == "positive-definite" else {}
    layer = case.make(dim, rank, dtype=torch.float64, reset="gradient", **extra)
    x = torch.randn(50, width_in(layer), dtype=torch.float64) * torch.logspace(-1, 1, dim)
    loss(layer, x).backward()
    layer.reset()
    chosen = layer.v.clone()
    caught = [
        float(gradient_by_v(layer, lambda: loss(layer, x), rank, v).norm())
        for v in (chosen, *(torch.linalg.qr(torch.randn_like(chosen.T)).Q.T for _ in range(20)))
    ]
    assert caught[0] > max(caught[1:])


def test_without_a_batch_directions_are_random_and_orthonormal() -> None:
    layer = P4Lipschitz(5, 4, rank=3, reset="gradient", seed=0)
    before = layer.v.clone()
    layer.merge()
    assert not torch.isclose(layer.v, before).any()
    torch.testing.assert_close(layer.v @ layer.v.T, torch.eye(3))
