"""The images command: what is trained, told and kept."""

from pathlib import Path
from typing import Any

import pytest
import torch

from p4lab.experiments import images as command
from p4lab.experiments.images import METHODS, Run, keep, table_of, verdict, work
from p4lab.problems import trained_glow
from p4lab.problems.images import CLASSES, SHAPE


def tiny(method: str = "p4inv", **changes: Any) -> Run:
    return Run(method, 0, 0.2, **{"batch": 4, "blocks": 1, "hidden": 2, "test": 10, **changes})


def fake(*losses: float) -> list[dict[str, Any]]:
    rest = {"round_trip": 1e-5, "logit_round_trip": 1e-5, "condition": 1.5, "finite": 1, "steps": 9, "ms": 40.0}
    return [{"bits": loss, "parameters": 32512, **rest} for loss in losses]


def test_a_run_trains_and_comes_back() -> None:
    results = {method: work(tiny(method)) for method in METHODS}
    for result in results.values():
        assert result["steps"] >= 1
        assert 1 < result["bits"] < 8
        assert result["round_trip"] <= result["logit_round_trip"] < 1e-4
    assert results["permutation"]["condition"] == 1
    assert results["p4inv"]["parameters"] == results["dense"]["parameters"] > results["permutation"]["parameters"]


def test_the_table_and_the_verdict_say_who_is_ahead() -> None:
    results = {"p4inv": fake(1.6, 1.7, 1.5), "plu": fake(1.7, 1.65, 1.62)}
    assert verdict(results) == "Median bits/pixel above P4Inv's 1.6000: plu +0.0500 (P4Inv is lower with 2 of 3 seeds)."
    assert "| 1.6000 [1.5000, 1.7000] |" in table_of(results)
    assert verdict({"plu": fake(1.0)}) == verdict({"p4inv": fake(1.0)}) == ""


def test_what_is_kept_is_the_trained_flow(tmp_path: Path) -> None:
    keep([tiny()], tmp_path / "flow.pt")
    flow, figures = trained_glow.load(tmp_path / "flow.pt")
    assert figures["method"] == "p4inv"
    assert flow.sample(2, torch.eye(CLASSES)[1]).shape == (2, *SHAPE)
    with pytest.raises(SystemExit, match="--save keeps one flow, and there are 12 runs"):
        command.main(["--save", str(tmp_path / "flow.pt")])
