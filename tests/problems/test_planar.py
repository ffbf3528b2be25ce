"""Shapes of particles: the volume element, what it leaves out, and the images under permutations and reflections."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from p4lab.errors import OptionError, ShapeError
from p4lab.problems.particles import DoubleWellParticles
from p4lab.problems.planar import PlanarShapes, ShapeEnergy


def positions(particles: int, n: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 2 * torch.randn(n, 2 * particles, generator=generator, dtype=torch.float64)


def moved(x: torch.Tensor, angle: float, shift: float) -> torch.Tensor:
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=x.dtype)
    return (x.view(len(x), -1, 2) @ turn + shift).flatten(1)


@pytest.mark.parametrize("particles", [2, 3, 4])
def test_with_centre_and_angle_the_volume_element_is_one(particles: int) -> None:
    shapes = PlanarShapes(particles)

    def whole(x: torch.Tensor) -> torch.Tensor:
        centre = x.view(-1, 2).mean(0) * particles**0.5
        angle = torch.atan2(x[1] - x[3], x[0] - x[2])
        return torch.cat([centre, angle[None], shapes.encode(x)])

    for x in positions(particles):
        jacobian = torch.autograd.functional.jacobian(whole, x)
        assert float(torch.linalg.slogdet(jacobian)[1]) == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("particles", [2, 3, 4])
def test_shapes_forget_centre_and_rotation_alone(particles: int) -> None:
    shapes, x = PlanarShapes(particles), positions(particles)
    f = shapes.encode(x)
    assert f.shape == (5, shapes.dim)
    torch.testing.assert_close(shapes.encode(moved(x, 0.7, 1.5)), f)
    back, logabsdet = shapes.decode(f)
    torch.testing.assert_close(shapes.encode(back), f)
    energy = DoubleWellParticles(particles)
    torch.testing.assert_close(energy.distances(back), energy.distances(x))
    assert torch.equal(logabsdet, torch.zeros(5, dtype=torch.float64))


def test_images_are_all_orders_and_their_reflections() -> None:
    shapes, x = PlanarShapes(4), positions(4)
    images = shapes.images(shapes.encode(x))
    assert images.shape == (5, 48, 5) == (5, shapes.order, shapes.dim)
    mirror = torch.tensor([1.0, -1.0], dtype=torch.float64)
    wanted = [
        shapes.encode((x.view(5, 4, 2)[:, list(order)] * side).flatten(1))
        for side in (torch.ones(2, dtype=torch.float64), mirror)
        for order in itertools.permutations(range(4))
    ]
    torch.testing.assert_close(images, torch.stack(wanted, 1))
    energy = ShapeEnergy(DoubleWellParticles(4), shapes)
    torch.testing.assert_close(energy(images), energy(images)[:, :1].expand(-1, 48))


def test_the_energy_of_shapes_is_that_of_particles_without_their_trap() -> None:
    energy, shapes = DoubleWellParticles(3), PlanarShapes(3)
    x = positions(3)
    centred = (x.view(5, 3, 2) - x.view(5, 3, 2).mean(1, keepdim=True)).flatten(1)
    torch.testing.assert_close(ShapeEnergy(energy, shapes)(shapes.encode(x)), energy(centred))
    nothing = torch.tensor([[-1.0, 0.5, 0.5]], dtype=torch.float64)
    assert float(ShapeEnergy(energy, shapes)(nothing)) == math.inf


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        pytest.param(lambda: PlanarShapes(7), OptionError, "particles=7: expected 2 to 6", id="many"),
        pytest.param(lambda: PlanarShapes(1), OptionError, "particles=1", id="one"),
        pytest.param(lambda: PlanarShapes(3).encode(torch.zeros(2, 5)), ShapeError, "expected .*6", id="encode"),
        pytest.param(lambda: PlanarShapes(3).images(torch.zeros(2, 5)), ShapeError, "expected .*3", id="images"),
        pytest.param(
            lambda: ShapeEnergy(DoubleWellParticles(4), PlanarShapes(3)), OptionError, "expected 6", id="energy"
        ),
    ],
)
def test_errors(call, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()
