"""The command that learns posteriors: tiny runs, and that flows which are the truth are told so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from p4lab.experiments import posteriors as command
from p4lab.experiments.posteriors import METHODS, PosteriorRun, build, log_prob, scaled, train
from p4lab.flows import effective_parameters
from p4lab.problems.posteriors import POSTERIORS


@pytest.mark.parametrize("method", METHODS)
def test_flows_have_as_many_parameters_and_follow_their_seed(method: str) -> None:
    model = POSTERIORS["two_moons"]()
    one, other = (build(method, model, seed) for seed in (0, 1))
    target = effective_parameters(build("nsf", model))
    assert abs(effective_parameters(one) / target - 1) < 0.03
    theta, x = scaled("two_moons").pairs(20, torch.Generator().manual_seed(0))
    assert log_prob(one, theta, x).shape == (20,)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_training_lowers_the_divergence_and_follows_its_seed() -> None:
    runs = [PosteriorRun("linear_gaussian", "nsf", 0, 0.0, steps, 128, 1e-2) for steps in (1, 30, 30)]
    first, later, again = map(train, runs)
    assert later["kl"] + 5 * later["kl_error"] < first["kl"] - 5 * first["kl_error"]
    assert (later["steps"], later["finite"]) == (30, 1)
    assert later["kl"] == again["kl"]


def test_the_truth_has_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact posterior in the place of a flow: the units are put right again."""
    data = scaled("linear_gaussian")

    class Truth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.zeros(()))

        def log_prob(self, theta: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            theta, x = data.theta.inverse(theta.double())[0], data.x.inverse(x.double())[0]
            return data.problem.log_prob(theta, x) + data.theta.std.log().sum() + self.idle

    monkeypatch.setattr(command, "build", lambda *arguments: Truth())
    result = train(PosteriorRun("linear_gaussian", "nsf", 0, 0.0, 1, 8, 1e-12))
    assert result["kl"] == pytest.approx(0.0, abs=1e-6)


def test_a_tiny_run_prints_its_tables_and_keeps_its_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    words = ["--methods", "nsf+spline", "--problems", "two_moons", "--seeds", "2", "--steps", "2", "--batch", "16"]
    command.main([*words, "--file", str(file)])
    said = capsys.readouterr().out
    assert "### two moons" in said
    assert "| NSF (zuko)" in said
    assert "| splines, P4Inv mixing" in said
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(kept) == 4
    command.main([*words, "--file", str(file)])
    assert capsys.readouterr().out == said
    assert len(file.read_text().splitlines()) == 4
