"""Permutations, folded layers, and the layers that put data into shape."""

from __future__ import annotations

import copy

import pytest
import torch

from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.flows import (
    ActNorm,
    AffineCoupling,
    Flow,
    FoldedLinear,
    Permutation,
    Standardize,
    Whitening,
    p4inv_bent,
    realnvp,
    spline_flow,
)

GENERATOR = torch.Generator().manual_seed(0)
DATA = torch.randn(400, 3, generator=GENERATOR, dtype=torch.float64) @ torch.tensor(
    [[3.0, 1.0, 0.0], [0.0, 0.1, 0.5], [0.0, 0.0, 20.0]], dtype=torch.float64
) + torch.tensor([100.0, 0.0, -5.0], dtype=torch.float64)


@pytest.mark.parametrize("order", [[0], [1, 0], [2, 0, 1], [3, 1, 0, 2]], ids=str)
def test_permutation_is_its_matrix(order: list[int]) -> None:
    layer, x = Permutation(order), torch.randn(2, 5, len(order))
    assert torch.equal(layer(x), x @ layer.weight.t())
    assert torch.equal(layer.inverse(layer(x)), x)
    assert torch.equal(layer.weight @ layer.weight_inverse, torch.eye(len(order)))
    assert float(layer.logabsdet()) == 0


@pytest.mark.parametrize("fit", [Standardize.fit, Whitening.fit], ids=["standardize", "whiten"])
def test_fitted_layers_give_mean_0_and_variance_1(fit) -> None:
    flow = Flow([fit(DATA)])
    z, logabsdet = flow(DATA)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(flow.inverse(z), DATA)
    assert logabsdet.shape == (400,)
    assert not list(flow.parameters())
    assert flow.sample(2, generator=torch.Generator().manual_seed(0)).dtype is torch.float64


def test_whitening_has_no_correlations_left_and_a_symmetric_weight() -> None:
    layer = Whitening.fit(DATA)
    torch.testing.assert_close(layer(DATA).t().cov(correction=0), torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(layer.weight, layer.weight.t())


def test_actnorm_waits_for_its_call() -> None:
    layer = ActNorm(3, dtype=torch.float64)
    assert torch.equal(layer(DATA)[0], DATA)
    layer.initialize(DATA)
    z, logabsdet = layer(DATA)
    torch.testing.assert_close(z.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.var(0, correction=0), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(logabsdet, layer.log_scale.sum().expand(400))
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"shift", "log_scale"}


def test_actnorm_is_left_alone_by_bad_data() -> None:
    layer = ActNorm(2)
    layer.initialize(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(SingularMatrixError, match=r"\[1\]"):
        layer.initialize(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_folded_linear_keeps_its_logabsdet_through_casts_and_state() -> None:
    layer = FoldedLinear(torch.diag(torch.tensor([3.0, 7.0], dtype=torch.float64)))
    expected = torch.tensor(21.0, dtype=torch.float64).log()
    assert torch.equal(copy.deepcopy(layer).float().logabsdet(), expected)
    other = FoldedLinear(torch.eye(2, dtype=torch.float64))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.logabsdet(), expected)
    assert torch.equal(other.inverse(torch.ones(2, dtype=torch.float64)), 1 / layer.weight.diagonal())


@pytest.mark.parametrize("dim", [2, 3, 6], ids="d{}".format)
def test_coupling_starts_at_the_identity_and_moves_its_second_half_only(dim: int) -> None:
    layer, x = AffineCoupling(dim, hidden=5, seed=0), torch.randn(9, dim)
    y, logabsdet = layer(x)
    assert torch.equal(y, x)
    assert not logabsdet.any()
    torch.nn.init.normal_(layer.network[-1].weight, std=1e4)
    y, logabsdet = layer(x)
    assert torch.equal(y[:, : dim // 2], x[:, : dim // 2])
    assert bool((y[:, dim // 2 :] != x[:, dim // 2 :]).all())
    assert logabsdet.abs().max() <= 2 * (dim - dim // 2)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        pytest.param(lambda: Permutation([0, 0]), OptionError, r"\[0, 0\]", id="no permutation"),
        pytest.param(lambda: Permutation([1, 0])(torch.zeros(3)), ShapeError, "dim=2", id="permutation, wrong width"),
        pytest.param(lambda: FoldedLinear(torch.zeros(2, 3)), ShapeError, r"\(2, 3\)", id="not square"),
        pytest.param(lambda: FoldedLinear(torch.zeros(2, 2)), SingularMatrixError, "singular", id="singular"),
        pytest.param(lambda: FoldedLinear(torch.full((2, 2), torch.nan)), SingularMatrixError, "finite", id="nan"),
        pytest.param(lambda: Standardize.fit(torch.zeros(5, 2)), SingularMatrixError, r"\[0, 1\]", id="constant"),
        pytest.param(lambda: Standardize.fit(torch.zeros(5)), ShapeError, r"\(5,\)", id="no table"),
        pytest.param(lambda: Standardize(torch.zeros(2), torch.ones(3)), ShapeError, r"\(3,\)", id="mean and std"),
        pytest.param(lambda: Whitening.fit(torch.ones(5, 2)), SingularMatrixError, "subspace", id="no spread"),
        pytest.param(
            lambda: Whitening.fit(DATA[:, :1].repeat(1, 2)), SingularMatrixError, "subspace", id="dependent columns"
        ),
        pytest.param(lambda: Whitening.fit(DATA * torch.nan), SingularMatrixError, "NaN", id="nan data"),
        pytest.param(lambda: ActNorm(0), OptionError, "dim=0", id="actnorm without width"),
        pytest.param(lambda: ActNorm(2)(torch.zeros(3)), ShapeError, "dim=2", id="actnorm, wrong width"),
        pytest.param(lambda: AffineCoupling(1), OptionError, "dim >= 2", id="nothing to split"),
        pytest.param(lambda: AffineCoupling(2, depth=0), OptionError, "depth >= 1", id="no hidden layer"),
        pytest.param(lambda: AffineCoupling(2)(torch.zeros(3)), ShapeError, "dim=2", id="coupling, wrong width"),
        pytest.param(lambda: realnvp(2, 0), OptionError, "blocks=0", id="realnvp without blocks"),
        pytest.param(lambda: realnvp(1, 2), OptionError, "dim=1", id="realnvp of one coordinate"),
        pytest.param(lambda: realnvp(2, 2, "stir"), OptionError, "'stir'", id="unknown mixing"),
        pytest.param(lambda: spline_flow(2, 2, bins=1), OptionError, "bins=1", id="one bin"),
        pytest.param(lambda: Flow([realnvp(2, 1), p4inv_bent(3, 0)]), OptionError, r"\[2, 3\]", id="nested dims"),
    ],
)
def test_errors(make, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
