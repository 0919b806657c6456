"""Thresholds by PLM size: do larger PLMs need fewer trainable parameters?

The numbers of parameters from which APET exceeds chance (chance) and from which it matches full fine-tuning (full-FT),
for each task, with 95 % intervals. A hollow arrow is not an observed value: the threshold is outside the numbers tested
on that PLM and task, and the arrow is at the last of them. Unbounded intervals end in an arrowhead.
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
from apet.analysis.means import RANDOM
from apet.analysis.resampling import PLM, study_cells
from apet.analysis.thresholds import THRESHOLD_KINDS
from apet.figures import panels, style

TITLES = {"chance": "chance: exceeds chance", "full_ft": "full-FT: matches full fine-tuning"}
NEEDED = {"chance": (), "full_ft": ("full",)}
"""Placements besides APET that a threshold needs."""
WIDTH = 0.5
"""Width of all tasks at one PLM, as a fraction of the smallest distance of two PLMs."""
ARROWS = {
    "above": ("largest", "^", "above all numbers tested"),
    "below": ("smallest", "v", "below all numbers tested"),
}
"""Censored -> column of the arrow's position, its marker and its label."""
HOLLOW: dict[str, Any] = {"linestyle": "none", "markersize": 6.5, "markeredgewidth": 0.8, "markerfacecolor": "white"}
WIDEST = 0.05
"""Largest distance of two tasks, as a fraction of the axis."""
VALUES = ["value", "low", "high"]


@style.styled
def draw(inputs: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """Draw a row of panels per threshold and a column per family, with a marker per task."""
    data = numbers(inputs)
    if data.empty:
        return panels.without_data("APET is not in this study."), data
    families, tasks, kinds = list(data.family.unique()), sorted(data.task.unique()), list(data.threshold.unique())
    one = len(families) == 1
    shape = (1, len(kinds)) if one else (len(kinds), len(families))
    fig, grid = panels.panels(*shape, 72, _note(inputs, data), ("col", "all"), top=14)
    for (row, kind), (column, family) in product(enumerate(kinds), enumerate(families)):
        ax = grid[(0, row) if one else (row, column)]
        _panel(ax, data[data.threshold.eq(kind) & data.family.eq(family)], tasks)
    tested = data[["smallest", "largest"]].to_numpy().ravel()
    panels.count_axis(grid[0, 0], tested[~np.isnan(tested)], "y", labels=8)
    titles = [TITLES[kind] for kind in kinds]
    above, beside = (titles, [""]) if one else (families, titles)
    panels.name_matrix(grid, above, beside, "non-embedding parameters", "trainable parameters")
    panels.legend(fig, grid.flat, 6)
    return fig, data


def numbers(inputs: AnalysisInputs) -> pd.DataFrame:
    """Compute the thresholds of each PLM and task.

    Args:
        inputs: data of the study.

    Returns:
        One row per PLM, task and threshold, with value, low and high in numbers of parameters. 0 is below all numbers
        tested, inf above (censored: below, above); NaN if APET or full fine-tuning is missing. level: score in per cent
        that must be reached; smallest, largest, budgets: range and number of the numbers tested. No row for a threshold
        if the study lacks APET or full fine-tuning on this PLM and task.
    """
    table = inputs.thresholds.table.rename(columns={"kind": "threshold", "log10": "value"})
    table = table.drop(columns=["family", "non_embedding_params"]).astype({"threshold": str})
    data = _planned(inputs.frame).merge(table, "left")
    data[VALUES] = 10 ** data[VALUES].astype(float)
    data["level"] *= 100
    data["budgets"] = data.budgets.fillna(0).astype(int)
    columns = ["family", "non_embedding_params", "model", "task", "threshold", *VALUES, "censored", "level"]
    return data[[*columns, "smallest", "largest", "budgets"]]


def _planned(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the thresholds of each PLM and task of which the study has the placements."""
    pairs = study_cells(frame).groupby([*PLM, "task"], as_index=False).placement.agg(set)
    kinds = pairs.merge(pd.DataFrame({"threshold": THRESHOLD_KINDS}, dtype=object), how="cross")
    known = [{RANDOM, *NEEDED[row.threshold]} <= row.placement for row in kinds.itertuples()]
    return kinds[np.array(known, bool)].drop(columns="placement")


def _panel(ax: Axes, data: pd.DataFrame, tasks: list[str]) -> None:
    if data.empty:
        return panels.absent(ax)
    if data.value.isna().all():
        panels.empty(ax)
    sizes = np.unique(np.log10(data.non_embedding_params))
    width = WIDTH * (np.diff(sizes).min() if len(sizes) > 1 else 1.0)
    step = min(width / len(tasks), WIDEST * (np.ptp(sizes) or 1.0))
    colour = style.THRESHOLDS[data.threshold.iloc[0]][0]
    markers = {task: style.MARKERS[index % len(style.MARKERS)] for index, task in enumerate(tasks)}
    for offset, (task, marker) in zip(panels.side_by_side(len(tasks), step), markers.items(), strict=True):
        line = data[data.task.eq(task)].sort_values("non_embedding_params")
        x = line.non_embedding_params * offset
        _task(ax, x, line, colour, marker)
        panels.mark_missing(ax, list(x[line.value.isna()]), colour)
    _explain(ax, data, markers)
    panels.scale_axis(ax, list(data.non_embedding_params))


def _task(ax: Axes, x: pd.Series, line: pd.DataFrame, colour: str, marker: str) -> None:
    """Draw one task: observed thresholds joined by a line, censored ones as arrows at the end of the numbers tested."""
    low, high = (line[name].clip(line.smallest, line.largest) for name in ("low", "high"))
    ax.vlines(x, low, high, color=colour, linewidth=0.7, alpha=0.8)
    open_ends = ((low.where(line.low.eq(0)), CARETDOWN), (high.where(np.isinf(line.high)), CARETUP))
    for y, caret in open_ends:
        ax.plot(x, y, linestyle="none", marker=caret, color=colour, markersize=2.4)
    observed = line.censored.eq("")
    ax.plot(x, line.value.where(observed), color=colour, linewidth=0.5, alpha=0.5, zorder=1.5)
    ax.plot(x[observed], line.value[observed], linestyle="none", marker=marker, color=colour)
    for end, (column, shape, _) in ARROWS.items():
        censored = line.censored.eq(end)
        ax.plot(x[censored], line[column][censored], marker=shape, markeredgecolor=colour, zorder=4, **HOLLOW)
        ax.plot(
            x[censored], line[column][censored], marker=marker, color=colour, markersize=2, linestyle="none", zorder=5
        )


def _explain(ax: Axes, data: pd.DataFrame, markers: dict[str, str]) -> None:
    """Add legend entries, grey because a task's marker has both colours, and shade the range that was not tested."""
    for task, marker in markers.items():
        ax.plot([], [], linestyle="none", marker=marker, color=style.DARK, label=task)
    for end, (_, shape, label) in ARROWS.items():
        if data.censored.eq(end).any():
            ax.plot([], [], marker=shape, markeredgecolor=style.DARK, label=label, **HOLLOW)
    if data.smallest.notna().any():
        ax.axhspan(0.01, data.smallest.min(), color="#F1F1F1", zorder=0, linewidth=0)
        ax.axhspan(data.largest.max(), 1e15, color="#F1F1F1", zorder=0, linewidth=0)


def _note(inputs: AnalysisInputs, data: pd.DataFrame) -> str:
    cells = inputs.samples.cells
    replicates = cells.num_replicates[cells.placement.eq(RANDOM)]
    found = data[data.value.notna()].groupby("threshold").censored
    observed = ", ".join(f"{kind.replace('_ft', '-FT')} {ends.eq('').sum()} of {len(ends)}" for kind, ends in found)
    margins = inputs.margins
    meanings = {
        "chance": f"Chance: from this number APET is {margins['chance_margin']:g} points above chance.",
        "full_ft": f"Full-FT: at most {margins['full_ft_margin']:g} points below full fine-tuning.",
    }
    kinds = " ".join(meanings[kind] for kind in data.threshold.unique())
    return (
        f"{kinds} APET at {style.span(data.budgets, 'number')} of parameters, {style.span(replicates, 'replicate')} "
        "each. Whiskers: 95 % intervals over replicates and test rows. Observed within the numbers tested: "
        f"{observed or 'none'}. Hollow arrows: outside; arrowheads: unbounded intervals. Shade: not tested. "
        f"{style.count_note(inputs.frame)}"
    )
