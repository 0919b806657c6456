"""Tables of measured costs next to scores: CSV, Markdown, LaTeX, the tidy table with costs, and in the HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.columns import CSV_COLUMNS
from apet.analysis.means import METHOD
from apet.analysis.measured_costs import COST_METRICS, PSCP_CONSTANTS, CostMetric, spread_columns
from apet.core.atomic import write_text
from apet.report.formats import NO_VALUE, fixed
from apet.report.result_tables import method_name
from apet.report.tables import MODEL, Entry, Table, TableColumn, number_entry, numeric
from apet.report.text_tables import escape, escaped, escaped_rows, latex_table, markdown_table, write_csv

ABOUT = (
    "Costs of each method, measured after training: all methods of a PLM take turns in each round, in one process. "
    "Times are medians over the rounds. A ratio (×) is the median of the ratios within a round, with its quartiles in "
    "brackets: to full fine-tuning for training, to the untuned PLM for inference. Peak memory is that of tensors in a "
    "training step on the longest texts, with the PLM. Merged: what can be is added to the weights before. Score: mean "
    "over tasks, %. PSCP: PEFT-Bench's cost-aware score P · ∏ (1 + M/C)^−1 with its constants C, "
    f"{PSCP_CONSTANTS['trainable_params']:,.0f} trainable parameters, {PSCP_CONSTANTS['extra_flops'] / 1e12:.0f} "
    "TFLOPs of an example beyond the untuned PLM's, and "
    f"{PSCP_CONSTANTS['peak_memory_mb'] / 1000:.0f} GB of memory, which suit PLMs of billions of parameters. Relative "
    "score: this project's, of the same form; M/C are the ratios of trainable parameters, training step and peak "
    "memory to full fine-tuning, and of inference (merged) to the untuned PLM, minus 1."
)
FORMATS = {"trainable_params": ",.0f", "saved_bytes": ",.0f", "peak_memory_mb": ",.1f"}
"""Number formats of costs that are not times."""
SCORES = {"score": "score, %", "pscp": "PSCP", "relative_score": "relative score"}


def write_cost_tables(costs: pd.DataFrame, frame: pd.DataFrame, folder: Path) -> None:
    """Write costs with scores to `costs.csv`, `.md` and `.tex`, and the tidy table with costs to `tidy.csv`.

    Args:
        costs: measured costs with scores, as `with_scores` returns them.
        frame: the tidy table.
        folder: destination. `tidy_columns.csv` explains the columns that are joined to the tidy table.
    """
    write_csv(costs, folder / "costs.csv")
    head = ["PLM", "method", *SCORES.values(), *(metric.head for metric in COST_METRICS)]
    blocks = [[_text_row(row) for row in group.to_dict("records")] for _, group in costs.groupby("model", sort=False)]
    align = "ll" + "r" * (len(head) - 2)
    write_text(folder / "costs.md", markdown_table(head, align, blocks, ABOUT))
    latex = latex_table("costs", escape(ABOUT), align, escaped(head), map(escaped_rows, blocks))
    write_text(folder / "costs.tex", latex)
    meanings = _meanings()
    joined = frame[CSV_COLUMNS].merge(costs[[*METHOD, *meanings]], "left", on=METHOD)
    write_text(folder / "tidy.csv", joined.to_csv(index=False, lineterminator="\n"))
    columns = pd.DataFrame(meanings.items(), columns=["column", "meaning"])
    write_text(folder / "tidy_columns.csv", columns.to_csv(index=False, lineterminator="\n"))


def _meanings() -> dict[str, str]:
    """Return column -> meaning of the columns that are joined to the tidy table."""
    meanings = {"cost_task": "task whose texts were read to measure", "rounds": "rounds of the measurement"}
    quantiles = {"low": "lower quartile over rounds", "high": "upper quartile over rounds"}
    for metric in COST_METRICS:
        for column in spread_columns(metric):
            rest = column.removeprefix(metric.name)
            ratio = f", ratio to the placement {metric.baseline}" if rest.startswith("_ratio") else ""
            spread = quantiles.get(rest.rpartition("_")[2], "median" if metric.is_timed else "")
            meanings[column] = f"{metric.meaning}{ratio}{f': {spread}' if spread else ''}"
    del meanings["trainable_params"]  # it is in the tidy table
    return meanings


def costs_by_method(costs: pd.DataFrame) -> Table:
    """Build the report's table of costs.csv."""
    rows = [_html_row(row) for row in costs.to_dict("records")]
    labels = [*SCORES.values(), *(label for metric in COST_METRICS for label in (metric.head, f"{metric.label}, ×"))]
    columns = [MODEL, TableColumn("Method", choose=True), *numeric(*(name[:1].upper() + name[1:] for name in labels))]
    return Table("measured_costs", "By method", ABOUT, columns, rows)


def _text_row(row: dict[str, Any]) -> list[str]:
    pairs = [_entry(row, metric) for metric in COST_METRICS]
    entries = [value if ratio == NO_VALUE else f"{value}; × {ratio}" for value, ratio in pairs]
    scores = [fixed(row[name], ".1f") for name in SCORES]
    return [row["model"], method_name(row["placement"], row["budget"]), *scores, *entries]


def _html_row(row: dict[str, Any]) -> list[Entry]:
    entries: list[Entry] = []
    for metric in COST_METRICS:
        value, ratio = _entry(row, metric)
        numbers = row[metric.name], row[f"{metric.name}_ratio"]
        entries += [[number_entry(number)[0], text] for number, text in zip(numbers, (value, ratio), strict=True)]
    scores = [number_entry(row[name], ".1f") for name in SCORES]
    return [row["model"], method_name(row["placement"], row["budget"]), *scores, *entries]


def _entry(row: dict[str, Any], metric: CostMetric) -> tuple[str, str]:
    """Format a cost, and its ratio with the quartiles of a time."""
    value = fixed(row[metric.name], FORMATS.get(metric.name, ".3g"))
    ratio = fixed(row[f"{metric.name}_ratio"], ".3g")
    if metric.is_timed and ratio != NO_VALUE:
        ratio += f" ({fixed(row[f'{metric.name}_ratio_low'], '.3g')}–{fixed(row[f'{metric.name}_ratio_high'], '.3g')})"
    return value, ratio
