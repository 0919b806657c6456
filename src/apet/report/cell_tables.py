"""The report's tables of cells: a row each with its provenance, and those that are missing or have diverged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from apet.analysis.means import cell_scores
from apet.analysis.resampling import CELL, MeanSamples
from apet.report.tables import (
    MODEL,
    NONE,
    PLACEMENT,
    TASK,
    Details,
    Entry,
    Table,
    TableColumn,
    label,
    num,
    numbers,
    plain,
)

DIGEST = 16
"""Hexadecimal digits of a digest that are shown; the tidy table has them all."""
COSTS = {"seconds": ",.1f", "cpu_seconds": ",.1f", "peak_memory_mb": ",.0f", "host": "", "finished": ""}
"""Columns of costs.csv that are shown of each cell, and how."""
FACTS = [
    "Folder", "Family", "Parameters of the PLM", "Trained head", "Metric", "Chance", "Seed of the study",
    "Digest of the PLM", "Digest of the task", "Trainer's version", *map(label, COSTS),
]  # fmt: skip
RUN = [
    *numbers("Draw", "Rerun", "Test score, %", "Validation, %", "Test loss", "Rate", "Best step", "Steps"),
    *map(TableColumn, ("Outcome", "Plan", "θ")),
]
PROVENANCE = [
    *CELL, "cell", "family", "parameters", "head", "metric", "chance", "majority", "draw", "rerun", "score",
    "validation_score", "test_loss", "rate", "best_step", "steps", "outcome", "plan", "theta",
    "seed", "content", "data", "trainer",
]  # fmt: skip
ABOUT = (
    "Mean test score of each cell with its 95 % interval (sorted by its lower end), its test rows, its replicates with "
    "a score, and the seconds that they took. Open a row for where it comes from: every replicate with its draw of "
    "positions and its rerun (their seeds are hashes of these, the cell and the study's seed), the learning rate and "
    f"the step chosen on validation rows, and the first {DIGEST} digits of digests, which tidy.csv has whole."
)


def cells(frame: pd.DataFrame, draws: MeanSamples, costs: pd.DataFrame, missing: Sequence[Mapping[str, str]]) -> Table:
    """A row a cell, missing ones too; a cell's provenance in its details."""
    scores = {tuple(row[name] for name in CELL): row for row in cell_scores(draws).to_dict("records")}
    spent = costs.drop_duplicates("cell").set_index("cell").to_dict("index")
    details = Details(FACTS, [], RUN, [])
    rows = []
    for key, runs in _by_cell(frame):
        cost = spent.get(runs[0]["cell"], {})
        rows.append(_cell(key, scores[key], len(runs), cost))
        details.facts.append(_facts(runs[0], cost))
        details.runs.append([_run(run) for run in runs])
    for gap in missing:
        rows.append([*(str(gap[name]) for name in CELL), *[NONE] * 6, "missing"])
        details.facts.append([])
        details.runs.append([])
    found = numbers("Tunable", "Score, %", "95 % interval", "Rows", "Runs", "Seconds")
    columns = [MODEL, TASK, PLACEMENT, TableColumn("Budget"), *found, TableColumn("Outcome", choose=True)]
    return Table("cells", "Cells", ABOUT, columns, rows, details)


def lost(frame: pd.DataFrame, missing: Sequence[Mapping[str, str]]) -> Table:
    """The cells that are missing, and those of which a replicate diverged."""
    rows: list[list[Entry]] = [[*(str(gap[n]) for n in CELL), "missing", str(gap["reason"])] for gap in missing]
    diverged = frame.assign(lost=frame.outcome.eq("diverged")).groupby(CELL, sort=False).lost.agg(["sum", "count"])
    for key, row in diverged[diverged["sum"] > 0].iterrows():
        rows.append([*map(str, key), "diverged", f"{row['sum']} of {row['count']} replicates"])
    columns = [MODEL, TASK, PLACEMENT, TableColumn("Budget"), TableColumn("What", choose=True), TableColumn("Why")]
    return Table("lost", "Missing and diverged cells", "", columns, rows)


def _by_cell(frame: pd.DataFrame) -> Iterator[tuple[tuple, list[dict[str, Any]]]]:
    """The replicates of each cell, in the table's order."""
    found: dict[tuple, list[dict[str, Any]]] = {}
    for run in frame[PROVENANCE].to_dict("records"):
        found.setdefault(tuple(run[name] for name in CELL), []).append(run)
    yield from found.items()


def _cell(key: tuple, score: Mapping[str, Any], total: int, cost: Mapping[str, Any]) -> list[Entry]:
    diverged = int(score["diverged"])
    outcome = f"{diverged} of {total} diverged" if diverged else "ok"
    mean, low, high = (num(score[name], ".1f", 100) for name in ("mean", "low", "high"))
    between = NONE if low is NONE else [low[0], f"{low[1]} to {high[1]}"]
    counts = [num(score["n"]), num(total - diverged)]
    return [*key, num(score["tunable"]), mean, between, *counts, num(cost.get("seconds"), ",.1f"), outcome]


def _facts(run: Mapping[str, Any], cost: Mapping[str, Any]) -> list[str]:
    chance = max(level for level in (run["chance"], run["majority"]) if not pd.isna(level))
    head = f"{run['head']:,}" if run["head"] else "none"
    spent = [num(cost.get(name), form)[1] if form else plain(cost.get(name)) for name, form in COSTS.items()]
    plm = [run["family"], f"{run['parameters']:,}", head]
    origin = [str(run["seed"]), run["content"][:DIGEST], run["data"][:DIGEST], str(run["trainer"])]
    return [run["cell"], *plm, run["metric"], f"{100 * chance:.1f} %", *origin, *spent]


def _run(run: Mapping[str, Any]) -> list[Entry]:
    whole = [num(run[name]) for name in ("draw", "rerun")]
    scores = [num(run["score"], ".2f", 100), num(run["validation_score"], ".2f", 100), num(run["test_loss"], ".4f")]
    chosen = [num(run["rate"], ".3g"), num(run["best_step"]), num(run["steps"])]
    return [*whole, *scores, *chosen, run["outcome"], run["plan"][:DIGEST], run["theta"][:DIGEST]]
