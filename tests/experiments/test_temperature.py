"""The commands about temperature: tiny runs, what they say, and what their estimates are made of."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from p4lab.boltzmann import Estimate
from p4lab.experiments import alanine_temperature as alanine
from p4lab.experiments import temperature as command
from p4lab.experiments.temperature import Result, System
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import load
from p4lab.molecules.flat import FlatCoordinates
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.p4 import p4_modules
from p4lab.problems.energies import DoubleWell

TINY = command.Settings(steps=4, batch_size=32, samples=600)


# --- double well and particles ----------------------------------------------------------------------------------------


def test_the_double_well_is_compared_with_quadrature() -> None:
    system = command.double_well()
    assert {t: e.value for t, e in system.exact.items()} == {
        t: DoubleWell().free_energy_difference(t) for t in (0.5, 1.0, 2.0)
    }
    batch = system.batch(1000, torch.Generator().manual_seed(0))
    assert (batch.shape, batch.dtype) == ((1000, 2), torch.float32)
    assert float(system.in_b(batch).double().mean()) == pytest.approx(DoubleWell().share_of_b(), abs=0.03)


def test_a_flow_that_is_the_truth_is_told_so() -> None:
    # A Gaussian energy, and the flow that has it at its start: nothing to learn at any temperature.
    system = System(
        "Gaussian",
        type("Gaussian", (), {"dim": 2, "__call__": lambda self, x: 0.5 * x.square().sum(-1)})(),
        lambda n, generator: torch.randn(n, 2, generator=generator),
        lambda x: x[:, 0] > 1.0,
        "outer − inner",
        {},
        torch.zeros(2),
        torch.ones(2),
        TINY,
    )
    flow = command.train(system, command.Settings(steps=1, learning_rate=1e-9), 0)
    for t in (0.5, 2.0):
        found = command.evaluate(flow, system, t, 20_000)
        tail = 0.5 * math.erfc(1 / math.sqrt(2 * t))
        assert found.ess == pytest.approx(1.0, abs=1e-3)
        assert found.clipped_ess >= found.ess
        for estimate in (found.raw, found.reweighted):
            assert estimate.value == pytest.approx(math.log((1 - tail) / tail), abs=5 * estimate.error)


def test_training_follows_its_seed() -> None:
    system = command.double_well()
    one, same, other = (command.train(system, TINY, seed).state_dict() for seed in (0, 0, 1))
    tensors = [name for name, value in one.items() if torch.is_tensor(value)]
    assert all(torch.equal(one[name], same[name]) for name in tensors)
    assert not all(torch.equal(one[name], other[name]) for name in tensors)


def test_the_command_prints_a_table_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--systems", "double_well", "--seeds", "2", "--steps", "2", "--samples", "500"])
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith(("| 0.5", "| 1 ", "| 2 "))]
    assert len(rows) == 6
    assert "Double well: free energy, right − left, in kT of each temperature; trained at T = 1 by example" in said
    assert "Misses in kT at T = 0.5, 1, 2: reweighted median" in said


def test_the_verdict_takes_medians_and_the_largest_miss() -> None:
    system = command.double_well()

    def result(miss: float, t: float) -> Result:
        exact = system.exact[t].value
        return Result(Estimate(exact + 2 * miss, 0.1), Estimate(exact - miss, 0.1), 0.5, 0.6)

    results = {t: [result(miss, t) for miss in (0.01, 0.02, 0.3)] for t in command.TEMPERATURES}
    said = command.verdict(system, results)
    assert "reweighted median 0.020, 0.020, 0.020 (largest 0.300)" in said
    assert "raw median 0.040, 0.040, 0.040 (largest 0.600)" in said


@pytest.mark.parametrize(("n", "size", "parts"), [(0, 5, []), (5, 5, [5]), (12, 5, [5, 5, 2])])
def test_chunks_add_up(n: int, size: int, parts: list[int]) -> None:
    assert list(command.chunks_of(n, size)) == parts


@pytest.mark.slow
def test_particles_are_compared_with_a_run_of_their_own() -> None:
    system = command.particles()
    assert list(system.exact) == [0.5, 1.0, 2.0]
    assert all(0 < estimate.error < 0.2 for estimate in system.exact.values())
    assert system.batch(7, torch.Generator().manual_seed(0)).shape == (7, 8)


# --- alanine dipeptide ------------------------------------------------------------------------------------------------

SMALL = alanine.Settings(momenta=2, blocks=2, hidden=8, rank=2, seconds=60.0, steps=4, batch_size=32, look_every=2)


@pytest.fixture(scope="module")
def flat() -> tuple[FlatCoordinates, torch.Tensor]:
    coordinates = Coordinates.fit(load().x[::100].double())
    y = coordinates.encode(load().x[::40].double())[0]
    return FlatCoordinates(coordinates, y), y


def test_the_law_holds_for_the_molecules_flow(flat: tuple[FlatCoordinates, torch.Tensor]) -> None:
    flow = alanine.train(*flat, flat[1][:50], SMALL, 0).flow.double()
    f = torch.cat([flat[0].flat(flat[1]), torch.randn(len(flat[1]), 2, dtype=torch.float64)], 1)
    with torch.no_grad():
        found = flow.rescaled(flow.log_prob(f, temperature=1.0), 10 / 3)
        torch.testing.assert_close(found, flow.log_prob(f, temperature=10 / 3), rtol=1e-9, atol=1e-9)
    assert (flow.dim, flow.positions, flow.angles) == (62, 60, 5)
    assert len(p4_modules(flow)) == SMALL.blocks + 1


def test_the_molecules_training_follows_its_seed_and_keeps_the_best(
    flat: tuple[FlatCoordinates, torch.Tensor],
) -> None:
    one, same, other = (alanine.train(*flat, flat[1][:50], SMALL, seed) for seed in (0, 0, 1))
    assert one.nll == same.nll != other.nll
    assert (one.steps, one.best in (2, 4)) == (4, True)
    longer = alanine.train(*flat, flat[1][:50], alanine.Settings(**{**vars(SMALL), "steps": 40}), 0)
    assert longer.nll < one.nll


def test_weights_are_those_of_the_true_energy(flat: tuple[FlatCoordinates, torch.Tensor]) -> None:
    coordinates, y = flat
    trained = alanine.train(coordinates, y, y[:50], alanine.Settings(**{**vars(SMALL), "steps": 60}), 0)
    truth = alanine.shipped(load())
    with OpenMMEnergy() as energy:
        found = alanine.evaluate(trained.flow, coordinates, energy, truth, 300)
        other = alanine.evaluate(trained.flow, coordinates, energy, truth, 300)
    assert found == other
    assert 0 < found.ess <= found.clipped_ess <= 1
    assert 0 < found.valid <= 1
    assert found.weighted_energy < found.energy  # weights prefer what has little energy
    assert found.torsion_kl >= 0


def test_blocks_tell_an_error_and_a_mean() -> None:
    values = torch.randn(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    found = alanine.in_blocks(values)
    assert found.value == pytest.approx(3.0, abs=5 * found.error)
    assert found.error == pytest.approx(1 / 200, rel=0.6)


def test_coarse_histograms_keep_their_mass() -> None:
    shares = np.arange(64.0 * 64).reshape(64, 64)
    found = alanine.coarse(shares)
    assert found.shape == (32, 32)
    assert found[1, 2] == shares[2:4, 4:6].sum()


def test_the_molecules_command_simulates_trains_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seeds", "1", "--steps", "2", "--samples", "40", "--nanoseconds", "0.002"]
    alanine.main([*arguments, "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if "MD," in line or "flow, seed 0" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["300", "300", "600", "600", "1000", "1000"]
    assert "MD, 20 frames" in rows[2]
    assert "Median ESS:" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1000K", "600K"]
