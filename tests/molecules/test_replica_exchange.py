"""The simulation is seeded, goes on where it was interrupted, and exchanges as the Metropolis criterion says."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from p4lab.errors import DataFileError, OptionError
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


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    run(tmp_path, 0.0001, SHORT, progress=False)
    path = next(tmp_path.glob("frames_*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataFileError, match=r"frames_0000\.npz is damaged"):
        frames(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="holds no frames"):
        frames(tmp_path)


@pytest.mark.parametrize("change", [{"replicas": 1}, {"sweep": 0}, {"chunk": 0}], ids=str)
def test_settings_out_of_range_are_named(change: dict[str, int]) -> None:
    with pytest.raises(OptionError, match="expected >= 2, 1 and 1"):
        ReplicaExchange(Settings(**{**vars(SHORT), **change}))
