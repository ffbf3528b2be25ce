"""Targets that have a property, and figures that notice when they do not."""

import math
from typing import Any

import pytest
import torch

from p4lab.baselines.properties import PROPERTIES
from p4lab.baselines.property_maps import channels_of
from p4lab.errors import OptionError, ShapeError
from p4lab.problems.property_targets import (
    PropertyProblem,
    property_target,
    violation,
)

EACH = pytest.mark.parametrize("prop", PROPERTIES)


def missed(prop: str, weight: torch.Tensor) -> float:
    return violation(prop, weight, 1.0, torch.linalg.inv(weight.double()))


class Identity(torch.nn.Module):
    weight = torch.eye(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@EACH
@pytest.mark.parametrize("dim", [2, 7, 16], ids="d{}".format)
def test_a_target_has_its_property_and_is_random(prop: str, dim: int) -> None:
    one, two = property_target(prop, dim, 0), property_target(prop, dim, 1)
    assert one.shape == (dim, dim)
    assert one.dtype == torch.float64
    assert missed(prop, one) < 1e-12
    assert not torch.allclose(one, two)
    assert torch.equal(one, property_target(prop, dim, 0))


@EACH
def test_the_identity_or_what_it_begins_with_has_the_property(prop: str) -> None:
    assert missed(prop, PROPERTIES[prop].begin(torch.eye(8))) < 1e-6


@EACH
def test_a_matrix_without_the_property_is_noticed(prop: str) -> None:
    target = property_target(prop, 16)
    bruised = target.clone()
    bruised[3, 1] += 0.01
    if prop == "lipschitz":
        bruised = 1.01 * target
    distance = violation(prop, bruised, 1.0, torch.linalg.inv(target))
    assert 1e-4 < distance < 0.2
    assert violation(prop, torch.full((4, 4), math.nan), 1.0, torch.eye(4)) == math.inf


@pytest.mark.parametrize(
    ("prop", "matrix", "expected"),
    [
        ("volume", torch.diag(torch.tensor([-1.0, 1.0])), 2.0),
        ("volume", torch.diag(torch.tensor([2.0, 2.0])), 3.0),
        ("positive_definite", torch.diag(torch.tensor([-0.5, 1.0])), 0.5),
        ("positive_definite", torch.tensor([[1.0, 0.3], [0.0, 1.0]]), 0.3),
        ("lipschitz", torch.diag(torch.tensor([2.5, 1.0])), 1.5),
        ("lipschitz", torch.diag(torch.tensor([0.5, 0.1])), 0.0),
    ],
    ids=["mirrored", "grown", "indefinite", "not-symmetric", "above", "below"],
)
def test_violations_are_what_they_say(prop: str, matrix: torch.Tensor, expected: float) -> None:
    assert violation(prop, matrix) == pytest.approx(expected)


def test_the_bound_counts_in_units_of_itself() -> None:
    assert violation("lipschitz", torch.eye(3), bound=0.8) == pytest.approx(0.25)


def test_equivariance_is_for_all_permutations_of_the_items() -> None:
    channels = channels_of(16)
    shift = torch.eye(16).roll(channels, 0)  # commutes with the cycle of the items, but not with exchanges
    assert violation("permutation", shift) == 1
    assert violation("circulant", shift) == 0


def test_without_an_inverse_there_is_no_figure() -> None:
    assert math.isnan(violation("invertible", torch.eye(2)))


@pytest.mark.parametrize("prop", PROPERTIES)
@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (4,), (0, 0)])
def test_weights_that_are_not_square_are_refused(prop: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(d, d\)"):
        violation(prop, torch.zeros(shape))


@pytest.mark.parametrize("call", [property_target, lambda name, dim: violation(name, torch.eye(dim))])
def test_unknown_properties_are_refused(call: Any) -> None:
    with pytest.raises(OptionError, match="property 'convex' is not known: choose one of"):
        call("convex", 4)


@pytest.mark.parametrize("dim", [0, -3])
def test_targets_have_a_width(dim: int) -> None:
    with pytest.raises(OptionError, match=f"dim={dim}: expected at least 1"):
        property_target("orthogonal", dim)


# --- the problem ------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_matrix() -> None:
    problem = PropertyProblem(property_target("orthogonal", 8))
    x, noise = problem.batch(50_000, torch.Generator().manual_seed(0))
    assert x.shape == noise.shape == (50_000, 8)
    exact = float(problem.test_loss(Identity()))
    assert exact == pytest.approx(float((property_target("orthogonal", 8) - torch.eye(8)).square().sum()) / 8, rel=1e-5)
    assert float(problem.loss(Identity(), (x, noise))) == pytest.approx(exact, rel=0.02)
    problem.noise = 0.5
    assert float(problem.loss(Identity(), (x, noise))) == pytest.approx(exact + 0.25, rel=0.02)


def test_noise_does_not_change_the_batches() -> None:
    target = property_target("volume", 8)
    one, two = (PropertyProblem(target, noise=noise).batch(4, torch.Generator().manual_seed(3)) for noise in (0, 1))
    assert all(map(torch.equal, one, two))


def test_few_samples_are_few() -> None:
    problem, generator = PropertyProblem(property_target("volume", 8), samples=5), torch.Generator().manual_seed(0)
    x, noise = problem.batch(400, generator)
    assert len(x.unique(dim=0)) == 5
    assert len(torch.cat([x, noise], 1).unique(dim=0)) == 5
    assert len(PropertyProblem(property_target("volume", 8)).batch(400, generator)[0].unique(dim=0)) == 400


def test_a_wish_is_part_of_the_loss() -> None:
    class Wishing(Identity):
        def wish(self) -> torch.Tensor:
            return torch.tensor(3.0)

    problem = PropertyProblem(property_target("volume", 8), strength=2.0)
    batch = problem.batch(4, torch.Generator().manual_seed(0))
    assert float(problem.loss(Wishing(), batch) - problem.loss(Identity(), batch)) == pytest.approx(6.0)
