"""Wide tasks: photo patches of every size, coloured inputs, known sources, flows, and training through the inverse."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from p4lab.baselines import METHODS
from p4lab.errors import MissingPackageError, OptionError
from p4lab.problems.likelihood_tasks import MOST_TESTED, REVERSE, ICATask, LikelihoodTask, energy_score
from p4lab.problems.linear_maps import CONDITION, colouring, linear_target
from p4lab.problems.map_tasks import DRAWN_WIDTH, POOL, TEST_SIZE, MapTask
from p4lab.problems.rates import Choice, choice
from p4lab.problems.sources import MORE_PHOTOS, SECH_ENTROPY, log_cosh, patch_side, photo_patches, sech_noise
from p4lab.problems.sources import sech_sources as known_sources
from p4lab.problems.tasks import BOTH_WAYS, TASKS, WIDEST, task
from p4lab.training.race import RaceConfig, racer, unfit

DIM = 6
BOTH = [name for name, entry in TASKS.items() if entry.both]
STARTED = {
    "spd": (3.0491115466316687, 3.623210382789422, 4.146674273320733, 1.8003064770713948),
    "so": (2.155962776114229, 2.0766058372251406, 2.1712337427577224, 1.4789917986460681),
    "minus_identity": (4.022375591764376, 4.150007371391684, 3.701781656700229, 3.0877295010462227),
    "ill_conditioned": (18.998955920871463, 22.12872183128224, 13.206268217347915, 15.434942930203075),
    "negative": (2.207391840744984, 2.4249215232870034, 1.9212908307299883, 1.6737142244101895),
    "digits": (1.8459899006532585, 1.8105910790158353, 1.8117369696574328, 1.7893625563013353),
}
"""The test loss at the start, and the losses of three steps, from before there were wide tasks."""


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense(dim: int, matrix: Tensor) -> Any:
    return METHODS["dense"].build(dim, init=matrix.double(), bias=False, dtype=torch.float64)


def near_identity(dim: int) -> Tensor:
    return torch.eye(dim, dtype=torch.float64) + 0.1 * torch.randn(dim, dim, generator=seeded(3), dtype=torch.float64)


# --- what was there before ---


@pytest.mark.parametrize("name", STARTED)
def test_tasks_are_what_they_were(name: str) -> None:
    config = RaceConfig(task=name, methods="dense", dim=8, batch_size=16, dtype="float64")
    lane = racer(config, "dense", Choice("sgd", 0.1))
    lane.run(3)
    found = [lane.records.measures.columns["test_loss"][0], *lane.records.steps.columns["loss"]]
    assert found == pytest.approx(STARTED[name], rel=1e-7)


@pytest.mark.parametrize(
    ("dim", "squares", "variances"),
    [
        (5, (11.067381572302967, 6.520184729993899, 0.04589147716870231), (1314.726568786365, 4963.875436700021)),
        (63, (18.34174621476504, 117.25949793175755, 8.60876143172783), (36.9090338114953, 4963.875436700021)),
    ],
)
def test_small_patches_are_what_they_were(dim: int, squares: Any, variances: Any) -> None:
    """Signs of components are LAPACK's; what does not depend on them has the numbers of the first release."""
    x, basis = photo_patches(dim)
    assert (x.shape, x.dtype, basis.shape) == ((20_000, dim), torch.float64, (dim, 64))
    assert x[:3].square().sum(1).tolist() == pytest.approx(squares, rel=1e-6)
    assert basis.square().sum(1)[[0, -1]].tolist() == pytest.approx(variances, rel=1e-6)


# --- photo patches ---


@pytest.mark.parametrize(
    ("dim", "side"), [(2, 8), (63, 8), (64, 16), (255, 16), (256, 24), (575, 24), (576, 32), (1023, 32)]
)
def test_the_side_of_a_patch_follows_from_the_width(dim: int, side: int) -> None:
    assert patch_side(dim) == side


def test_wider_patches_do_not_exist() -> None:
    with pytest.raises(OptionError, match="dim=1024: these images have at most 1023 components"):
        patch_side(1024)


@pytest.mark.parametrize("dim", [64, 255])
def test_wide_patches_are_white(dim: int) -> None:
    x, basis = photo_patches(dim)
    assert (len(x), basis.shape) == (20_000, (dim, 256))
    assert x.dtype == torch.float32
    covariance = x.double().t() @ x.double() / len(x)
    torch.testing.assert_close(covariance, torch.eye(dim, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_widest_patches_are_white() -> None:
    chosen: Any = task("ica_photos", 1023)
    assert (chosen.train.dtype, len(chosen.test)) == (torch.float32, MOST_TESTED)
    rows = torch.cat([chosen.train, chosen.test]).double()
    covariance = rows.t() @ rows / len(rows)
    torch.testing.assert_close(covariance, torch.eye(1023, dtype=torch.float64), rtol=0, atol=1e-3)


def test_wide_patches_come_from_ten_photos() -> None:
    import skimage.data

    assert len(MORE_PHOTOS) == 8
    for name in MORE_PHOTOS:
        assert min(getattr(skimage.data, name)().shape[:2]) > 32


def test_without_scikit_image_wide_patches_are_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    photo_patches.cache_clear()
    with pytest.raises(MissingPackageError, match=r"skimage is not installed.*p4lab\[lab\]"):
        task("ica_photos", 64)
    task("ica_photos", 63)


# --- coloured inputs ---


def test_the_covariance_of_coloured_inputs() -> None:
    colours = colouring(12, seeded())
    covariance = colours.t() @ colours
    variances = torch.linalg.eigvalsh(covariance)
    assert float(variances.sum()) == pytest.approx(12)
    ratios = variances[1:] / variances[:-1]
    assert ratios.tolist() == pytest.approx([CONDITION ** (1 / 11)] * 11)
    assert float((covariance - torch.diag(covariance.diagonal())).abs().max()) > 0.1  # the axes are no coordinates


@pytest.mark.parametrize("name", ["spd_coloured", "so_coloured"])
def test_training_and_test_inputs_are_coloured_alike(name: str) -> None:
    chosen: Any = task(name, DIM, dtype=torch.float64)
    x = chosen.batch(100_000, seeded())
    covariance = x.t() @ x / len(x)
    variances = torch.linalg.eigvalsh(covariance)
    assert float(variances[-1] / variances[0]) == pytest.approx(CONDITION, rel=0.1)
    weight = near_identity(DIM)
    error = weight - chosen.target
    exact = float((error @ covariance).mul(error).sum()) / DIM
    model = dense(DIM, weight)
    assert float(chosen.loss(model, x).detach()) == pytest.approx(exact, rel=1e-9)
    assert float(chosen.test_loss(model)) == pytest.approx(exact, rel=0.15)


def test_test_inputs_are_not_trained_on() -> None:
    chosen: Any = task("so_coloured", 3, dtype=torch.float64)
    rows = {tuple(row) for row in chosen.batch(POOL, seeded()).tolist()}
    fresh = torch.randn(TEST_SIZE + POOL, 3, generator=seeded(1), dtype=torch.float64)
    coloured = fresh @ colouring(3, seeded(1_000_001))
    assert not rows & {tuple(row) for row in coloured[:TEST_SIZE].tolist()}
    assert rows <= {tuple(row) for row in coloured[TEST_SIZE:].tolist()}


def test_a_map_that_is_too_wide_to_be_drawn_is_not_drawn() -> None:
    narrow, wide = (task("so", dim) for dim in (DRAWN_WIDTH, DRAWN_WIDTH + 1))
    for chosen, drawn in ((narrow, True), (wide, False)):
        model = chosen.model(METHODS["plain"], 0, bias=False)
        assert (chosen.watched(model) is not None) is drawn
        assert bool(chosen.pictures(model, torch.zeros(1))) is drawn


# --- both ways ---


def test_the_loss_of_a_map_both_ways() -> None:
    target = linear_target("spd", DIM, 1).double()
    chosen = MapTask(target, torch.float64, both=True)
    weight = near_identity(DIM)
    x = chosen.batch(50, seeded())
    y = x @ target.t()
    expected = (x @ weight.t() - y).square().mean() + (y @ torch.linalg.inv(weight).t() - x).square().mean()
    assert float(chosen.loss(dense(DIM, weight), x).detach()) == pytest.approx(float(expected))
    assert float(chosen.test_loss(dense(DIM, target))) == pytest.approx(0.0, abs=1e-20)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("method", ["p4inv", "plu", "dense", "relative", "cayley_descent"])
def test_both_ways_have_the_gradient_of_the_loss(name: str, method: str) -> None:
    """A small step along what the optimizer does brings the loss of the same batch down."""
    config = RaceConfig(task=name, methods=method, dim=DIM, dtype="float64")
    lane = racer(config, method, Choice(next(iter(METHODS[method].optimizers)), 1e-3))
    batch = lane.problem.batch(64, seeded())
    before = lane.problem.loss(lane.model, batch)
    lane.optimizer.zero_grad()
    before.backward()
    lane.optimizer.step()
    assert float(lane.problem.loss(lane.model, batch).detach()) < float(before.detach())


@pytest.mark.parametrize("name", BOTH)
def test_who_knows_no_inverse_is_unfit(name: str) -> None:
    one_way = name.removesuffix("_both")
    assert one_way in BOTH_WAYS
    for method in METHODS.values():
        if not unfit(one_way, method):
            reason = unfit(name, method)
            assert bool(reason) is not method.exact_inverse
            assert not reason or reason == f"the loss of {name!r} needs the inverse, which it does not know"
    assert unfit("so_both", METHODS["plain"])


def test_the_energy_score_is_the_least_for_the_distribution_of_the_data() -> None:
    x, samples = (torch.randn(200_000, 3, generator=seeded(seed), dtype=torch.float64) for seed in (0, 1))
    scores = [
        float(energy_score(scale * samples + shift, x)) for scale, shift in ((1, 0), (0.7, 0), (1.4, 0), (1, 0.5))
    ]
    assert min(scores) == scores[0]
    # E|s - x| = E|s - s'| = sqrt(2) E|n| for standard normal n, and E|n| = 2 sqrt(2 / pi) for d = 3
    assert scores[0] == pytest.approx(0.5 * math.sqrt(2) * 2 * math.sqrt(2 / math.pi) / math.sqrt(3), rel=1e-2)


def test_the_energy_score_by_its_formula() -> None:
    samples, x = (torch.tensor(rows, dtype=torch.float64) for rows in ([[0, 0], [3, 4]], [[0, 1], [3, 4]]))
    assert float(energy_score(samples, x)) == pytest.approx(((1 + 0) / 2 - 5 / 2) / math.sqrt(2))


# --- known sources ---


def test_sources_have_their_density() -> None:
    s = sech_noise(200_000, 1, seeded())
    assert float(s.mean()) == pytest.approx(0, abs=0.02)
    assert float(s.square().mean()) == pytest.approx(math.pi**2 / 4, rel=0.02)
    assert float((log_cosh(s) + math.log(math.pi)).mean()) == pytest.approx(SECH_ENTROPY, abs=0.01)


def test_known_sources_are_drawn_as_pixels() -> None:
    x, basis = known_sources(5)
    assert (x.shape[1], basis.shape) == (5, (5, 9))
    assert bool((basis.sum(1) == 1).all())


def test_the_reverse_divergence_by_its_definition() -> None:
    """From densities: E log q - log p over samples of the model, with log p(z) replaced by its mean, the entropy."""
    mixing = near_identity(3) @ torch.diag(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    sources = sech_noise(500, 3, seeded())
    chosen = ICATask(sources, mixing, torch.eye(3, 4, dtype=torch.float64), torch.float64, both=True, known=True)
    weight = near_identity(3) + 0.2
    x, z = chosen.batch(50, seeded(5))
    samples = z @ torch.linalg.inv(weight).t()

    def log_density(points: Tensor, unmixing: Tensor) -> Tensor:
        density = 1 / (math.pi * (points @ unmixing.t()).cosh())
        return density.log().sum(1) + torch.linalg.slogdet(unmixing).logabsdet

    log_q = log_density(samples, weight).mean()
    log_q = log_q + (-SECH_ENTROPY * 3 - (1 / (math.pi * z.cosh())).log().sum(1).mean())
    reverse = (log_q - log_density(samples, torch.linalg.inv(mixing)).mean()) / 3
    likelihood = -log_density(x, weight).mean() / 3
    found = float(chosen.loss(dense(3, weight), (x, z)).detach())
    assert found == pytest.approx(float(likelihood + REVERSE * reverse))


def test_the_true_unmixing_is_the_optimum() -> None:
    chosen: Any = task("ica_sources_both", DIM, dtype=torch.float64)
    mixing = colouring(DIM, seeded(1)).t()
    unmixing = torch.linalg.inv(mixing)
    at_truth = float(chosen.test_loss(dense(DIM, unmixing)))
    entropy = SECH_ENTROPY + float(torch.linalg.slogdet(mixing).logabsdet) / DIM
    assert at_truth == pytest.approx(entropy, abs=0.02)  # the likelihood; the divergence is 0
    for seed in range(3):
        noise = torch.randn(DIM, DIM, generator=seeded(seed), dtype=torch.float64)
        assert float(chosen.test_loss(dense(DIM, (torch.eye(DIM) + 0.1 * noise) @ unmixing))) > at_truth


# --- flows ---


def test_the_loss_of_a_flow_of_patches() -> None:
    chosen: Any = task("patches_both", DIM, dtype=torch.float64)
    model = chosen.model(METHODS["dense"], 0, dtype=torch.float64)
    assert len(model.linear_layers()) == chosen.blocks + 1
    x, z = chosen.batch(20, seeded())
    expected = -model.log_prob(x).mean() / DIM + energy_score(model.inverse(z), x)
    assert float(chosen.loss(model, (x, z)).detach()) == pytest.approx(float(expected.detach()))
    images = chosen.pictures(model, z)["images"]
    assert (images.shape, images.dtype) == ((20, 8, 8), torch.uint8)
    assert isinstance(chosen, LikelihoodTask)


def test_a_flow_of_patches_is_for_linear_layers() -> None:
    with pytest.raises(OptionError, match="'nice' is no linear layer"):
        task("patches", DIM).model(METHODS["nice"], 0)


# --- by name ---


def test_every_entry_says_the_width_of_its_task() -> None:
    for name, entry in TASKS.items():
        assert task(name, DIM).dim == entry.width(DIM)
        assert entry.widest <= WIDEST


@pytest.mark.parametrize("name", ["so_coloured", "spd_both", "ica_sources", "patches_both"])
def test_tasks_that_nobody_tuned_have_rates_that_train(name: str) -> None:
    config = RaceConfig(task=name, methods="p4inv", dim=32)
    lane = racer(config, "p4inv", choice(name, METHODS["p4inv"], 32))
    start = float(lane.problem.test_loss(lane.model))
    lane.run(30)
    assert float(lane.problem.test_loss(lane.model)) < start
