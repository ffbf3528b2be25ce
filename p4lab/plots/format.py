"""How numbers read."""

import math
from typing import Any

DASH = "–"
"""Stands where there is no number."""
HUGE = 1e5
"""From here on a number with decimals is told by its power of ten: it keeps its width, whatever happens to a run."""


def number(value: Any, form: str, unit: str = "") -> str:
    """Return a number in some format, with a true minus sign and its unit; a dash if it is None or not finite.

    Example:
        >>> number(-0.0321, ".1e"), number(math.nan, ".2f", " s")
        ('−3.2e−02', '–')
        >>> number(2.7e17, ".3f", " nats"), number(-99999, ".1f")
        ('2.7e+17 nats', '−99999.0')
    """
    if value is None or not math.isfinite(value):
        return DASH
    if form.endswith("f") and abs(value) >= HUGE:
        form = ".1e"
    return f"{float(value):{form}}".replace("-", "−") + unit


def count(value: int) -> str:
    """Return a whole number with commas; a dash for 0."""
    return f"{value:,}" if value else DASH
