"""NICE and RealNVP couplings: inverse and log|det| against the Jacobian."""

from __future__ import annotations

import pytest
import torch

from p4lab.baselines import Coupling
from p4lab.errors import OptionError

kinds = pytest.mark.parametrize("affine", [False, True], ids=["nice", "realnvp"])
dims = pytest.mark.parametrize("dim", [2, 3, 6], ids="d{}".format)


def amid_training(dim: int, affine: bool) -> Coupling:
    layer = Coupling(dim, affine=affine, hidden=8, seed=0, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@kinds
@dims
def test_starts_at_the_identity(dim: int, affine: bool) -> None:
    x = torch.randn(4, dim)
    y, logabsdet = Coupling(dim, affine=affine).with_logabsdet(x)
    assert torch.equal(y, x)
    assert torch.equal(logabsdet, torch.zeros(4))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)], ids=str)
@kinds
@dims
def test_inverse(dim: int, affine: bool, batch: tuple[int, ...]) -> None:
    layer, x = amid_training(dim, affine), torch.randn(*batch, dim, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=1e-10, atol=1e-10)
    assert layer.logabsdet(x).shape == batch


@kinds
@dims
def test_logabsdet_is_that_of_the_jacobian(dim: int, affine: bool) -> None:
    layer = amid_training(dim, affine)
    for x in torch.randn(4, dim, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(layer, x)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(layer.logabsdet(x), expected, rtol=1e-9, atol=1e-9)
        assert bool((jacobian != torch.eye(dim)).any(0).all())  # every coordinate takes part


def test_nice_preserves_volume() -> None:
    assert not amid_training(4, affine=False).logabsdet(torch.randn(9, 4, dtype=torch.float64)).any()


def test_log_scales_are_bounded() -> None:
    layer, x = amid_training(4, affine=True), 1e6 * torch.randn(9, 4, dtype=torch.float64)
    assert layer.logabsdet(x).abs().max() <= 4 * 2


def test_refuses_what_cannot_be_split() -> None:
    with pytest.raises(OptionError, match="dim >= 2"):
        Coupling(1)
    with pytest.raises(OptionError, match="hidden >= 1"):
        Coupling(2, hidden=0)
