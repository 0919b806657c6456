"""What a table of the report is: columns, and rows whose numbers stand beside the text that shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

Entry = str | list[Any]
"""Text, or [number or None, text]: a number is sorted by itself, and shown as its text."""
NONE: Entry = [None, "—"]


@dataclass(frozen=True)
class Column:
    """choose: whether rows may be chosen by this column's values."""

    label: str
    number: bool = False
    choose: bool = False


@dataclass(frozen=True)
class Details:
    """What opens under a row: facts in the order of `labels` (where there are none, nothing opens) and a table of runs.
    `facts` and `runs` have an entry for each row."""

    labels: list[str]
    facts: list[list[str]]
    columns: list[Column]
    runs: list[list[list[Entry]]]


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    about: str
    columns: list[Column]
    rows: list[list[Entry]]
    details: Details | None = None


MODEL, TASK, PLACEMENT = Column("PLM", choose=True), Column("Task", choose=True), Column("Placement", choose=True)


def numbers(*labels: str) -> list[Column]:
    return [Column(label, number=True) for label in labels]


def num(value: Any, form: str = ",.0f", scale: float = 1.0) -> Entry:
    """A number and its text; nothing for NaN and None."""
    if value is None or value is pd.NA or math.isnan(value):
        return NONE
    value = float(value) * scale
    return [float(f"{value:.8g}"), format(value, form).replace("-", "−")]


def plain(value: Any) -> str:
    """Text of a value that may not be there."""
    return "—" if value is None or pd.isna(value) else str(value)


def label(name: str) -> str:
    known = {"model": "PLM", "peak_memory_mb": "Peak memory, MB", "cpu_seconds": "CPU seconds"}
    return known.get(name, name[:1].upper() + name[1:].replace("_", " "))
