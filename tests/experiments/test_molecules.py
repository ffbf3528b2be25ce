"""The command of the molecule experiments: what is run, kept and said."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from p4lab.bench.store import read
from p4lab.experiments import molecules as command
from p4lab.experiments.molecules import COLUMNS, MoleculeRun, Problem
from p4lab.molecules.checkpoint import load_flow
from p4lab.molecules.dataset import load
from p4lab.molecules.flow import ARCHITECTURES, molecule_flow
from p4lab.molecules.train import Training

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
    monkeypatch.setattr(Problem, "of", classmethod(lambda cls, data=None: None))
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


def test_the_table_says_who_stopped_early() -> None:
    said = command.table({"realnvp": [figures(), figures(reason="OpenMM failed")]}, 0.0)
    assert "2, 1 stopped early" in said
    assert len(said.splitlines()) == 3


def test_divergences_share_the_entropy_of_the_best_weighted_run() -> None:
    good, poor = figures() | {"ess": 0.9, "test_nll": -3.0, "test_kl": 0.25}, figures() | {"ess": 0.1, "test_nll": -2.0}
    assert command.entropy([poor, good]) == -3.25
    rows = command.table({"spline": [good], "realnvp": [poor]}, -3.25).splitlines()[-2:]
    assert "0.250" in rows[0]
    assert "1.250" in rows[1]


@pytest.mark.slow
def test_a_run_and_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load", lambda: load()[:600])
    path = tmp_path / "flow.pt"
    command.main(["--quick", "--methods", "spline_p4", "--checkpoint", str(path)])
    flow, _, found = load_flow(path)
    assert path.stat().st_size < 3_000_000
    assert found["samples"] == 1000
    assert found["reason"] == ""
    assert found["steps"] > 0
    assert torch.isfinite(flow.sample(10)).all()


def test_a_failed_energy_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Problem, "of", classmethod(lambda cls, data=None: None))
    training = Training(molecule_flow("spline", torch.randn(99, 60)), reason="OpenMM failed")
    monkeypatch.setattr(command, "judged", lambda run, problem: (figures(reason=training.reason), training))
    command.main(["--methods", "spline", "--seeds", "1", "--budgets", "short"])
    told = capsys.readouterr()
    assert "ended early: OpenMM failed" in told.err
    assert "1, 1 stopped early" in told.out
