"""Functions of matrices that have to do with properties: the nearest ones, and penalties."""

from typing import Any

import pytest
import torch

from p4lab.baselines import property_maps
from p4lab.baselines.properties import PROPERTIES, WAYS, Spec
from p4lab.baselines.property_maps import averaged, clipped, unit_volume
from p4lab.problems.property_targets import violation

PENALTY_OF = {"positive_definite": "definite", "lipschitz": "norm"}


def noise(dim: int) -> torch.Tensor:
    return torch.randn(dim, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_group_average_is_the_nearest_that_commutes() -> None:
    raw = noise(16)
    mean = averaged(raw, 4)
    assert violation("permutation", mean) < 1e-14
    torch.testing.assert_close(averaged(mean, 4), mean)
    assert float(((raw - mean) * mean).sum()) == pytest.approx(0, abs=1e-12)


def test_clipping_is_the_nearest_within_the_bound() -> None:
    raw = noise(8)
    inside = clipped(raw, 0.7)
    assert violation("lipschitz", inside, 0.7) < 1e-14
    expected = (torch.linalg.svdvals(raw) - 0.7).relu().square().sum()
    assert float((raw - inside).square().sum()) == pytest.approx(float(expected))


def test_a_matrix_is_scaled_to_unit_volume() -> None:
    assert violation("volume", unit_volume(torch.diag(torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)))) < 1e-14


@pytest.mark.parametrize("prop", [prop for prop in PROPERTIES if prop != "invertible"])
def test_a_penalty_is_zero_where_the_property_holds_and_differentiable_elsewhere(prop: str) -> None:
    penalty = getattr(property_maps, f"{PENALTY_OF.get(prop, prop)}_penalty")
    start = PROPERTIES[prop].begin(torch.eye(8, dtype=torch.float64))
    assert float(penalty(start)) == pytest.approx(0, abs=1e-12)
    bad = 2 * torch.eye(8, dtype=torch.float64) + 0.1 * noise(8)
    assert float(penalty(bad)) > 0.01
    assert torch.autograd.gradcheck(penalty, bad.requires_grad_())


@pytest.mark.parametrize("prop", [prop for prop in PROPERTIES if prop != "invertible"])
def test_the_penalty_of_a_layer_is_a_mean_over_its_columns_and_knows_the_bound(prop: str) -> None:
    bound = 0.5 if PROPERTIES[prop].bounded else None
    layer: Any = PROPERTIES[prop].ways["penalty"].build(Spec(8, bound=bound))
    with torch.no_grad():
        layer.matrix.copy_(2 * torch.eye(8) + 0.1 * noise(8).float())
        penalty = getattr(property_maps, f"{PENALTY_OF.get(prop, prop)}_penalty")
        torch.testing.assert_close(layer.wish(), penalty(layer.weight / (bound or 1.0)) / 8)


def test_every_property_has_every_way() -> None:
    assert {tuple(prop.ways) for prop in PROPERTIES.values()} == {WAYS}
