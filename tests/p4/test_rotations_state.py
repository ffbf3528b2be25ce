"""Rotations and shears: what they compute and keep, and what they refuse; the same standards as for P4Inv."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from p4.dense_twin import assert_bitwise, state_of
from p4.rotations import KINDS, ORTHOGONAL, WITH_DIRECTIONS, amid
from p4.test_work_counts import BATCH, D, record

from p4lab.errors import DeviceError, DtypeError, OptionError, P4Error, ShapeError, SingularMatrixError
from p4lab.p4 import MergeSchedule, P4Givens, P4Linear, fold

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
resets = pytest.mark.parametrize(
    ("kind", "reset"),
    [
        pytest.param(kind, reset, id=f"{kind.__name__}-{reset}")
        for kind in KINDS
        for reset in ("gaussian", "gradient")[: 1 + (kind in WITH_DIRECTIONS)]
    ],
)
directions = pytest.mark.parametrize("direction", ["forward", "inverse"])
copies = pytest.mark.parametrize(
    "how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)


def make(kind: type[P4Linear], reset: str, dim: int, **options: object) -> P4Linear:
    return kind(dim, rank=2, **({"reset": reset} if kind in WITH_DIRECTIONS else {}), **options)


# --- work counts ---


@directions
@pytest.mark.parametrize("batch", [(BATCH,), (2, BATCH // 2), ()], ids=["matrix", "stack", "vector"])
@resets
def test_a_step_makes_no_d_x_d_temporary_and_nothing_cubic(
    kind: type[P4Linear], reset: str, batch: tuple[int, ...], direction: str
) -> None:
    layer = make(kind, reset, D, seed=0)
    x = torch.randn(*batch, D, requires_grad=True)
    recorder = record(layer, lambda: (getattr(layer, direction)(x).square().mean() - layer.logabsdet()).backward())
    assert not recorder.temporaries
    assert not recorder.cubic


@pytest.mark.parametrize("verdict", ["merged", "discarded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@resets
def test_a_merge_is_in_place_and_quadratic(kind: type[P4Linear], reset: str, dtype: torch.dtype, verdict: str) -> None:
    layer = make(kind, reset, D, seed=0, dtype=dtype)
    layer(torch.randn(BATCH, D, dtype=dtype)).square().sum().backward()
    with torch.no_grad():
        layer.u.fill_(0.01 if verdict == "merged" else torch.nan)
    address, reports = layer.frozen_weight.data_ptr(), []
    recorder = record(layer, lambda: reports.append(layer.merge()))
    assert verdict in reports[0].status.name.lower()
    assert not recorder.temporaries
    assert not recorder.cubic
    assert address == layer.frozen_weight.data_ptr()


@pytest.mark.parametrize("figure", ["logabsdet", "sign"])
@kinds
def test_the_determinant_costs_nothing(kind: type[P4Linear], figure: str) -> None:
    layer = make(kind, "gaussian", D, seed=0)
    assert not record(layer, lambda: getattr(layer, figure)()).touching


@kinds
def test_logabsdet_is_0_in_float64_and_can_be_part_of_a_loss(kind: type[P4Linear]) -> None:
    layer = amid(kind, 5, dtype=torch.float32)
    assert layer.logabsdet().dtype == torch.float64
    assert layer.logabsdet() == 0
    (layer(torch.randn(3, 5)).square().mean() - layer.logabsdet()).backward()
    assert layer.u.grad is not None
    assert layer.u.grad.any()


# --- state ---


class Run:
    """A whole training run, whose every later bit follows from its state."""

    def __init__(self, kind: type[P4Linear], reset: str, seed: int) -> None:
        torch.manual_seed(seed)
        layers = [make(kind, reset, 5, init="orthogonal", seed=seed + i) for i in range(2)]
        self.attach(torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Linear(5, 5)))

    def attach(self, model: torch.nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        self.merges = MergeSchedule(model, self.optimizer, every=3, refine_every=4)
        self.parts = {"model": model, "optimizer": self.optimizer, "merges": self.merges}

    def train(self, start: int, stop: int) -> Run:
        for step in range(start, stop):
            x, y = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            (self.model(x) - y).square().mean().backward()
            self.optimizer.step()
            self.merges.step()
        return self


@pytest.mark.parametrize("at", [0, 1, 9, 10, 12], ids="step{}".format)
@resets
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(kind: type[P4Linear], reset: str, at: int) -> None:
    uninterrupted = Run(kind, reset, seed=0).train(0, 30)
    file = io.BytesIO()
    interrupted = Run(kind, reset, seed=0).train(0, at)
    torch.save({name: part.state_dict() for name, part in interrupted.parts.items()}, file)
    file.seek(0)
    resumed, state = Run(kind, reset, seed=100), torch.load(file, weights_only=True)
    for name, part in resumed.parts.items():
        part.load_state_dict(state[name])
    # A merge at a resumed step sketches the gradient of its own batch; one that was due at once would have none.
    assert_bitwise(state_of(resumed.train(at, 30).model), state_of(uninterrupted.model))


@copies
@resets
def test_a_copied_run_is_bitwise_the_original(kind: type[P4Linear], reset: str, how: Callable) -> None:
    original, copied = Run(kind, reset, seed=0).train(0, 10), Run(kind, reset, seed=100)
    states = {name: copy.deepcopy(part.state_dict()) for name, part in original.parts.items() if name != "model"}
    copied.attach(how(original.model))
    for name, state in states.items():
        copied.parts[name].load_state_dict(state)
    copied.train(10, 30)
    untouched = state_of(original.model)
    assert_bitwise(state_of(copied.model), state_of(original.train(10, 30).model))
    assert any(not torch.equal(untouched[name], t) for name, t in state_of(original.model).items())


@copies
@resets
def test_a_copy_between_backward_and_merge_takes_the_batch_along(
    kind: type[P4Linear], reset: str, how: Callable
) -> None:
    layer = amid(kind, 6, **({"reset": reset} if kind in WITH_DIRECTIONS else {}))
    layer(torch.randn(5, 6, dtype=torch.float64)).square().sum().backward()
    twin = how(layer)
    layer.merge()
    twin.merge()
    assert_bitwise(state_of(twin), state_of(layer))


@kinds
def test_switching_modes_changes_nothing_and_eval_uses_the_perturbation(kind: type[P4Linear]) -> None:
    layer, x = amid(kind, 6), torch.randn(2, 6, dtype=torch.float64)
    before, y = state_of(layer), layer(x)
    for mode in (False, True, True, False):
        layer.train(mode)
        assert torch.equal(layer(x), y)
    assert_bitwise(state_of(layer), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@resets
def test_casts_keep_the_layer_usable(kind: type[P4Linear], reset: str, dtype: torch.dtype) -> None:
    layer = amid(kind, 6, dtype=torch.float32, **({"reset": reset} if kind in WITH_DIRECTIONS else {}))
    layer(torch.randn(3, 6)).sum().backward()
    layer = layer.double().to(dtype)
    assert layer.weight.dtype == layer(torch.randn(3, 6, dtype=dtype)).dtype == dtype
    assert layer.merge().merged


@pytest.mark.parametrize("seed", range(4))
@kinds
def test_a_cast_up_makes_the_inverse_good_to_all_digits(kind: type[P4Linear], seed: int) -> None:
    torch.manual_seed(seed)
    layer = amid(kind, 6, dtype=torch.float32)
    layer.merge()
    with torch.no_grad():
        layer.u.normal_()
    layer, x = layer.double(), torch.randn(3, 6, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
@kinds
def test_a_refused_cast_leaves_the_layer_usable(kind: type[P4Linear], cast: str) -> None:
    layer = amid(kind, 6, dtype=torch.float32)
    before, x = state_of(layer), torch.randn(3, 6)
    with pytest.raises(DtypeError, match=rf"{kind.__name__} cannot be cast to torch\.b?float16"):
        getattr(layer, cast)()
    assert_bitwise(state_of(layer), before)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=0, atol=1e-4)


@resets
def test_the_same_seed_draws_the_same_and_leaves_the_global_generator_alone(kind: type[P4Linear], reset: str) -> None:
    before = torch.get_rng_state()
    a, b = (make(kind, reset, 6, init="orthogonal", seed=7) for _ in range(2))
    for layer in (a, b):
        layer(torch.ones(3, 6)).sum().backward()
        layer.merge()
    assert_bitwise(state_of(a), state_of(b))
    assert torch.equal(torch.get_rng_state(), before)


@kinds
def test_fold_is_an_ordinary_linear_layer(kind: type[P4Linear]) -> None:
    layer, x = amid(kind, 6), torch.randn(3, 6, dtype=torch.float64)
    linear = fold(layer)
    assert type(linear) is torch.nn.Linear
    torch.testing.assert_close(linear(x), layer(x), rtol=1e-12, atol=1e-12)
    assert linear.bias.data_ptr() != layer.bias.data_ptr()


@kinds
def test_the_callers_matrix_is_copied(kind: type[P4Linear]) -> None:
    init = torch.eye(6)
    layer = kind(6, init=init, seed=0)
    init.zero_()
    torch.testing.assert_close(layer.frozen_weight, torch.eye(6))


# --- autocast ---


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@directions
@kinds
def test_products_with_a_batch_are_lowered(kind: type[P4Linear], direction: str) -> None:
    layer, x = amid(kind, 16, dtype=torch.float32), torch.randn(4, 16)
    with autocast():
        low = getattr(layer, direction)(x)
        weight = layer.weight
    if kind is not P4Givens:  # whose turns are no matrix products
        assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), getattr(layer, direction)(x), rtol=0.1, atol=0.1)
    assert torch.equal(weight, layer.weight)


@pytest.mark.parametrize("maintain", ["merge", "correct", "violation"])
@resets
def test_maintenance_inside_autocast_is_the_same(kind: type[P4Linear], reset: str, maintain: str) -> None:
    layer = amid(kind, 16, dtype=torch.float32, **({"reset": reset} if kind in WITH_DIRECTIONS else {}))
    layer(torch.randn(4, 16)).square().sum().backward()
    twin = copy.deepcopy(layer)
    getattr(layer, maintain)()
    with autocast():
        getattr(twin, maintain)()
    assert_bitwise(state_of(twin), state_of(layer))


# --- errors ---


@directions
@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        pytest.param(torch.ones(2, 4), ShapeError, r"\(dim=3\) got shape \(2, 4\): expected", id="shape"),
        pytest.param(torch.ones(2, 3).double(), DtypeError, r"is torch\.float32 but got torch\.float64", id="dtype"),
        pytest.param(torch.ones(2, 3, device="meta"), DeviceError, "is on cpu but got an input on meta", id="device"),
    ],
)
@kinds
def test_wrong_input(kind: type[P4Linear], x: torch.Tensor, error: type[P4Error], match: str, direction: str) -> None:
    with pytest.raises(error, match=f"{kind.__name__}.*{match}|{kind.__name__} {match}"):
        getattr(kind(3), direction)(x)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        pytest.param({"dim": 0}, "dim=0: expected a whole number of at least 1", id="dim-0"),
        pytest.param({"dim": 2.0}, r"dim=2\.0", id="dim-float"),
        pytest.param({"rank": 0}, "rank=0: expected a whole number of at least 1", id="rank-0"),
        pytest.param({"rank": 1.5}, r"rank=1\.5", id="rank-float"),
        pytest.param({"init": "eye"}, "init='eye' is not known: choose one of", id="init"),
    ],
)
@kinds
def test_options_out_of_range(kind: type[P4Linear], options: dict[str, object], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        kind(**({"dim": 3} | options))


@pytest.mark.parametrize(
    ("init", "error", "match"),
    [
        pytest.param(torch.eye(4), ShapeError, r"init has shape \(4, 4\), expected \(3, 3\)", id="of-another-dim"),
        pytest.param(torch.zeros(3, 3), SingularMatrixError, "singular", id="zero"),
        pytest.param(torch.full((3, 3), torch.nan), SingularMatrixError, "9 entries that are NaN", id="nan"),
        pytest.param(
            2 * torch.eye(3), OptionError, "init is not orthogonal.*torch.linalg.qr|divide it by", id="scaled"
        ),
    ],
)
@kinds
def test_a_matrix_that_cannot_be_used(
    kind: type[P4Linear], init: torch.Tensor, error: type[P4Error], match: str
) -> None:
    with pytest.raises(error, match=match):
        kind(3, init=init)


@pytest.mark.parametrize("kind", WITH_DIRECTIONS, ids=lambda k: k.__name__)
def test_an_unknown_reset(kind: type[P4Linear]) -> None:
    with pytest.raises(OptionError, match="reset='random' is not known"):
        kind(3, reset="random")


@pytest.mark.parametrize("kind", ORTHOGONAL, ids=lambda k: k.__name__)
def test_a_start_that_is_orthogonal_up_to_rounding_is_made_exact(kind: type[P4Linear]) -> None:
    init = torch.linalg.qr(torch.randn(16, 16)).Q + 1e-6
    layer = kind(16, init=init, dtype=torch.float64, seed=0)
    assert float(layer.violation()) < 1e-14
    torch.testing.assert_close(layer.frozen_weight.float(), init, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dim", [2, 3, 5, 16], ids="d{}".format)
@pytest.mark.parametrize("init", ["identity", "reverse", "permutation", "orthogonal"])
@kinds
def test_starts_by_name(kind: type[P4Linear], init: str, dim: int) -> None:
    layer = kind(dim, init=init, seed=0)
    assert layer.sign() == torch.linalg.slogdet(layer.weight.detach()).sign
    assert float(layer.violation()) < 1e-5
