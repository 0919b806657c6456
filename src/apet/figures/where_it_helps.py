"""Gain over random positions everywhere: which sites, structures and informed choices help most?

Score of each restricted or informed placement minus that of APET everywhere, with the same number of parameters on the
same PLM and test rows. Large markers have 95 % intervals, and are filled if they differ significantly from 0. If the
study has several tasks, they are means over tasks, and dots are single tasks. Numbers of parameters grow from top to
bottom.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.claims import POINTS, AnalysisInputs
from apet.analysis.intervals import CONFIDENCE
from apet.analysis.means import MEAN, METHODS, RANDOM, differences, has_means, models_by_scale
from apet.analysis.resampling import CELL, PLM, study_cells
from apet.core.text import plural
from apet.figures import panels, style
from apet.figures.panels import with_mean

RESTRICTED = [name for name in style.STYLES if name not in (*METHODS, RANDOM)]
ROW_HEIGHT = 3.4
"""mm."""
NUMBERS = ["difference", "low", "high", "p_adjusted"]
COUNTS = ["n_test", "num_replicates"]


@style.styled
def draw(inputs: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """Draw a panel per PLM and a row per restricted placement, in blocks by the number of parameters."""
    data = numbers(inputs)
    if data.empty:
        return panels.without_data("No restricted placement is in this study."), data
    models = [model for model in models_by_scale(inputs.frame) if model in set(data.model)]
    columns = min(3, len(models))
    rows = list(dict.fromkeys(zip(data.budget, data.placement, strict=True)))
    positions = _positions(rows)
    height = 12 + ROW_HEIGHT * (max(positions) + 2)
    note, means = _note(inputs, data), has_means(inputs.samples.tasks)
    fig, grid = panels.panels(-(-len(models) // columns), columns, height, note, ("all", "all"), height, 7)
    axes = panels.flow(grid, len(models))
    for model, ax in zip(models, axes, strict=True):
        ax.set_title(style.plm_name(model, 40))
        _panel(ax, data[data.model.eq(model)], dict(zip(rows, positions, strict=True)), means)
    panels.rows_axis(axes, [style.STYLES[name][2] for _, name in rows], positions, above=1.7)
    panels.name_axes(axes, columns, "difference from APET (points)", [""])
    panels.legend(fig, axes)
    return fig, data


def numbers(inputs: AnalysisInputs) -> pd.DataFrame:
    """Compare restricted placements with `uniform` at the same budget.

    Args:
        inputs: data of the study.

    Returns:
        One row per PLM, task (then their mean), budget and restricted placement of that PLM, with the difference from
        `uniform` in percentage points, with its interval low and high; p_adjusted (Holm, over the rows of tasks, and
        separately over the means); n_test; num_replicates, the smaller of both cells. NaN and 0 if one of the cells is
        missing.
    """
    frame = inputs.frame
    samples = inputs.samples.select(inputs.samples.cells.placement.isin([RANDOM, *RESTRICTED]))
    paired = differences(samples, _baseline)[[*CELL, *NUMBERS, *COUNTS]]
    sizes = frame[frame.placement.isin(RESTRICTED)].groupby("budget").trainable_params.min()
    budgets = pd.DataFrame({"budget": sizes.sort_values(kind="stable").index})
    order = budgets.merge(pd.DataFrame({"placement": RESTRICTED}, dtype=object), how="cross")
    grid = with_mean(order.merge(study_cells(frame)), inputs.samples.tasks)
    data = grid.merge(paired, "left") if len(grid) else grid.reindex(columns=[*grid, *NUMBERS, *COUNTS])
    trainable_params = frame[frame.placement.isin(RESTRICTED)].groupby(["model", "budget"]).trainable_params.first()
    data = data.merge(trainable_params.reset_index(), "left")
    data[["difference", "low", "high"]] *= POINTS
    data[COUNTS] = data[COUNTS].fillna(0).astype(int)
    return data[[*PLM, "task", "placement", "budget", "trainable_params", *NUMBERS, *COUNTS]]


def _baseline(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.assign(placement=np.where(cells.placement.isin(RESTRICTED), RANDOM, ""))


def _positions(rows: list[tuple[str, str]]) -> list[float]:
    """Return the y position of each row, with space for a heading above each budget."""
    gaps = np.cumsum([0.0, *(1.6 * (a[0] != b[0]) for a, b in zip(rows[1:], rows, strict=False))])
    return [index + gap for index, gap in zip(range(len(rows)), gaps, strict=False)]


def _panel(ax: Axes, data: pd.DataFrame, positions: dict[tuple[str, str], float], means: bool) -> None:
    ax.axvline(0, color=style.STYLES[RANDOM][0], linewidth=0.9, zorder=1)
    is_empty = data.difference.isna().all()
    if is_empty:
        panels.empty(ax)
    for (budget, placement), y in () if is_empty else positions.items():
        row = data[data.budget.eq(budget) & data.placement.eq(placement)]
        if len(row):
            _row(ax, row, y, means)
    for budget in dict.fromkeys(budget for budget, _ in positions):
        top = min(y for (other, _), y in positions.items() if other == budget)
        _heading(ax, budget, data.trainable_params[data.budget.eq(budget)].max(), top - 0.95)


def _heading(ax: Axes, budget: str, trainable_params: float, y: float) -> None:
    """Write a block's number of parameters above it: as in the study, and as a count on this PLM."""
    count = "" if budget.isdigit() or pd.isna(trainable_params) else f" ({style.short(trainable_params)})"
    unit = "" if budget.startswith("@") else " parameters"
    options: dict[str, Any] = {
        "fontsize": 6,
        "color": style.DARK,
        "va": "center",
        "bbox": {"facecolor": "white", "linewidth": 0, "pad": 0.6},
    }
    text = f"at {style.budget_name(budget)}{unit}{count}"
    ax.text(0.01, y, text, transform=ax.get_yaxis_transform(), zorder=1.2, **options)


def _row(ax: Axes, row: pd.DataFrame, y: float, means: bool) -> None:
    """Draw one placement: single tasks as dots, their mean with its interval; or a note that data are missing."""
    tasks, is_mean = row[row.task.ne(MEAN)], row.task.eq(MEAN)
    if means:
        ax.plot(tasks.difference, [y] * len(tasks), ".", color="#9A9A9A", markersize=3, zorder=2, label="one task")
    if not is_mean.any():
        return
    mean = row[is_mean].iloc[0]
    colour, marker, _ = style.STYLES[mean.placement]
    if pd.isna(mean.difference):
        ax.text(0.99, y, panels.MISSING, transform=ax.get_yaxis_transform(), fontsize=6, ha="right", va="center")
        return
    significant = mean.p_adjusted < 1 - CONFIDENCE
    options = {"color": colour, "marker": marker, "markersize": 4.8, "markeredgewidth": 0.8, "elinewidth": 1.1}
    face = colour if significant else "white"
    panels.errorbars(
        ax, [mean.difference], [y], [mean.low], [mean.high], True, markerfacecolor=face, zorder=3, **options
    )
    for filled, label in ((True, "significant"), (False, "not significant")):
        face, label = style.DARK if filled else "white", f"mean over tasks, {label}" if means else label
        ax.plot([], [], "o", color=style.DARK, markerfacecolor=face, markersize=4, markeredgewidth=0.8, label=label)


def _note(inputs: AnalysisInputs, data: pd.DataFrame) -> str:
    pair_count = int(data.difference[data.task.ne(MEAN)].notna().sum())
    replicates = data.num_replicates[data.task.ne(MEAN) & data.num_replicates.gt(0)]
    colours = [style.STYLES[name][0] for name in data.placement]
    of_mean = " of the mean over these tasks" if has_means(inputs.samples.tasks) else ""
    kinds = ", ".join(kind for colour, kind in style.KINDS.items() if colour in colours)
    return (
        f"{plural(pair_count, 'pair')} of cells (PLM, task, placement, budget), replicates in the smaller cell: "
        f"{style.span(replicates)}. Right of the line: better than APET everywhere with as many parameters. Whiskers: "
        f"95 % intervals{of_mean}, paired by test rows, over replicates and test rows. Filled: p < 0.05 after Holm's "
        f"correction over all {'means' if of_mean else 'rows'}. Colours: {kinds}. "
        f"{style.means_note(inputs)}{style.count_note(inputs.frame)}"
    )
