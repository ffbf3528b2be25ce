"""The command of the molecule experiments: what is run, kept and said."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from p4lab.bench.store import read
from p4lab.experiments import molecules as command
from p4lab.experiments.molecules import COLUMNS, MoleculeRun
from p4lab.molecules.checkpoint import load_flow
from p4lab.molecules.cooling import Cooled
from p4lab.molecules.dataset import Frames, load, simulate
from p4lab.molecules.flow import ARCHITECTURES, molecule_flow
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.problem import Problem
from p4lab.molecules.replica_exchange import Settings
from p4lab.molecules.train import Record, Training

RUN = MoleculeRun("spline", 0, 5, 6, 7, 2e-3, 0, 1000)


def figures(value: float = 0.5, reason: str = "") -> dict[str, Any]:
    return {**{key: value for key, _ in COLUMNS.values()}, "parameters": 1234, "reason": reason}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[MoleculeRun]:
    """Runs that were asked for; nothing is trained."""
    done: list[MoleculeRun] = []

    def judged(run: MoleculeRun, problem: Any) -> tuple[dict[str, Any], Any]:
        done.append(run)
        return figures(0.1 * (run.seed + 1)), None

    monkeypatch.setattr(command, "judged", judged)
    monkeypatch.setattr(Problem, "of", classmethod(lambda cls, data=None, molecule=None: None))
    return done


def runs_of(*arguments: str) -> dict[str, list[MoleculeRun]]:
    return command.runs_for(command.main.read(arguments))


def test_the_default_is_every_architecture_with_three_seeds_and_two_budgets() -> None:
    found = runs_of()
    assert list(found) == ["short", "long"]
    for runs in found.values():
        assert len(runs) == 12
        assert {run.method for run in runs} == set(ARCHITECTURES)
        assert [run.seed for run in runs] == sorted(run.seed for run in runs)
        assert {run.samples for run in runs} == {50_000}
    assert len({run.key() for runs in found.values() for run in runs}) == 24


def test_runs_of_another_molecule_say_so_and_those_of_alanine_need_no_simulation() -> None:
    runs = runs_of("--molecules", "A+AAA", "--nanoseconds", "2", "--methods", "spline", "--seeds", "1")["long"]
    assert [(run.molecule, run.nanoseconds, run.label) for run in runs] == [
        ("A", 0.0, "spline"), ("AAA", 2.0, "AAA, spline"),
    ]  # fmt: skip


def test_a_sized_budget_is_longer_for_larger_molecules() -> None:
    options = ["--methods", "spline", "--seeds", "1", "--ways", "example+energy", "--budgets"]
    names = ("sized", "long", "longer", "longest")
    by_budget = {name: runs_of("--molecules", "A+G+AA+AAA", *options, name)[name] for name in names}
    sized, small, middle, large = (by_budget[name] for name in names)
    assert sized == [*small[:4], *middle[4:6], *large[6:]]  # A and G by both ways, then AA, then AAA
    assert len({run.steps for run in (small[0], middle[0], large[0])}) == 3


def test_another_molecule_is_simulated_and_has_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(molecule: Molecule, nanoseconds: float, folder: Path) -> Frames:
        settings = Settings(replicas=2, sweep=2, equilibration=50, chunk=100)
        return simulate(molecule, nanoseconds, folder, settings, progress=False)

    monkeypatch.setattr(command, "simulate", short)
    problem = command.problem_of("G", 0.0012, tmp_path)
    assert problem.coordinates.molecule is Molecule.from_sequence("G")
    assert problem.reference is None
    assert len(problem.examples) == len(problem.parts[0])
    assert (tmp_path / "G" / "settings.json").is_file()


def test_several_molecules_are_one_table_and_each_has_its_own_entropy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nll = {"A": -3.0, "AA": -7.0}

    def judged(run: MoleculeRun, problem: str) -> tuple[dict[str, Any], Any]:
        assert problem == run.molecule
        return figures() | {"test_nll": nll[problem], "test_kl": 0.25 * len(problem)}, None

    monkeypatch.setattr(command, "judged", judged)
    monkeypatch.setattr(command, "problem_of", lambda molecule, nanoseconds, folder: molecule)
    command.main(["--molecules", "A+AA", "--methods", "spline", "--seeds", "1", "--budgets", "long"])
    said = capsys.readouterr().out
    assert "### Alanine dipeptide, AA, long" in said
    rows = {line.split(" | ")[0]: line.split(" | ") for line in said.splitlines() if line.startswith("|")}
    where = rows["| method    "].index("KL(p, q)")
    assert (rows["| spline    "][where], rows["| AA, spline"][where]) == ("0.250   ", "0.500   ")


def test_rivals_are_trained_alike() -> None:
    for found in runs_of().values():
        runs = {run.method: dataclasses.replace(run, method="", merge_every=0) for run in found}
        assert runs["realnvp"] == runs["realnvp_p4inv"]
        assert runs["spline"] == runs["spline_p4"]


def test_stages_without_steps_are_left_out() -> None:
    assert [(stage.kind, stage.steps) for stage in RUN.stages()] == [("example", 5), ("forces", 6), ("mixed", 7)]
    only = dataclasses.replace(RUN, mixed_steps=0).stages()
    assert [stage.kind for stage in only] == ["example", "forces"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--methods", "spline+glow"], "glow not known; choose of", id="method"),
        pytest.param(["--seeds", "0"], "--seeds 0", id="seeds"),
        pytest.param(["--samples", "10"], "--samples 10", id="samples"),
        pytest.param(["--budgets", "short+huge"], "huge not known; choose of quick", id="budget"),
    ],
)
def test_bad_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        command.main(arguments)


def test_what_was_done_is_not_done_again(
    fake: list[MoleculeRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sub" / "runs.jsonl"
    arguments = ["--methods", "spline", "--seeds", "2", "--budgets", "short", "--file", str(file)]
    command.main(arguments)
    assert len(fake) == len(read(file)) == 2
    first = capsys.readouterr().out
    command.main([*arguments[:3], "3", *arguments[4:]])
    assert [run.seed for run in fake] == [0, 1, 2]
    assert "| spline | 1,234      | +0.15 [+0.10, +0.20]" in first
    assert "Reference: phi > 0" in first
    command.main(["--methods", "spline", "--seeds", "9", "--budgets", "short", "--file", str(file), "--known"])
    assert "| 3     |" in capsys.readouterr().out
    assert len(fake) == 3
    with pytest.raises(SystemExit, match="--known without --file"):
        command.main(["--known"])


def test_molecules_are_known_before_the_first_run(fake: list[MoleculeRun], tmp_path: Path) -> None:
    for arguments in (["--molecules", "A+AXA"], ["--molecules", "A++"], ["--checkpoint", str(tmp_path)]):
        with pytest.raises(SystemExit, match=r"'X' not known|no residue|is a folder"):
            command.main(arguments)
    assert fake == []
    path, glycine = tmp_path / "own.pdb", Molecule.from_sequence("G")
    path.write_text(glycine.pdb_text(glycine.start[None]))
    runs = runs_of("--molecules", f"A+A+{path}", "--methods", "spline", "--seeds", "1")["long"]
    assert [run.molecule for run in runs] == ["A", f"{path}, {Molecule.from_pdb(path).digest}"]


def test_the_table_says_who_stopped_early() -> None:
    said = command.table({"realnvp": [figures(), figures(reason="OpenMM failed")]})
    assert "2, 1 stopped early" in said
    assert len(said.splitlines()) == 3


def test_divergences_share_the_entropy_of_the_best_weighted_run() -> None:
    good, poor = figures() | {"ess": 0.9, "test_nll": -3.0, "test_kl": 0.25}, figures() | {"ess": 0.1, "test_nll": -2.0}
    assert command.entropy([poor, good]) == -3.25


def test_runs_by_energy_alone_say_how() -> None:
    found = runs_of("--ways", "example+energy", "--methods", "spline_p4+realnvp", "--seeds", "1")["long"]
    assert [run.label for run in found] == [
        "spline_p4", "realnvp", "spline_p4, by energy alone", "realnvp, by energy alone",
    ]  # fmt: skip
    assert [run.cooling is None for run in found] == [True, True, False, False]
    spline = found[2].cooling
    assert spline is not None
    assert (spline.rate, spline.merge_every) == (command.RATES["spline_p4"], command.MERGES["spline_p4"])
    assert found[2].stages() == []


@pytest.mark.slow
@pytest.mark.parametrize("way", command.WAYS)
def test_a_run_and_its_checkpoint(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p4lab.molecules.problem.load", lambda: load()[:600])
    path = tmp_path / "flow.pt"
    command.main(["--quick", "--methods", "spline_p4", "--ways", way, "--checkpoint", str(path)])
    flow, _, found = load_flow(path)
    if way == "energy":
        cooling = command.BUDGETS["quick"].cooling
        steps = cooling.samples * (cooling.first_steps + (cooling.levels - 1) * cooling.steps + cooling.last_steps)
        assert steps + 2 * cooling.candidates < found["evaluations"] < steps + 4 * cooling.candidates + 200
    else:
        assert found["evaluations"] > 480
    assert path.stat().st_size < 3_000_000
    assert found["samples"] == 1000
    assert found["reason"] == ""
    assert found["steps"] > 0
    assert torch.isfinite(flow.sample(10)).all()


def test_a_long_training_says_each_minute_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cool(*arguments: Any, on_record: Any) -> Cooled:
        for step, minutes in enumerate((0.4, 1.2, 1.9, 2.3), start=1):
            on_record(Record(0, step, minutes, -7.0, 1.0, True))
        return Cooled(flow := molecule_flow("spline", torch.randn(99, 60)), flow, problem.coordinates)

    problem = Problem.of(load()[:300])
    monkeypatch.setattr(command, "cool", cool)
    run = dataclasses.replace(RUN, cooling=command.BUDGETS["quick"].cooling)
    command.fit(run, problem)
    assert capsys.readouterr().err.splitlines() == [
        "  spline, by energy alone, seed 0: step 2 of 17, 1 min, -7.00 nats",
        "  spline, by energy alone, seed 0: step 4 of 17, 2 min, -7.00 nats",
    ]
    assert RUN.steps == 18


def test_a_failed_energy_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Problem, "of", classmethod(lambda cls, data=None, molecule=None: None))
    training = Training(molecule_flow("spline", torch.randn(99, 60)), reason="OpenMM failed")
    monkeypatch.setattr(command, "judged", lambda run, problem: (figures(reason=training.reason), training))
    command.main(["--methods", "spline", "--seeds", "1", "--budgets", "short"])
    told = capsys.readouterr()
    assert "ended early: OpenMM failed" in told.err
    assert "1, 1 stopped early" in told.out
