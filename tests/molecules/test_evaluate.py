"""Figures of flows of alanine dipeptide, and its target in internal coordinates."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from p4lab.boltzmann.weights import weighted_share
from p4lab.errors import DataFileError, FileError, OptionError, ShapeError
from p4lab.molecules.checkpoint import load_flow, save, start_at
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import Frames, dihedral, histogram_kl, load, phi_positive
from p4lab.molecules.evaluate import LARGEST_ENERGY, Samples, draw, evaluate, judge, torsions_of
from p4lab.molecules.flow import molecule_flow
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.target import Examples, InternalEnergy
from p4lab.molecules.units import BOLTZMANN
from p4lab.p4 import p4_modules

MOLECULE = Molecule.from_sequence("A")


@pytest.fixture(scope="module")
def frames() -> Frames:
    return load()[:400]


@pytest.fixture(scope="module")
def coordinates(frames: Frames) -> Coordinates:
    return Coordinates.fit(MOLECULE, frames.x.double())


@pytest.fixture(scope="module")
def energy() -> Iterator[OpenMMEnergy]:
    with MOLECULE.energy() as energy:
        yield energy


# --- the target -------------------------------------------------------------------------------------------------------


def test_examples_hold_all_permutations_with_their_forces(
    frames: Frames, coordinates: Coordinates, energy: OpenMMEnergy
) -> None:
    examples = Examples.of(coordinates, frames.x[:6], energy)
    assert examples.y.shape == examples.score.shape == (6, 3, 60)
    y, score = examples.batch(200, torch.Generator().manual_seed(0))
    value, wanted = InternalEnergy(coordinates, energy).value_and_score(y.double())
    torch.testing.assert_close(score.double(), wanted, rtol=1e-3, atol=5e-3)
    originals = InternalEnergy(coordinates, energy)(examples.y[:, 0])
    distance = (value[:, None] - originals).abs().min(1).values
    assert float(distance.max()) < 1e-2, "a permuted row has the energy of some original"
    assert len(torch.unique((y * 1e3).round(), dim=0)) > 60, "6 rows have 162 permutations"


def test_the_score_is_the_slope_of_the_energy(frames: Frames, coordinates: Coordinates, energy: OpenMMEnergy) -> None:
    target = InternalEnergy(coordinates, energy)
    y = coordinates.encode(frames.x[:2].double())[0]
    step = torch.zeros(60, dtype=torch.float64)
    step[20] = 1e-4
    slope = (target(y + step) - target(y - step)) / 2e-4
    torch.testing.assert_close(-target.score(y)[:, 20], slope, rtol=1e-5, atol=1e-5)


def test_high_energies_are_compressed(frames: Frames, coordinates: Coordinates, energy: OpenMMEnergy) -> None:
    y = coordinates.encode(frames.x[:4].double())[0]
    y[:, 5:26] += 40.0
    plain, compressed = (InternalEnergy(coordinates, energy, threshold)(y) for threshold in (math.inf, 20.0))
    x, logabsdet = coordinates.decode(y)
    assert (plain > 100).all()
    torch.testing.assert_close(compressed + logabsdet, 20 + torch.log1p(energy(x) - 20))


def test_frames_of_another_shape_are_refused(coordinates: Coordinates, energy: OpenMMEnergy) -> None:
    with pytest.raises(ShapeError, match="expected"):
        Examples.of(coordinates, torch.zeros(22, 3), energy)


# --- figures ----------------------------------------------------------------------------------------------------------


def perfect(frames: Frames, coordinates: Coordinates) -> Samples:
    """The data as if a flow had drawn them with the right density."""
    y = coordinates.encode(frames.x.double())[0]
    zeros = torch.zeros(len(y), dtype=torch.float64)
    return Samples(y.float(), frames.x.double(), zeros, frames.energy, zeros, torsions_of(MOLECULE, frames.x.double()))


def test_the_data_judge_themselves(frames: Frames, coordinates: Coordinates) -> None:
    flow = molecule_flow("spline", perfect(frames, coordinates).y, blocks=1, hidden=4)
    figures = judge(perfect(frames, coordinates), flow, coordinates, frames, frames[:50])
    assert figures.ess == pytest.approx(1)
    assert figures.ess_clipped == pytest.approx(1)
    assert figures.energy_shift == pytest.approx(0, abs=1e-9)
    assert figures.below_maximum == pytest.approx(1 - 1 / len(frames))
    assert figures.torsion_kl == pytest.approx(0, abs=1e-3)
    rare = phi_positive(dihedral(frames.x.double(), MOLECULE.torsions["phi"])).double().mean()
    assert figures.phi_positive == pytest.approx(float(rare))
    assert figures.phi_positive_weighted == pytest.approx(float(rare))


def test_one_clash_does_not_hide_the_mean(frames: Frames, coordinates: Coordinates) -> None:
    samples = perfect(frames, coordinates)
    flow = molecule_flow("spline", samples.y, blocks=1, hidden=4)
    broken = samples.energy.clone()
    broken[0], broken[1] = 1e30, math.inf
    figures = judge(dataclasses.replace(samples, energy=broken), flow, coordinates, frames, frames[:50])
    assert figures.energy_shift == pytest.approx(2 * LARGEST_ENERGY / len(frames), rel=0.05)
    assert figures.below_maximum < 1


def test_weights_are_exact(frames: Frames, coordinates: Coordinates, energy: OpenMMEnergy) -> None:
    flow = molecule_flow("spline", perfect(frames, coordinates).y, blocks=1, hidden=4)
    samples = draw(flow, coordinates, energy, 30, seed=3, chunk=16)
    x, logabsdet = coordinates.decode(samples.y.double())
    kilojoules = energy.kilojoules(x)
    torch.testing.assert_close(samples.energy, kilojoules)
    wanted = -kilojoules / (BOLTZMANN * 300) + logabsdet - samples.log_q
    valid = MOLECULE.valid(x)
    torch.testing.assert_close(samples.log_weights[valid], wanted[valid])
    assert torch.isneginf(samples.log_weights[~valid]).all()
    torch.testing.assert_close(flow.log_prob(samples.y).double(), samples.log_q, rtol=0, atol=1e-3)


def test_an_evaluation_is_finite_and_repeats(frames: Frames, coordinates: Coordinates, energy: OpenMMEnergy) -> None:
    flow = molecule_flow("spline", perfect(frames, coordinates).y, blocks=1, hidden=4)
    first, again = (evaluate(flow, coordinates, energy, frames, frames[:20], 100, seed=1) for _ in range(2))
    assert first == again
    told = {name: value for name, value in vars(first).items() if name != "phi_positive_weighted_error"}
    assert all(math.isfinite(value) for value in told.values())
    assert first.phi_positive_weighted_error > 0  # inf where the rare state was hardly seen
    assert 0 < first.ess <= first.ess_clipped <= 1


def test_a_weighted_share_and_its_error() -> None:
    generator = torch.Generator().manual_seed(0)
    inside = torch.rand(20_000, generator=generator) < 0.2
    log_w = torch.where(inside, math.log(2.0), 0.0).double()
    share = weighted_share(log_w, inside)
    assert share.value == pytest.approx(0.4 / 1.2, abs=4 * share.error)
    assert share.error == pytest.approx(math.sqrt(0.2 * 0.8 / 20_000) * 2 / 1.2**2, rel=0.4)


def test_kl_of_histograms() -> None:
    p, q = np.array([[0.5, 0.5], [0.0, 0.0]]), np.array([[0.25, 0.5], [0.25, 0.0]])
    assert histogram_kl(p, p) == pytest.approx(0, abs=1e-5)
    assert histogram_kl(p, q) == pytest.approx(0.5 * math.log(2), abs=1e-5)
    assert histogram_kl(q, p) > 2


def test_no_samples_are_refused(frames: Frames, coordinates: Coordinates, energy: OpenMMEnergy) -> None:
    flow = molecule_flow("spline", perfect(frames, coordinates).y, blocks=1, hidden=4)
    with pytest.raises(OptionError, match="at least 1"):
        draw(flow, coordinates, energy, 0)
    with pytest.raises(OptionError, match="chunk=0"):
        draw(flow, coordinates, energy, 5, chunk=0)
    with pytest.raises(OptionError, match=r"temperature=310\.0 K and an energy at 300\.0 K"):
        draw(flow, coordinates, energy, 5, temperature=310.0)
    with pytest.raises(OptionError, match="1 samples: expected at least 2"):
        evaluate(flow, coordinates, energy, frames, frames[:50], 1)


def test_a_state_without_samples_has_no_error_bar(
    frames: Frames, coordinates: Coordinates, energy: OpenMMEnergy
) -> None:
    flow = molecule_flow("spline", perfect(frames, coordinates).y, blocks=1, hidden=4)
    samples = draw(flow, coordinates, energy, 100)
    none = dataclasses.replace(samples, torsions={name: -torch.ones(100) for name in samples.torsions})
    of_none, of_some = (judge(one, flow, coordinates, frames, frames[:50]) for one in (none, samples))
    assert (of_none.phi_positive, of_none.phi_positive_error) == (0, math.inf)
    assert 0 < of_some.phi_positive_error < 0.1


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spline", "spline_p4"])
def test_a_checkpoint_is_small_and_faithful(
    method: str, frames: Frames, coordinates: Coordinates, tmp_path: Path
) -> None:
    y = perfect(frames, coordinates).y
    flow = molecule_flow(method, y).fold()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "sub" / "flow.pt"
    change = save(path, flow, method, coordinates, {"ess": 0.5})
    assert path.stat().st_size < 3_000_000
    assert 0 < change < 0.1
    again, same, figures = load_flow(path)
    assert figures == {"ess": 0.5}
    torch.testing.assert_close(same.encode(frames.x[:5].double())[0].float(), y[:5])
    assert float((again.log_prob(y) - flow.log_prob(y)).detach().abs().median()) < 0.1
    assert save(path, flow, method, coordinates, half=False) == 0


def test_a_checkpoint_that_could_not_be_read_again_is_not_written(
    frames: Frames, coordinates: Coordinates, tmp_path: Path
) -> None:
    path, y = tmp_path / "flow.pt", perfect(frames, coordinates).y
    path.write_text("of before")
    flow = molecule_flow("spline", y)
    network = next(value for name, value in flow.named_parameters() if ".network." in name)
    for bad, method in ((flow, "splines"), (molecule_flow("spline", y, hidden=16), "spline"), (flow, "spline")):
        if method == "spline":
            network.data[0, 0] = 1e6  # more than 16 bits hold
        with pytest.raises(DataFileError, match=r"not a flow|the default options|half=False"):
            save(path, bad, method, coordinates)
    assert path.read_text() == "of before"
    with pytest.raises(FileError, match="is a folder"):
        save(tmp_path, flow, "spline", coordinates, half=False)
    save(str(path), molecule_flow("spline_p4", y), "spline_p4", coordinates)  # P4 layers are folded
    assert load_flow(str(path))[0].dim == 60
    narrow = molecule_flow("spline", y, hidden=16)
    save(path, narrow, "spline", coordinates, options={"hidden": 16}, half=False)
    assert torch.equal(load_flow(path)[0].log_prob(y[:4]), narrow.log_prob(y[:4]))
    with pytest.raises(DataFileError, match=r"spline with \{'hidden': 16, 'depths': 3\}"):
        save(path, narrow, "spline", coordinates, options={"hidden": 16, "depths": 3})


@pytest.mark.parametrize(
    "content", [None, b"", b"hello", b"PK\x03\x04 cut off"], ids=["missing", "empty", "text", "zip"]
)
def test_a_bad_checkpoint_is_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "flow.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataFileError, match=r"flow.pt"):
        load_flow(path)


@pytest.mark.parametrize("method", ["spline", "spline_p4", "realnvp_p4inv"])
def test_training_goes_on_from_a_plain_flow(method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(200, 60, generator=generator)
    flow, other = (molecule_flow(method, y, seed) for seed in (0, 1))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    start_at(other, flow.fold())
    torch.testing.assert_close(other.log_prob(y), flow.log_prob(y), rtol=0, atol=2e-3)
    for module in p4_modules(other):
        assert float(module.violation()) < 1e-4
        assert all(not p.any() for p in module.perturbation())


def test_a_plain_flow_of_another_architecture_is_refused() -> None:
    y = torch.randn(200, 60, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataFileError, match="same architecture"):
        start_at(molecule_flow("realnvp_p4inv", y), molecule_flow("spline_p4", y).fold())
