"""OpenMM's energies are a differentiable function, and bad frames do no harm."""

from typing import Any

import pytest
import torch

from p4lab.errors import OptionError, ShapeError, TrainingError
from p4lab.molecules import alanine
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.packages import package
from p4lab.molecules.units import BOLTZMANN


@pytest.fixture(scope="module")
def energy() -> OpenMMEnergy:
    return OpenMMEnergy(temperature=300.0)


def frames(number: int, scale: float = 0.003) -> torch.Tensor:
    noise = torch.randn(
        number, alanine.N_ATOMS, 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64
    )
    return alanine.start() + scale * noise


def test_energy_is_that_of_a_context_of_ones_own(energy: OpenMMEnergy) -> None:
    openmm = package("openmm")
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(alanine.system(), openmm.VerletIntegrator(0.001), platform)
    x = frames(3)
    expected = []
    for frame in x:
        context.setPositions(frame.numpy())
        expected.append(context.getState(energy=True).getPotentialEnergy()._value)
    assert torch.allclose(energy.kilojoules(x), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(energy(x) * BOLTZMANN * 300, energy.kilojoules(x), rtol=1e-12)


def test_gradient_is_that_of_finite_differences(energy: OpenMMEnergy) -> None:
    x = frames(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: energy(y), (x,), eps=1e-6, atol=1e-4, rtol=1e-5)


def test_batch_dimensions_and_dtype_are_kept(energy: OpenMMEnergy) -> None:
    x = frames(6).view(2, 3, alanine.N_ATOMS, 3).float().requires_grad_()
    u = energy(x)
    assert (u.shape, u.dtype) == ((2, 3), torch.float64)
    u.sum().backward()
    assert x.grad is not None
    assert (x.grad.shape, x.grad.dtype) == (x.shape, torch.float32)


def test_energy_falls_with_temperature_and_does_not_change_under_rigid_motion(energy: OpenMMEnergy) -> None:
    x = frames(4)
    with OpenMMEnergy(temperature=600.0) as hot:
        assert torch.allclose(2 * hot(x), energy(x), rtol=1e-12)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)
    assert torch.allclose(energy(x @ turn + 1.0), energy(x), rtol=1e-9)


@pytest.mark.parametrize("bad", ["nan", "inf", "coincident"])
def test_a_frame_that_is_not_finite_is_inf_without_gradient_and_the_others_are_as_ever(bad: str) -> None:
    x = frames(3)
    expected = OpenMMEnergy()(x)
    if bad == "coincident":
        x[1, 1] = x[1, 4]
    else:
        x[1, 0, 0] = float(bad)
    x.requires_grad_()
    with OpenMMEnergy() as energy:
        u = energy(x)
        assert u[1] == torch.inf
        assert torch.equal(u[[0, 2]], expected[[0, 2]])
        assert energy.not_finite == 1
        u.sum().backward()
    assert x.grad is not None
    assert (x.grad[1] == 0).all()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[[0, 2]] != 0).any()


def test_closing_frees_the_context_and_the_next_call_makes_another() -> None:
    with OpenMMEnergy() as energy:
        first = energy(frames(2))
        assert energy.context is not None
    assert energy.context is None
    assert torch.equal(energy(frames(2)), first)


def test_a_failure_of_openmm_is_named_and_the_energy_can_be_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    energy = OpenMMEnergy()

    class Broken:
        def setPositions(self, x: Any) -> None:
            raise RuntimeError("the context is gone")

    monkeypatch.setattr(energy, "context", Broken())
    with pytest.raises(TrainingError, match="batch of 2 frames: the context is gone"):
        energy(frames(2))
    assert torch.isfinite(energy(frames(2))).all()


@pytest.mark.parametrize("shape", [(22,), (5, 21, 3), (5, 22, 2), (66,)], ids=str)
def test_wrong_frame_shape_is_named(energy: OpenMMEnergy, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 22, 3\), nm"):
        energy(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "above 0 K"),
        ({"temperature": float("nan")}, "above 0 K"),
        ({"platform": "Abacus"}, "Reference"),
    ],
    ids=["zero", "nan", "platform"],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        OpenMMEnergy(**options)
