"""The lab of molecules: losses, what a flow looks like at any temperature, what is held of OpenMM; any molecule."""

import dataclasses
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from lab_tools import as_number, opened, table, train
from molecule_tools import butane
from simulated_page import Page

from p4lab.errors import ConfigError, MoleculeError, OptionError, ShapeError, SingularMatrixError, TrainingError
from p4lab.labs import Sight
from p4lab.labs.lab import weights_of
from p4lab.labs.molecule import MOLECULE, PRETRAINED, MoleculeConfig
from p4lab.labs.molecule_data import FEWEST, prepare, prepared
from p4lab.labs.molecule_pictures import DEPTH, FEW, Observer, Portrait, aligned, atoms_of, log_map, portrait, resampled
from p4lab.molecules.checkpoint import SHIPPED, load_flow
from p4lab.molecules.dataset import TEMPERATURE, Frames, load, simulate
from p4lab.molecules.evaluate import Samples
from p4lab.molecules.flow import ARCHITECTURES
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.replica_exchange import Settings
from p4lab.molecules.units import BOLTZMANN
from p4lab.plots.layers import Dots, Heatmap
from p4lab.training import Engine, Player, State, run
from p4lab.widgets import molecule_lab

ALANINE = Molecule.from_sequence("A")

SMALL: dict[str, Any] = {"initial": "new", "batch_size": 16, "measure_every": 5, "learning_rate": 2e-3}


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(MoleculeConfig(**SMALL))
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
        ({"initial": "pretrained", "molecule": "AAA"}, "choose that, or initial='new'"),
        ({"molecule": ""}, "molecule=''"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoleculeConfig(**change)


def test_every_architecture_is_offered() -> None:
    assert list(MoleculeConfig.settings["architecture"].offered(PRETRAINED, "spline_p4")) == list(ARCHITECTURES)


@pytest.mark.parametrize("by_energy", [0.0, 0.5, 1.0], ids=["example", "mixed", "energy"])
def test_loss_falls_and_every_parameter_learns(by_energy: float) -> None:
    engine = Engine(MoleculeConfig(initial="new", batch_size=64, measure_every=100))
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
    assert data.train.shape == (16_000, 60)
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
    player = Player(Engine, MoleculeConfig(**SMALL, by_energy=1.0))

    def held() -> bool:
        return player.ask(lambda runs: bool(runs.active.engine.problem.energy.contexts), 60)

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
    assert not player.engine.problem.energy.contexts


def test_closing_a_lab_frees_what_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contexts()
    with opened(MOLECULE, **SMALL) as lab:
        page = Page(lab, monkeypatch)
        page.told("count", "0")
        assert contexts() == before + 1
        assert "|" in page.values["ess"]["value"]
    assert contexts() == before


# --- what a flow looks like -------------------------------------------------------------------------------------------


def test_samples_are_weighed_by_energy_and_density(engine: Engine) -> None:
    config, pictures = MoleculeConfig(**SMALL), engine.snapshot().pictures
    with Observer(300) as view:
        one, again = view.look(config, pictures), view.look(config, pictures)
    assert np.array_equal(one.energy, again.energy)
    phi, weights, (ess, clipped) = one.degrees("phi"), one.weights(300.0), one.sizes(300.0)
    assert one.energy.shape == weights.shape == phi.shape == (300,)
    assert math.isclose(weights.sum(), 1.0, rel_tol=1e-9)
    assert math.isclose(ess, 1 / (300 * (weights**2).sum()), rel_tol=1e-6)
    assert ess <= clipped
    inside = (phi > 0) & (phi < math.degrees(2.4))
    assert one.rare("phi", 300.0) == (inside.mean(), pytest.approx((weights * inside).sum(), abs=1e-6))
    assert one.x.shape == (300, len(ALANINE), 3)


def test_training_makes_samples_that_weigh_more_alike(engine: Engine) -> None:
    with Observer(500) as view:
        before = view.look(MoleculeConfig(**SMALL), engine.snapshot().pictures)
        engine.run(60)
        after = view.look(MoleculeConfig(**SMALL), engine.snapshot().pictures)
    assert after.shift < before.shift


def test_the_first_run_is_of_the_flow_that_comes_with_p4lab_which_is_good_and_trains_on() -> None:
    with opened(MOLECULE, batch_size=16) as lab:
        assert lab.config == PRETRAINED.replace(batch_size=16)
        samples = portrait(lab.sight())
        assert samples.sizes(300.0)[0] > 0.5
        assert abs(samples.shift) < 3
        train(lab, 3)
        assert np.isfinite(lab.frame()["loss"].dropna()).all()


def test_numbers_follow_training_and_time_travel_and_the_seed() -> None:
    with opened(MOLECULE, **SMALL) as lab:
        start = lab.numbers()
        assert start["ess"]["value"].count("|") == 1
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
    monkeypatch.setattr("p4lab.labs.molecule_pictures.time", SimpleNamespace(monotonic=lambda: now))
    with opened(MOLECULE, **SMALL) as lab:
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
            if isinstance(held, Observer):
                held.close()


def test_only_one_architecture_starts_pretrained() -> None:
    with opened(MOLECULE, **SMALL) as lab:
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
    levels = log_map(prepared(), ("phi", "psi"))
    assert (levels.min(), levels.max()) == (-DEPTH, 0)
    assert np.isfinite(levels).all()
    row, column = np.unravel_index(levels.argmax(), levels.shape)
    assert column < 32  # phi < 0 is where most molecules are
    assert row != column


def test_aligned_positions_keep_their_distances_and_do_not_jump() -> None:
    x = ALANINE.start.numpy()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turned = x @ (turn * torch.linalg.det(turn)).numpy() + 3.0
    onto = prepared().upright
    a, b = aligned(x, onto), aligned(turned, onto)
    assert np.allclose(a, b, atol=1e-6)
    assert np.allclose(np.linalg.norm(a[0] - a[21]), np.linalg.norm(x[0] - x[21]), atol=1e-9)
    assert np.allclose(a.mean(0), 0, atol=1e-9)


def test_positions_that_are_not_finite_are_drawn_as_nothing() -> None:
    assert np.isnan(aligned(np.full((22, 3), np.nan), prepared().upright)).all()


# --- another temperature ----------------------------------------------------------------------------------------------


def test_samples_are_weighted_for_another_temperature_as_if_they_had_been_weighed_there() -> None:
    config, data = PRETRAINED, prepared()
    with Observer(400) as view:
        seen = view.look(config, {name: value.numpy() for name, value in weights_of(config.model()).items()})
    log_w = seen.log_weights(350.0)
    with ALANINE.energy(350.0) as energy:
        expected = seen.samples.log_weights + seen.samples.energy / (BOLTZMANN * 300.0) - energy(seen.x)
    torch.testing.assert_close(log_w.diff(), expected.diff(), rtol=1e-6, atol=1e-6)
    assert torch.equal(seen.log_weights(300.0), seen.samples.log_weights)
    assert seen.sizes(350.0)[0] < seen.sizes(300.0)[0]
    # it is warmer there, by about half a k_B for each coordinate
    warmer = (seen.weights(320.0) * seen.energy).sum() - (seen.weights(300.0) * seen.energy).sum()
    assert warmer / (20 * BOLTZMANN) == pytest.approx(0.5 * data.coordinates.dim, rel=0.3)


def test_a_sample_without_energy_weighs_nothing_at_any_temperature() -> None:
    samples = Samples(
        torch.zeros(3, 60),
        torch.zeros(3, 22, 3),
        torch.zeros(3),
        torch.tensor([0.0, math.inf, 1.0]),
        torch.tensor([0.0, -math.inf, 0.0]),
        {"phi": torch.tensor([1.0, 1.0, -1.0])},
    )
    seen = Portrait(prepared(), samples)
    for kelvin in (250.0, 300.0, 450.0):
        assert seen.weights(kelvin)[1] == 0
        assert math.isclose(seen.weights(kelvin).sum(), 1.0, rel_tol=1e-9)
    assert seen.rare("phi", 300.0) == (pytest.approx(2 / 3), pytest.approx(0.5))


def test_resampling_takes_each_sample_as_often_as_its_weight_asks_for() -> None:
    assert np.bincount(resampled(np.array([0.5, 0.0, 0.25, 0.25])), minlength=4).tolist() == [2, 0, 1, 1]
    assert len(resampled(np.zeros(4))) == 0


def test_the_dial_changes_what_is_seen_and_not_what_is_trained_and_says_when_too_few_samples_count() -> None:
    with opened(MOLECULE, batch_size=16) as lab:
        before, start, config = lab.drawings(), lab.numbers(), lab.config
        lab.touch("temperature", 320.0)
        warm, there = lab.drawings(), lab.numbers()
        assert there["ess"]["unit"] == "% at 320 K"
        assert "samples count. The flow is as it was." in lab.message()
        for area in ("map", "energies", "first", "second", "ess"):
            same = [a.same(b) for a, b in zip(before[area].layers, warm[area].layers, strict=True)]
            assert not all(same), area
            assert same[0] or area == "ess", area  # what is known stays
        lab.touch("temperature", 500.0)
        few = lab.sight()
        assert portrait(few).effective(500.0) < FEW
        assert "too few to say anything" in lab.message()
        drawings = lab.drawings()
        assert all(np.isnan(drawings[area].layers[-1].points).all() for area in ("first", "second"))
        assert {row.cells[-1] for row in drawings["terms"].rows} == {"–"}
        assert lab.numbers()["rare"].endswith(" | –")
        lab.touch("temperature", 300.0)
        assert lab.numbers() == start
        assert lab.config == config


# --- any molecule -----------------------------------------------------------------------------------------------------

TINY = Settings(replicas=2, sweep=5, equilibration=50, chunk=20)


@pytest.fixture(scope="module")
def peptide() -> tuple[Molecule, Frames]:
    molecule = Molecule.from_sequence("AS")
    return molecule, simulate(molecule, 0.003, settings=TINY, progress=False)


@contextmanager
def lab_of(*given: Any, **options: Any) -> Iterator[Any]:
    lab = molecule_lab(*given, name="test", **options)
    try:
        yield lab
        assert lab.error is None
    finally:
        lab.close()


def test_the_lab_of_a_peptide_shows_each_residue_and_trains(peptide: tuple[Molecule, Frames], tmp_path: Path) -> None:
    with lab_of(*peptide, batch_size=16, measure_every=5) as lab:
        first = lab.drawings()["map"]
        assert first.labels == ("φ 1 (degrees)", "ψ 1 (degrees)")
        assert lab.lab.setting("pair").choices == {0: "Ala", 1: "Ser"}
        lab.touch("pair", 1)
        second = lab.drawings()["map"]
        assert second.labels == ("φ 2 (degrees)", "ψ 2 (degrees)")
        assert not any(a.same(b) for a, b in zip(first.layers, second.layers, strict=True))
        assert lab.values()["temperature"] == 300.0
        terms = table(lab, "terms")
        assert [row["kJ/mol"] for row in terms] == ["bonds", "angles", "torsions", "non-bonded", "solvent", "all"]
        simulated = [as_number(row["simulation"]) for row in terms]
        assert simulated[-1] == pytest.approx(sum(simulated[:-1]), abs=0.3)
        train(lab, 6)
        assert np.isfinite(lab.frame()["loss"].dropna()).all()
        lab.touch("scrub", 5)
        assert lab.numbers()["count"] == "5"
        lab.touch("now")
        for number in range(len(lab.lab.tries)):
            lab.touch("try", number)
        lab.touch("initial", "new")  # what there is for alanine dipeptide alone is refused by its config
        with pytest.raises(ConfigError, match="comes with p4lab"):
            lab.touch("initial", "pretrained")
        lab.touch("initial", "new")
        lab.export(tmp_path / "run.replay.html")
        assert (tmp_path / "run.replay.html").stat().st_size < 5_000_000


def test_a_config_is_of_one_molecule_and_of_its_frames(peptide: tuple[Molecule, Frames], tmp_path: Path) -> None:
    molecule, frames = peptide
    with lab_of(molecule, frames, batch_size=16) as lab:
        config, text = lab.config, lab.config.to_text()
        assert MoleculeConfig.from_text(text) == config
        assert run(config, 1).step == 1  # as anywhere: in Python, too
        lab.save(tmp_path / "one.p4run")
    assert prepare(molecule, frames).key == config.molecule
    for other in (
        frames[:-1],
        dataclasses.replace(frames, temperature=310.0),
        dataclasses.replace(frames, energy=frames.energy + 1),
    ):
        data = prepare(molecule, other)
        assert data.key != config.molecule
        assert data.frames is other
    with lab_of(molecule, frames) as lab:
        lab.load(tmp_path / "one.p4run")
    with lab_of() as lab:
        with pytest.raises(ConfigError, match="this lab is of 'A'"):
            lab.touch("config", text)
        lab.touch("config", "molecule")
    with pytest.raises(ConfigError, match="not known here"):
        run(config.replace(molecule="AAA"), 1)


@pytest.mark.parametrize("make", [butane, lambda: Molecule.from_sequence("G")], ids=["one torsion", "alone"])
def test_any_molecule_is_drawn(make: Any) -> None:
    molecule = make()
    frames = simulate(molecule, 0.002, settings=TINY, progress=False)
    with lab_of(molecule, frames, batch_size=16, architecture="realnvp") as lab:
        drawings = lab.drawings()
        atoms = [layer for layer in drawings["sample"].layers if isinstance(layer, Dots)]
        assert sum(len(layer.points) for layer in atoms) == len(molecule)
        assert {layer.label for layer in atoms} == set(molecule.graph.elements)
        assert drawings["terms"].rows[-1].active
        if len(molecule.torsions) == 1:
            assert drawings["map"].labels == ("C1–C2–C3–C4 (degrees)", "share in 10°")
            assert drawings["second"] is None
            assert "rare" not in lab.numbers()
            np.testing.assert_allclose(drawings["map"].layers[0].points[:, 1].sum(), 1, rtol=1e-5)
            assert 0.9 * drawings["map"].bounds[3] < 2 * drawings["map"].layers[0].points[:, 1].max()
        else:
            assert isinstance(drawings["map"].layers[0], Heatmap)
        train(lab, 2)


def test_atoms_of_any_element_are_drawn_the_usual_ones_first() -> None:
    assert atoms_of(["H", "Br", "C", "H", "Xx"]) == {"C": [2], "H": [0, 3], "Br": [1], "Xx": [4]}


def test_a_simulation_is_made_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("p4lab.labs.molecule_data.Settings", lambda chunk: TINY)
    data = prepare("G", nanoseconds=0.0006)
    (folder,) = (tmp_path / "simulations").iterdir()
    assert folder.name.startswith("ACE-GLY-NME-")
    assert f"0.0006 ns, kept in simulations/{folder.name}" in capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in folder.glob("frames*")}
    assert prepare("G", nanoseconds=0.0006) is data
    assert {path: path.stat().st_mtime_ns for path in folder.glob("frames*")} == written
    assert prepare("G", nanoseconds=0.0006, folder="own").key == data.key  # the same seed, the same frames
    assert len(list((tmp_path / "own").glob("frames*"))) == len(written)


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ("AXA", {}, MoleculeError, "X"),
        ("nowhere.pdb", {}, MoleculeError, "cannot be read as a PDB file"),
        (3, {}, MoleculeError, "expected a sequence such as 'AAA'"),
        ("AA", {"nanoseconds": 0}, OptionError, "nanoseconds=0"),
        ("AA", {"nanoseconds": math.nan}, OptionError, "nanoseconds=nan"),
        ("A", {"frames": torch.zeros(5, 22, 3)}, OptionError, "expected Frames"),
        ("AA", {"frames": load()}, ShapeError, r"expected \(n, 32, 3\)"),
        (None, {"frames": load()[: FEWEST - 1]}, OptionError, "9 frames: expected at least 10"),
        ("A", {"frames": load()[:40]}, SingularMatrixError, "train with more than 55 different frames"),
        ("A", {"sead": 1}, ConfigError, "sead"),
    ],
    ids=str,
)
def test_what_cannot_be_shown_is_refused_by_name(given: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        molecule_lab(given, name="test", **options)


def test_frames_of_ones_own_need_not_be_those_of_p4lab() -> None:
    with lab_of("A", load()[:400], batch_size=16) as lab:
        assert lab.config.molecule != PRETRAINED.molecule
        assert "initial" not in {name for names in lab.lab.groups.values() for name in names}
        assert portrait(lab.sight()).data.reference is None
