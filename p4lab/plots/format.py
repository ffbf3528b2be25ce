"""How numbers read."""

import math
from typing import Any

DASH = "–"
"""Stands where there is no number."""


def number(value: Any, form: str, unit: str = "") -> str:
    """Return a number in some format, with a true minus sign and its unit; a dash if it is None or not finite.

    Example:
        >>> number(-0.0321, ".1e"), number(math.nan, ".2f", " s")
        ('−3.2e−02', '–')
    """
    if value is None or not math.isfinite(value):
        return DASH
    return f"{float(value):{form}}".replace("-", "−") + unit


def count(value: int) -> str:
    """Return a whole number with commas; a dash for 0."""
    return f"{value:,}" if value else DASH
