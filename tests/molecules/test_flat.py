"""Flat coordinates: their volume element is one number, so that the temperature law holds in them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from p4lab.errors import ShapeError
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import load
from p4lab.molecules.flat import FlatCoordinates
from p4lab.molecules.molecule import Molecule

MOLECULE = Molecule.from_sequence("A")

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return load().x[::40].double()


@pytest.fixture(scope="module")
def flat(frames: Tensor) -> FlatCoordinates:
    coordinates = Coordinates.fit(MOLECULE, frames)
    return FlatCoordinates(coordinates, coordinates.encode(frames)[0])


def test_there_and_back(flat: FlatCoordinates, frames: Tensor) -> None:
    f, forward = flat.encode(frames)
    x, backward = flat.decode(f)
    torch.testing.assert_close(torch.cdist(x, x), torch.cdist(frames, frames), rtol=0, atol=1e-9)
    torch.testing.assert_close(forward, -backward)
    assert f.shape == (len(frames), 60)
    assert flat.angles == 5


def test_the_volume_element_is_one_number_and_that_of_autograd(flat: FlatCoordinates, frames: Tensor) -> None:
    # From the coordinates, whose own volume element is tested against autograd elsewhere, by the chain rule.
    some = frames[:6]
    y, of_y = flat.coordinates.encode(some)
    jacobian = [torch.autograd.functional.jacobian(lambda row: flat.flat(row[None])[0], row) for row in y]
    exact = torch.linalg.slogdet(torch.stack(jacobian))[1] + of_y
    torch.testing.assert_close(exact, torch.full((6,), flat.logabsdet, dtype=DOUBLE), rtol=0, atol=1e-8)
    assert float(of_y.max() - of_y.min()) > 0.1  # as it is not in the coordinates
    assert torch.equal(flat.encode(some)[1], torch.full((6,), flat.logabsdet, dtype=DOUBLE))


def test_numbers_are_white_and_angles_are_those_of_the_coordinates(flat: FlatCoordinates, frames: Tensor) -> None:
    y = flat.coordinates.encode(frames)[0]
    f = flat.flat(y)
    assert torch.equal(f[:, :5], y[:, :5])
    torch.testing.assert_close(f[:, 5:].mean(0), torch.zeros(55, dtype=DOUBLE), rtol=0, atol=1e-6)
    torch.testing.assert_close(f[:, 5:].T.cov(correction=0), torch.eye(55, dtype=DOUBLE), rtol=0, atol=1e-6)
    assert flat.flat(y.float()).dtype == torch.float32


def test_angles_may_be_written_as_any_number(flat: FlatCoordinates, frames: Tensor) -> None:
    f, _ = flat.encode(frames[:3])
    turned = f.clone()
    turned[:, :5] += 2 * math.pi * torch.tensor([1.0, -1.0, 2.0, 0.0, 3.0], dtype=DOUBLE)
    torch.testing.assert_close(flat.decode(turned)[0], flat.decode(f)[0])


@pytest.mark.parametrize("kind", ["bond", "angle", "torsion"])
def test_what_is_no_molecule_has_no_volume_and_finite_positions(
    flat: FlatCoordinates, frames: Tensor, kind: str
) -> None:
    f, _ = flat.encode(frames[:2])
    numbers = flat.whitening.inverse(f[:, 5:])
    column = [number for number, _ in MOLECULE.columns[5:]].index(kind)
    numbers[0, column] = {"bond": -1e-4, "angle": 1.01, "torsion": numbers[0, column] + 4.0}[kind]
    f = torch.cat([f[:, :5], flat.whitening(numbers)], 1).requires_grad_()
    x, logabsdet = flat.decode(f)
    assert torch.isfinite(x).all()
    assert logabsdet.tolist() == [-math.inf, pytest.approx(-flat.logabsdet)]
    (slope,) = torch.autograd.grad(x.sum(), f)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("shape", [(60,), (2, 59)], ids=str)
def test_other_shapes_are_refused(flat: FlatCoordinates, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        flat.decode(torch.zeros(shape))
    with pytest.raises(ShapeError):
        flat.encode(torch.zeros(2, len(MOLECULE) - 1, 3))
