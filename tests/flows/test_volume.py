"""Volume-preserving couplings: log|det| is 0 whatever they have learnt, and both directions belong together."""

from __future__ import annotations

import pytest
import torch
from flows.examples import disturb
from torch import Tensor

from p4lab.errors import DtypeError, OptionError, ShapeError
from p4lab.flows import AffineCoupling
from p4lab.flows.coupling import VolumePreservingCoupling

DIMS = pytest.mark.parametrize("dim", [2, 3, 5, 8])


def trained(dim: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> VolumePreservingCoupling:
    layer = VolumePreservingCoupling(dim, hidden=8, seed=seed, dtype=dtype)
    disturb(layer, 0.5)
    return layer


def jacobians(function, x: Tensor) -> Tensor:
    return torch.stack([torch.autograd.functional.jacobian(lambda row: function(row[None])[0][0], row) for row in x])


@DIMS
def test_log_determinants_are_those_of_autograd(dim: int) -> None:
    layer, x = trained(dim), torch.randn(6, dim, dtype=torch.float64)
    for function in (layer, layer.inverse):
        signs, exact = torch.linalg.slogdet(jacobians(function, x))
        assert (signs > 0).all()
        torch.testing.assert_close(exact, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(function(x)[1], exact, atol=1e-12, rtol=0)


@DIMS
def test_it_moves_half_of_the_coordinates_and_back(dim: int) -> None:
    layer, x = trained(dim), torch.randn(4, 5, dim, dtype=torch.float64)
    y, _ = layer(x)
    assert torch.equal(y[..., : dim // 2], x[..., : dim // 2])
    assert ((y - x)[..., dim // 2 :].abs() > 1e-6).all()
    torch.testing.assert_close(layer.inverse(y)[0], x)
    torch.testing.assert_close(layer(layer.inverse(x)[0])[0], x)


@pytest.mark.parametrize(("dim", "scaled"), [(2, False), (3, True), (5, True)])
def test_scales_multiply_to_one(dim: int, scaled: bool) -> None:
    layer, x = trained(dim), torch.randn(50, dim, dtype=torch.float64)
    slopes = jacobians(layer, x)[:, dim // 2 :, dim // 2 :].diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(slopes.prod(-1), torch.ones(50, dtype=torch.float64))
    assert bool((slopes - 1).abs().max() > 0.05) is scaled  # one coordinate alone cannot be scaled


def test_scales_stay_in_bounds_however_large_the_weights() -> None:
    layer, x = trained(6), torch.randn(100, 6, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1e3)
    slopes = jacobians(layer, x)[:, 3:, 3:].diagonal(dim1=-2, dim2=-1)
    assert float(slopes.log().abs().max()) < 4


def test_it_starts_at_the_identity() -> None:
    x = torch.randn(5, 4)
    y, logabsdet = VolumePreservingCoupling(4, seed=1)(x)
    torch.testing.assert_close(y, x)
    assert torch.equal(logabsdet, torch.zeros(5))


def test_it_passes_gradients_in_both_directions() -> None:
    layer = trained(3)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], x)
    assert torch.autograd.gradcheck(lambda x: layer.inverse(x)[0], x)


def test_a_seed_is_a_network() -> None:
    def weights(layer: torch.nn.Module) -> list[Tensor]:
        return list(layer.state_dict().values())

    one, same, other = (VolumePreservingCoupling(3, seed=seed) for seed in (1, 1, 2))
    drawn = VolumePreservingCoupling(3, seed=torch.Generator().manual_seed(4))
    again = VolumePreservingCoupling(3, seed=torch.Generator().manual_seed(4))
    assert all(map(torch.equal, weights(one), weights(same)))
    assert not all(map(torch.equal, weights(one), weights(other)))
    assert all(map(torch.equal, weights(drawn), weights(again)))


def test_it_keeps_the_volume_that_an_affine_coupling_does_not() -> None:
    free = AffineCoupling(4, hidden=8, seed=0, dtype=torch.float64)
    disturb(free, 0.5)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert float(free(x)[1].detach().abs().min()) > 1e-3
    assert float(trained(4)(x)[1].detach().abs().max()) == 0


@pytest.mark.parametrize("options", [{"dim": 1}, {"dim": 3, "hidden": 0}, {"dim": 3, "depth": 0}], ids=str)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="expected dim >= 2"):
        VolumePreservingCoupling(**options)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(
    ("x", "error"),
    [(torch.zeros(2, 4), ShapeError), (torch.zeros(2, 3, dtype=torch.float64), DtypeError)],
    ids=["width", "dtype"],
)
def test_points_that_do_not_fit_are_refused(direction: str, x: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="VolumePreservingCoupling"):
        getattr(VolumePreservingCoupling(3), direction)(x)
