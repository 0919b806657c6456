"""Score of each tuning method by the size of the PLM: do methods come together as PLMs grow?

Each method at its own count of tunable parameters, on every task and in the mean over tasks; dashed, the score of a
guess. Whiskers are 95 % intervals. PLMs of one family are joined by lines, families never.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.claims import AnalysisInputs
from apet.analysis.means import MEAN, METHODS, chance_level, method_scores, methods
from apet.figures import panels, style
from apet.figures.panels import family_means, pairs, with_mean

WIDTH = 0.17
"""Room for all methods at one PLM, as a share of the axis."""


@style.styled
def draw(evidence: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """A panel a task and one of their mean; families of several in columns of their own."""
    data = numbers(evidence)
    label, x = style.metric_label(evidence.frame), "non-embedding parameters"
    tasks, families = [*sorted(set(data.task) - {MEAN}), MEAN], list(data.family.unique())
    if len(families) == 1:
        columns = min(4, len(tasks))
        fig, grid = panels.panels(-(-len(tasks) // columns), columns, 52, _note(evidence, data))
        axes = panels.flow(grid, len(tasks))
        for task, ax in zip(tasks, axes, strict=True):
            _panel(ax, data[data.task.eq(task)])
            ax.set_title(task)
        panels.name_axes(axes, columns, x, [label])
    else:
        fig, grid = panels.panels(len(tasks), len(families), 40, _note(evidence, data), ("col", "row"))
        for (row, column), ax in np.ndenumerate(grid):
            _panel(ax, data[data.family.eq(families[column]) & data.task.eq(tasks[row])])
        for column, family in enumerate(families):
            panels.scale_axis(grid[0, column], list(data.non_embedding[data.family.eq(family)]))
        panels.name_matrix(grid, families, tasks, x, label)
    panels.legend(fig, grid.flat)
    return fig, data


def numbers(evidence: AnalysisInputs) -> pd.DataFrame:
    """A row for each PLM, task (then their mean) and method: mean, low, high and chance in per cent, units and n.

    A cell without data has NaN and 0 units.
    """
    found, scores = pairs(evidence.frame), method_scores(evidence.draws)
    means = family_means(methods(evidence.draws), found)
    values = pd.concat([scores, means]).set_index(["model", "task", "placement"])
    names = [name for name in METHODS if name in set(scores.placement)] or list(METHODS)
    grid = with_mean(found).merge(pd.DataFrame({"placement": names}), how="cross")
    data = grid.join(values[["mean", "low", "high", "units", "n"]], on=["model", "task", "placement"])
    data[["mean", "low", "high"]] *= 100
    data[["units", "n"]] = data[["units", "n"]].fillna(0).astype(int)
    return data.assign(chance=100 * _chance(evidence.frame, data))


def _chance(frame: pd.DataFrame, data: pd.DataFrame) -> pd.Series:
    """Of each row's task, or the mean over the tasks of its family."""
    level = chance_level(frame)
    own = data.task.map(level)
    return own.fillna(own.groupby(data.family).transform("mean"))


def _panel(ax: Axes, data: pd.DataFrame) -> None:
    if data.empty:
        return panels.absent(ax)
    if data["mean"].isna().all():
        panels.empty(ax)
    names = list(data.placement.unique())
    room = max(0.35, 1.24 * np.log10(data.non_embedding.max() / data.non_embedding.min()))
    places = panels.side_by_side(len(names), WIDTH * room / len(names))
    for place, name in zip(places, names, strict=True):
        line = data[data.placement.eq(name)].sort_values("non_embedding")
        x = line.non_embedding * place
        panels.errorbars(ax, x, line["mean"], line.low, line.high, **style.look(name))
        panels.mark_missing(ax, list(x[line["mean"].isna()]), style.look(name)["color"])
    ax.axhline(data.chance.iloc[0], color=style.GREY, linestyle="--", linewidth=0.8, zorder=1, label="chance")
    panels.scale_axis(ax, list(data.non_embedding))


def _note(evidence: AnalysisInputs, data: pd.DataFrame) -> str:
    missing = [style.LOOKS[name][2] for name in METHODS if name not in set(data.placement[data.units.gt(0)])]
    units = data.units[data.units.gt(0) & data.task.ne(MEAN)]
    return (
        f"Each method at its own count of tunable parameters, {style.span(units)} replicates a cell. Whiskers: 95 % "
        "intervals over replicates and test rows (test rows alone where there is one replicate); of the mean, for "
        "these tasks. Chance: the larger of the uniform guess and the majority share. "
        + style.guess_note(evidence.frame)
        + (f"Not in this study: {', '.join(missing)}. " if missing else "")
        + style.count_note(evidence.frame)
    )
