"""Equations whose matrices are filled with the numbers of this moment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from p4lab.errors import ShapeError
from p4lab.plots.layers import Term
from p4lab.widgets.channel import FOLDER, STATIC, Channel


def described(term: Term, decimals: int) -> dict[str, Any]:
    """Return a term as it travels: its numbers as text.

    Raises:
        ShapeError: neither a matrix nor a number.
    """
    values = np.asarray(term.values, float)
    if values.ndim not in (0, 2):
        raise ShapeError(f"{term.symbol} has shape {values.shape}: expected a matrix (r, c) or a number")
    rows = [[_text(value, decimals) for value in row] for row in np.atleast_2d(values)]
    return {
        "symbol": term.symbol,
        "rows": rows,
        "color": term.color,
        "flash": term.flash,
        "matrix": values.ndim == 2,
    }


def _text(value: float, decimals: int) -> str:
    if not np.isfinite(value):
        return "–"
    text = f"{value:.{decimals}f}" if abs(value) < 1000 else f"{value:.1e}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


class Formula(Channel):
    """Equations in rows, each a sequence of terms and signs such as "=" and "+".

    Args:
        decimals: how many are shown.

    Cost per update: a few hundred bytes, and only where a number that is shown has changed.
    """

    _esm = STATIC / "formula.js"
    _css: ClassVar[Path | str] = FOLDER / "formula.css"

    def __init__(self, decimals: int = 2, **options: Any) -> None:
        self._decimals = decimals
        self._rows: list[list[Any]] = []
        super().__init__(**options)

    def show(self, rows: Sequence[Sequence[Term | str]]) -> None:
        """Show these equations.

        Raises:
            ShapeError: a term that is neither a matrix nor a number.
        """
        message = [[part if isinstance(part, str) else described(part, self._decimals) for part in row] for row in rows]
        with self._lock:
            if message != self._rows:
                self._rows = message
                self._post(*self._greeting())

    def _greeting(self) -> tuple[dict[str, Any], list[memoryview]]:
        return {"rows": self._rows}, []
