"""Paired differences as a table: each method against full fine-tuning, and APET against the method of its size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.latex import escape, latex_table
from apet.analysis.means import MEAN, METHODS, RANDOM, method_differences, models_by_scale
from apet.analysis.resampling import Draws
from apet.analysis.table import MISSING, method_name
from apet.provenance import write_text

LEVEL = 0.05
COLUMNS = [
    "model", "placement", "budget", "other", "other_budget", "task", "difference", "low", "high", "p", "p_adjusted",
    "n", "units",
]  # fmt: skip
NOTE = (
    "Difference of mean test scores on the same test rows, in points, with its 95 % interval. A star: p < 0.05 after "
    "Holm's correction, over all entries of tasks, and apart over all means."
)


def differences_table(draws: Draws) -> pd.DataFrame:
    """A row for each PLM, method and task (`mean over tasks` last), columns of `COLUMNS`: difference, low and high in
    points, n test rows, units the fewer independent replicates of the two."""
    found = method_differences(draws)
    found[["difference", "low", "high"]] *= 100
    order = {name: i for i, name in enumerate([*models_by_scale(draws.cells), *METHODS, RANDOM])}
    place = {task: i for i, task in enumerate([*sorted(set(found.task) - {MEAN}), MEAN])}
    keys = [found.model.map(order), found.placement.map(order), found.other.map(order), found.task.map(place)]
    rank = pd.concat(keys, axis=1).apply(tuple, axis=1) if len(found) else pd.Series(dtype=object)
    return found.loc[rank.sort_values().index, COLUMNS].reset_index(drop=True)


def write_differences(draws: Draws, folder: Path) -> None:
    """Write `differences_table` to `differences.csv`, `differences.md` and `differences.tex`."""
    table = differences_table(draws)
    head, blocks = _wide(table)
    write_text(folder / "differences.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *(row for block in blocks for row in block)]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(folder / "differences.md", f"{markdown}\n{NOTE}\n")
    escaped = [[[escape(text) for text in row] for row in _thinned(block)] for block in blocks]
    align = "lll" + "r" * (len(head) - 3)
    write_text(
        folder / "differences.tex", latex_table("differences", escape(NOTE), align, [*map(escape, head)], escaped)
    )


def entry(row: Any) -> str:
    """difference (low to high), with a star where it is told from 0."""
    star = "*" if row.p_adjusted < LEVEL else ""
    difference, low, high = (f"{value:.1f}".replace("-", "−") for value in (row.difference, row.low, row.high))
    return f"{difference}{star} ({low} to {high})"


def _wide(table: pd.DataFrame) -> tuple[list[str], list[list[list[str]]]]:
    """Head, and a block a PLM of rows as text: a row a pair of methods, a column a task."""
    tasks = list(dict.fromkeys([*sorted(set(table.task) - {MEAN}), MEAN]))
    blocks = []
    for model, block in table.groupby("model", sort=False):
        rows = []
        for (placement, budget, other), pair in block.groupby(["placement", "budget", "other"], sort=False):
            entries = {row.task: entry(row) for row in pair.itertuples()}
            rows.append([model, method_name(placement, budget), other, *(entries.get(task, MISSING) for task in tasks)])
        blocks.append(rows)
    return ["PLM", "method", "against", *tasks], blocks


def _thinned(block: list[list[str]]) -> list[list[str]]:
    """A PLM is named in its first row."""
    return [[row[0] if not index else "", *row[1:]] for index, row in enumerate(block)]
