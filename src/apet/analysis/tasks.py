"""The table of a study's tasks: rows, balance of the labels, chance, and how their texts fit each PLM's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from apet.provenance import write_text

SPLIT = "test"
"""Lengths and balance are shown of the split that is scored; every cell's record has the others too."""


def tasks_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each task and PLM, from the cells' records: task, model, metric, rows of each split, the rarest and the
    commonest label's share of the test split (empty in generation), chance (fraction), tokens of a test row with its
    prompt (mean, longest), and the share of test rows whose text was cut.
    """
    rows = {}
    for record in records:
        task, model = record["task"], record["plm"]["name"]
        rows[task["name"], model] = {
            "task": task["name"],
            "model": model,
            "metric": task["metric"],
            **task["rows"],
            **_balance(task["label_counts"][SPLIT]),
            "chance": max(task["chance"], task["majority"] or 0),
            "mean_tokens": task["lengths"][SPLIT]["mean"],
            "longest_tokens": task["lengths"][SPLIT]["longest"],
            "truncated": task["truncated"][SPLIT],
        }
    return pd.DataFrame([rows[key] for key in sorted(rows)])


def write_tasks(records: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `tasks_table` to `tasks.csv`."""
    write_text(folder / "tasks.csv", tasks_table(records).to_csv(index=False, lineterminator="\n", float_format="%.4g"))


def _balance(counts: Mapping[str, int]) -> dict[str, float | None]:
    shares = [count / sum(counts.values()) for count in counts.values()]
    return {"rarest_label": min(shares, default=None), "commonest_label": max(shares, default=None)}
