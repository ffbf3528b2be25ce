"""Training without frames: the harmonic start, levels, what is counted, failures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from p4lab.errors import OptionError, TrainingError
from p4lab.molecules.cooling import LARGEST_DEVIATION, Cooled, Cooling, cool, harmonic_frames
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.train import Record

SHORT = Cooling(levels=2, first_steps=12, steps=6, last_steps=8, rounds=2, candidates=200, samples=16, examples=16)


@pytest.fixture(scope="module")
def molecule() -> Molecule:
    return Molecule.from_sequence("A")


@pytest.fixture(scope="module")
def cooled(molecule: Molecule) -> Cooled:
    return cool(molecule, cooling=SHORT, seed=3)


def test_harmonic_frames_have_the_widths_of_the_force_field(molecule: Molecule) -> None:
    with molecule.energy(600.0) as energy:
        x = harmonic_frames(molecule, energy, 2000, torch.Generator().manual_seed(0))
        assert energy.evaluations == 2 * (3 * len(molecule) - 6 - 5)
    assert x.shape == (2000, 22, 3)
    assert bool(molecule.valid(x).all())
    coordinates = Coordinates.around_start(molecule)
    y = coordinates.encode(x)[0]
    assert float(y[:, 5:].std(0).max()) < 1.1 * LARGEST_DEVIATION
    # AMBER's N-H bond has k = 2 * 434 kcal/mol/A^2, of which kT / k is the variance at these temperatures.
    bond = next(i for i, c in enumerate(coordinates.columns) if c == ("bond", molecule.atom_names.index("ALA-H")))
    width = math.sqrt(0.0083144626 * 600 / (2 * 434 * 4.184 * 100))
    assert float(y[:, bond].std()) == pytest.approx(width, rel=0.06)
    angles = y[:, :5] / math.pi
    assert float(angles.mean(0).abs().max()) < 0.06
    assert float(angles.std(0).min()) > 0.55  # uniform: 0.577


def test_a_flow_is_cooled_by_energy_alone(molecule: Molecule, cooled: Cooled) -> None:
    hottest, middle, coldest, again = cooled.levels
    assert [round(level.temperature) for level in cooled.levels] == [1200, 600, 300, 300]
    assert cooled.reason == ""
    assert math.isnan(hottest.candidates)
    assert hottest.distinct == 0
    for level, steps in ((middle, 6), (coldest, 8), (again, 8)):
        assert 0 < level.candidates <= 1
        assert 0 < level.distinct <= 200
        assert math.isfinite(level.loss)
        before = cooled.levels[cooled.levels.index(level) - 1].evaluations
        assert level.evaluations == before + 200 + level.distinct + 16 * steps
    assert cooled.evaluations == again.evaluations
    assert cooled.trained is not cooled.flow
    y, log_q = cooled.flow.sample_with_log_prob(50, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(log_q).all())
    x = cooled.coordinates.decode(y.double())[0]
    assert x.shape == (50, 22, 3)


def test_the_same_seed_gives_the_same_flow(molecule: Molecule, cooled: Cooled) -> None:
    again, other = (cool(molecule, cooling=SHORT, seed=seed, workers=2) for seed in (3, 4))
    same = [torch.equal(a, b) for a, b in zip(cooled.flow.parameters(), again.flow.parameters(), strict=True)]
    assert all(same)
    assert any(not torch.equal(a, b) for a, b in zip(cooled.flow.parameters(), other.flow.parameters(), strict=True))


def test_the_default_dtype_changes_nothing(molecule: Molecule) -> None:
    few = replace(SHORT, first_steps=2, steps=1, last_steps=1, rounds=1, candidates=50)
    torch.set_default_dtype(torch.float64)
    try:
        assert cool(molecule, cooling=few).flow.sample(2).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_interruption_leaves_the_flow_of_the_last_temperature(molecule: Molecule) -> None:
    kept: list[Cooled] = []

    def interrupt(record: Record) -> None:
        if kept and record.stage == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cool(molecule, cooling=SHORT, seed=3, on_level=kept.append, on_record=interrupt)
    assert [round(level.temperature) for level in kept[-1].levels] == [1200, 600]
    assert kept[-1].evaluations == kept[-1].levels[-1].evaluations
    assert bool(torch.isfinite(kept[-1].flow.sample(3)).all())


def test_more_steps_bring_it_closer(molecule: Molecule, cooled: Cooled) -> None:
    longer = Cooling(levels=2, first_steps=60, steps=20, last_steps=20, candidates=400, samples=32, examples=32)
    more = cool(molecule, cooling=longer, seed=3)
    assert more.levels[0].loss < cooled.levels[0].loss


def test_a_failing_energy_ends_it_and_says_why(molecule: Molecule, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = OpenMMEnergy.energies_and_forces

    def fail(self: OpenMMEnergy, *given: Any) -> Any:
        if self.temperature < 1000:
            raise TrainingError("OpenMM failed")
        return computed(self, *given)

    monkeypatch.setattr(OpenMMEnergy, "energies_and_forces", fail)
    broken = cool(molecule, cooling=SHORT, seed=3)
    assert broken.reason == "OpenMM failed"
    assert len(broken.levels) == 1
    assert broken.evaluations == broken.levels[0].evaluations
    assert bool(torch.isfinite(broken.flow.sample(4)).all())


@pytest.mark.parametrize(
    ("options", "temperature", "message"),
    [
        ({"levels": 0}, 300.0, "at least 1"),
        ({"levels": 1.5}, 300.0, "whole numbers"),
        ({"hottest": math.inf}, 300.0, "finite"),
        ({"rate": 0.0}, 300.0, "above 0"),
        ({}, 1200.0, "temperature=1200.0 K: expected above 0 and below the hottest"),
        ({}, -1.0, r"temperature=-1.0 K: expected above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    molecule: Molecule, options: dict[str, Any], temperature: float, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        cool(molecule, temperature, Cooling(**options))
