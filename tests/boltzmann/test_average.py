"""Averages over groups: normalization, symmetry, samples, and images that are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from p4lab.boltzmann import GroupAverage, TemperedFlow, representatives, steerable_flow
from p4lab.errors import P4Error
from p4lab.flows import Flow, Standardize, realnvp
from p4lab.problems.planar import PlanarShapes

DOUBLE = torch.float64


def both_signs(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x, -x], -2)


def off_centre() -> GroupAverage:
    """Return two Gaussians, at -2 and 2, of one that stands at 2."""
    return of_images(both_signs)


def of_images(images: Callable[[torch.Tensor], torch.Tensor], positions: int = 1) -> GroupAverage:
    layer = Standardize(torch.full((1,), 2.0, dtype=DOUBLE), torch.ones(1, dtype=DOUBLE))
    return GroupAverage(Flow([layer]), images, positions)


def test_the_average_is_known_and_normalized() -> None:
    x = torch.linspace(-9, 9, 2001, dtype=DOUBLE)[:, None]
    log_q = off_centre().log_prob(x)
    parts = [-0.5 * (x[:, 0] - at).square() - 0.5 * math.log(2 * math.pi) for at in (-2, 2)]
    torch.testing.assert_close(log_q, torch.logaddexp(*parts) - math.log(2))
    assert float(log_q.exp().sum() * 18 / 2000) == pytest.approx(1.0, abs=1e-9)


def test_samples_come_from_all_copies_with_their_density() -> None:
    model = off_centre()
    x, log_q = model.sample_with_log_prob(4000, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(log_q, model.log_prob(x))
    assert float((x > 0).double().mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["steered", "tempered"])
def test_shapes_with_momenta_or_a_temperature_have_the_symmetry(kind: str, temperature: float) -> None:
    shapes = PlanarShapes(3)
    if kind == "steered":
        base = steerable_flow(3, 2, 2, hidden=8, dtype=DOUBLE)
    else:
        base = TemperedFlow(realnvp(3, 2, hidden=8, context=1, dtype=DOUBLE))
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
            parameter.requires_grad_(False)
    model = GroupAverage(base, shapes.images, 3)
    y, log_q = model.sample_with_log_prob(6, generator=torch.Generator().manual_seed(0), temperature=temperature)
    for image in model.all_images(y).unbind(1):
        torch.testing.assert_close(model.log_prob(image, temperature=temperature), log_q)
    assert float((base.log_prob(y, temperature=temperature) - log_q).abs().max()) > 1e-3


def test_drawn_images_are_images_and_their_gradient_is_that_of_the_average() -> None:
    model = off_centre()
    layer = model.base.layers[0]
    x = torch.tensor([0.3], dtype=DOUBLE).expand(40_000, 1)
    drawn = model.drawn(x, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.abs(), x)
    share = torch.sigmoid(torch.tensor(2 * 0.3 * 2.0))
    assert float((drawn > 0).double().mean()) == pytest.approx(float(share), abs=0.01)
    # d log q / d mean, of the average and by images
    at = layer.mean.clone().requires_grad_()

    def log_b(y: torch.Tensor) -> torch.Tensor:
        return -0.5 * (y - at).square().sum(-1)

    (exact,) = torch.autograd.grad(torch.logaddexp(log_b(x[:1]), log_b(-x[:1])).sum(), at)
    (guess,) = torch.autograd.grad(log_b(drawn).mean(), at)
    assert float(guess) == pytest.approx(float(exact), abs=0.01)


def test_representatives_are_images_of_one_kind() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = 2.0 * torch.randint(0, 2, (500, 1), generator=generator) - 1
    x = sides * (torch.tensor([3.0, -1.0]) + 0.5 * torch.randn(500, 2, generator=generator))
    one = representatives(both_signs(x))
    assert torch.equal(one.abs(), x.abs())
    assert int((one[:, 0] > 0).sum()) in (0, 500)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        pytest.param(lambda: off_centre().log_prob(torch.zeros(3, 2)), r"expected \(n, 1\)", id="width"),
        pytest.param(lambda: off_centre().log_prob(torch.zeros(1)), r"expected \(n, 1\)", id="one-point"),
        pytest.param(lambda: representatives(torch.zeros(4, 2, 2)), "n above 2 d", id="few"),
        pytest.param(lambda: representatives(torch.ones(20, 2, 3)), "fewer than d directions", id="one-place"),
        pytest.param(lambda: of_images(lambda x: torch.stack([x, -2 * x], -2)), "finite group", id="larger"),
        pytest.param(lambda: of_images(lambda x: torch.stack([x, x + 1], -2)), "finite group", id="no-group"),
        pytest.param(lambda: of_images(lambda x: x), r"expected \(1, \|G\|, 1\)", id="no-images"),
        pytest.param(lambda: of_images(both_signs, 2), "positions=2: expected 1 to 1", id="positions"),
    ],
)
def test_errors(call, said: str) -> None:
    with pytest.raises(P4Error, match=said):
        call()
