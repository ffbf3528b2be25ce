"""Volume-preserving layers on the torus: log|det|, inverse, no seam, and linear layers beside angles."""

from __future__ import annotations

import math

import pytest
import torch
from flows.examples import disturb
from torch import Tensor, nn

from p4lab.errors import DtypeError, OptionError, ShapeError
from p4lab.flows import Whitening
from p4lab.flows.torus import HARMONICS, BesideAngles, TorusCoupling, harmonics
from p4lab.p4 import P4Inv

DOUBLE = torch.float64


def beside() -> BesideAngles:
    return BesideAngles(P4Inv(4, init="orthogonal", seed=1, dtype=DOUBLE), 3)


def coupling(angles: int = 3, numbers: int = 4) -> TorusCoupling:
    return TorusCoupling(angles, numbers, hidden=8, seed=0, dtype=DOUBLE)


LAYERS = pytest.mark.parametrize(
    "make",
    [
        pytest.param(coupling, id="coupling"),
        pytest.param(lambda: coupling(2, 5), id="odd"),
        pytest.param(lambda: coupling(5, 2), id="angles"),
        pytest.param(beside, id="beside"),
    ],
)


def amid_training(make) -> nn.Module:
    layer = make()
    disturb(layer, 0.4)
    return layer


def points(layer: nn.Module, n: int = 6) -> Tensor:
    return 2 * torch.randn(n, layer.dim, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


@LAYERS
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_log_determinants_are_those_of_autograd(make, direction: str) -> None:
    layer = amid_training(make)
    x, function = points(layer), getattr(layer, direction)
    jacobian = [torch.autograd.functional.jacobian(lambda row: function(row[None])[0][0], row) for row in x]
    exact = torch.linalg.slogdet(torch.stack(jacobian))[1]
    torch.testing.assert_close(function(x)[1].detach(), exact, atol=1e-9, rtol=0)


@LAYERS
def test_both_directions_belong_together(make) -> None:
    layer = amid_training(make)
    x = points(layer)
    y, _ = layer(x)
    assert float((y - x).detach().abs().max()) > 0.1
    torch.testing.assert_close(layer.inverse(y)[0], x)
    torch.testing.assert_close(layer(layer.inverse(x)[0])[0], x)


@LAYERS
def test_there_is_no_seam(make) -> None:
    layer = amid_training(make)
    x = points(layer)
    full = torch.zeros(layer.dim, dtype=DOUBLE)
    full[: layer.angles] = 2 * math.pi * torch.tensor([1.0, -2.0, 3.0, 1.0, 5.0], dtype=DOUBLE)[: layer.angles]
    torch.testing.assert_close(layer(x + full)[0], layer(x)[0] + full)
    torch.testing.assert_close(layer.inverse(x + full)[0], layer.inverse(x)[0] + full)


def test_every_coordinate_moves_and_every_angle_counts() -> None:
    layer = amid_training(coupling)
    x = points(layer, 1)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0][0], x)[:, 0]
    moved = (jacobian - torch.eye(7, dtype=DOUBLE)).abs() > 1e-6
    assert moved.any(1).tolist() == [True, True, True, False, False, True, True]  # the first half of numbers stays
    assert moved[:, :5].any(0).all()


def test_the_coupling_starts_at_the_identity() -> None:
    x = torch.randn(5, 7)
    torch.testing.assert_close(TorusCoupling(3, 4, hidden=8)(x)[0], x)


def test_harmonics_are_sines_and_cosines_of_multiples() -> None:
    values = harmonics(torch.tensor([[0.3, -1.0]], dtype=DOUBLE))[0].tolist()
    multiples = [k * a for k in range(1, HARMONICS + 1) for a in (0.3, -1.0)]
    assert values == pytest.approx([math.cos(m) for m in multiples] + [math.sin(m) for m in multiples])


def test_linear_layers_beside_angles_are_themselves() -> None:
    linear = Whitening.fit(torch.randn(50, 3, dtype=DOUBLE) * 4 + 1)
    layer, x = BesideAngles(linear, 2), torch.randn(5, 5, dtype=DOUBLE)
    y, logabsdet = layer(x)
    assert torch.equal(y[:, :2], x[:, :2])
    assert torch.equal(y[:, 2:], linear(x[:, 2:]))
    torch.testing.assert_close(logabsdet, linear.logabsdet().expand(5))


def test_a_seed_is_a_network() -> None:
    one, same, other = (list(TorusCoupling(2, 3, hidden=8, seed=s).state_dict().values()) for s in (1, 1, 2))
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))


@pytest.mark.parametrize("options", [(1, 3), (2, 1), (2, 3, 1), (2, 3, 8, 0)], ids=str)
def test_options_out_of_range_are_refused(options: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="expected at least 2, 2, 2 and 1"):
        TorusCoupling(*options)


def test_a_layer_beside_no_angles_is_refused() -> None:
    with pytest.raises(OptionError, match="angles=0"):
        BesideAngles(P4Inv(3), 0)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(
    ("x", "error"),
    [(torch.zeros(2, 6), ShapeError), (torch.zeros(2, 7, dtype=DOUBLE), DtypeError)],
    ids=["width", "dtype"],
)
def test_points_that_do_not_fit_are_refused(direction: str, x: Tensor, error: type[Exception]) -> None:
    for layer in (TorusCoupling(3, 4, hidden=8), BesideAngles(P4Inv(4), 3)):
        with pytest.raises(error):
            getattr(layer, direction)(x)
