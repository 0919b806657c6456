"""Score by the number of tunable parameters: how many beat a guess, and how many match full fine-tuning?

APET's positions are random at every number; the methods stand at their own counts. Lines: full fine-tuning, the
uniform guess, the majority share. The low threshold (bar at the bottom of a panel) is the number from which on APET
beats a guess, the high one (bar at the top) that from which on it matches full fine-tuning; bars are their 95 %
intervals. A hollow arrow is a threshold that lies beyond all numbers tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.claims import AnalysisInputs
from apet.analysis.means import METHODS, RANDOM, cell_scores, method_scores, models_by_scale
from apet.analysis.thresholds import KINDS
from apet.figures import panels, style
from apet.figures.panels import column_blocks, pairs

KEYS = ["model", "task", "placement", "budget"]
COUNTS = ["draws", "units", "n"]
MOST_COLUMNS = 9
EDGE = {"low": 0.05, "high": 0.95}
"""Where thresholds stand, as a share of a panel's height."""


@style.styled
def draw(evidence: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """A row of panels a task, a column a PLM: APET's sweep as a line in its interval, methods as points."""
    data = numbers(evidence)
    found = pairs(evidence.frame)
    blocks, tasks = column_blocks(found, MOST_COLUMNS), sorted(found.task.unique())
    there = set(zip(found.model, found.task, strict=True))
    columns = max(map(len, blocks))
    height = 44 if columns <= 4 else 28
    fig, grid = panels.panels(len(blocks) * len(tasks), columns, height, _note(evidence), ("all", "row"), top=16)
    for number, models in enumerate(blocks):
        rows = grid[number * len(tasks) : (number + 1) * len(tasks)]
        for (row, column), ax in np.ndenumerate(rows):
            pair = (models[column] if column < len(models) else "", tasks[row])
            if pair in there:
                _panel(ax, data[data.model.eq(pair[0]) & data.task.eq(pair[1])], columns > 4)
            else:
                panels.absent(ax)
        names = [style.plm_name(model, 90 // columns) for model in models] + [""] * (columns - len(models))
        panels.name_matrix(rows, names, tasks, "tunable parameters", style.metric_label(evidence.frame))
    panels.count_axis(grid[0, 0], data.tunable, labels=5 if columns <= 4 else 3)
    panels.legend(fig, grid.flat, 5)
    return fig, data


def numbers(evidence: AnalysisInputs) -> pd.DataFrame:
    """A row for each task, PLM, and budget of APET or method: mean, low, high, chance, majority in per cent, counts.

    Every (placement, budget) of the study stands in every pair of PLM and task; without data, mean is NaN and units 0.
    The pair's thresholds in numbers of parameters, with their intervals, stand in each of its rows: 0 is a threshold
    below all numbers tested, inf one above.
    """
    draws, frame = evidence.draws, evidence.frame
    found = pd.concat([cell_scores(draws.select(draws.cells.placement.eq(RANDOM))), method_scores(draws)])
    grid = pairs(frame).merge(found[["placement", "budget"]].drop_duplicates(), "cross")
    data = grid.merge(found[[*KEYS, "tunable", "mean", "low", "high", *COUNTS]], "left")
    data[COUNTS] = data[COUNTS].fillna(0).astype(int)
    data = data.join(frame.groupby("task")[["chance", "majority"]].first(), on="task")
    data[["mean", "low", "high", "chance", "majority"]] *= 100
    for kind in KINDS:
        table = evidence.thresholds.table
        own = 10 ** table[table.kind.eq(kind)].set_index(["model", "task"])[["log10", "low", "high"]]
        own.columns = [f"{kind}_threshold", f"{kind}_threshold_low", f"{kind}_threshold_high"]
        data = data.join(own, on=["model", "task"])
    order = {name: index for index, name in enumerate([*models_by_scale(frame), RANDOM, *METHODS])}
    return data.sort_values(
        ["task", "model", "placement", "tunable", "budget"],
        ignore_index=True,
        key=lambda column: column.map(order) if column.name in ("model", "placement") else column,
    )


def _panel(ax: Axes, data: pd.DataFrame, small: bool) -> None:
    if data["mean"].isna().all():
        return panels.empty(ax)
    size = 2.4 if small else 4.2
    ax.set_ymargin(0.16)
    sweep = data[data.placement.eq(RANDOM) & data["mean"].notna()]
    look = style.look(RANDOM)
    if len(sweep):
        ax.fill_between(sweep.tunable, sweep.low, sweep.high, color=look["color"], alpha=0.22, linewidth=0)
        ax.plot(sweep.tunable, sweep["mean"], **look | {"markersize": 0.7 * size})
        _thresholds(ax, data.iloc[0], sweep.tunable, size)
    for row in data[data.placement.ne(RANDOM) & data["mean"].notna()].itertuples():
        _method(ax, row, size)
    for name, line, label in (("chance", ":", "uniform guess"), ("majority", "--", "majority share")):
        level = data[name].iloc[0]
        if pd.notna(level):
            ax.axhline(level, color=style.GREY, linestyle=line, linewidth=0.9, zorder=1, label=label)
    lost = data[data["mean"].isna()].itertuples()
    names = [f"APET {r.budget}" if r.placement == RANDOM else style.LOOKS[r.placement][2] for r in lost]
    panels.note_missing(ax, names, 18 if small else 44)


def _method(ax: Axes, row: Any, size: float) -> None:
    """A method at its own count; no parameters at all have no place on a log axis and stand on its left edge."""
    look = style.look(row.placement) | {"markersize": size}
    place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "clip_on": False} if row.tunable == 0 else {}
    panels.errorbars(ax, [row.tunable], [row.mean], [row.low], [row.high], linestyle="none", zorder=4, **look, **place)
    if row.placement == "full":
        ax.axhline(row.mean, color=look["color"], linewidth=0.8, zorder=1)


def _thresholds(ax: Axes, row: pd.Series, tested: pd.Series, size: float) -> None:
    """Both thresholds with their intervals, at the edges; one beyond `tested` as a hollow arrow at that end."""
    across, (smallest, largest) = ax.get_xaxis_transform(), (tested.min(), tested.max())
    for kind, (colour, marker, label) in style.THRESHOLDS.items():
        value, low, high = row[[f"{kind}_threshold", f"{kind}_threshold_low", f"{kind}_threshold_high"]]
        if pd.isna(value):
            continue
        look: dict[str, Any] = {"color": colour, "transform": across, "solid_capstyle": "butt"}
        y = EDGE[kind]
        ax.plot(np.clip([low, high], smallest, largest), [y, y], linewidth=0.55 * size, alpha=0.55, **look)
        if 0 < value < np.inf:
            ax.plot([value, value], [0, 1], linestyle=(0, (1, 2)), linewidth=0.8, zorder=1.5, **look)
        censored = {0.0: (smallest, "<"), np.inf: (largest, ">")}
        x, shape = censored.get(value, (value, marker))
        face = "white" if value in censored else colour
        ax.plot([x], [y], linestyle="none", marker=shape, markersize=size + 0.6, markerfacecolor=face, zorder=6, **look)
        # In the legend an observed one, whatever stands in this panel.
        ax.plot([], [], color=colour, marker=marker, linewidth=0.55 * size, markersize=size, label=label)


def _note(evidence: AnalysisInputs) -> str:
    draws = evidence.draws
    sweep = draws.cells.draws[draws.cells.placement.eq(RANDOM)]
    runs = method_scores(draws).units
    margins = evidence.margins
    return (
        f"APET: {style.span(sweep)} draws a budget; methods at their own count: {style.span(runs)} replicates, the "
        "untuned PLM on the left edge; line: full fine-tuning. Band and whiskers: 95 % intervals over replicates and "
        f"test rows (test rows alone where there is one replicate). Low threshold: chance + {margins['chance_margin']:g} "
        f"points, high: full fine-tuning − {margins['full_ft_margin']:g} points, both on the rising curve through APET's "
        "means; bars: 95 % intervals; hollow arrows: beyond the numbers tested. Uniform guess: 1/labels, in generation "
        f"the references shuffled. {style.guess_note(evidence.frame)}{style.count_note(evidence.frame)}"
    )
