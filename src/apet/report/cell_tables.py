"""Tables of cells in the HTML report: every cell with its provenance, and cells that are missing or diverged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from apet.analysis.claims import POINTS
from apet.analysis.means import cell_scores
from apet.analysis.resampling import CELL, MeanSamples
from apet.core.text import plural
from apet.report.formats import fixed
from apet.report.tables import (
    EMPTY_ENTRY,
    MODEL,
    PLACEMENT,
    TASK,
    Details,
    Entry,
    Table,
    TableColumn,
    interval_entry,
    label,
    number_entry,
    numeric,
    text_entry,
)

DIGEST_DIGITS = 16
"""Hexadecimal digits of a digest that are shown; the tidy table has all."""
COST_FORMATS = {"seconds": ",.1f", "cpu_seconds": ",.1f", "peak_memory_mb": ",.0f", "host": "", "finished": ""}
"""Columns of costs.csv that are shown for each cell -> number format, empty for text."""
FACTS = {
    "Folder": "cell_path", "Family": "family", "Parameters of the PLM": "num_params", "Trained head": "head_params",
    "Metric": "metric", "Chance": "chance", "Study seed": "seed", "PLM digest": "model_digest",
    "Task digest": "data_digest", "Trainer version": "trainer_version",
}  # fmt: skip
"""Label -> column of the tidy table, or chance."""
RUN_NUMBERS = {
    "Plan": ("plan_index", ",.0f", 1), "Seed": ("seed_index", ",.0f", 1),
    "Test score, %": ("test_score", ".2f", POINTS), "Validation score, %": ("validation_score", ".2f", POINTS),
    "Test loss": ("test_loss", ".4f", 1),
    "LR multiplier": ("lr_multiplier", ".3g", 1), "Best step": ("best_step", ",.0f", 1),
    "Steps": ("num_steps", ",.0f", 1),
}  # fmt: skip
"""Label -> column of the tidy table, number format, scale."""
RUN_TEXTS = {"Outcome": "outcome", "Plan digest": "plan_digest", "θ digest": "theta_digest"}
ABOUT = (
    "Mean test score of each cell with its 95 % interval (sorted by its lower bound), its test rows, its replicates "
    "with a score and their seconds. Open a row for its provenance: every replicate with its plan and seed index "
    "(seeds are hashes of these, the cell and the study's seed), the learning rate multiplier and the step chosen on "
    f"validation rows, and the first {DIGEST_DIGITS} digits of digests; tidy.csv has all digits."
)


def cells(
    frame: pd.DataFrame, samples: MeanSamples, costs: pd.DataFrame, missing: Sequence[Mapping[str, str]]
) -> Table:
    """Build the table of cells.

    Args:
        frame: the tidy table.
        samples: its samples.
        costs: costs.csv.
        missing: coordinates of missing cells, which have rows too.

    Returns:
        One row per cell, with provenance in the details.
    """
    scores = {tuple(row[name] for name in CELL): row for row in cell_scores(samples).to_dict("records")}
    costs_by_cell = costs.drop_duplicates("cell_path").set_index("cell_path").to_dict("index")
    run_columns = [*numeric(*RUN_NUMBERS), *map(TableColumn, RUN_TEXTS)]
    details = Details([*FACTS, *map(label, COST_FORMATS)], [], run_columns, [])
    rows = []
    for key, runs in _runs_by_cell(frame):
        cost = costs_by_cell.get(runs[0]["cell_path"], {})
        rows.append(_cell_row(key, scores[key], len(runs), cost))
        details.facts.append(_facts(runs[0], cost))
        details.runs.append([_run_row(run) for run in runs])
    for cell in missing:
        rows.append([*(str(cell[name]) for name in CELL), *[EMPTY_ENTRY] * 6, "missing"])
        details.facts.append([])
        details.runs.append([])
    numbers = numeric("Trainable parameters", "Score, %", "95 % interval", "Test rows", "Replicates", "Seconds")
    columns = [MODEL, TASK, PLACEMENT, TableColumn("Budget"), *numbers, TableColumn("Outcome", choose=True)]
    return Table("cells", "Cells", ABOUT, columns, rows, details)


def incomplete(frame: pd.DataFrame, missing: Sequence[Mapping[str, str]]) -> Table:
    """Build the table of missing cells and of cells with diverged replicates."""
    rows: list[list[Entry]] = [[*(str(cell[n]) for n in CELL), "missing", str(cell["reason"])] for cell in missing]
    counts = frame.assign(diverged=frame.outcome.eq("diverged")).groupby(CELL, sort=False).diverged
    for key, row in counts.agg(["sum", "count"]).iterrows():
        if row["sum"]:
            rows.append([*map(str, key), "diverged", f"{row['sum']} of {plural(row['count'], 'replicate')}"])
    columns = [MODEL, TASK, PLACEMENT, TableColumn("Budget"), TableColumn("Problem", choose=True)]
    return Table("incomplete", "Missing and diverged cells", "", [*columns, TableColumn("Reason")], rows)


def _runs_by_cell(frame: pd.DataFrame) -> Iterator[tuple[tuple, list[dict[str, Any]]]]:
    """Yield the replicates of each cell, in the table's order."""
    runs: dict[tuple, list[dict[str, Any]]] = {}
    chance = (POINTS * np.fmax(frame.chance_uniform, frame.chance_majority)).map("{:.1f} %".format)
    for run in frame.drop(columns="row_scores").assign(chance=chance).to_dict("records"):
        runs.setdefault(tuple(run[name] for name in CELL), []).append(run)
    yield from runs.items()


def _cell_row(key: tuple, score: Mapping[str, Any], total: int, cost: Mapping[str, Any]) -> list[Entry]:
    diverged = int(score["diverged"])
    mean, interval = number_entry(score["mean"], ".1f", POINTS), interval_entry(score["low"], score["high"], POINTS)
    counts = [number_entry(score["n_test"]), number_entry(total - diverged), number_entry(cost.get("seconds"), ",.1f")]
    outcome = f"{diverged} of {total} diverged" if diverged else "ok"
    return [*key, number_entry(score["trainable_params"]), mean, interval, *counts, outcome]


def _facts(run: Mapping[str, Any], cost: Mapping[str, Any]) -> list[str]:
    facts = [_text(run, name) for name in FACTS.values()]
    return [
        *facts,
        *(fixed(cost.get(n), form) if form else text_entry(cost.get(n)) for n, form in COST_FORMATS.items()),
    ]


def _run_row(run: Mapping[str, Any]) -> list[Entry]:
    numbers = [number_entry(run[name], form, scale) for name, form, scale in RUN_NUMBERS.values()]
    return [*numbers, *(_text(run, name) for name in RUN_TEXTS.values())]


def _text(run: Mapping[str, Any], name: str) -> str:
    if name.endswith("_params"):
        return f"{run[name]:,}" if run[name] else "none"
    return str(run[name])[:DIGEST_DIGITS] if name.endswith("_digest") else str(run[name])
