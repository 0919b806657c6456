"""Low and high thresholds by the size of the PLM: do larger PLMs need fewer tunable parameters?

The number of parameters from which on APET beats a guess (low), and from which on it matches full fine-tuning (high),
for each task, with 95 % intervals. A hollow arrow is no observed value: it says that the threshold lies beyond the
numbers tested on that PLM and task, and stands at the last of them. An interval without an end there has an arrowhead.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN, CARETUP

from apet.analysis.claims import AnalysisInputs
from apet.analysis.thresholds import KINDS
from apet.figures import panels, style
from apet.figures.panels import pairs

NAMES = {"low": "low: beats a guess", "high": "high: matches full fine-tuning"}
WIDTH = 0.5
"""Room for all tasks at one PLM, as a share of the least distance of two PLMs."""
ARROWS = {
    "above": ("largest", "^", "above all that was tested"),
    "below": ("smallest", "v", "below all that was tested"),
}
"""Censored -> at which number the arrow stands, its marker, and what it says."""
HOLLOW: dict[str, Any] = {"linestyle": "none", "markersize": 6.5, "markeredgewidth": 0.8, "markerfacecolor": "white"}
WIDEST = 0.05
"""The most between two tasks, as a share of the axis."""
VALUES = ["value", "low", "high"]


@style.styled
def draw(evidence: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """A row of panels for each of the two thresholds, a column a family; a marker a task."""
    data = numbers(evidence)
    families, tasks = list(data.family.unique()), sorted(data.task.unique())
    one = len(families) == 1
    shape = (1, len(KINDS)) if one else (len(KINDS), len(families))
    fig, grid = panels.panels(*shape, 72, _note(evidence, data), ("col", "all"), top=14)
    for kind, family in product(KINDS, families):
        ax = grid[(0, KINDS.index(kind)) if one else (KINDS.index(kind), families.index(family))]
        _panel(ax, data[data.threshold.eq(kind) & data.family.eq(family)], tasks)
    tested = data[["smallest", "largest"]].to_numpy().ravel()
    panels.count_axis(grid[0, 0], tested[~np.isnan(tested)], "y", labels=8)
    above, beside = ([*NAMES.values()], [""]) if one else (families, [*NAMES.values()])
    panels.name_matrix(grid, above, beside, "non-embedding parameters", "tunable parameters")
    panels.legend(fig, grid.flat, 6)
    return fig, data


def numbers(evidence: AnalysisInputs) -> pd.DataFrame:
    """A row for each pair of PLM and task and each threshold: value, low, high in numbers of parameters.

    0 is below all numbers tested, inf above them (censored: below, above); NaN where there is no threshold, for want of
    APET or of full fine-tuning. level: score in per cent that is to be reached; smallest, largest: numbers tested, of
    which there are `budgets`.
    """
    table = evidence.thresholds.table.rename(columns={"kind": "threshold", "log10": "value"})
    table = table.drop(columns=["family", "non_embedding"]).astype({"threshold": str})
    grid = pairs(evidence.frame).merge(pd.DataFrame({"threshold": KINDS}), how="cross")
    data = grid.merge(table, "left")
    data[VALUES] = 10 ** data[VALUES].astype(float)
    data["level"] *= 100
    data["budgets"] = data.budgets.fillna(0).astype(int)
    columns = ["family", "non_embedding", "model", "task", "threshold", *VALUES, "censored", "level"]
    return data[[*columns, "smallest", "largest", "budgets"]]


def _panel(ax: Axes, data: pd.DataFrame, tasks: list[str]) -> None:
    if data.value.isna().all():
        panels.empty(ax)
    sizes = np.unique(np.log10(data.non_embedding))
    room = WIDTH * (np.diff(sizes).min() if len(sizes) > 1 else 1.0)
    step = min(room / len(tasks), WIDEST * (np.ptp(sizes) or 1.0))
    colour = style.THRESHOLDS[data.threshold.iloc[0]][0]
    markers = {task: style.MARKERS[index % len(style.MARKERS)] for index, task in enumerate(tasks)}
    for place, (task, marker) in zip(panels.side_by_side(len(tasks), step), markers.items(), strict=True):
        line = data[data.task.eq(task)].sort_values("non_embedding")
        x = line.non_embedding * place
        _task(ax, x, line, colour, marker)
        panels.mark_missing(ax, list(x[line.value.isna()]), colour)
    _explain(ax, data, markers)
    panels.scale_axis(ax, list(data.non_embedding))


def _task(ax: Axes, x: pd.Series, line: pd.DataFrame, colour: str, marker: str) -> None:
    """One task: what was observed, joined; what lies beyond, as arrows at the end of what was tested."""
    low, high = (line[name].clip(line.smallest, line.largest) for name in ("low", "high"))
    ax.vlines(x, low, high, color=colour, linewidth=0.7, alpha=0.8)
    open_ends = ((low.where(line.low.eq(0)), CARETDOWN), (high.where(np.isinf(line.high)), CARETUP))
    for place, caret in open_ends:
        ax.plot(x, place, linestyle="none", marker=caret, color=colour, markersize=2.4)
    seen = line.censored.eq("")
    ax.plot(x, line.value.where(seen), color=colour, linewidth=0.5, alpha=0.5, zorder=1.5)
    ax.plot(x[seen], line.value[seen], linestyle="none", marker=marker, color=colour)
    for end, (column, shape, _) in ARROWS.items():
        at = line.censored.eq(end)
        ax.plot(x[at], line[column][at], marker=shape, markeredgecolor=colour, zorder=4, **HOLLOW)
        ax.plot(x[at], line[column][at], marker=marker, color=colour, markersize=2, linestyle="none", zorder=5)


def _explain(ax: Axes, data: pd.DataFrame, markers: dict[str, str]) -> None:
    """The legend's entries, in grey, as a task has its marker in both colours; shade beyond all that was tested."""
    for task, marker in markers.items():
        ax.plot([], [], linestyle="none", marker=marker, color=style.DARK, label=task)
    for end, (_, shape, label) in ARROWS.items():
        if data.censored.eq(end).any():
            ax.plot([], [], marker=shape, markeredgecolor=style.DARK, label=label, **HOLLOW)
    if data.smallest.notna().any():
        ax.axhspan(0.01, data.smallest.min(), color="#F1F1F1", zorder=0, linewidth=0)
        ax.axhspan(data.largest.max(), 1e15, color="#F1F1F1", zorder=0, linewidth=0)


def _note(evidence: AnalysisInputs, data: pd.DataFrame) -> str:
    cells = evidence.draws.cells
    units = cells.units[cells.placement.eq("uniform")]
    count = data.groupby("threshold").agg(n=("value", "count"), seen=("censored", lambda c: c.eq("").sum()))
    said = ", ".join(f"{kind} {count.seen[kind]} of {count.n[kind]}" for kind in KINDS)
    margins = evidence.margins
    return (
        f"Low: APET is {margins['chance_margin']:g} points above chance from there on; high: at most "
        f"{margins['full_ft_margin']:g} points below full fine-tuning. APET at {style.span(data.budgets)} numbers of "
        f"parameters, {style.span(units)} replicates each. Whiskers: 95 % intervals over replicates and test rows. "
        f"Observed within what was tested: {said}. Hollow arrows: beyond it; arrowheads: intervals open "
        "there. Shade: never tested. "
        f"{style.count_note(evidence.frame)}"
    )
