"""Alanine dipeptide as a problem of the engine: losses, what is seen, and what bad samples do."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from p4lab.errors import ConfigError, TrainingError
from p4lab.molecules import alanine
from p4lab.molecules.checkpoint import SHIPPED, load_flow
from p4lab.molecules.dataset import TEMPERATURE
from p4lab.training import Engine, Player, RunConfig, State
from p4lab.training.alanine_setup import AlanineConfig, AlanineProblem, AlanineView, prepared

SMALL: dict[str, Any] = {"initial": "new", "batch_size": 16, "measure_every": 5, "learning_rate": 2e-3}


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(AlanineConfig(**{**SMALL, **getattr(request, "param", {})}))
    yield engine
    engine.release()


@pytest.mark.parametrize("by_energy", [0.0, 0.5, 1.0], ids=["example", "mixed", "energy"])
def test_loss_falls_and_every_parameter_learns(by_energy: float) -> None:
    engine = Engine(AlanineConfig(initial="new", batch_size=64, measure_every=100))
    engine.run(20)  # what is drawn at random has no forces worth following
    engine.set("by_energy", by_energy)
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    engine.run(25)
    losses = engine.records.steps.columns["loss"][20:]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    still = [name for name, p in engine.model.named_parameters() if torch.equal(p, before[name])]
    assert not [name for name in still if not name.endswith(".v")]  # P4 directions may be as they were drawn
    engine.release()


def test_same_config_same_numbers() -> None:
    runs = []
    for _ in range(2):
        engine = Engine(AlanineConfig(**SMALL, by_energy=0.5, seed=3))
        engine.run(4)
        runs.append(engine.records.steps.columns["loss"])
        engine.release()
    assert runs[0] == runs[1]


def test_by_energy_is_live_and_mixes_the_two_losses(engine: Engine) -> None:
    x = engine.problem.batch(16, torch.Generator().manual_seed(0))
    found = []
    for share in (0.0, 0.25, 1.0):
        engine.set("by_energy", share)
        found.append(float(engine.problem.loss(engine.model, x).detach()))
    assert found[1] == pytest.approx(0.75 * found[0] + 0.25 * found[2], rel=1e-5)


def test_view_weighs_samples_by_energy_and_density(engine: Engine) -> None:
    config, pictures = engine.config, engine.snapshot().pictures
    assert isinstance(config, AlanineConfig)
    with AlanineView(300) as view:
        seen, again = view.look(config, pictures), view.look(config, pictures)
    assert np.array_equal(seen.energy, again.energy)
    assert seen.energy.shape == seen.weights.shape == seen.phi.shape == (300,)
    assert math.isclose(seen.weights.sum(), 1.0, rel_tol=1e-9)
    assert math.isclose(seen.ess, 1 / (300 * (seen.weights**2).sum()), rel_tol=1e-6)
    assert seen.ess <= seen.clipped
    assert seen.rare[1] == pytest.approx((seen.weights * ((seen.phi > 0) & (seen.phi < 2.4))).sum(), abs=1e-6)
    assert seen.positions.shape == (8, alanine.N_ATOMS, 3)


def test_training_makes_samples_that_weigh_more_alike(engine: Engine) -> None:
    with AlanineView(500) as view:
        before = view.look(engine.config, engine.snapshot().pictures)  # type: ignore[arg-type]
        engine.run(60)
        after = view.look(engine.config, engine.snapshot().pictures)  # type: ignore[arg-type]
    assert after.shift < before.shift
    assert after.below > before.below


def test_released_energy_is_taken_again(engine: Engine) -> None:
    engine.set("by_energy", 1.0)
    engine.run(1)
    assert engine.problem._energy.context is not None
    engine.release()
    assert engine.problem._energy.context is None
    engine.run(1)
    assert engine.step == 2


def test_pausing_and_closing_a_player_frees_the_context() -> None:
    player = Player(Engine, AlanineConfig(**SMALL, by_energy=1.0))
    try:
        player.start()
        player.ask(lambda runs: runs.active.engine.run(1), 60)
        assert player.state is State.RUNNING
        player.pause()
        assert player.ask(lambda runs: runs.active.engine.problem._energy.context, 60) is None
        player.step()
        assert player.ask(lambda runs: runs.active.engine.problem._energy.context, 60) is not None
    finally:
        player.close()
    assert player.engine.problem._energy.context is None


def test_samples_without_energy_are_left_out_and_none_left_stops_the_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.set("by_energy", 1.0)
    real = engine.problem._energy.energies_and_forces

    def failing(share: float) -> Any:
        def energies(frames: Any, forces: bool) -> Any:
            energy, force = real(frames, forces)
            bad = slice(0, int(share * len(frames)))
            energy[bad], force[bad] = np.inf, np.nan
            return energy, force

        return energies

    monkeypatch.setattr(engine.problem._energy, "energies_and_forces", failing(0.5))
    engine.run(1)
    assert math.isfinite(engine.records.steps.columns["loss"][-1])
    weights = [p.detach().clone() for p in engine.model.parameters()]
    monkeypatch.setattr(engine.problem._energy, "energies_and_forces", failing(1.0))
    with pytest.raises(TrainingError, match="The step was not taken"):
        engine.run(1)
    assert engine.step == 1
    assert all(torch.equal(p, w) for p, w in zip(engine.model.parameters(), weights, strict=True))


def test_config_comes_back_from_its_text() -> None:
    config = AlanineConfig(architecture="realnvp", by_energy=0.25, seed=4)
    assert RunConfig.from_text(config.to_text()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by_energy": 1.5}, "a number from 0 to 1"),
        ({"by_energy": float("nan")}, "a number from 0 to 1"),
        ({"architecture": "resnet"}, "one of realnvp"),
        ({"initial": "yesterday"}, "one of pretrained, new"),
        ({"initial": "pretrained", "architecture": "realnvp"}, "choose that, or initial='new'"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlanineConfig(**change)


def test_prepared_data_are_standardized_training_frames() -> None:
    data = prepared()
    assert data.frames.temperature == TEMPERATURE
    assert data.train.shape == (16_000, AlanineProblem.dim)
    assert data.train[:, 5:].std(0).sub(1).abs().max() < 0.2


def test_the_flow_that_comes_with_p4lab_is_good_and_trains_on() -> None:
    engine = Engine(AlanineConfig(initial="pretrained", by_energy=0.5, learning_rate=1e-4, batch_size=16))
    config = engine.config
    assert isinstance(config, AlanineConfig)
    with AlanineView(1000) as view:
        seen = view.look(config, engine.snapshot().pictures)
    assert seen.ess > 0.5
    assert abs(seen.shift) < 3
    engine.run(3)
    assert all(math.isfinite(loss) for loss in engine.records.steps.columns["loss"])
    engine.release()


def test_coordinates_are_those_of_the_flow_that_comes_with_p4lab() -> None:
    stored, mine = load_flow(SHIPPED)[1].state_dict(), prepared().coordinates.state_dict()
    for name, value in mine.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-5, atol=1e-6)
