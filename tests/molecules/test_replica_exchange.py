"""The simulation is seeded, goes on where it was interrupted, and exchanges as the Metropolis criterion says."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from molecule_tools import butane

from p4lab.errors import DataFileError, FileError, OptionError, TrainingError
from p4lab.molecules.dataset import simulate
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.replica_exchange import ReplicaExchange, Settings, chunks, deal, run

SHORT = Settings(seed=3, replicas=3, sweep=5, equilibration=20, chunk=10)
"""A frame takes 0.01 ps, so that a chunk is 0.0001 ns."""


def frames(folder: Path) -> np.ndarray:
    return np.concatenate([x for x, _ in chunks(folder)])


def test_same_seed_same_frames_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        run(tmp_path / name, 0.0002, Settings(**{**vars(SHORT), "seed": seed}), progress=False)
    assert frames(tmp_path / "a").shape == (20, 22, 3)
    assert np.array_equal(frames(tmp_path / "a"), frames(tmp_path / "b"))
    assert not np.array_equal(frames(tmp_path / "a"), frames(tmp_path / "c"))


def test_a_run_in_pieces_is_the_run_in_one_go(tmp_path: Path) -> None:
    run(tmp_path / "whole", 0.0003, SHORT, progress=False)
    for nanoseconds in (0.0001, 0.0003):
        run(tmp_path / "pieces", nanoseconds, SHORT, progress=False)
    assert np.array_equal(frames(tmp_path / "pieces"), frames(tmp_path / "whole"))


def test_what_was_lost_with_an_interruption_is_simulated_again(tmp_path: Path) -> None:
    run(tmp_path, 0.0001, SHORT, progress=False)
    state = (tmp_path / "state.npz").read_bytes()
    run(tmp_path, 0.0002, SHORT, progress=False)
    whole = frames(tmp_path)
    (tmp_path / "state.npz").write_bytes(state)  # as if it had ended between frames and state
    run(tmp_path, 0.0002, SHORT, progress=False)
    assert np.array_equal(frames(tmp_path), whole)


def test_replicas_hotter_have_higher_energy_and_exchanges_happen() -> None:
    replicas = ReplicaExchange(Settings(seed=0, equilibration=500))
    replicas.equilibrate()
    energies = np.mean([replicas.sweep()[1] for _ in range(100)], axis=0)
    assert (np.diff(energies) > 0).all()
    assert 0.2 < replicas.mobility < 1


def test_exchanged_replicas_have_the_thermostat_and_velocities_of_their_new_temperature() -> None:
    replicas = ReplicaExchange(SHORT)
    velocities = [c.getState(velocities=True).getVelocities(asNumpy=True)._value.copy() for c in replicas.contexts]
    replicas.exchange(np.array([2, 0, 1]))
    t = replicas.temperatures
    for context, (old, new) in enumerate([(0, 1), (1, 2), (2, 0)]):
        now = replicas.contexts[context].getState(velocities=True).getVelocities(asNumpy=True)._value
        assert np.allclose(now, velocities[context] * np.sqrt(t[new] / t[old]))
        assert np.isclose(replicas.integrators[context].getTemperature()._value, t[new])


def test_temperatures_are_dealt_with_the_weights_of_the_energies() -> None:
    energies, beta, start = np.array([0.0, 1.0, 2.5]), np.array([1.0, 0.6, 0.3]), np.arange(3)
    orders = list(itertools.permutations(range(3)))
    weights = np.array([np.exp(-(beta * energies[list(order)]).sum()) for order in orders])
    random, tries = np.random.default_rng(0), 4000
    dealt = [tuple(deal(start, energies, beta, random).tolist()) for _ in range(tries)]
    shares = np.array([dealt.count(order) for order in orders]) / tries
    expected = weights / weights.sum()
    assert (np.abs(shares - expected) < 4 * np.sqrt(expected / tries)).all()
    assert start.tolist() == [0, 1, 2]


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, 0.0001, SHORT, progress=False)
    with pytest.raises(DataFileError, match="choose another folder"):
        run(tmp_path, 0.0001, Settings(), progress=False)
    assert len(frames(tmp_path)) == 10


def test_a_folder_of_another_molecule_of_the_same_name_is_refused(tmp_path: Path) -> None:
    mine, other = butane(), butane(0.3)
    run(tmp_path, 0.0001, SHORT, progress=False, molecule=mine)
    with pytest.raises(DataFileError, match="choose another folder"):
        run(tmp_path, 0.0001, SHORT, progress=False, molecule=other)
    settings = tmp_path / "settings.json"
    early = {name: value for name, value in json.loads(settings.read_text()).items() if name != "digest"}
    settings.write_text(json.dumps(early))  # of a version before there were digests
    run(tmp_path, 0.0001, SHORT, progress=False, molecule=mine)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("frames_0000.npz", content) for content in (b"PK", None)),
        *(("settings.json", content) for content in (b"", b"[1]")),
        *(("state.npz", content) for content in (b"", b"text")),
    ],
)
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    simulate(butane(), 0.0001, tmp_path, SHORT, progress=False)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(DataFileError, match=f"{name} is (damaged|missing)"):
        simulate(butane(), 0.0002, tmp_path, SHORT, progress=False)


def test_a_folder_that_is_a_file_and_steps_that_are_too_long_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        run(tmp_path / "file", 0.0001, SHORT, progress=False)
    with pytest.raises(OptionError, match=r"fastest bond of BUT swings through 1\.3 radians"):
        run(tmp_path / "long", 0.1, Settings(**{**vars(SHORT), "step": 0.0025}), progress=False, molecule=butane())
    replicas = ReplicaExchange(SHORT)
    replicas.contexts[1].setPositions(np.full((22, 3), np.nan))
    with pytest.raises(TrainingError, match="take shorter ones"):
        replicas.sweep()


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="holds no frames"):
        frames(tmp_path)


def test_a_start_whose_atoms_overlap_is_relaxed() -> None:
    molecule = butane()
    noise = 0.02 * torch.randn(molecule.start.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rough = Molecule.from_openmm(molecule.topology, molecule.system, molecule.start + noise)
    replicas = ReplicaExchange(SHORT, rough)
    replicas.equilibrate()
    assert replicas.sweep()[1][0] < 100  # kJ/mol; 2000 at the start


@pytest.mark.parametrize(
    "change",
    [
        *({"replicas": 1}, {"sweep": 0}, {"chunk": 2.5}, {"seed": -1}, {"seed": 2**31}, {"equilibration": -1}),
        *({"step": 0.0}, {"coldest": math.nan}, {"hottest": math.inf}, {"coldest": 2000.0}, {"friction": -1.0}),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="expected"):
        Settings(**{**vars(SHORT), **change})


@pytest.mark.parametrize("nanoseconds", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_length_of_a_simulation_is_named(tmp_path: Path, nanoseconds: float) -> None:
    with pytest.raises(OptionError, match="nanoseconds"):
        run(tmp_path, nanoseconds, SHORT, progress=False)
