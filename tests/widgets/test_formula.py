"""Equations: what travels."""

from typing import Any

import pytest

from p4lab.errors import ShapeError
from p4lab.plots.layers import Term
from p4lab.widgets.formula import Formula


def test_a_formula_sends_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    formula = Formula()
    sent: list[Any] = []
    monkeypatch.setattr(formula, "send", lambda message, buffers=(): sent.append(message))
    formula.hear({"hello": 1})
    sent.clear()
    for value in (-1.0, -1.001):
        formula.show([[Term("A", [[value, -0.001]]), "=", Term("det", float("nan"))]])
    (message,) = sent
    row = message["rows"][0]
    assert [part if isinstance(part, str) else part["rows"] for part in row] == [[["−1.00", "0.00"]], "=", [["–"]]]
    assert [part["matrix"] for part in (row[0], row[2])] == [True, False]


def test_a_vector_is_no_term() -> None:
    with pytest.raises(ShapeError, match=r"u has shape \(2,\): expected a matrix"):
        Formula().show([[Term("u", [1, 2])]])
