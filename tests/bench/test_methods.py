"""The table of step times: what it counts and how it says so, not how long anything takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from p4lab.baselines import METHODS
from p4lab.bench import methods
from p4lab.bench.methods import SLOW, Cell, contender, is_exact, measure, verdict
from p4lab.p4 import PAPER, RECOMMENDED, MergeSchedule


@pytest.mark.parametrize("name", METHODS)
def test_a_step_trains(name: str) -> None:
    built = []

    def build(*args: Any, **options: Any) -> Any:
        built.append(METHODS[name].build(*args, **options))
        return built[-1]

    one = contender(replace(METHODS[name], build=build), 6, batch=4)
    before = [parameter.detach().clone() for parameter in built[0].parameters()]
    one.steps()
    assert any(not torch.equal(old, new) for old, new in zip(before, built[0].parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "unit", "every"),
    [
        pytest.param("plain", 1, 1, id="nothing-is-due"),
        pytest.param("p4inv_paper", PAPER.every, PAPER.every * PAPER.refine_every, id="paper"),
        pytest.param("p4inv", RECOMMENDED.every, RECOMMENDED.every * RECOMMENDED.refine_every, id="recommended"),
        pytest.param("exponential_dynamic", 1, 100, id="re-based"),
    ],
)
def test_what_belongs_to_a_step(name: str, unit: int, every: int) -> None:
    one = contender(METHODS[name], 6, batch=4)
    assert (one.unit, one.every, one.rare is not None) == (unit, every, every > 1)


def test_a_unit_of_p4inv_merges_once(monkeypatch: pytest.MonkeyPatch) -> None:
    merges = []
    merge = MergeSchedule.merge
    monkeypatch.setattr(MergeSchedule, "merge", lambda self: merges.append(self) or merge(self))
    one = contender(METHODS["p4inv"], 6, batch=4)
    for count in (1, 2, 3):
        one.steps()
        assert len(merges) == count


def test_a_slow_method_is_timed_once_and_then_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "SLOW", -1.0)
    text = methods.methods((4, 6), ("plain",), batch=4, rounds=1)
    (row,) = [line for line in text.splitlines() if line.startswith("| plain")]
    _, _, exact, first, second, _ = (cell.strip() for cell in row.split("|"))
    assert exact == "no"
    assert first.startswith("~ ")
    assert second.startswith("not measured: >")


def test_ratios_are_to_linear() -> None:
    reference, cells = measure(4, ("plain", "p4inv"), batch=4, rounds=1)
    assert reference > 0
    assert set(cells) == {"plain", "p4inv"}
    assert all(cell.ratio is not None and cell.ratio > 0 and not cell.once for cell in cells.values())


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        pytest.param(Cell(1.2345), "1.23", id="measured"),
        pytest.param(Cell(50.0, once=True), "~ 50", id="once"),
        pytest.param(Cell(None), f"not measured: > {SLOW} s a step", id="too-slow"),
    ],
)
def test_a_cell_says_how_it_was_measured(cell: Cell, text: str) -> None:
    assert str(cell) == text


def test_the_verdict_names_exact_methods_ahead_of_both_presets() -> None:
    row = {"p4inv": 3.0, "p4inv_paper": 2.0, "plain": 1.0, "dense": 2.5, "plu": 1.5, "woodbury": 1.25}
    cells = {name: Cell(ratio) for name, ratio in row.items()} | {"exponential": Cell(None)}
    assert verdict(cells) == [3.0, 2.0, "Woodbury (1.25), PLU (Glow) (1.5)", 4]
    assert verdict({"p4inv": Cell(3.0), "dense": Cell(4.0)}) == [3.0, "-", "none", 1]


def test_plain_weights_are_the_only_method_that_promises_nothing() -> None:
    assert [name for name, method in METHODS.items() if not method.has_likelihood] == ["plain"]


@pytest.mark.parametrize("name", METHODS)
def test_exact_methods_are_all_but_those_that_are_near_or_learn_their_inverse(name: str) -> None:
    assert is_exact(name) == (METHODS[name].group != "nearly_orthogonal" and name not in ("plain", "self_normalizing"))


def test_labels_do_not_break_tables() -> None:
    text = methods.methods((4,), ("soft_determinant", "p4inv"), batch=4, rounds=1)
    (row,) = [line for line in text.splitlines() if "penalty" in line and line.startswith(r"| log\|det\|")]
    assert row.count("|") - row.count(r"\|") == 4
