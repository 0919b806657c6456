"""Tables of the HTML report: methods, differences, tasks and costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from apet.analysis.claims import POINTS
from apet.analysis.means import MEAN, METHOD, RANDOM
from apet.analysis.resampling import MeanSamples
from apet.report.formats import NO_VALUE, fixed, p_value
from apet.report.result_tables import (
    NO_INTERVAL,
    NO_SCATTER_NOTE,
    differences_table,
    method_entry,
    method_name,
    methods_note,
    methods_table,
    without_means,
)

SPENT_COLUMNS = ["seconds", "cpu_seconds", "peak_memory_mb"]
FRACTION_COLUMNS = ("rarest_label", "commonest_label", "chance", "truncated")
"""Columns of tasks.csv that are shown in per cent."""
Entry = str | list[Any]
"""Text, or [number or None, text]: sorted by the number, shown as the text."""
EMPTY_ENTRY: Entry = [None, NO_VALUE]


@dataclass(frozen=True)
class TableColumn:
    """A column of a table in the report."""

    label: str
    number: bool = False
    """Whether entries are numbers."""
    choose: bool = False
    """Whether readers can filter rows by this column's values."""


@dataclass(frozen=True)
class Details:
    """Content that opens under a row: facts and a table of replicates. `facts` and `runs` have an entry per row."""

    labels: list[str]
    """Labels of the facts."""
    facts: list[list[str]]
    """Empty for a row without details."""
    columns: list[TableColumn]
    """Columns of `runs`."""
    runs: list[list[list[Entry]]]


@dataclass(frozen=True)
class Table:
    """A table that readers can sort and filter."""

    name: str
    title: str
    about: str
    columns: list[TableColumn]
    rows: list[list[Entry]]
    details: Details | None = None


MODEL, TASK, PLACEMENT = (TableColumn(label, choose=True) for label in ("PLM", "Task", "Placement"))


def numeric(*labels: str) -> list[TableColumn]:
    """Return columns of numbers."""
    return [TableColumn(label, number=True) for label in labels]


def number_entry(value: Any, form: str = ",.0f", scale: float = 1.0) -> Entry:
    """Return a number and its text, or an empty entry for NaN and None."""
    if value is None or pd.isna(value):
        return EMPTY_ENTRY
    value = float(value) * scale
    return [float(f"{value:.8g}"), fixed(value, form)]


def interval_entry(low: Any, high: Any, scale: float = 1.0) -> Entry:
    """Return an interval, sorted by its lower bound."""
    if pd.isna(low):
        return EMPTY_ENTRY
    sort_value = number_entry(low, ".1f", scale)[0]
    return [sort_value, f"{fixed(low * scale, '.1f')} to {fixed(high * scale, '.1f')}"]


def text_entry(value: Any) -> str:
    """Return text of a value that may be missing."""
    return NO_VALUE if value is None or pd.isna(value) else str(value)


def label(name: str) -> str:
    """Return the label of a column of a CSV file."""
    special = {"model": "PLM", "peak_memory_mb": "Peak memory, MB", "cpu_seconds": "CPU seconds"}
    return special.get(name, name[:1].upper() + name[1:].replace("_", " "))


def methods(frame: pd.DataFrame, samples: MeanSamples) -> Table:
    """Build the table of methods: a column per task, the mean over tasks last."""
    table = methods_table(frame, samples)
    scores = without_means(table, samples.tasks)
    rows: list[list[Entry]] = []
    for (model, placement, budget), group in scores.groupby(METHOD, sort=False):
        entries: list[Entry] = [[number_entry(row.mean)[0], method_entry(row)] for row in group.itertuples()]
        rows.append([model, method_name(placement, budget), number_entry(group.trainable_params.iloc[0]), *entries])
    tasks = list(scores.task.unique())
    columns = [MODEL, TableColumn("Method", choose=True), *numeric("Trainable parameters", *tasks)]
    apet = " APET is at the same counts, at random positions." if table.placement.eq(RANDOM).any() else ""
    note = methods_note(table, samples.tasks).replace("`", "")
    about = f"{note} Methods are at their own count of trainable parameters.{apet}"
    return Table("methods", "Methods", about, columns, rows)


def differences(samples: MeanSamples) -> Table:
    """Build the table of differences: a row per PLM, method, baseline and task, the mean over tasks included."""
    table = without_means(differences_table(samples), samples.tasks)
    rows = [
        [
            row.model,
            method_name(row.placement, row.budget),
            row.baseline,
            row.task,
            number_entry(row.difference, ".1f"),
            interval_entry(row.low, row.high) if pd.notna(row.low) else [None, NO_INTERVAL],
            [row.p_adjusted, p_value(row.p_adjusted)],
            number_entry(row.n_test),
            number_entry(row.num_replicates),
        ]
        for row in table.itertuples()
    ]
    choices = [MODEL, TableColumn("Method", choose=True), TableColumn("Baseline", choose=True), TASK]
    columns = [*choices, *numeric("Difference", "95 % interval", "Adjusted p", "Test rows", "Replicates")]
    is_apet = table.placement.eq(RANDOM)
    pairs = {"methods against full fine-tuning": ~is_apet, "APET against the method with its count": is_apet}
    kinds = ", ".join(text for text, rows_of in pairs.items() if rows_of.any())
    over_means = ", and separately over all means" if table.task.eq(MEAN).any() else ""
    about = (
        "Difference of mean test scores on the same test rows, in points, with its 95 % interval (sorted by its lower "
        f"bound): {kinds}. p is adjusted over all rows of tasks{over_means} (Holm)."
    )
    if table.low.isna().any():
        about += f" {NO_SCATTER_NOTE.replace('`', '')}"
    return Table("differences", "Differences", about, columns, rows)


def tasks(table: pd.DataFrame) -> Table:
    """Build the table of tasks from tasks.csv, whatever its columns; fractions are in per cent."""
    columns, entries = [], []
    for name, values in table.items():
        fraction = name in FRACTION_COLUMNS
        is_number = pd.api.types.is_numeric_dtype(values)
        form, scale = (".1f", POINTS) if fraction else (",.6g", 1.0)
        entries.append([number_entry(v, form, scale) if is_number else text_entry(v) for v in values])
        title = label(name) + (", %" if fraction else "")
        columns.append(TableColumn(title, number=is_number, choose=name in ("task", "model")))
    rows = [list(row) for row in zip(*entries, strict=True)]
    about = (
        "Rows of each split; fractions of the rarest and the commonest label in the test split; chance: the larger of "
        "a uniform guess and the majority class (for F1, of a uniform guess and of always class 1); tokens of a test "
        "row with its prompt; fraction of test rows whose text was truncated."
    )
    return Table("tasks", "Tasks", about, columns, rows)


def costs_by_model(frame: pd.DataFrame, costs: pd.DataFrame) -> Table:
    """Build the table of costs: a row per PLM with run records, the smallest PLM first."""
    facts = frame.drop_duplicates("cell_path").set_index("cell_path")[["model", "non_embedding_params"]]
    known = costs[["cell_path", *SPENT_COLUMNS]].dropna(subset=["cpu_seconds"]).join(facts, on="cell_path", how="inner")
    rows: list[list[Entry]] = []
    for (size, model), group in known.groupby(["non_embedding_params", "model"]):
        hours = [number_entry(group[name].sum() / 3600, ",.2f") for name in ("cpu_seconds", "seconds")]
        per_cell = [number_entry(group.cpu_seconds.mean(), ",.1f"), number_entry(group.peak_memory_mb.max())]
        rows.append([model, number_entry(size), number_entry(len(group)), *hours, *per_cell])
    columns = numeric(
        "Non-embedding parameters", "Cells", "CPU hours", "Hours", "CPU seconds per cell", "Peak memory, MB"
    )
    return Table("costs", "By PLM", "", [MODEL, *columns], rows)
