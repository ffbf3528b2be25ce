"""Named errors say what arrived, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from p4lab.errors import DeviceError, DtypeError, OptionError, P4Error, ShapeError, SingularMatrixError
from p4lab.p4 import (
    MergeSchedule,
    P4Circulant,
    P4Givens,
    P4Inv,
    P4Linear,
    P4Lipschitz,
    P4Orthogonal,
    P4Permutation,
    P4PositiveDefinite,
    P4Reflections,
    P4Relative,
    P4Riemannian,
    P4SpecialLinear,
    P4Spectrum,
    P4Stiefel,
)

directions = pytest.mark.parametrize("direction", ["forward", "inverse"])


@directions
@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 4), (3, 2), (3, 0)], ids=str)
def test_wrong_shape(shape: tuple[int, ...], direction: str) -> None:
    with pytest.raises(
        ShapeError, match=r"P4Inv\(dim=3\) got shape \(.*expected \(\.\.\., 3\); reshape the input or change dim"
    ):
        getattr(P4Inv(3), direction)(torch.ones(shape))


@directions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.complex64], ids=str)
def test_wrong_dtype(dtype: torch.dtype, direction: str) -> None:
    with pytest.raises(
        DtypeError,
        match=rf"P4Inv is torch\.float32 but got {dtype}: convert the input, or the layer with \.to\(dtype\)",
    ):
        getattr(P4Inv(3), direction)(torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize("kind", [P4Inv, P4Permutation])
def test_a_seed_may_be_a_whole_number_of_numpy(kind: type[P4Inv | P4Permutation]) -> None:
    states = [kind(3, seed=seed).state_dict() for seed in (5, np.int64(5), np.uint8(5))]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items() if torch.is_tensor(value))


@directions
def test_wrong_device(direction: str) -> None:
    with pytest.raises(DeviceError, match=r"P4Inv is on cpu but got an input on meta: move one with \.to\(device\)"):
        getattr(P4Inv(3), direction)(torch.ones(2, 3, device="meta"))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"dim": 0}, "dim=0: expected a whole number of at least 1", id="dim-0"),
        pytest.param({"dim": -3}, "dim=-3", id="dim-negative"),
        pytest.param({"dim": 2.0}, r"dim=2\.0", id="dim-float"),
        pytest.param({"rank": 0}, "rank=0: expected a whole number of at least 1", id="rank-0"),
        pytest.param({"rank": 1.5}, r"rank=1\.5", id="rank-float"),
        pytest.param({"seed": 1.5}, r"seed=1\.5: expected a whole number", id="seed-float"),
        pytest.param({"seed": "1"}, r"seed='1': expected a whole number", id="seed-text"),
        pytest.param(
            {"reset": "random"}, r"reset='random' is not known: .* \('gaussian', 'gradient', 'identity'\)", id="reset"
        ),
        pytest.param(
            {"init": "eye"}, "init='eye' is not known: choose one of .* or pass an invertible tensor", id="init"
        ),
        pytest.param({"min_factor": -0.1}, r"min_factor=-0\.1: expected 0 <= min_factor < 1", id="min-factor-negative"),
        pytest.param({"min_factor": 1.0}, r"min_factor=1\.0", id="min-factor-1"),
        pytest.param({"min_factor": float("nan")}, "min_factor=nan", id="min-factor-nan"),
    ],
)
def test_options_out_of_range(options: dict[str, object], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        P4Inv(**({"dim": 3} | options))


@pytest.mark.parametrize(
    ("kind", "rank"),
    [(P4Inv, 3), (P4Orthogonal, 3), (P4Reflections, 3), (P4PositiveDefinite, 3), (P4SpecialLinear, 1), (P4Givens, 9)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_no_more_of_a_rank_is_kept_than_makes_a_difference(kind: type[P4Linear], rank: int) -> None:
    layer = kind(3, rank=9)
    assert (layer.rank, len(layer.u)) == (rank, rank)
    assert f"rank={rank}" in repr(layer)
    assert kind(20, rank=8).rank == 8
    assert kind(1, rank=3).rank == (3 if kind is P4Givens else 1)


def test_the_rank_of_a_lipschitz_layer_is_that_of_its_frame() -> None:
    layer = P4Lipschitz(3, 2, rank=9)
    assert (layer.rank, len(layer.u)) == (5, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.complex64], ids=str)
def test_a_layer_of_a_dtype_that_cannot_hold_an_inverse(dtype: torch.dtype) -> None:
    with pytest.raises(DtypeError, match=rf"dtype={dtype}: an inverse needs float32 or float64"):
        P4Inv(3, dtype=dtype)


STARTED: dict[str, Callable[..., P4Linear]] = {
    kind.__name__: kind
    for kind in (P4Inv, P4Orthogonal, P4Reflections, P4Givens, P4PositiveDefinite, P4SpecialLinear, P4Circulant)
} | {kind.__name__: partial(kind, 3) for kind in (P4Lipschitz, P4Spectrum, P4Stiefel)}


@pytest.mark.parametrize("make", [*STARTED.values(), P4Relative, P4Riemannian], ids=[*STARTED, "relative", "rotation"])
def test_a_start_that_is_no_tensor_is_refused(make: Callable[..., P4Linear]) -> None:
    with pytest.raises(DtypeError, match=r"init got numpy\.ndarray, expected a torch\.Tensor: convert it with torch\."):
        make(3, init=np.eye(3))
    with pytest.raises(DtypeError, match=r"got list, expected a torch\.Tensor"):
        make(3).start_at(np.eye(3).tolist())


@pytest.mark.parametrize("make", [*STARTED.values(), P4Relative, P4Riemannian], ids=[*STARTED, "relative", "rotation"])
def test_weights_that_are_computed_cannot_be_set(make: Callable[..., P4Linear]) -> None:
    layer = make(3)
    with pytest.raises(OptionError, match=rf"{type(layer).__name__}\.weight is computed .* use start_at\(weight\)"):
        layer.weight = torch.nn.Parameter(torch.eye(3))
    layer.bias = torch.nn.Parameter(torch.ones(3))  # which is a parameter
    assert layer(torch.zeros(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("init", "error", "match"),
    [
        pytest.param(torch.ones(3, 2), ShapeError, r"init has shape \(3, 2\), expected \(3, 3\)", id="not-square"),
        pytest.param(torch.eye(4), ShapeError, r"init has shape \(4, 4\), expected \(3, 3\)", id="of-another-dim"),
        pytest.param(
            torch.ones(3, 3),
            SingularMatrixError,
            "singular values from .* Add a multiple of the identity",
            id="singular",
        ),
        pytest.param(torch.zeros(3, 3), SingularMatrixError, "singular", id="zero"),
        pytest.param(
            torch.full((3, 3), torch.nan), SingularMatrixError, "9 entries that are NaN or infinite", id="nan"
        ),
        pytest.param(torch.diag(torch.tensor([1.0, 1.0, torch.inf])), SingularMatrixError, "1 entries", id="inf"),
    ],
)
def test_a_matrix_that_cannot_be_used(init: torch.Tensor, error: type[P4Error], match: str) -> None:
    with pytest.raises(error, match=match):
        P4Inv(3, init=init)


def test_a_matrix_that_only_float64_can_invert() -> None:
    i = torch.arange(8, dtype=torch.float64)
    hilbert = 1 / (i + i[:, None] + 1)
    layer = P4Inv(8, init=hilbert, dtype=torch.float64)
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=0, atol=1e-3)
    with pytest.raises(SingularMatrixError, match=r"for torch\.float32.*use dtype=torch\.float64"):
        P4Inv(8, init=hilbert, dtype=torch.float32)


@pytest.mark.parametrize("order", [1, 5], ids="order{}".format)
def test_unknown_refinement(order: int) -> None:
    with pytest.raises(OptionError, match=rf"refinement of order {order} is not known: choose one of \(2, 3, 7\)"):
        P4Inv(3).refine(order)


@pytest.mark.parametrize("option", ["min_factor", "reset_kind"])
def test_an_option_set_later_is_checked_and_keeps_its_value(option: str) -> None:
    layer = P4Inv(3)
    before = getattr(layer, option)
    with pytest.raises(OptionError, match=r"bad|7\.0"):
        setattr(layer, option, {"min_factor": 7.0, "reset_kind": "bad"}[option])
    assert getattr(layer, option) == before


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"every": -1}, {"refine_every": -1}, {"recompute_every": -1}, {"weight_decay": -1.0}],
    ids=str,
)
def test_schedule_intervals(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=r"every=.*expected every >= 1 and the others >= 0"):
        MergeSchedule(P4Inv(3), **options)


def test_a_schedule_without_p4_modules() -> None:
    with pytest.raises(
        OptionError, match="Linear contains no P4 modules: put P4Inv layers into it, or leave out the schedule"
    ):
        MergeSchedule(torch.nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ShapeError, ValueError),
        (DtypeError, TypeError),
        (DeviceError, RuntimeError),
        (SingularMatrixError, ValueError),
        (OptionError, ValueError),
    ],
)
def test_every_error_is_also_the_builtin_that_fits(error: type[P4Error], builtin: type[Exception]) -> None:
    assert issubclass(error, P4Error)
    assert issubclass(error, builtin)


def test_all_directions() -> None:
    """The identity stays in the place of v, for layers that have all directions; u may be trained by anything."""
    layer = P4Inv(4, rank=9, reset="identity", seed=0, dtype=torch.float64)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    x = torch.randn(8, 4, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x).square().mean() - layer.logabsdet()).backward()
        assert layer.u.grad is not None
        optimizer.step()
        weight = layer.weight.detach()
        assert layer.merge()
        assert torch.equal(layer.v, torch.eye(4, dtype=torch.float64))
        assert torch.allclose(layer.weight.detach(), weight)
    with pytest.raises(OptionError, match="rank=2 is below dim=4"):
        P4Inv(4, rank=2, reset="identity")
    with pytest.raises(OptionError, match="v has to stay"):
        P4Inv(4, rank=4, reset="identity", train_v=True)
