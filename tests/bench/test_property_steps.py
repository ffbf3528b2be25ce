"""The table of the properties' step times: what it counts, not how long anything takes."""

from __future__ import annotations

import pytest

from p4lab.bench import properties
from p4lab.p4 import MergeSchedule


@pytest.mark.parametrize("with_logabsdet", [False, True], ids=["plain", "logdet"])
@pytest.mark.parametrize("name", properties.LAYERS)
def test_ten_steps_merge_once(name: str, with_logabsdet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if with_logabsdet and name in ("Lipschitz", "orthonormal", "spectrum"):  # none has a determinant
        with pytest.raises(AttributeError):
            properties.steps(name, 16, 16, with_logabsdet)()
        return
    reports = []
    merge = MergeSchedule.merge
    monkeypatch.setattr(MergeSchedule, "merge", lambda self: reports.append(merge(self)) or reports[-1])
    properties.steps(name, 16, 16, with_logabsdet)()
    assert len(reports) == 1
    assert all(reports[0])


def test_the_table_has_a_row_for_each_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "LARGE", 4)
    text = properties.properties((4, 8), batch=16, rounds=1, names=("circulant", "positive definite"))
    ratios, slopes = text.split("\n\n")
    assert [line.split("|")[1].strip() for line in ratios.splitlines()[2:]] == ["4", "8"]
    names = ["nn.Linear", "circulant", "positive definite", "positive definite + logdet", "circulant + logdet"]
    assert [line.split("|")[1].strip() for line in slopes.splitlines()[2:]] == names
