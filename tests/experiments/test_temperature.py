"""The commands about temperature: tiny runs, what they say, and what their estimates are made of."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from p4lab.boltzmann import Estimate
from p4lab.experiments import alanine_temperature as alanine
from p4lab.experiments import temperature as command
from p4lab.experiments.temperature import Result, System, View
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import load
from p4lab.molecules.flat import FlatCoordinates
from p4lab.molecules.molecule import Molecule
from p4lab.p4 import p4_modules
from p4lab.problems.energies import DoubleWell


@pytest.fixture(scope="module")
def dw4() -> System:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "REFERENCE_STEPS", 400)
        return command.particles()


# --- double well and particles ----------------------------------------------------------------------------------------


def test_the_double_well_is_compared_with_quadrature() -> None:
    system = command.double_well()
    assert {t: e.value for t, e in system.exact.items()} == {
        t: DoubleWell().free_energy_difference(t) for t in (0.5, 1.0, 2.0)
    }
    view, _ = system.methods["steered"]
    batch = view.batch(1000, torch.Generator().manual_seed(0))
    assert (batch.shape, batch.dtype) == ((1000, 2), torch.float32)
    assert float(view.in_b(batch).double().mean()) == pytest.approx(DoubleWell().share_of_b(), abs=0.03)


def gaussian() -> View:
    """Return a Gaussian energy, which flows have at their start: nothing to learn at any temperature."""
    return View(
        type("Gaussian", (), {"dim": 2, "__call__": lambda self, x: 0.5 * x.square().sum(-1)})(),
        lambda n, generator: torch.randn(n, 2, generator=generator),
        lambda x: x[:, 0] > 1.0,
    )


@pytest.mark.parametrize("kind", ["steered", "trade", "energy"])
def test_a_flow_that_is_the_truth_is_told_so(kind: str) -> None:
    model = command.train(gaussian(), command.Settings(kind, steps=1, learning_rate=1e-9, drawn=8), 0)
    for t in (0.5, 2.0):
        found = command.evaluate(model, gaussian(), t, 20_000)
        tail = 0.5 * math.erfc(1 / math.sqrt(2 * t))
        assert found.ess == pytest.approx(1.0, abs=2e-3)  # the first centre and widths are those of 4,000 points
        assert found.clipped_ess >= found.ess
        for estimate in (found.raw, found.reweighted):
            assert estimate.value == pytest.approx(math.log((1 - tail) / tail), abs=5 * estimate.error + 0.03)


@pytest.mark.parametrize("method", command.METHODS)
def test_training_follows_its_seed(method: str, dw4: System) -> None:
    view, settings = dw4.methods[method]
    tiny = dataclasses.replace(settings, blocks=2, hidden=8, steps=2, batch_size=16, drawn=8)
    one, same, other = (command.train(view, tiny, seed).state_dict() for seed in (0, 0, 1))
    tensors = [name for name, value in one.items() if torch.is_tensor(value)]
    assert all(torch.equal(one[name], same[name]) for name in tensors)
    assert not all(torch.equal(one[name], other[name]) for name in tensors)
    said = [command.evaluate(command.train(view, tiny, 0), view, 2.0, 200) for _ in range(2)]
    assert repr(said[0]) == repr(said[1])


def test_the_command_prints_a_table_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--systems", "double_well", "--seeds", "2", "--steps", "2", "--samples", "500"])
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith(("| 0.5", "| 1 ", "| 2 "))]
    assert len(rows) == 18
    assert "Double well: free energy, right − left, in kT of each temperature; data of T = 1 only" in said
    for method in ("steered", "trade", "energy"):
        assert f"{method}: Misses in kT at T = 0.5, 1, 2: reweighted median" in said


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


def test_particles_are_compared_with_a_run_of_their_own(dw4: System) -> None:
    assert list(dw4.exact) == [0.5, 1.0, 2.0]
    assert all(0 < estimate.error < 1.0 for estimate in dw4.exact.values())
    whole, shapes = dw4.methods["steered"][0], dw4.methods["shapes"][0]
    x, f = (view.batch(7, torch.Generator().manual_seed(0)) for view in (whole, shapes))
    assert (x.shape, f.shape) == ((7, 8), (7, 5))
    assert torch.equal(whole.in_b(x), shapes.in_b(f))
    centre = 2 * x.view(7, 4, 2).mean(1).square().sum(1)
    torch.testing.assert_close(shapes.energy(f) + centre, whole.energy(x), rtol=1e-4, atol=1e-3)


# --- alanine dipeptide ------------------------------------------------------------------------------------------------

SMALL = alanine.Settings(momenta=2, blocks=2, hidden=8, rank=2, seconds=60.0, steps=4, batch_size=32, look_every=2)


@pytest.fixture(scope="module")
def flat() -> tuple[FlatCoordinates, torch.Tensor]:
    coordinates = Coordinates.fit(Molecule.from_sequence("A"), load().x[::100].double())
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
    with coordinates.coordinates.molecule.energy() as energy:
        given = trained.flow, coordinates.decode, energy, truth, coordinates.coordinates.molecule, 300
        found, other = alanine.evaluate(*given), alanine.evaluate(*given)
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


@pytest.mark.parametrize(
    ("period", "seen", "unknown"), [(10, 0.2, False), (10, 0.0, True), (400, 0.005, True)], ids=str
)
def test_a_state_that_few_blocks_have_seen_has_no_error_bar(period: int, seen: float, unknown: bool) -> None:
    inside = (torch.arange(400) % period < 2) & (seen > 0)
    share = alanine.share_in_blocks(inside)
    assert math.isinf(share.error) == unknown
    assert share.value == pytest.approx(seen)


def test_coarse_histograms_keep_their_mass() -> None:
    shares = np.arange(64.0 * 64).reshape(64, 64)
    found = alanine.coarse(shares)
    assert found.shape == (32, 32)
    assert found[1, 2] == shares[2:4, 4:6].sum()


def test_the_molecules_command_simulates_trains_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--seeds", "1", "--steps", "2", "--samples", "40", "--nanoseconds", "0.002"]
    alanine.main([*arguments, "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    for t in ("300", "600", "1000"):
        rows = [line for line in said.splitlines() if line.startswith(f"| {t} ")]
        kinds = [row.split("|")[2].split(",")[0].strip() for row in rows]
        assert kinds == ["MD", "steered", "trade", "energy"]
    assert "### Medians of 1 seeds" in said
    assert "| clipped ESS %, 1000 K |" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1000K", "600K"]
