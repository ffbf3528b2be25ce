"""The lab of alanine dipeptide: losses, what a flow looks like, what bad samples do, and what is held of OpenMM."""

import dataclasses
import gc
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from lab_tools import opened, train
from simulated_page import Page

from p4lab.errors import ConfigError, TrainingError
from p4lab.labs import Sight
from p4lab.labs.alanine import (
    ALANINE,
    DEPTH,
    PRETRAINED,
    AlanineConfig,
    AlanineProblem,
    AlanineView,
    aligned,
    portrait,
    prepared,
    reference_map,
)
from p4lab.molecules import alanine
from p4lab.molecules.checkpoint import SHIPPED, load_flow
from p4lab.molecules.dataset import TEMPERATURE
from p4lab.molecules.flow import ARCHITECTURES
from p4lab.training import Engine, Player, State

SMALL: dict[str, Any] = {"initial": "new", "batch_size": 16, "measure_every": 5, "learning_rate": 2e-3}


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(AlanineConfig(**SMALL))
    yield engine
    engine.release()


def contexts() -> int:
    """How many contexts of OpenMM there are."""
    gc.collect()
    return sum(type(thing) is openmm.Context for thing in gc.get_objects())


# --- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by_energy": 1.5}, "by_energy=1.5: expected a number from 0 to 1"),
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


def test_every_architecture_is_offered() -> None:
    assert list(AlanineConfig.settings["architecture"].offered(PRETRAINED, "spline_p4")) == list(ARCHITECTURES)


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


def test_by_energy_is_live_and_mixes_the_two_losses(engine: Engine) -> None:
    x = engine.problem.batch(16, torch.Generator().manual_seed(0))
    losses = []
    for share in (0.0, 0.25, 1.0):
        engine.set("by_energy", share)
        losses.append(float(engine.problem.loss(engine.model, x).detach()))
    assert losses[1] == pytest.approx(0.75 * losses[0] + 0.25 * losses[2], rel=1e-5)


def test_prepared_data_are_standardized_training_frames() -> None:
    data = prepared()
    assert data.frames.temperature == TEMPERATURE
    assert data.train.shape == (16_000, AlanineProblem.dim)
    assert data.train[:, 5:].std(0).sub(1).abs().max() < 0.2


def test_coordinates_are_those_of_the_flow_that_comes_with_p4lab() -> None:
    stored, mine = load_flow(SHIPPED)[1].state_dict(), prepared().coordinates.state_dict()
    for name, value in mine.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-5, atol=1e-6)


def test_samples_without_energy_are_left_out_and_none_left_stops_the_run(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.set("by_energy", 1.0)
    real = engine.problem.energy.energies_and_forces

    def failing(share: float) -> Any:
        def energies(frames: Any, forces: bool) -> Any:
            energy, force = real(frames, forces)
            bad = slice(0, int(share * len(frames)))
            energy[bad], force[bad] = np.inf, np.nan
            return energy, force

        return energies

    monkeypatch.setattr(engine.problem.energy, "energies_and_forces", failing(0.5))
    engine.run(1)
    assert math.isfinite(engine.records.steps.columns["loss"][-1])
    weights = [p.detach().clone() for p in engine.model.parameters()]
    monkeypatch.setattr(engine.problem.energy, "energies_and_forces", failing(1.0))
    with pytest.raises(TrainingError, match="The step was not taken"):
        engine.run(1)
    assert engine.step == 1
    assert all(torch.equal(p, w) for p, w in zip(engine.model.parameters(), weights, strict=True))


# --- what is held of OpenMM -------------------------------------------------------------------------------------------


def test_pausing_and_closing_a_player_frees_the_context_and_a_step_takes_it_again() -> None:
    player = Player(Engine, AlanineConfig(**SMALL, by_energy=1.0))

    def held() -> bool:
        return player.ask(lambda runs: runs.active.engine.problem.energy.context is not None, 60)

    try:
        player.start()
        player.ask(lambda runs: runs.active.engine.run(1), 60)
        assert player.state is State.RUNNING
        player.pause()
        assert not held()
        player.step()
        assert held()
    finally:
        player.close()
    assert player.engine.problem.energy.context is None


def test_closing_a_lab_frees_what_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contexts()
    with opened(ALANINE, **SMALL) as lab:
        page = Page(lab, monkeypatch)
        page.told("count", "0")
        assert contexts() == before + 1
        assert "|" in page.values["ess"]
    assert contexts() == before


# --- what a flow looks like -------------------------------------------------------------------------------------------


def test_samples_are_weighed_by_energy_and_density(engine: Engine) -> None:
    config, pictures = AlanineConfig(**SMALL), engine.snapshot().pictures
    with AlanineView(300) as view:
        one, again = view.look(config, pictures), view.look(config, pictures)
    assert np.array_equal(one.energy, again.energy)
    assert one.energy.shape == one.weights.shape == one.phi.shape == (300,)
    assert math.isclose(one.weights.sum(), 1.0, rel_tol=1e-9)
    assert math.isclose(one.ess, 1 / (300 * (one.weights**2).sum()), rel_tol=1e-6)
    assert one.ess <= one.clipped
    assert one.rare[1] == pytest.approx((one.weights * ((one.phi > 0) & (one.phi < 2.4))).sum(), abs=1e-6)
    assert one.positions.shape == (8, alanine.N_ATOMS, 3)


def test_training_makes_samples_that_weigh_more_alike(engine: Engine) -> None:
    with AlanineView(500) as view:
        before = view.look(AlanineConfig(**SMALL), engine.snapshot().pictures)
        engine.run(60)
        after = view.look(AlanineConfig(**SMALL), engine.snapshot().pictures)
    assert after.shift < before.shift
    assert after.below > before.below


def test_the_first_run_is_of_the_flow_that_comes_with_p4lab_which_is_good_and_trains_on() -> None:
    with opened(ALANINE, batch_size=16) as lab:
        assert lab.config == PRETRAINED.replace(batch_size=16)
        samples = portrait(lab.sight())
        assert samples.ess > 0.5
        assert abs(samples.shift) < 3
        train(lab, 3)
        assert np.isfinite(lab.frame()["loss"].dropna()).all()


def test_numbers_follow_training_and_time_travel_and_the_seed() -> None:
    with opened(ALANINE, **SMALL) as lab:
        start = lab.numbers()
        assert start["ess"].count("|") == 1
        train(lab, 10)
        trained = lab.numbers()
        assert trained["count"] == "10"
        assert trained["shift"] != start["shift"]
        lab.touch("scrub", 0)
        assert lab.numbers() == start
        lab.touch("restart")
        lab.touch("seed", 1)
        assert lab.numbers() != start


def test_a_flow_that_trains_is_looked_at_every_two_seconds_and_one_that_rests_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("p4lab.labs.alanine.time", SimpleNamespace(monotonic=lambda: now))
    with opened(ALANINE, **SMALL) as lab:
        first = lab.player.frame(60)
        train(lab, 1)
        second, sight = lab.player.frame(60), lab.sight(first)

        def look(frame: Any, state: State) -> Any:
            return portrait(Sight(dataclasses.replace(frame, state=state), sight.view, sight.memory))

        early = look(first, State.RUNNING)
        now += 1.0
        assert look(second, State.RUNNING) is early
        late = look(second, State.PAUSED)
        assert late is not early
        now += 2.0
        assert look(second, State.RUNNING) is late  # nothing has changed since
        now += 2.0
        assert look(first, State.RUNNING) is not late
        for _, held in sight.memory.values():
            if isinstance(held, AlanineView):
                held.close()


def test_only_one_architecture_starts_pretrained() -> None:
    with opened(ALANINE, **SMALL) as lab:
        for name, value, wanted in (
            ("initial", "pretrained", ("spline_p4", "pretrained")),
            ("architecture", "realnvp", ("realnvp", "new")),
            ("initial", "pretrained", ("spline_p4", "pretrained")),
            ("initial", "new", ("spline_p4", "new")),
        ):
            lab.touch(name, value)
            planned = lab.player.frame(60).planned.to_dict()
            assert (planned["architecture"], planned["initial"]) == wanted


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_reference_map_is_highest_at_0_and_cut_at_its_depth() -> None:
    levels = reference_map()
    assert (levels.min(), levels.max()) == (-DEPTH, 0)
    assert np.isfinite(levels).all()
    row, column = np.unravel_index(levels.argmax(), levels.shape)
    assert column < 32  # phi < 0 is where most molecules are
    assert row != column


def test_aligned_positions_keep_their_distances_and_do_not_jump() -> None:
    x = alanine.start().numpy()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turned = x @ (turn * torch.linalg.det(turn)).numpy() + 3.0
    a, b = aligned(x), aligned(turned)
    assert np.allclose(a, b, atol=1e-6)
    assert np.allclose(np.linalg.norm(a[0] - a[21]), np.linalg.norm(x[0] - x[21]), atol=1e-9)
    assert np.allclose(a.mean(0), 0, atol=1e-9)


def test_positions_that_are_not_finite_are_drawn_as_nothing() -> None:
    assert np.isnan(aligned(np.full((22, 3), np.nan))).all()
