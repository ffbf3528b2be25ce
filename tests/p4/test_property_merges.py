"""Merges, invariants and state of the P4 properties beyond invertibility, one case each for every property."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from p4.dense_twin import assert_bitwise, state_of
from p4.property_zoo import CASES, INVERTIBLE, ITEMS, TURNED, Case, perturb, spd, width_in
from torch import Tensor, nn

from p4lab.errors import DtypeError
from p4lab.p4 import (
    MeanPool,
    MergeSchedule,
    MergeStatus,
    P4Circulant,
    P4Lipschitz,
    P4Module,
    P4Permutation,
    P4PositiveDefinite,
    fold,
    p4_modules,
)

cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
single = pytest.mark.parametrize("case", [c for c in CASES if c.name != "permutation"], ids=lambda c: c.name)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
resets = pytest.mark.parametrize("reset", ["gaussian", "gradient"])
EXACT = {torch.float32: 2e-5, torch.float64: 1e-12}


def options(case: Case, reset: str) -> dict[str, Any]:
    return {"reset": reset} if case.resets else {}


def frozen(layer: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in layer.named_buffers() if "frozen" in name}


# --- merges ---


@cases
@dtypes
@resets
@pytest.mark.parametrize("dim", [1, 2, 8], ids="d{}".format)
def test_a_merge_is_invisible(dim: int, reset: str, dtype: torch.dtype, case: Case) -> None:
    layer = case.perturbed(dim, 2, dtype, size=0.5, **options(case, reset))
    x = torch.randn(5, width_in(layer), dtype=dtype)
    before = {"y": layer(x), "weight": layer.weight}
    if case in INVERTIBLE:
        before |= {"inverse": layer.inverse(x), "logabsdet": layer.logabsdet()}
    assert all(module.merge().merged for module in p4_modules(layer))
    after = {"y": layer(x), "weight": layer.weight}
    if case in INVERTIBLE:
        after |= {"inverse": layer.inverse(x), "logabsdet": layer.logabsdet()}
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=EXACT[dtype], atol=EXACT[dtype], msg=name)
    assert not any(module.u.any() for module in p4_modules(layer))


@single
@resets
def test_a_merge_moves_the_frozen_tensor(reset: str, case: Case) -> None:
    layer = case.perturbed(6, 2, **options(case, reset))
    before = frozen(layer)
    assert layer.merge().merged
    assert all(not torch.equal(before[name], t) for name, t in frozen(layer).items())


@single
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("what", ["u", "bias"])
def test_what_is_not_finite_is_dropped(what: str, value: float, case: Case) -> None:
    layer = case.perturbed(6, 2)
    layer.merge()
    before = frozen(layer)
    perturb(layer)
    with torch.no_grad():
        getattr(layer, what)[..., 0] = value
    report = layer.merge()
    assert report.status is MergeStatus.DISCARDED_NOT_FINITE
    assert_bitwise(frozen(layer), before)
    assert not layer.u.any()
    assert torch.equal(layer.bias, before["frozen_bias"])
    assert layer(torch.randn(3, 6, dtype=torch.float64)).isfinite().all()


def singular_congruence(layer: Any) -> None:
    layer.u.copy_(-(1 - 1e-4) * layer.v)


def lost_frequency(layer: Any) -> None:
    constant = layer.frozen_kernel.mean()
    layer.u.fill_(-(1 - 1e-4) * constant)


SINGULAR = [
    pytest.param(P4PositiveDefinite, singular_congruence, id="positive-definite"),
    pytest.param(P4Circulant, lost_frequency, id="circulant"),
]


@pytest.mark.parametrize(("kind", "approach"), SINGULAR)
def test_a_nearly_singular_step_waits(kind: Any, approach: Callable[[Any], None]) -> None:
    layer = kind(6, dtype=torch.float64)
    before = frozen(layer)
    with torch.no_grad():
        approach(layer)
    u = layer.u.clone()
    report = layer.merge()
    assert report.status is MergeStatus.SKIPPED_SINGULAR
    assert "nearly singular" in report.reason
    assert_bitwise(frozen(layer), before)
    assert torch.equal(layer.u, u)


@pytest.mark.parametrize(("kind", "approach"), SINGULAR)
def test_skipping_can_be_switched_off(kind: Any, approach: Callable[[Any], None]) -> None:
    layer = kind(6, dtype=torch.float64, min_factor=0.0)
    with torch.no_grad():
        approach(layer)
    assert layer.merge().merged


def test_a_growth_beyond_the_dtype_is_dropped() -> None:
    layer = P4PositiveDefinite(4, seed=0)
    with torch.no_grad():
        layer.u.fill_(1e25)
    assert layer.merge().status is MergeStatus.DISCARDED_NOT_FINITE
    assert torch.equal(layer.frozen_weight, torch.eye(4))


@pytest.mark.parametrize("reset", ["gradient"])
@pytest.mark.parametrize("case", [c for c in CASES if c.resets and c.kind not in TURNED], ids=lambda c: c.name)
def test_momentum_follows_the_directions(case: Case, reset: str) -> None:
    layer = case.perturbed(6, 2, **options(case, reset))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3, momentum=0.9)
    schedule = MergeSchedule(layer, optimizer, every=1)
    part = schedule.layers[0]
    layer(torch.randn(9, 6 if case.name != "permutation" else 6 * ITEMS, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    momentum, old = optimizer.state[part.u]["momentum_buffer"].clone(), part.v.clone()
    schedule.step()
    expected = part.v @ old.T @ momentum
    torch.testing.assert_close(optimizer.state[part.u]["momentum_buffer"], expected)


# --- invariants, for every parameter value ---

scales = st.floats(-6, 8).map(lambda e: 10.0**e)
seeds = st.integers(0, 2**31)


@given(scale=scales, seed=seeds, dim_in=st.integers(1, 6), dim_out=st.integers(1, 6), rank=st.integers(1, 3))
def test_the_norm_stays_below_the_bound(scale: float, seed: int, dim_in: int, dim_out: int, rank: int) -> None:
    for dtype in (torch.float32, torch.float64):
        layer = P4Lipschitz(dim_in, dim_out, bound=0.3, rank=min(rank, dim_in + dim_out), seed=seed, dtype=dtype)
        for merge in (False, True):
            with torch.no_grad():
                layer.u.copy_(scale * torch.randn(layer.u.shape, generator=torch.Generator().manual_seed(seed)))
            assert torch.linalg.matrix_norm(layer.weight.double(), 2) <= 0.3 * (1 + 1e-5)
            if merge:
                assert layer.merge()
                assert layer.violation() <= 1e-5


@given(scale=st.floats(-3, 1).map(lambda e: 10.0**e), seed=seeds, dim=st.integers(1, 6), rank=st.integers(1, 3))
def test_the_matrix_stays_positive_definite(scale: float, seed: int, dim: int, rank: int) -> None:
    torch.manual_seed(seed)
    layer = P4PositiveDefinite(dim, rank=rank, init=spd(dim), seed=seed, dtype=torch.float64)
    for _ in range(3):
        with torch.no_grad():
            layer.u.copy_(scale * torch.randn_like(layer.u))
        weight = layer.weight.detach()
        assert (weight - weight.T).abs().max() <= 1e-12 * weight.abs().max()
        assert torch.linalg.eigvalsh((weight + weight.T) / 2)[0] > -1e-12 * weight.abs().max()
        layer.merge()


@dtypes
@pytest.mark.parametrize("dim", [1, 2, 5, 16, 33], ids="d{}".format)
def test_a_circulant_layer_commutes_with_shifts(dim: int, dtype: torch.dtype) -> None:
    layer = P4Circulant(dim, dtype=dtype, min_factor=0.0)
    for _ in range(3):
        perturb(layer, 1.0)
        x = torch.randn(4, dim, dtype=dtype)
        torch.testing.assert_close(layer(x.roll(1, -1)), layer(x).roll(1, -1), rtol=1e-5, atol=EXACT[dtype])
        assert layer.merge()
        assert layer.violation() <= 1e-6 * layer.frozen_kernel.abs().sum()


@dtypes
@pytest.mark.parametrize(("items", "channels"), [(1, 3), (2, 1), (7, 4)], ids=str)
def test_a_permutation_layer_commutes_with_permutations(items: int, channels: int, dtype: torch.dtype) -> None:
    layer = P4Permutation(channels, rank=2, init="orthogonal", dtype=dtype, seed=0)
    x, order = torch.randn(4, items, channels, dtype=dtype), torch.randperm(items)
    for _ in range(3):
        perturb(layer, 0.3)
        torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=EXACT[dtype])
        torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=0, atol=5 * EXACT[dtype])
        assert all(report.merged for report in layer.merge())
    assert layer.correct() <= EXACT[dtype]


def test_a_permutation_layer_knows_any_number_of_items() -> None:
    layer = P4Permutation(2, rank=2, seed=0, dtype=torch.float64)
    perturb(layer, 1.0)
    for items in (1, 2, 5):
        sign, logabsdet = torch.linalg.slogdet(layer.weight(items))
        torch.testing.assert_close(layer.logabsdet(items), logabsdet)
        assert layer.sign(items) == sign
        x = torch.randn(items, 2, dtype=torch.float64)
        dense = (layer.weight(items) @ x.flatten()).view(items, 2) + layer.mean.bias
        torch.testing.assert_close(layer(x), dense)


def test_pooling_makes_it_invariant() -> None:
    model = nn.Sequential(P4Permutation(3, seed=0), nn.Tanh(), P4Permutation(3, seed=1), MeanPool(), nn.Linear(3, 1))
    perturb(model, 1.0)
    x = torch.randn(4, 6, 3)
    torch.testing.assert_close(model(x[:, torch.randperm(6)]), model(x), rtol=0, atol=1e-6)
    assert not torch.allclose(model(x), model(x.roll(1, 0)), atol=1e-3)


def test_correction_repairs_a_bruised_frame() -> None:
    layer = P4Lipschitz(5, 4, bound=2.0, seed=0, dtype=torch.float64)
    layer.frozen_frame.add_(1e-3 * torch.randn_like(layer.frozen_frame))
    bruised = layer.violation()
    assert bruised > 1e-4
    assert layer.correct() < 1e-2 * bruised
    layer.correct()
    assert layer.correct() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_bounded_layer_that_was_emptied_is_whole_again(dtype: torch.dtype) -> None:
    layer = P4Lipschitz(5, 4, rank=2, seed=0, dtype=dtype)
    perturb(layer, 0.5)
    x, state = torch.randn(3, 5, dtype=dtype), copy.deepcopy(layer.state_dict())
    twin = P4Lipschitz(5, 4, rank=2, seed=1, dtype=dtype, device="meta").to_empty(device="cpu")
    twin.load_state_dict(state)
    assert torch.equal(twin(x), layer(x))


@pytest.mark.parametrize(("dim_in", "dim_out"), [(6, 6), (9, 4), (4, 9)], ids=str)
def test_a_bounded_layer_gives_a_batch_what_it_gives_its_rows(
    dim_in: int, dim_out: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch goes through the weights, a row through their factors: that is cheaper for each."""
    layer = P4Lipschitz(dim_in, dim_out, rank=2, seed=0, dtype=torch.float64)
    perturb(layer, 0.5)
    x, g = torch.randn(50, dim_in, dtype=torch.float64), torch.randn(50, dim_out, dtype=torch.float64)
    formed: list[P4Lipschitz] = []
    weight = P4Lipschitz.weight.fget
    monkeypatch.setattr(P4Lipschitz, "weight", property(lambda self: formed.append(self) or weight(self)))
    results = []
    for forward in (layer, lambda rows: torch.cat([layer(row) for row in rows.split(1)])):
        leaf = x.clone().requires_grad_()
        y = forward(leaf)
        assert len(formed) == 1
        results.append((y, *torch.autograd.grad(y, (leaf, layer.u, layer.bias), g)))
    for batch, rows in zip(*results, strict=True):
        torch.testing.assert_close(batch, rows, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dim", [5, 48, 100, 200], ids="d{}".format)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_a_worn_inverse_is_noticed_wherever_it_is_wrong(place: float, dim: int) -> None:
    """A wide layer looks at some rows of A A^-1 - I in each merge: all of them take ``dim // 64`` merges."""
    layer = P4PositiveDefinite(dim, rank=2, init=spd(dim), seed=0)
    assert layer.merge()
    error = torch.zeros(dim, dim)
    error[round(place * (dim - 1))] = 0.3
    layer.frozen_inverse.add_(layer.frozen_inverse @ error)
    reports = [layer.merge() for _ in range(max(1, dim // 64))]
    assert MergeStatus.SKIPPED_INACCURATE in [report.status for report in reports]


def test_correction_repairs_a_bruised_inverse() -> None:
    layer = P4PositiveDefinite(5, init=spd(5), seed=0, dtype=torch.float64)
    layer.frozen_inverse.add_(1e-3 * torch.randn(5, 5))
    assert layer.violation() > 1e-4
    layer.correct()
    assert layer.correct() < 1e-12
    assert torch.equal(layer.frozen_weight, layer.frozen_weight.T)
    assert torch.equal(layer.frozen_inverse, layer.frozen_inverse.T)


def test_an_indefinite_matrix_is_an_infinite_violation() -> None:
    layer = P4PositiveDefinite(3, seed=0)
    layer.frozen_weight[0, 0] = layer.frozen_inverse[0, 0] = -1
    assert layer.violation() == math.inf


# --- state ---


class Run:
    """A whole training run of one property, whose every later bit follows from its state."""

    def __init__(self, case: Case, reset: str, seed: int) -> None:
        torch.manual_seed(seed)
        extra = options(case, reset) | ({"seed": seed} if case.resets else {})
        layer = case.make(6, 2, dtype=torch.float32, **extra)
        self.width = width_in(layer)
        self.model = nn.Sequential(layer, nn.Tanh())
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)
        self.merges = MergeSchedule(self.model, self.optimizer, every=3, refine_every=2)
        self.parts = {"model": self.model, "optimizer": self.optimizer, "merges": self.merges}

    def train(self, start: int, stop: int) -> Run:
        for step in range(start, stop):
            x = torch.randn(8, self.width, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            loss = (self.model(x) - 0.5).square().mean()
            if isinstance(self.model[0], P4PositiveDefinite):
                loss = loss - 0.01 * self.model[0].logabsdet()
            loss.backward()
            self.optimizer.step()
            self.merges.step()
        return self


@cases
@resets
@pytest.mark.parametrize("at", [0, 5, 6, 12], ids="step{}".format)
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(at: int, reset: str, case: Case) -> None:
    uninterrupted = Run(case, reset, seed=0).train(0, 20)
    before, file = Run(case, reset, seed=0).train(0, at), io.BytesIO()
    torch.save({name: part.state_dict() for name, part in before.parts.items()}, file)
    file.seek(0)
    resumed = Run(case, reset, seed=100)
    state = torch.load(file, weights_only=True)
    for name, part in resumed.parts.items():
        part.load_state_dict(state[name])
    assert_bitwise(state_of(resumed.train(at, 20).model), state_of(uninterrupted.model))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@cases
@resets
def test_a_copy_between_backward_and_merge_takes_the_batch_along(how: Callable, reset: str, case: Case) -> None:
    layer = case.perturbed(6, 2, **options(case, reset))
    layer(torch.randn(5, width_in(layer), dtype=torch.float64)).square().sum().backward()
    if isinstance(layer, P4PositiveDefinite):
        layer.logabsdet().backward()
    twin = how(layer)
    for model in (layer, twin):
        for part in p4_modules(model):
            part.merge()
    assert_bitwise(state_of(twin), state_of(layer))


@cases
def test_switching_modes_changes_nothing(case: Case) -> None:
    layer = case.perturbed(6, 2)
    x = torch.randn(2, width_in(layer), dtype=torch.float64)
    before, y = state_of(layer), layer(x)
    for mode in (False, True, True, False):
        assert torch.equal(layer.train(mode)(x), y)
    assert_bitwise(state_of(layer), before)


@cases
@pytest.mark.parametrize("cast", ["double", "float"])
def test_casts(cast: str, case: Case) -> None:
    layer = case.perturbed(6, 2, torch.float32)
    wide = {n: b.clone() for n, b in layer.named_buffers() if n.endswith("frozen_logabsdet")}
    layer(torch.randn(3, width_in(layer))).sum().backward()
    layer = getattr(layer, cast)()
    x = torch.randn(3, width_in(layer), dtype=getattr(torch, cast))
    assert layer(x).dtype == layer.weight.dtype == x.dtype
    for name, buffer in layer.named_buffers():
        if name in wide:
            assert buffer.dtype == torch.float64
            torch.testing.assert_close(buffer, wide[name], rtol=0, atol=1e-5 if cast == "double" else 0)
    assert all(part.merge().merged for part in p4_modules(layer))


@cases
@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_a_refused_cast_leaves_the_layer_usable(cast: str, case: Case) -> None:
    layer = case.perturbed(6, 2, torch.float32)
    before = state_of(layer)
    with pytest.raises(DtypeError, match=r"P4\w+ cannot be cast to torch\.b?float16.*float32 or float64"):
        getattr(layer, cast)()
    assert_bitwise(state_of(layer), before)


@cases
def test_autocast_lowers_products_but_not_the_property(case: Case) -> None:
    layer = case.perturbed(6, 2, torch.float32)
    x = torch.randn(3, width_in(layer))
    exact = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, exact)
        y = layer(x)
        y.float().sum().backward()
        assert all(part.merge().merged for part in p4_modules(layer))
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.1)
    torch.testing.assert_close(layer.weight, exact, rtol=0, atol=1e-5)


@cases
def test_fold_is_ordinary(case: Case) -> None:
    layer = case.perturbed(6, 2)
    x = torch.randn(3, width_in(layer), dtype=torch.float64)
    folded = fold(layer)
    assert not any(isinstance(m, P4Module) for m in folded.modules())
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [c for c in CASES if c.resets], ids=lambda c: c.name)
@resets
def test_a_seeded_layer_leaves_the_global_generator_alone(reset: str, case: Case) -> None:
    layer = case.perturbed(6, 2, **options(case, reset))
    twin = copy.deepcopy(layer)
    before = torch.get_rng_state()
    for model in (layer, twin):
        for part in p4_modules(model):
            part.merge()
    assert torch.equal(torch.get_rng_state(), before)
    assert_bitwise(state_of(layer), state_of(twin))


def test_the_callers_matrix_is_copied() -> None:
    init = torch.eye(4)
    layers = [P4PositiveDefinite(4, init=init), P4Lipschitz(4, 4, init=init), P4Circulant(4, init=init[0])]
    before = [layer.weight.clone() for layer in layers]
    init.zero_()
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(layer.weight, weight)


# --- densities ---


def test_log_density_is_that_of_torch() -> None:
    layer = P4PositiveDefinite(5, rank=2, init=spd(5), dtype=torch.float64, seed=0)
    perturb(layer, 0.5)
    normal = torch.distributions.MultivariateNormal(layer.bias, layer.weight)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(layer.log_density(x), normal.log_prob(x))
    torch.testing.assert_close(layer.quadratic(x), torch.einsum("abi,ij,abj->ab", x, layer.weight, x))
    assert layer.sign() == 1
