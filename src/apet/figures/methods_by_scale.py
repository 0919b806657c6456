"""Score of each tuning method by PLM size: do methods differ less for larger PLMs?

Each method is at its own count of trainable parameters, on every task and in the mean over tasks. The dashed line is
chance. Whiskers are 95 % intervals. Lines join PLMs of one family.
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
"""Width of all methods at one PLM, as a fraction of the axis."""


@style.styled
def draw(inputs: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """Draw a panel per task and one for their mean; several families have a column each."""
    data = numbers(inputs)
    label, x = style.metric_label(inputs.frame), "non-embedding parameters"
    tasks, families = [*sorted(set(data.task) - {MEAN}), MEAN], list(data.family.unique())
    if len(families) == 1:
        columns = min(4, len(tasks))
        fig, grid = panels.panels(-(-len(tasks) // columns), columns, 52, _note(inputs, data))
        axes = panels.flow(grid, len(tasks))
        for task, ax in zip(tasks, axes, strict=True):
            _panel(ax, data[data.task.eq(task)])
            ax.set_title(task)
        panels.name_axes(axes, columns, x, [label])
    else:
        fig, grid = panels.panels(len(tasks), len(families), 40, _note(inputs, data), ("col", "row"))
        for (row, column), ax in np.ndenumerate(grid):
            _panel(ax, data[data.family.eq(families[column]) & data.task.eq(tasks[row])])
        for column, family in enumerate(families):
            panels.scale_axis(grid[0, column], list(data.non_embedding_params[data.family.eq(family)]))
        panels.name_matrix(grid, families, tasks, x, label)
    panels.legend(fig, grid.flat)
    return fig, data


def numbers(inputs: AnalysisInputs) -> pd.DataFrame:
    """Compute the mean score of each method on each task, and on their mean.

    Args:
        inputs: data of the study.

    Returns:
        One row per PLM, task (then their mean) and method, with mean, low, high and chance in per cent, and counts. NaN
        and 0 replicates without data.
    """
    study_pairs, scores = pairs(inputs.frame), method_scores(inputs.samples)
    means = family_means(methods(inputs.samples), study_pairs)
    values = pd.concat([scores, means]).set_index(["model", "task", "placement"])
    names = [name for name in METHODS if name in set(scores.placement)] or list(METHODS)
    grid = with_mean(study_pairs).merge(pd.DataFrame({"placement": names}), how="cross")
    data = grid.join(values[["mean", "low", "high", "num_replicates", "n_test"]], on=["model", "task", "placement"])
    data[["mean", "low", "high"]] *= 100
    data[["num_replicates", "n_test"]] = data[["num_replicates", "n_test"]].fillna(0).astype(int)
    return data.assign(chance=100 * _chance(inputs.frame, data))


def _chance(frame: pd.DataFrame, data: pd.DataFrame) -> pd.Series:
    """Return chance of each row's task, or the mean over the tasks of its family."""
    level = chance_level(frame)
    own = data.task.map(level)
    return own.fillna(own.groupby(data.family).transform("mean"))


def _panel(ax: Axes, data: pd.DataFrame) -> None:
    if data.empty:
        return panels.absent(ax)
    if data["mean"].isna().all():
        panels.empty(ax)
    names = list(data.placement.unique())
    log_range = max(0.35, 1.24 * np.log10(data.non_embedding_params.max() / data.non_embedding_params.min()))
    offsets = panels.side_by_side(len(names), WIDTH * log_range / len(names))
    for offset, name in zip(offsets, names, strict=True):
        line = data[data.placement.eq(name)].sort_values("non_embedding_params")
        x = line.non_embedding_params * offset
        panels.errorbars(ax, x, line["mean"], line.low, line.high, **style.placement_style(name))
        panels.mark_missing(ax, list(x[line["mean"].isna()]), style.placement_style(name)["color"])
    ax.axhline(data.chance.iloc[0], color=style.GREY, linestyle="--", linewidth=0.8, zorder=1, label="chance")
    panels.scale_axis(ax, list(data.non_embedding_params))


def _note(inputs: AnalysisInputs, data: pd.DataFrame) -> str:
    missing = [style.STYLES[name][2] for name in METHODS if name not in set(data.placement[data.num_replicates.gt(0)])]
    replicates = data.num_replicates[data.num_replicates.gt(0) & data.task.ne(MEAN)]
    return (
        f"Each method at its own count of trainable parameters, {style.span(replicates)} replicates per cell. "
        "Whiskers: 95 % intervals over replicates and test rows (only test rows if there is one replicate); for the "
        "mean, on these tasks. Chance: the larger of a uniform guess and the majority class. "
        + style.chance_note(inputs.frame)
        + (f"Not in this study: {', '.join(missing)}. " if missing else "")
        + style.count_note(inputs.frame)
    )
