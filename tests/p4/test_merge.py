"""A merge: invisible, all or nothing, and harmless whatever the perturbation holds."""

from __future__ import annotations

import pytest
import torch
from p4.dense_twin import amid_training, assert_bitwise, perturb, state_of, well_conditioned

from p4lab.errors import MergeOrderError
from p4lab.p4 import MergeStatus, P4Inv

ranks = pytest.mark.parametrize("rank", [1, 2, 8], ids="k{}".format)
train_v = pytest.mark.parametrize("train_v", [False, True], ids=["v-fixed", "v-trained"])
resets = pytest.mark.parametrize("reset", ["gaussian", "gradient"])

FROZEN = ("frozen_weight", "frozen_inverse", "frozen_logabsdet", "frozen_sign", "frozen_bias")


def frozen_of(layer: P4Inv) -> dict[str, torch.Tensor]:
    state = state_of(layer)
    return {name: state[name] for name in FROZEN}


def with_factor(factor: float, rank: int = 1, dim: int = 9, **options: object) -> P4Inv:
    """A layer whose perturbation has this factor along one direction, and does nothing along the others."""
    layer = P4Inv(dim, rank=rank, init=well_conditioned(dim), dtype=torch.float64, seed=0, **options)
    u, v = torch.zeros(rank, dim, dtype=torch.float64), torch.zeros(rank, dim, dtype=torch.float64)
    v[range(rank), range(rank)] = 1
    q = v @ torch.linalg.inv(layer.frozen_weight)
    u[0] = torch.linalg.pinv(q)[:, 0] * (factor - 1)  # q u^T is zero but for its first entry
    return perturb(layer, u, v)


@ranks
@train_v
@resets
def test_an_accepted_merge_moves_the_perturbation_into_the_frozen_tensor(rank: int, train_v: bool, reset: str) -> None:
    layer = amid_training(9, rank, train_v=train_v, reset=reset)
    weight, bias = layer.weight.detach(), layer.bias.detach().clone()
    report = layer.merge()
    assert report.merged
    assert report.status is MergeStatus.MERGED
    torch.testing.assert_close(layer.frozen_weight, weight, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer.u, torch.zeros_like(layer.u))
    assert torch.equal(layer.bias, bias)


@train_v
@resets
def test_an_accepted_merge_draws_new_directions(train_v: bool, reset: str) -> None:
    layer = amid_training(9, 2, train_v=train_v, reset=reset)
    old = layer.v.detach().clone()
    layer.merge()
    assert not torch.isclose(layer.v, old).any()


@pytest.mark.parametrize("factor", [0.05, -0.05, 0.5, -1.0, 3.0, 50.0], ids="f{:g}".format)
@ranks
def test_a_moderate_factor_merges(factor: float, rank: int) -> None:
    layer = with_factor(factor, rank)
    expected = torch.linalg.slogdet(layer.weight.detach())
    assert layer.merge().merged
    torch.testing.assert_close(layer.frozen_logabsdet, expected.logabsdet, rtol=1e-9, atol=1e-9)
    assert layer.frozen_sign == expected.sign


@pytest.mark.parametrize("factor", [1e-3, -1e-3, 1e-8, 0.0], ids="f{:g}".format)
@ranks
@train_v
def test_a_vanishing_factor_is_skipped_and_nothing_changes(factor: float, rank: int, train_v: bool) -> None:
    layer = with_factor(factor, rank, train_v=train_v)
    before = state_of(layer)
    report = layer.merge()
    after = state_of(layer)
    assert report.status is MergeStatus.SKIPPED_SINGULAR
    assert "nearly singular" in report.reason
    assert "limit" in repr(report)
    for name in ("generator", "refusals"):
        del before[f"_extra_state.{name}"], after[f"_extra_state.{name}"]
    assert_bitwise(after, before)


def test_the_generator_advances_alike_whether_a_merge_is_skipped_or_not() -> None:
    merged, skipped = with_factor(0.5), with_factor(0.0)
    assert (bool(merged.merge()), bool(skipped.merge())) == (True, False)
    assert torch.equal(merged.generator.get_state(), skipped.generator.get_state())


@ranks
def test_the_verdict_is_per_direction(rank: int) -> None:
    """Factors whose product is 1 are still refused if one of them vanishes, and many moderate ones are not."""
    dim, v = 9, torch.eye(9, dtype=torch.float64)[:rank]
    moderate = perturb(P4Inv(dim, rank=rank, dtype=torch.float64, seed=0), -0.95 * v, v)
    assert moderate.merge().merged  # det shrinks by 0.05^k: 4e-11 for k = 8
    if rank > 1:
        factors = torch.ones(rank, dtype=torch.float64)
        factors[0], factors[1] = 1e-4, 1e4
        assert not perturb(P4Inv(dim, rank=rank, dtype=torch.float64, seed=0), (factors - 1)[:, None] * v, v).merge()


@pytest.mark.parametrize("factor", [1e-4, 2e-3, 3e-3, 0.1, 3.0, 1e3, 1e6], ids="f{:g}".format)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0], ids="A-times-{:g}".format)
@ranks
def test_a_relative_update_is_judged_the_same_at_any_width(factor: float, scale: float, rank: int) -> None:
    """The same block many times on the diagonal: log|det| is so many times as large, the verdict must not move."""
    width = max(4, rank)
    block = scale * well_conditioned(width, torch.float32)
    v = torch.eye(width)[:rank]
    q = v @ torch.linalg.inv(block)
    u = torch.zeros(rank, width)
    u[0] = torch.linalg.pinv(q)[:, 0] * (factor - 1)  # q u^T is zero but for its first entry
    figures = []
    for copies in (1, 400 // width):
        init = torch.block_diag(*[block] * copies)
        wide_u, wide_v = (torch.nn.functional.pad(t, (0, width * (copies - 1))) for t in (u, v))
        report = perturb(P4Inv(width * copies, rank=rank, init=init, seed=0, bias=False), wide_u, wide_v).merge()
        figures.append((report.status, report.figures[1:3]))
    assert figures[0][0] is figures[1][0]
    torch.testing.assert_close(figures[0][1], figures[1][1], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", ["u", "v", "bias"])
@ranks
def test_what_is_not_finite_is_discarded(bad: float, where: str, rank: int) -> None:
    layer = amid_training(9, rank, train_v=True)
    layer.merge()
    last = frozen_of(layer)
    with torch.no_grad():
        layer.u.fill_(0.1)
        getattr(layer, where).view(-1)[-1] = bad
    report = layer.merge()
    assert report.status is MergeStatus.DISCARDED_NOT_FINITE
    assert "back at its last merge" in report.reason
    assert_bitwise(frozen_of(layer), last)
    assert torch.equal(layer.weight, last["frozen_weight"])
    assert torch.equal(layer.bias, last["frozen_bias"])
    assert torch.isfinite(layer.v).all()


@ranks
def test_min_factor_0_merges_what_skipping_refuses(rank: int) -> None:
    careful, bold = with_factor(1e-3, rank), with_factor(1e-3, rank, min_factor=0.0)
    assert (bool(careful.merge()), bool(bold.merge())) == (False, True)
    assert bold.violation() < 1e-6


@pytest.mark.parametrize("min_factor", [None, 0.0], ids=["skip", "no-skip"])
@pytest.mark.parametrize("size", [1e5, 1e10, 1e20, 1e30, 3e38], ids="u{:g}".format)
@pytest.mark.parametrize("init", ["identity", "orthogonal"])
@ranks
@train_v
def test_a_huge_perturbation_never_corrupts(
    size: float, min_factor: float | None, init: str, rank: int, train_v: bool
) -> None:
    options = {} if min_factor is None else {"min_factor": min_factor}
    layer = P4Inv(8, rank=rank, init=init, seed=0, train_v=train_v, dtype=torch.float32, **options)
    perturb(layer, torch.full((rank, 8), size))
    before = frozen_of(layer)
    report = layer.merge()
    after = frozen_of(layer)
    assert all(torch.isfinite(t).all() for t in after.values())
    if not report:
        assert_bitwise(after, before)
    if size >= 1e20:
        assert not report


@ranks
@pytest.mark.parametrize("direction", ["one", "all"])
def test_an_exactly_singular_update_is_never_merged(rank: int, direction: str) -> None:
    v = torch.eye(9)[:rank]
    u = -v if direction == "all" else torch.cat([-v[:1], 0 * v[1:]])
    layer = perturb(P4Inv(9, rank=rank, seed=0, min_factor=0.0), u, v)
    assert (float(layer.sign()), float(layer.logabsdet().detach())) == (0.0, -torch.inf)
    before = frozen_of(layer)
    assert not layer.merge()
    assert_bitwise(frozen_of(layer), before)


def test_an_inverse_that_went_wrong_is_noticed_and_can_be_repaired() -> None:
    layer = amid_training(9, 1)
    layer.frozen_inverse.mul_(1.3)
    report = layer.merge()
    assert report.status is MergeStatus.SKIPPED_INACCURATE
    assert "refine()" in report.reason
    assert layer.recompute() < 1e-9
    assert layer.merge().merged


@pytest.mark.parametrize("input_gradient", [False, True], ids=["first", "inner"])
@pytest.mark.parametrize("reset", ["gaussian", "gradient"])
def test_a_merge_before_the_backward_pass_is_refused(reset: str, input_gradient: bool) -> None:
    layer = amid_training(4, reset=reset)
    loss = layer(torch.randn(3, 4, dtype=torch.float64, requires_grad=input_gradient)).square().sum()
    layer.merge()
    with pytest.raises(MergeOrderError, match=r"P4Inv was merged.*merge after optimizer\.step"):
        loss.backward()


@pytest.mark.parametrize("smallest", [1e-3, 1e-6, 1e-8, 1e-10])
def test_a_merge_out_of_near_singularity_leaves_an_inverse_that_can_be_refined(smallest: float) -> None:
    start = well_conditioned(16)
    left, values, right = torch.linalg.svd(start)
    values[-1] = smallest
    layer = P4Inv(16, rank=8, init=left * values @ right, dtype=torch.float64, seed=0)
    perturb(layer, torch.randn(8, 16, dtype=torch.float64))
    report = layer.merge()
    assert report.merged or report.status is MergeStatus.SKIPPED_SINGULAR
    assert report.merged == (smallest > 1e-7), report.reason
    for _ in range(4):
        layer.refine()
    assert float(layer.violation()) < 1e-5
