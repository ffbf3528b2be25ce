"""A layer that learns its inverse: gradients by hand, the truth in evaluation, and an ICA that it solves."""

from __future__ import annotations

import copy

import pytest
import torch
from p4.dense_twin import BATCHES, well_conditioned
from torch import Tensor

from p4lab.baselines import METHODS, SelfNormalizing, penalty
from p4lab.problems.tasks import ICATask

D = 6


def layer_of(error: float = 0.1, **options: object) -> SelfNormalizing:
    """A layer whose learned inverse is wrong by about this."""
    layer = SelfNormalizing(D, init=well_conditioned(D), dtype=torch.float64, **options)
    with torch.no_grad():
        layer.learned_inverse.add_(error * torch.randn(D, D).double())
        layer.bias.normal_()
    return layer


@pytest.mark.parametrize("init", ["permutation", "orthogonal"])
def test_it_starts_with_the_inverse(init: str) -> None:
    layer = SelfNormalizing(D, init=init, dtype=torch.float64)
    assert layer.violation() < 1e-12
    scaled = SelfNormalizing(D, init=2 * torch.eye(D))
    assert torch.equal(scaled.learned_inverse, torch.eye(D) / 2)
    torch.testing.assert_close(scaled.logabsdet(), D * torch.tensor(2.0).log())


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_both_directions_have_their_own_matrix(batch: tuple[int, ...]) -> None:
    layer, x = layer_of(), torch.randn(*batch, D, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.matrix.T + layer.bias)
    torch.testing.assert_close(layer.inverse(x), (x - layer.bias) @ layer.learned_inverse.T)
    assert layer.violation() > 1e-3


def test_log_det_has_the_learned_gradient_in_training() -> None:
    layer = layer_of()
    (3 * layer.logabsdet()).backward()
    torch.testing.assert_close(layer.matrix.grad, 3 * layer.learned_inverse.detach().T)
    assert layer.learned_inverse.grad is None
    exact = layer_of(error=0.0)
    exact.logabsdet().backward()
    torch.testing.assert_close(exact.matrix.grad, torch.linalg.inv(exact.matrix.detach()).T)


def test_log_det_is_that_of_the_last_evaluation_in_training_and_the_truth_in_evaluation() -> None:
    layer = layer_of()
    start = torch.linalg.slogdet(layer.matrix.detach()).logabsdet
    with torch.no_grad():
        layer.matrix.mul_(2)
    truth = torch.linalg.slogdet(layer.matrix.detach()).logabsdet
    torch.testing.assert_close(layer.logabsdet().detach(), start)
    with torch.no_grad():
        torch.testing.assert_close(layer.logabsdet(), truth)
    torch.testing.assert_close(layer.logabsdet().detach(), truth)
    evaluated = layer.eval().logabsdet()
    evaluated.backward()
    torch.testing.assert_close(evaluated.detach(), truth)
    torch.testing.assert_close(layer.matrix.grad, torch.linalg.inv(layer.matrix.detach()).T)


def test_the_penalty_by_hand() -> None:
    layer, x = layer_of(), torch.randn(5, D, dtype=torch.float64, requires_grad=True)
    assert layer.penalty() == 0
    layer(torch.randn(3, D).double())
    layer(x)
    w, r = (p.detach().clone().requires_grad_() for p in (layer.matrix, layer.learned_inverse))
    expected = 0.5 * (x.detach() @ w.T @ r.T - x.detach()).square().mean()
    expected.backward()
    found = layer.penalty(0.5)
    found.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(layer.matrix.grad, w.grad)
    torch.testing.assert_close(layer.learned_inverse.grad, r.grad)
    assert x.grad is None
    torch.testing.assert_close(penalty(layer), 2 * found)


def test_what_is_evaluated_is_not_penalized_and_copies_have_no_batch() -> None:
    layer, x = layer_of(), torch.randn(5, D, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    assert layer.train().penalty() == 0
    layer(x[:0])
    assert layer.penalty() == 0
    layer(x)
    assert layer.penalty() > 0
    assert copy.deepcopy(layer).penalty() == 0
    assert layer.float().penalty() == 0


def trained(name: str, task: ICATask, steps: int = 400) -> tuple[SelfNormalizing, Tensor]:
    layer = METHODS[name].build(D, bias=False, dtype=torch.float64, seed=0)
    optimizer = METHODS[name].optimizer(layer, 1e-2, "adam")
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(layer, task.batch(64, generator)).backward()
        optimizer.step()
    return layer, task.test_loss(layer)


def test_it_solves_an_ica_as_dense_weights_do() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(4000, D, generator=generator, dtype=torch.float64)
    sources = torch.log(torch.tan(torch.pi / 2 * uniform))  # of density 1 / (pi cosh s)
    eye = torch.eye(D, dtype=torch.float64)
    task = ICATask(sources, well_conditioned(D), eye, dtype=torch.float64)
    start = task.test_loss(METHODS["dense"].build(D, bias=False, dtype=torch.float64))
    layer, loss = trained("self_normalizing", task)
    _, best = trained("dense", task)
    assert best < start - 0.05
    assert loss < best + 0.02
    assert 1e-6 < layer.violation() < 0.5
    with torch.no_grad():
        torch.testing.assert_close(layer.logabsdet(), torch.linalg.slogdet(layer.matrix).logabsdet)
