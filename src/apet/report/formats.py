"""Formats of numbers in tables and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

NO_VALUE = "—"


def fixed(value: Any, form: str = ",.0f") -> str:
    """Format a number by a format specification with a minus sign, or a missing value as a dash."""
    return NO_VALUE if value is None or pd.isna(value) else format(float(value), form).replace("-", "−")


def significant(value: float | None) -> str:
    """Format a number at the four significant digits of findings.json, without an exponent if it is large."""
    is_large = value is not None and not pd.isna(value) and abs(value) >= 1e4
    return fixed(value, ",.0f" if is_large else ",.4g")


def p_value(value: float | None) -> str:
    """Format a p-value at three decimals."""
    return "< 0.001" if value is not None and value < 0.001 else fixed(value, ".3f")


def interval(bounds: Mapping[str, Any]) -> str:
    """Format the interval of a finding, from `low` to `high`; a single missing bound is infinite."""
    low, high = bounds["low"], bounds["high"]
    if low is None and high is None:
        return NO_VALUE
    return f"{'−∞' if low is None else significant(low)} to {'∞' if high is None else significant(high)}"
