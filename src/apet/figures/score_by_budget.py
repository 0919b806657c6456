"""Score by number of trainable parameters: how many exceed chance, and how many match full fine-tuning?

APET has random positions at every number; methods are at their own counts. Lines: full fine-tuning, a uniform guess,
the majority class. The chance threshold (bar at the bottom of a panel) is the number of parameters from which APET
exceeds chance, the full fine-tuning threshold (bar at the top) the number from which it matches full fine-tuning. Bars
are 95 % intervals. A hollow arrow is a threshold outside the numbers tested.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.claims import AnalysisInputs
from apet.analysis.means import METHODS, RANDOM, cell_scores, method_scores, models_by_scale, own_count
from apet.analysis.resampling import CELL, study_cells, study_pairs
from apet.analysis.thresholds import THRESHOLD_KINDS
from apet.figures import panels, style
from apet.figures.panels import column_blocks

COUNTS = ["num_plans", "num_replicates", "n_test"]
CHANCE_LEVELS = ["chance_uniform", "chance_majority"]
MOST_COLUMNS = 9
BAR_HEIGHT = {"chance": 0.05, "full_ft": 0.95}
"""Position of thresholds as a fraction of a panel's height."""


@style.styled
def draw(inputs: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """Draw a row of panels per task and a column per PLM: APET's sweep as a line in its interval, methods as points."""
    data = numbers(inputs)
    if data.empty:
        return panels.without_data("Neither APET nor a method at its own count is in this study."), data
    pairs = study_pairs(inputs.frame)
    blocks, tasks = column_blocks(pairs, MOST_COLUMNS), sorted(pairs.task.unique())
    present = set(zip(data.model, data.task, strict=True))
    columns = max(map(len, blocks))
    height = 44 if columns <= 4 else 28
    fig, grid = panels.panels(len(blocks) * len(tasks), columns, height, _note(inputs), ("all", "row"), top=16)
    for number, models in enumerate(blocks):
        rows = grid[number * len(tasks) : (number + 1) * len(tasks)]
        for (row, column), ax in np.ndenumerate(rows):
            pair = (models[column] if column < len(models) else "", tasks[row])
            if pair in present:
                _panel(ax, data[data.model.eq(pair[0]) & data.task.eq(pair[1])], columns > 4)
            else:
                panels.absent(ax)
        names = [style.plm_name(model, 90 // columns) for model in models] + [""] * (columns - len(models))
        panels.name_matrix(rows, names, tasks, "trainable parameters", style.metric_label(inputs.frame))
    panels.count_axis(grid[0, 0], data.trainable_params, labels=5 if columns <= 4 else 3)
    panels.legend(fig, grid.flat, 5)
    return fig, data


def numbers(inputs: AnalysisInputs) -> pd.DataFrame:
    """Compute the mean score of APET and of each method by budget, with the thresholds.

    Args:
        inputs: data of the study.

    Returns:
        One row per task, PLM, and budget of APET or method in the study, with mean, low, high and chance levels in per
        cent, counts. A missing cell has a mean of NaN and num_replicates 0. Each row has the pair's thresholds in
        numbers of parameters, with intervals: 0 is a threshold below all numbers tested, inf one above.
    """
    samples, frame = inputs.samples, inputs.frame
    apet = cell_scores(samples.select(samples.cells.placement.eq(RANDOM)))
    scores = pd.concat([apet, method_scores(samples)])
    data = _planned(frame).merge(scores[[*CELL, "trainable_params", "mean", "low", "high", *COUNTS]], "left")
    data[COUNTS] = data[COUNTS].fillna(0).astype(int)
    data = data.join(frame.groupby("task")[CHANCE_LEVELS].first(), on="task")
    data[["mean", "low", "high", *CHANCE_LEVELS]] *= 100
    for kind in THRESHOLD_KINDS:
        table = inputs.thresholds.table
        own = 10 ** table[table.kind.eq(kind)].set_index(["model", "task"])[["log10", "low", "high"]]
        own.columns = [f"{kind}_threshold", f"{kind}_threshold_low", f"{kind}_threshold_high"]
        data = data.join(own, on=["model", "task"])
    order = {name: index for index, name in enumerate([*models_by_scale(frame), RANDOM, *METHODS])}
    return data.sort_values(
        ["task", "model", "placement", "trainable_params", "budget"],
        ignore_index=True,
        key=lambda column: column.map(order) if column.name in ("model", "placement") else column,
    )


def _planned(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the cells of the study with APET, and with methods at their own count, whose budget is then `@own`."""
    cells = study_cells(frame)
    own = own_count(cells)
    cells = cells.assign(budget=cells.budget.mask(own, "@own"))
    return cells[own | cells.placement.eq(RANDOM)].drop_duplicates()


def _panel(ax: Axes, data: pd.DataFrame, small: bool) -> None:
    if data["mean"].isna().all():
        return panels.empty(ax)
    size = 2.4 if small else 4.2
    ax.set_ymargin(0.16)
    sweep = data[data.placement.eq(RANDOM) & data["mean"].notna()]
    options = style.placement_style(RANDOM)
    if len(sweep):
        ax.fill_between(sweep.trainable_params, sweep.low, sweep.high, color=options["color"], alpha=0.22, linewidth=0)
        ax.plot(sweep.trainable_params, sweep["mean"], **options | {"markersize": 0.7 * size})
        _thresholds(ax, data.iloc[0], sweep.trainable_params, size)
    for row in data[data.placement.ne(RANDOM) & data["mean"].notna()].itertuples():
        _method(ax, row, size)
    for name, line, label in (("chance_uniform", ":", "uniform guess"), ("chance_majority", "--", "majority class")):
        level = data[name].iloc[0]
        if pd.notna(level):
            ax.axhline(level, color=style.GREY, linestyle=line, linewidth=0.9, zorder=1, label=label)
    missing = data[data["mean"].isna()].itertuples()
    names = [f"APET {r.budget}" if r.placement == RANDOM else style.STYLES[r.placement][2] for r in missing]
    panels.note_missing(ax, names, 18 if small else 44)


def _method(ax: Axes, row: Any, size: float) -> None:
    """Draw a method at its own count; 0 parameters have no position on a log axis and are drawn on its left edge."""
    options = style.placement_style(row.placement) | {"markersize": size}
    x = row.trainable_params
    if x == 0:
        options |= {"transform": ax.get_yaxis_transform(), "clip_on": False}
    panels.errorbars(ax, [x], [row.mean], [row.low], [row.high], linestyle="none", zorder=4, **options)
    if row.placement == "full":
        ax.axhline(row.mean, color=options["color"], linewidth=0.8, zorder=1)


def _thresholds(ax: Axes, row: pd.Series, tested: pd.Series, size: float) -> None:
    """Draw both thresholds with intervals; a threshold outside `tested` is a hollow arrow at that end."""
    across, (smallest, largest) = ax.get_xaxis_transform(), (tested.min(), tested.max())
    for kind, (colour, marker, label) in style.THRESHOLDS.items():
        value, low, high = row[[f"{kind}_threshold", f"{kind}_threshold_low", f"{kind}_threshold_high"]]
        if pd.isna(value):
            continue
        options: dict[str, Any] = {"color": colour, "transform": across, "solid_capstyle": "butt"}
        y = BAR_HEIGHT[kind]
        ax.plot(np.clip([low, high], smallest, largest), [y, y], linewidth=0.55 * size, alpha=0.55, **options)
        if 0 < value < np.inf:
            ax.plot([value, value], [0, 1], linestyle=(0, (1, 2)), linewidth=0.8, zorder=1.5, **options)
        censored = {0.0: (smallest, "<"), np.inf: (largest, ">")}
        x, shape = censored.get(value, (value, marker))
        face = "white" if value in censored else colour
        options |= {"linestyle": "none", "marker": shape, "markersize": size + 0.6, "markerfacecolor": face}
        ax.plot([x], [y], zorder=6, **options)
        # The legend shows an observed threshold, whatever this panel shows.
        ax.plot([], [], color=colour, marker=marker, linewidth=0.55 * size, markersize=size, label=label)


def _note(inputs: AnalysisInputs) -> str:
    cells, methods, margins = inputs.samples.cells, method_scores(inputs.samples), inputs.margins
    sweep = cells[cells.placement.eq(RANDOM)]
    parts = {
        f"APET: {style.span(sweep.num_plans, 'plan')} per budget.": len(sweep),
        f"Methods at their own count: {style.span(methods.num_replicates, 'replicate')}.": len(methods),
        "The untuned PLM is on the left edge.": methods.placement.eq("none").any(),
        "Line: full fine-tuning.": methods.placement.eq("full").any(),
        "Band and whiskers: 95 % intervals over replicates and test rows (only test rows if there is one "
        "replicate).": True,
        f"Chance threshold: chance + {margins['chance_margin']:g} points; full fine-tuning threshold: full fine-tuning "
        f"− {margins['full_ft_margin']:g} points; both on the monotone curve through APET's means. Bars: 95 % "
        "intervals; hollow arrows: outside the numbers tested.": len(sweep),
        "Uniform guess: 1/labels; for generation, shuffled references.": True,
    }
    text = " ".join(part for part, is_shown in parts.items() if is_shown)
    return f"{text} {style.chance_note(inputs.frame)}{style.count_note(inputs.frame)}"
