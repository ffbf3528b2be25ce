"""Flows against a dense Jacobian, and as densities."""

import math

import numpy as np
import pytest
import torch
import zuko
from torch import nn

from p4lab.errors import OptionError, ShapeError
from p4lab.flows import BentIdentity, Flow, p4inv_bent, trainable
from p4lab.p4 import PAPER, RECOMMENDED, P4Inv, P4Spectrum, fold, p4_modules


def trained_looking(dim: int, blocks: int, preset=RECOMMENDED) -> Flow:
    flow = p4inv_bent(dim, blocks, preset=preset, seed=3, dtype=torch.float64)
    with torch.no_grad():
        for layer in flow.linear_layers():
            layer.u.normal_(std=0.1)
            layer.bias.normal_()
    return flow


@pytest.mark.parametrize("preset", [RECOMMENDED, PAPER], ids=lambda preset: preset.name)
@pytest.mark.parametrize("blocks", [0, 1, 5])
def test_logabsdet_is_that_of_the_jacobian(blocks: int, preset) -> None:
    flow = trained_looking(4, blocks, preset)
    x = torch.randn(3, 4, dtype=torch.float64)
    jacobians = torch.stack([torch.autograd.functional.jacobian(lambda t: flow(t)[0], row) for row in x])
    torch.testing.assert_close(flow(x)[1], torch.linalg.slogdet(jacobians)[1])


def test_density_integrates_to_one() -> None:
    flow = trained_looking(2, 3)
    side = torch.linspace(-25, 25, 1001, dtype=torch.float64)
    with torch.no_grad():
        grid = torch.cartesian_prod(side, side)
        total = flow.log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-3)


def test_inverse_undoes_forward_after_merges() -> None:
    flow = trained_looking(8, 6)
    for layer in flow.linear_layers():
        assert layer.merge()
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(flow(x)[0]), x)


def test_samples_follow_the_density() -> None:
    flow = trained_looking(2, 2)
    x = flow.sample(20_000, generator=torch.Generator().manual_seed(0))
    z, _ = flow(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(2, dtype=torch.float64), atol=0.03, rtol=0)
    torch.testing.assert_close(z.T.cov(), torch.eye(2, dtype=torch.float64), atol=0.03, rtol=0)


def test_sampling_leaves_the_default_generator_alone() -> None:
    flow = p4inv_bent(2, 1)
    before = torch.get_rng_state()
    first = flow.sample(3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, flow.sample(3, generator=torch.Generator().manual_seed(5)))
    assert torch.equal(torch.get_rng_state(), before)


def test_identity_start_is_the_standard_normal_for_even_blocks() -> None:
    flow = p4inv_bent(3, 4, init="identity", dtype=torch.float64)
    x = torch.randn(6, 3, dtype=torch.float64)
    normal = -0.5 * x.square().sum(-1) - 1.5 * math.log(2 * math.pi)
    torch.testing.assert_close(flow.log_prob(x), normal)


def test_architecture_alternates() -> None:
    flow = p4inv_bent(5, 3, rank=2)
    kinds = [layer.inverted for layer in flow.layers if isinstance(layer, BentIdentity)]
    assert kinds == [False, True, False]
    assert trainable(flow) == 4 * (2 * 5 + 5)
    assert not torch.equal(flow.layers[0].frozen_weight, flow.layers[2].frozen_weight)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        pytest.param(lambda: Flow([BentIdentity()]), OptionError, "at least one", id="no linear layer"),
        pytest.param(lambda: Flow([P4Inv(2), P4Inv(3)]), OptionError, r"\[2, 3\]", id="different dims"),
        pytest.param(lambda: p4inv_bent(2, -1), OptionError, "blocks=-1", id="negative blocks"),
        pytest.param(lambda: p4inv_bent(2, 1).sample(-1), ShapeError, "n=-1", id="negative samples"),
        pytest.param(lambda: p4inv_bent(2, 1)(torch.zeros(1, 3)), ShapeError, "dim=2", id="wrong width"),
    ],
)
def test_errors(make, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(nn.Tanh, "class Tanh returned Tensor", id="no log|det|"),
        pytest.param(lambda: P4Spectrum(2, 2), "class P4Spectrum returned Tensor", id="a P4 layer without one"),
        pytest.param(lambda: zuko.flows.NSF(2), "class NSF returned NormalizingFlow.*FromZuko", id="a zuko flow"),
    ],
)
def test_a_layer_without_a_logabsdet_is_named(make, text: str, rows: int) -> None:
    flow = Flow([P4Inv(2), make()])
    with pytest.raises(OptionError, match=text):
        flow.log_prob(torch.zeros(rows, 2))
    with pytest.raises(OptionError, match=text):
        flow.stages(torch.zeros(rows, 2), to="latent")


def test_the_function_fold_leaves_a_flow_to_itself() -> None:
    flow = p4inv_bent(2, blocks=1, seed=0)
    model = nn.ModuleDict({"flow": flow, "plain": nn.Linear(2, 2)})
    folded = fold(model)
    assert not p4_modules(folded)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded["flow"].log_prob(x), flow.log_prob(x))
    torch.testing.assert_close(fold(flow).log_prob(x), flow.log_prob(x))


def test_any_whole_number_of_samples() -> None:
    flow = p4inv_bent(2, 1)
    assert flow.sample(np.int64(3)).shape == (3, 2)
    for n in (3.0, (3, 4)):
        with pytest.raises(ShapeError, match="expected a whole number of at least 0 samples"):
            flow.sample(n)  # type: ignore[arg-type]
