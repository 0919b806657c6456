"""The study's table: PLM × method against tasks, as Markdown for people, CSV for machines and LaTeX for papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.latex import escape, latex_table
from apet.analysis.means import MATCHED, MEAN, METHODS, RANDOM, matched, models_by_scale, over_tasks
from apet.analysis.resampling import Draws, draw_means
from apet.provenance import write_text

MISSING = "no data"
BASELINE = "full"
"""What the methods are compared with, and so never the best of them."""
NOTE = (
    "Test score in per cent: mean ± S.D. over n replicates (draws of the plan for APET, reruns for the methods); "
    "the last column is the mean over tasks of both. `{missing}`: no replicate with a score, in the mean in some task."
)


def methods_table(frame: pd.DataFrame, draws: Draws | None = None) -> tuple[str, pd.DataFrame]:
    """The named methods at their own count and APET at each matched budget, as Markdown and as one long table.

    The table has a row for each PLM, method and task (`mean over tasks` last): model, placement, budget, tunable, task,
    mean and sd in per cent, n replicates. An absent cell stays as a row of n 0. draws: where they are at hand already.
    """
    tasks = sorted(frame.task.unique())
    chosen = matched(draw_means(frame) if draws is None else draws)
    cells, means = chosen.cells, over_tasks(chosen, tasks).assign(task=MEAN)
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


def methods_latex(long: pd.DataFrame) -> str:
    """`methods_table`'s long table: a block a PLM, in bold the best of each column of it, full fine-tuning apart."""
    tasks = list(long.task.unique())
    blocks = []
    for model, block in long.groupby("model", sort=False):
        best = block[block.placement.ne(BASELINE)].groupby("task")["mean"].max().map("{:.1f}".format)
        rows: list[list[str]] = []
        for (placement, budget), row in block.groupby(["placement", "budget"], sort=False):
            entries = [
                _latex_entry(r, r.placement != BASELINE and f"{r.mean:.1f}" == best[r.task]) for r in row.itertuples()
            ]
            rows.append(["" if rows else escape(model), escape(method_name(placement, budget)), _count(row), *entries])
        blocks.append(rows)
    head = ["PLM", "method", "tunable", *map(escape, tasks)]
    caption = (
        r"Test score in per cent: mean $\pm$ S.D.\ over replicates, their number in brackets. Bold: the best of a "
        "PLM's column, full fine-tuning apart."
    )
    return latex_table("methods", caption, "ll" + "r" * (len(head) - 2), head, blocks)


def write_table(frame: pd.DataFrame, folder: Path, draws: Draws | None = None) -> None:
    """Write `methods_table` to `methods.md`, `methods.csv` and `methods.tex`."""
    markdown, long = methods_table(frame, draws)
    write_text(folder / "methods.md", markdown)
    write_text(folder / "methods.csv", long.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    write_text(folder / "methods.tex", methods_latex(long))


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
        lines.append([model, method_name(placement, budget), _count(row), *map(entry, row.itertuples())])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{NOTE.format(missing=MISSING)}\n"


def _count(group: pd.DataFrame) -> str:
    tunable = group.tunable.iloc[0]
    return MISSING if pd.isna(tunable) else f"{tunable:,}"


def method_name(placement: str, budget: str) -> str:
    """How tables call a row of `methods_table`."""
    return f"APET {budget}" if placement == RANDOM else placement


def entry(row: Any) -> str:
    """mean ± S.D. (n) of a row of `methods_table`."""
    if pd.isna(row.mean):
        return MISSING
    spread = "" if pd.isna(row.sd) else f" ± {row.sd:.1f}"
    return f"{row.mean:.1f}{spread} ({row.n})"


def _latex_entry(row: Any, is_best: bool) -> str:
    """`entry` in LaTeX, the mean in bold where it is the best."""
    if pd.isna(row.mean):
        return MISSING
    mean = rf"\textbf{{{row.mean:.1f}}}" if is_best else f"{row.mean:.1f}"
    spread = "" if pd.isna(row.sd) else rf" $\pm$ {row.sd:.1f}"
    return f"{mean}{spread} ({row.n})"
