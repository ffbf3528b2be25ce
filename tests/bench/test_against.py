"""The comparison of two checkouts: that it measures what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import p4lab.p4
from p4lab.bench import against
from p4lab.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_another_checkout_is_another_package() -> None:
    before = dict(sys.modules)
    there = against.other(ROOT)
    assert there.P4Inv is not p4lab.p4.P4Inv
    assert there.P4Inv(2).weight.shape == (2, 2)
    assert {k: v for k, v in sys.modules.items() if k.startswith("p4lab")} == {
        k: v for k, v in before.items() if k.startswith("p4lab")
    }


def test_the_table_has_a_row_for_each_layer() -> None:
    text = against.against(ROOT, sizes=(4,), names=("P4Inv", "P4Circulant"), rounds=1)
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["P4Inv", "P4Circulant"]
    assert all(0.01 < float(cell) < 100 for line in text.splitlines()[2:] for cell in line.split("|")[2:4])


def test_a_folder_without_a_package(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no package p4lab"):
        against.other(tmp_path)
