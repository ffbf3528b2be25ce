"""OpenMM's energies are a differentiable function, and bad frames do no harm."""

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from p4lab.errors import DtypeError, OptionError, ShapeError, TrainingError
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.packages import package
from p4lab.molecules.units import BOLTZMANN

MOLECULE = Molecule.from_sequence("A")


@pytest.fixture(scope="module")
def energy() -> OpenMMEnergy:
    return MOLECULE.energy(300.0)


def frames(number: int, scale: float = 0.003) -> torch.Tensor:
    noise = torch.randn(number, len(MOLECULE), 3, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
    return MOLECULE.start + scale * noise


def test_energy_is_that_of_a_context_of_ones_own(energy: OpenMMEnergy) -> None:
    openmm = package("openmm")
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(MOLECULE.system, openmm.VerletIntegrator(0.001), platform)
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
    x = frames(6).view(2, 3, len(MOLECULE), 3).float().requires_grad_()
    u = energy(x)
    assert (u.shape, u.dtype) == ((2, 3), torch.float64)
    u.sum().backward()
    assert x.grad is not None
    assert (x.grad.shape, x.grad.dtype) == (x.shape, torch.float32)


def test_energy_falls_with_temperature_and_does_not_change_under_rigid_motion(energy: OpenMMEnergy) -> None:
    x = frames(4)
    with MOLECULE.energy(600.0) as hot:
        assert torch.allclose(2 * hot(x), energy(x), rtol=1e-12)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    turn = turn * torch.linalg.det(turn)
    assert torch.allclose(energy(x @ turn + 1.0), energy(x), rtol=1e-9)


@pytest.mark.parametrize("bad", ["nan", "inf", "coincident"])
def test_a_frame_that_is_not_finite_is_inf_without_gradient_and_the_others_are_as_ever(bad: str) -> None:
    x = frames(3)
    expected = MOLECULE.energy()(x)
    if bad == "coincident":
        x[1, 1] = x[1, 4]
    else:
        x[1, 0, 0] = float(bad)
    x.requires_grad_()
    with MOLECULE.energy() as energy:
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
    with MOLECULE.energy() as energy:
        first = energy(frames(2))
        assert len(energy.contexts) == 1
    assert not energy.contexts
    assert torch.equal(energy(frames(2)), first)


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_give_the_same_bits_and_all_evaluations_count(workers: int) -> None:
    x = frames(50)
    x[7] = torch.nan
    x[9, 1] = x[9, 4]
    with MOLECULE.energy() as alone, MOLECULE.energy(workers=workers) as shared:
        (expected, slope), (u, gradient) = (both(energy, x) for energy in (alone, shared))
        assert torch.equal(u, expected)
        assert torch.equal(gradient, slope)
        assert (alone.evaluations, alone.not_finite) == (shared.evaluations, shared.not_finite) == (49, 2)
        assert len(shared.contexts) == workers
        shared(x[:3])  # too few to be divided
        assert shared.evaluations == 52
        shared(x[:0])
        assert shared.evaluations == 52


def both(energy: OpenMMEnergy, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    u = energy(x)
    return u.detach(), torch.autograd.grad(u.sum(), x)[0]


class Strikes:
    """A context that raises at its third frame."""

    def __init__(self, context: Any, error: BaseException) -> None:
        self._context, self._error, self._calls = context, error, 0

    def setPositions(self, x: Any) -> None:
        self._calls += 1
        if self._calls == 3:
            raise self._error
        self._context.setPositions(x)

    def getState(self, **what: Any) -> Any:
        return self._context.getState(**what)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    ("error", "raised"),
    [(RuntimeError("the context is gone"), TrainingError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failure_or_an_interrupt_ends_all_workers_and_the_energy_can_be_used_again(
    place: int, error: BaseException, raised: type[BaseException]
) -> None:
    x, others = frames(6000), threading.active_count()
    with MOLECULE.energy(workers=3) as energy:
        expected = energy(x[:30])
        energy.contexts[place] = Strikes(energy.contexts[place], error)
        with pytest.raises(raised) as caught:
            energy(x)
        if raised is TrainingError:
            assert "batch of 6000 frames: the context is gone" in str(caught.value)
        assert 30 <= energy.evaluations < 6000
        assert threading.active_count() == others
        assert torch.equal(energy(x[:30]), expected)


def test_one_worker_that_fails_is_named_too() -> None:
    with MOLECULE.energy() as energy:
        energy(frames(2))
        energy.contexts[0] = Strikes(energy.contexts[0], RuntimeError("the context is gone"))
        with pytest.raises(TrainingError, match="batch of 4 frames: the context is gone"):
            energy(frames(4))
        assert torch.isfinite(energy(frames(4))).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda energy: pickle.loads(pickle.dumps(energy))])
def test_a_copy_computes_the_same_with_contexts_of_its_own(copied: Callable[[OpenMMEnergy], OpenMMEnergy]) -> None:
    x = frames(3)
    with MOLECULE.energy(350.0) as energy:
        expected = energy(x)
        with copied(energy) as other:
            assert not other.contexts
            assert torch.equal(other(x), expected)


def test_a_temperature_that_is_set_is_looked_at_and_so_is_what_is_no_tensor(energy: OpenMMEnergy) -> None:
    with pytest.raises(OptionError, match="above 0 K"):
        energy.temperature = -1.0
    with pytest.raises(DtypeError, match="convert it"):
        energy(frames(2).numpy())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(22,), (5, 21, 3), (5, 22, 2), (66,)], ids=str)
def test_wrong_frame_shape_is_named(energy: OpenMMEnergy, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 22, 3\), nm"):
        energy(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "above 0 K"),
        ({"temperature": float("nan")}, "above 0 K"),
        ({"temperature": float("inf")}, "above 0 K"),
        ({"platform": "Abacus"}, "Reference"),
        ({"workers": 0}, "at least 1"),
    ],
    ids=["zero", "nan", "inf", "platform", "workers"],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        OpenMMEnergy(MOLECULE.system, **options)
