"""The study's table: PLM × method against tasks, as Markdown for people and CSV for machines."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from apet.analysis.means import (
    MATCHED,
    METHODS,
    RANDOM,
    cell_scores,
    method_scores,
    models_by_scale,
    over_tasks,
)
from apet.provenance import write_text

MEAN = "mean over tasks"
MISSING = "no data"
NOTE = (
    "Test score in per cent: mean ± S.D. over n replicates (draws of the plan for APET, reruns for the methods); "
    "the last column is the mean over tasks of both. `{missing}`: no replicate with a score, in the mean in some task."
)


def methods_table(frame: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The named methods at their own count and APET at each matched budget, as Markdown and as one long table.

    The table has a row for each PLM, method and task (`mean over tasks` last): model, placement, budget, tunable, task,
    mean and sd in per cent, n replicates. An absent cell stays as a row of n 0.
    """
    tasks = sorted(frame.task.unique())
    matched = frame[frame.placement.eq(RANDOM) & frame.budget.isin([f"@{name}" for name in MATCHED])]
    cells = pd.concat([method_scores(frame), cell_scores(matched)])
    means = over_tasks(cells, tasks).assign(task=MEAN)
    found = pd.concat([cells, means]).set_index(["model", "placement", "budget", "task"])
    rows = [(model, *method) for model in models_by_scale(frame) for method in _methods(cells)]
    wanted = [(*row, task) for row in rows for task in (*tasks, MEAN)]
    long = found.reindex(pd.MultiIndex.from_tuples(wanted, names=found.index.names)).reset_index()
    keys = ["model", "placement", "budget"]
    long["tunable"] = long.groupby(keys).tunable.transform("first").astype("Int64")
    long[["mean", "sd"]] *= 100
    long["n"] = long.units.fillna(0).astype(int)
    long = long[[*keys, "tunable", "task", "mean", "sd", "n"]]
    return _markdown(long, [*tasks, MEAN]) + _heads(frame), long


def write_table(frame: pd.DataFrame, folder: Path) -> None:
    """Write `methods_table` to `methods.md` and `methods.csv`."""
    markdown, long = methods_table(frame)
    write_text(folder / "methods.md", markdown)
    write_text(folder / "methods.csv", long.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def _heads(frame: pd.DataFrame) -> str:
    """A sentence on each PLM that is read through a trained head, whose size depends on the task's labels."""
    found = frame[frame["head"] > 0].groupby("model")["head"].agg(["min", "max"])
    lines = [
        f"{model} is read through a trained classification head of {' to '.join(f'{n:,}' for n in sorted({*sizes}))} "
        "parameters, not counted among the tunable ones."
        for model, sizes in zip(found.index, found.itertuples(index=False), strict=True)
    ]
    return "".join(f"\n{line}\n" for line in lines)


def _methods(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """The (placement, budget) pairs of the study, in the order of the methods, APET after them."""
    present = set(zip(cells.placement, cells.budget, strict=True))
    order = [(name, "@own") for name in METHODS] + [(RANDOM, f"@{name}") for name in MATCHED]
    return [pair for pair in order if pair in present]


def _markdown(long: pd.DataFrame, tasks: list[str]) -> str:
    head = ["PLM", "method", "tunable parameters", *tasks]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for (model, placement, budget), row in long.groupby(["model", "placement", "budget"], sort=False):
        name = f"APET {budget}" if placement == RANDOM else placement
        tunable = row.tunable.iloc[0]
        lines.append([model, name, MISSING if pd.isna(tunable) else f"{tunable:,}", *map(_entry, row.itertuples())])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{NOTE.format(missing=MISSING)}\n"


def _entry(row: tuple) -> str:
    if pd.isna(row.mean):
        return MISSING
    spread = "" if pd.isna(row.sd) else f" ± {row.sd:.1f}"
    return f"{row.mean:.1f}{spread} ({row.n})"
