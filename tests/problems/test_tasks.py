"""What methods are raced on: targets, data, losses and starts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from p4lab.baselines import METHODS
from p4lab.errors import OptionError
from p4lab.problems.likelihood_tasks import DigitsTask, ICATask
from p4lab.problems.linear_maps import MAPS, linear_target
from p4lab.problems.map_tasks import MapTask
from p4lab.problems.sources import PATCHES
from p4lab.problems.tasks import TASKS, WIDEST, task
from p4lab.training.race import unfit

DIM = 6


def model_of(name: str, method: str, **options: Any) -> tuple[Any, Any]:
    chosen = task(name, DIM, dtype=torch.float64)
    if METHODS[method].linear:
        options["bias"] = False
    return chosen, chosen.model(METHODS[method], 0, dtype=torch.float64, **options)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].group != "penalized"])
def test_every_method_starts_at_the_same_loss(name: str, method: str) -> None:
    if unfit(name, METHODS[method]):
        pytest.skip(unfit(name, METHODS[method]))
    chosen, model = model_of(name, method)
    _, reference = model_of(name, "dense")
    assert float(chosen.test_loss(model)) == pytest.approx(float(chosen.test_loss(reference)), rel=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_of_a_batch_can_be_trained(name: str) -> None:
    chosen, model = model_of(name, "dense")
    batch = chosen.batch(32, torch.Generator().manual_seed(0))
    assert {x.shape for x in tree_leaves(batch)} == {(32, chosen.dim)}
    loss = chosen.loss(model, batch)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("name", TASKS)
def test_the_same_generator_draws_the_same_batch(name: str) -> None:
    chosen = task(name, DIM)
    one, two = (chosen.batch(5, torch.Generator().manual_seed(7)) for _ in range(2))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


# --- maps ---


@pytest.mark.parametrize("dim", [2, 7, 32])
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "sign", "condition"),
    [
        pytest.param("ill_conditioned", 1, 100.0, id="ill-conditioned"),
        pytest.param("negative", -1, 1.0, id="negative"),
        pytest.param("so", 1, 1.0, id="rotation"),
    ],
)
def test_targets_have_their_determinant_and_condition(
    name: str, sign: int, condition: float, seed: int, dim: int
) -> None:
    matrix = linear_target(name, dim, seed).double()
    determinant_sign, logabsdet = torch.linalg.slogdet(matrix)
    assert float(determinant_sign) == sign
    assert float(logabsdet) == pytest.approx(0, abs=1e-4)  # singular values are 1, or from 1/10 to 10 symmetrically
    assert float(torch.linalg.cond(matrix)) == pytest.approx(condition, rel=1e-3)


def test_the_singular_values_go_from_a_tenth_to_ten() -> None:
    values = torch.linalg.svdvals(linear_target("ill_conditioned", 16, 1))
    assert (float(values[0]), float(values[-1])) == (pytest.approx(10, rel=1e-4), pytest.approx(0.1, rel=1e-4))


def test_spd_is_symmetric_positive_definite() -> None:
    matrix = linear_target("spd", 16, 1)
    torch.testing.assert_close(matrix, matrix.t())
    assert float(torch.linalg.eigvalsh(matrix)[0]) >= 0.5 - 1e-5


@pytest.mark.parametrize("name", [name for name in MAPS if name != "minus_identity"])
def test_seeds_make_targets(name: str) -> None:
    one, same, other = (linear_target(name, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_the_loss_of_a_map_is_the_mean_squared_error() -> None:
    target = linear_target("spd", DIM, 1)
    chosen, model = MapTask(target, torch.float64), METHODS["dense"].build(DIM, bias=False, dtype=torch.float64)
    x = chosen.batch(10_000, torch.Generator().manual_seed(0))
    exact = float((torch.eye(DIM) - target).square().sum()) / DIM
    assert float(chosen.loss(model, x).detach()) == pytest.approx(exact, rel=0.05)
    assert float(chosen.test_loss(model)) == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        pytest.param("dense", 1, id="knows"),
        pytest.param("plain", 0, id="does-not-know"),
        pytest.param("realnvp", 0, id="is-no-linear-layer"),
    ],
)
def test_who_is_asked_for_the_determinant(method: str, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, model = model_of("so", method)
    calls: list[None] = []
    monkeypatch.setattr(type(model), "logabsdet", lambda *_: calls.append(None))
    chosen.after_step(model)
    assert len(calls) == asked


def test_a_penalized_method_is_trained_with_its_penalty_and_judged_without() -> None:
    chosen, model = model_of("so", "soft_orthogonal")
    with torch.no_grad():
        model.matrix.mul_(2)
    x = chosen.batch(8, torch.Generator().manual_seed(0))
    _, plain = model_of("so", "dense", init=model.weight.detach())
    assert float(chosen.loss(model, x).detach()) == pytest.approx(
        float(chosen.loss(plain, x).detach()) + float(model.penalty().detach())
    )
    assert float(chosen.test_loss(model)) == pytest.approx(float(chosen.test_loss(plain)))


def test_eigenvalues_of_what_is_not_finite_are_not_numbers() -> None:
    chosen, model = model_of("so", "dense")
    z = torch.zeros(1, DIM)
    assert set(chosen.pictures(model, z)) == {"eigenvalues", "target"}
    with torch.no_grad():
        model.matrix.fill_(math.inf)
    assert bool(chosen.pictures(model, z)["eigenvalues"].isnan().all())


# --- independent components ---


@pytest.mark.parametrize("name", PATCHES)
def test_patches_are_white(name: str) -> None:
    x, basis = PATCHES[name](20)
    assert x.shape[1] == 20
    assert basis.shape == (20, 64)
    torch.testing.assert_close(x.mean(0), torch.zeros(20, dtype=x.dtype), rtol=0, atol=1e-9)
    torch.testing.assert_close(x.t() @ x / len(x), torch.eye(20, dtype=x.dtype), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, entry in TASKS.items() if entry.widest < WIDEST and not entry.fixed])
def test_data_that_are_too_narrow_are_a_named_error(name: str) -> None:
    most = TASKS[name].widest
    with pytest.raises(OptionError, match=f"dim={most + 1}: these images have at most {most} components"):
        task(name, most + 1)


@pytest.mark.parametrize(("name", "most"), [("ica_photos", 63), ("ica_digits", 60)])
def test_all_components_of_small_patches_are_white(name: str, most: int) -> None:
    x, _ = PATCHES[name](most)
    torch.testing.assert_close(x.t() @ x / len(x), torch.eye(most, dtype=x.dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PATCHES)
def test_mixing_by_a_rotation_keeps_data_white(name: str) -> None:
    x = task(name, DIM, dtype=torch.float64).batch(100_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.t() @ x / len(x), torch.eye(DIM, dtype=x.dtype), rtol=0, atol=0.2)


def test_the_basis_draws_the_components() -> None:
    """White components times the basis are the (centred) patches, if no component is left out."""
    x, basis = PATCHES["ica_digits"](60)
    from sklearn.datasets import load_digits

    pixels = torch.as_tensor(load_digits().data).double()
    pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
    error = x @ basis - (pixels - pixels.mean(0))
    assert float(error.square().mean()) < 1e-3 * float(pixels.var())


def ica(dim: int = 3) -> ICATask:
    sources = torch.randn(500, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixing = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    return ICATask(sources, mixing, torch.eye(dim, 4, dtype=torch.float64), torch.float64)


def test_the_gradient_of_the_likelihood() -> None:
    r"""The gradient is :math:`(E[tanh(W x) x^T] - W^{-T}) / d`."""
    chosen = ica()
    start = torch.eye(3, dtype=torch.float64) + 0.1
    model = METHODS["dense"].build(3, init=start, bias=False, dtype=torch.float64)
    x = chosen.batch(50, torch.Generator().manual_seed(2))
    chosen.loss(model, x).backward()
    expected = ((x @ start.t()).tanh().t() @ x / len(x) - torch.linalg.inv(start).t()) / 3
    torch.testing.assert_close(model.matrix.grad, expected)


def test_the_likelihood_is_that_of_its_density() -> None:
    chosen = ica()
    start = torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    model = METHODS["dense"].build(3, init=start, bias=False, dtype=torch.float64)
    x = chosen.batch(50, torch.Generator().manual_seed(2))
    density = 1 / (math.pi * (x @ start).cosh())
    expected = -(density.log().sum(1).mean() + torch.linalg.slogdet(start).logabsdet) / 3
    assert float(chosen.loss(model, x).detach()) == pytest.approx(float(expected))


def test_far_out_outputs_do_not_overflow() -> None:
    chosen = ica()
    model = METHODS["dense"].build(3, init=1e4 * torch.eye(3), bias=False, dtype=torch.float64)
    assert math.isfinite(float(chosen.test_loss(model)))


def test_test_data_are_not_trained_on() -> None:
    chosen = ica()
    rows = {tuple(row) for row in chosen.batch(5000, torch.Generator().manual_seed(0)).tolist()}
    assert not rows & {tuple(row) for row in chosen.test.tolist()}
    assert len(rows) == 400


def test_filters_are_pictures() -> None:
    chosen, model = model_of("ica_photos", "dense")
    images = chosen.pictures(model, torch.zeros(1))["images"]
    assert (images.shape, images.dtype) == ((DIM, 8, 8), torch.uint8)
    assert bool(((images == 255) | (images == 1)).flatten(1).any(1).all())  # each fills the range


# --- by name ---


def test_digits_stack_linear_layers() -> None:
    chosen = task("digits", 10)
    model = chosen.model(METHODS["plu"], 0)
    assert chosen.dim == 64
    assert len(model.linear_layers()) == DigitsTask.blocks + 1
    with pytest.raises(OptionError, match="'nice' is no linear layer"):
        chosen.model(METHODS["nice"], 0)


def test_an_unknown_task() -> None:
    with pytest.raises(OptionError, match="'somewhere' is not known: choose one of"):
        task("somewhere", 4)
