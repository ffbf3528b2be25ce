"""Butterflies of any width: who is paired with whom, and what the product can be."""

from __future__ import annotations

import pytest
import torch

from p4lab.baselines import Butterfly
from p4lab.baselines.designed import butterfly_partners

DIMS = [1, 2, 3, 4, 5, 7, 8, 12, 31, 33, 64]
dims = pytest.mark.parametrize("dim", DIMS, ids="d{}".format)


def amid_training(dim: int, size: float = 0.3) -> Butterfly:
    layer = Butterfly(dim, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return layer


@dims
def test_partners_pair_by_strides_and_are_mutual(dim: int) -> None:
    partners = butterfly_partners(dim)
    bits = max(1, (dim - 1).bit_length())
    assert partners.shape == (2 * bits - 1, dim)
    assert torch.equal(partners, partners.flip(0))
    identity = torch.arange(dim)
    for stage, partner in enumerate(partners[:bits]):
        assert torch.equal(partner[partner], identity)
        strides = (partner - identity).abs()
        assert bool(((strides == 0) | (strides == 2**stage)).all())
        assert dim == 1 or bool(strides.any())
    if dim & (dim - 1) == 0 and dim > 1:
        assert bool((partners != identity).all())  # in powers of 2 nobody is alone


@dims
@torch.no_grad()
def test_every_output_depends_on_every_input(dim: int) -> None:
    assert bool((amid_training(dim).weight != 0).all())


@dims
@torch.no_grad()
def test_inverse_and_log_det_are_exact(dim: int) -> None:
    layer = amid_training(dim, size=0.1)
    x = torch.randn(5, dim, dtype=torch.float64)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.logabsdet(), torch.linalg.slogdet(layer.weight).logabsdet, rtol=1e-9, atol=1e-9)


def test_the_number_of_parameters_is_d_log_d() -> None:
    assert sum(parameter.numel() for parameter in Butterfly(1024, bias=False).parameters()) == 2 * 19 * 1024


@torch.no_grad()
def test_it_can_be_a_hadamard_transform() -> None:
    """Its rising half alone is one: blocks (1, 1; 1, -1)."""
    layer = Butterfly(8, dtype=torch.float64)
    for stage, partner in enumerate(layer.partner[:3]):
        first = torch.arange(8) < partner
        layer.own[stage] = torch.where(first, 1.0, -1.0)
        layer.other[stage] = 1.0
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    torch.testing.assert_close(layer.weight, torch.kron(two, torch.kron(two, two)))
    torch.testing.assert_close(layer.logabsdet(), 12 * torch.tensor(2.0, dtype=torch.float64).log())
