"""The report's tables of methods, of their differences, of tasks and of costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from apet.analysis.resampling import MeanSamples
from apet.report.markdown import p_value
from apet.report.result_tables import differences_table, method_entry, method_name, methods_table

SPENT = ["seconds", "cpu_seconds", "peak_memory_mb"]


def methods(frame: pd.DataFrame, draws: MeanSamples) -> Table:
    """The table of methods: a column a task, the mean over tasks last."""
    _, long = methods_table(frame, draws)
    tasks = list(long.task.unique())
    rows = []
    for (model, placement, budget), group in long.groupby(["model", "placement", "budget"], sort=False):
        entries = [[num(row.mean)[0], method_entry(row)] for row in group.itertuples()]
        rows.append([model, method_name(placement, budget), num(group.tunable.iloc[0]), *entries])
    columns = [MODEL, TableColumn("Method", choose=True), *numbers("Tunable parameters", *tasks)]
    about = (
        "Test score in %: mean ± S.D. over replicates, in brackets how many. Methods at their own count of tunable "
        "parameters; APET at the same counts, with positions drawn at random."
    )
    return Table("methods", "Methods", about, columns, rows)


def differences(draws: MeanSamples) -> Table:
    """A row for each difference of two methods on one PLM and task, and for its mean over tasks."""
    rows = []
    for row in differences_table(draws).itertuples():
        found, low, high = (num(value, ".1f") for value in (row.difference, row.low, row.high))
        p = [row.p_adjusted, p_value(row.p_adjusted)]
        named = [row.model, method_name(row.placement, row.budget), row.other, row.task]
        rows.append([*named, found, [low[0], f"{low[1]} to {high[1]}"], p, num(row.n), num(row.units)])
    choices = [MODEL, TableColumn("Method", choose=True), TableColumn("Against", choose=True), TASK]
    about = (
        "Difference of mean test scores on the same test rows, in points, with its 95 % interval (sorted by its lower "
        "end): methods against full fine-tuning, APET against the method of its count. p is adjusted for all rows of "
        "tasks, and apart for all means (Holm)."
    )
    columns = numbers("Difference", "95 % interval", "Adjusted p", "Rows", "Runs")
    return Table("differences", "Differences", about, [*choices, *columns], rows)


def tasks(found: pd.DataFrame) -> Table:
    """tasks.csv, whatever columns it has: shares as per cent, other numbers as they are."""
    shares = {"rarest_label", "commonest_label", "chance", "truncated"}
    columns, entries = [], []
    for name, values in found.items():
        if is_number := pd.api.types.is_numeric_dtype(values):
            form, scale = (".1f", 100) if name in shares else (",.6g", 1)
            entries.append([num(value, form, scale) for value in values])
        else:
            entries.append([plain(value) for value in values])
        said = label(name) + (", %" if name in shares else "")
        columns.append(TableColumn(said, number=is_number, choose=name in ("task", "model")))
    rows = [list(row) for row in zip(*entries, strict=True)]
    about = (
        "Rows of each split; shares of the rarest and the commonest label of the test split; chance, the larger of a "
        "uniform guess and the majority share (in F1, of an even guess and of always the second label); tokens of a "
        "test row with its prompt; test rows whose text was cut."
    )
    return Table("tasks", "Tasks", about, columns, rows)


def costs_by_model(frame: pd.DataFrame, costs: pd.DataFrame) -> Table:
    """What the cells of each PLM took, as far as it is known, the smallest PLM first."""
    facts = frame.drop_duplicates("cell").set_index("cell")[["model", "non_embedding"]]
    known = costs[["cell", *SPENT]].dropna(subset=["cpu_seconds"]).join(facts, on="cell", how="inner")
    rows = []
    for (size, model), group in known.groupby(["non_embedding", "model"]):
        hours = [num(group[name].sum() / 3600, ",.2f") for name in ("cpu_seconds", "seconds")]
        spent = [*hours, num(group.cpu_seconds.mean(), ",.1f"), num(group.peak_memory_mb.max())]
        rows.append([model, num(size), num(len(group)), *spent])
    columns = numbers(
        "Parameters outside embeddings", "Cells", "CPU hours", "Hours", "CPU seconds a cell", "Most memory, MB"
    )
    return Table("costs", "By PLM", "", [MODEL, *columns], rows)


Entry = str | list[Any]
"""Text, or [number or None, text]: a number is sorted by itself, and shown as its text."""
NONE: Entry = [None, "—"]


@dataclass(frozen=True)
class TableColumn:
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
    columns: list[TableColumn]
    runs: list[list[list[Entry]]]


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    about: str
    columns: list[TableColumn]
    rows: list[list[Entry]]
    details: Details | None = None


MODEL, TASK, PLACEMENT = (
    TableColumn("PLM", choose=True),
    TableColumn("Task", choose=True),
    TableColumn("Placement", choose=True),
)


def numbers(*labels: str) -> list[TableColumn]:
    return [TableColumn(label, number=True) for label in labels]


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
