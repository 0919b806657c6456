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
from apet.analysis.means import MEAN, METHODS, chance_level, has_means, method_scores, methods, over_tasks, own_count
from apet.analysis.resampling import study_cells
from apet.figures import panels, style
from apet.figures.panels import with_mean

WIDTH = 0.17
"""Width of all methods at one PLM, as a fraction of the axis."""


@style.styled
def draw(inputs: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """Draw a panel per task and one for their mean, if there are several; several families have a column each."""
    data = numbers(inputs)
    if data.empty:
        return panels.without_data("No method at its own count is in this study."), data
    label, x = style.metric_label(inputs.frame), "non-embedding parameters"
    shows_mean = has_means(inputs.samples.tasks) and data.task.eq(MEAN).any()
    tasks = [*sorted(set(data.task) - {MEAN}), *([MEAN] if shows_mean else [])]
    families = list(data.family.unique())
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
        One row per PLM, task (then their mean) and method of the study, with mean, low, high and chance in per cent,
        and counts. NaN and 0 replicates without data.
    """
    scores, means = method_scores(inputs.samples), over_tasks(methods(inputs.samples)).assign(task=MEAN)
    values = pd.concat([scores, means]).set_index(["model", "task", "placement"])
    cells = study_cells(inputs.frame)
    planned = pd.DataFrame({"placement": METHODS}, dtype=object).merge(cells[own_count(cells)])
    grid = with_mean(planned.drop(columns="budget").drop_duplicates(), inputs.samples.tasks)
    data = grid.join(values[["mean", "low", "high", "num_replicates", "n_test"]], on=["model", "task", "placement"])
    data[["mean", "low", "high"]] *= 100
    data[["num_replicates", "n_test"]] = data[["num_replicates", "n_test"]].fillna(0).astype(int)
    return data.assign(chance=100 * _chance(inputs, data))


def _chance(inputs: AnalysisInputs, data: pd.DataFrame) -> pd.Series:
    """Return chance of each row's task, or the mean over the tasks of a mean."""
    level = chance_level(inputs.frame)
    means = {family: level.reindex(tasks).mean() for family, tasks in inputs.samples.tasks.items()}
    return data.task.map(level).where(data.task.ne(MEAN), data.family.map(means))


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
    replicates = data.num_replicates[data.num_replicates.gt(0) & data.task.ne(MEAN)]
    on_tasks = "; for the mean, on these tasks" if has_means(inputs.samples.tasks) else ""
    return (
        f"Each method at its own count of trainable parameters, {style.span(replicates, 'replicate')} per cell. "
        f"Whiskers: 95 % intervals over replicates and test rows (only test rows if there is one replicate){on_tasks}. "
        f"{style.means_note(inputs)}Chance: the larger of a uniform guess and the majority class. "
        f"{style.chance_note(inputs.frame)}{style.count_note(inputs.frame)}"
    )
