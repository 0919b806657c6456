"""What is gained where tunable parameters are kept to a part: which sites and structures help most?

APET restricted to a part of the block, a third of the depth or one structure, less APET everywhere, with the same
number of parameters on the same PLM and the same test rows. Large markers are means over tasks with their 95 %
intervals, filled where they are told from 0; dots are single tasks. The numbers of parameters grow from top to bottom.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.claims import POINTS, AnalysisInputs
from apet.analysis.intervals import CONFIDENCE
from apet.analysis.means import MEAN, METHODS, RANDOM, differences, models_by_scale
from apet.analysis.resampling import CELL
from apet.figures import panels, style
from apet.figures.panels import PLM, by_family, pairs, with_mean

RESTRICTED = [name for name in style.LOOKS if name not in (*METHODS, RANDOM)]
NONE = "no restricted placement\nin this study"
ROW = 3.4
"""mm of a row's height."""
NUMBERS = ["difference", "low", "high", "p_adjusted"]


@style.styled
def draw(evidence: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """A panel a PLM; a row a restricted placement, in blocks by the number of parameters."""
    data = numbers(evidence)
    models = models_by_scale(evidence.frame)
    columns = min(3, len(models))
    rows = list(dict.fromkeys(zip(data.budget, data.placement, strict=True)))
    places = _places(rows)
    height = 12 + ROW * (max(places, default=6) + 2)
    note = _note(evidence, data)
    fig, grid = panels.panels(-(-len(models) // columns), columns, height, note, ("all", "all"), height, 7)
    axes = panels.flow(grid, len(models))
    for model, ax in zip(models, axes, strict=True):
        ax.set_title(style.plm_name(model, 40))
        if rows:
            _panel(ax, data[data.model.eq(model)], dict(zip(rows, places, strict=True)))
        else:
            panels.empty(ax, NONE)
            ax.tick_params(left=False, labelleft=False)
    if rows:
        panels.rows_axis(axes, [style.LOOKS[name][2] for _, name in rows], places, above=1.7)
    panels.name_axes(axes, columns, "difference from APET everywhere (points)", [""])
    panels.legend(fig, axes)
    return fig, data


def numbers(evidence: AnalysisInputs) -> pd.DataFrame:
    """A row for each PLM, task (then their mean), budget and restricted placement: difference from `uniform` at that
    budget in points with its interval low, high; p_adjusted (Holm, over the rows of the family's tasks, and apart over
    its means); n test rows, units the fewer replicates of the two. NaN and 0 where a cell of the two is not there."""
    found, frame = pairs(evidence.frame), evidence.frame
    draws = evidence.draws.select(evidence.draws.cells.placement.isin([RANDOM, *RESTRICTED]))
    parts = [differences(own, _against) for own, _ in by_family(draws, found)]
    paired = pd.concat(parts)[[*CELL, *NUMBERS, "n", "units"]] if len(draws.cells) else pd.DataFrame()
    sizes = frame[frame.placement.isin(RESTRICTED)].groupby("budget").tunable.min()
    budgets = pd.DataFrame({"budget": sizes.sort_values(kind="stable").index})
    used = frame[["placement", "budget"]].drop_duplicates()
    order = budgets.merge(pd.DataFrame({"placement": RESTRICTED}), how="cross").merge(used)
    grid = with_mean(found).merge(order, how="cross")
    data = grid.merge(paired, "left") if len(order) else grid.reindex(columns=[*grid, *NUMBERS, "n", "units"])
    tunable = frame[frame.placement.isin(RESTRICTED)].groupby(["model", "budget"]).tunable.first()
    data = data.merge(tunable.reset_index(), "left")
    data[["difference", "low", "high"]] *= POINTS
    data[["n", "units"]] = data[["n", "units"]].fillna(0).astype(int)
    return data[[*PLM, "task", "placement", "budget", "tunable", *NUMBERS, "n", "units"]]


def _against(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.assign(placement=np.where(cells.placement.isin(RESTRICTED), RANDOM, ""))


def _places(rows: list[tuple[str, str]]) -> list[float]:
    """Where each row stands: one below the other, with room for a heading above each budget."""
    gaps = np.cumsum([0.0, *(1.6 * (a[0] != b[0]) for a, b in zip(rows[1:], rows, strict=False))])
    return [index + gap for index, gap in zip(range(len(rows)), gaps, strict=False)]


def _panel(ax: Axes, data: pd.DataFrame, places: dict[tuple[str, str], float]) -> None:
    ax.axvline(0, color=style.LOOKS[RANDOM][0], linewidth=0.9, zorder=1)
    nothing = data.difference.isna().all()
    if nothing:
        panels.empty(ax)
    for (budget, placement), y in () if nothing else places.items():
        row = data[data.budget.eq(budget) & data.placement.eq(placement)]
        _row(ax, row[row.task.ne(MEAN)], row[row.task.eq(MEAN)].iloc[0], y)
    for budget in dict.fromkeys(budget for budget, _ in places):
        top = min(y for (other, _), y in places.items() if other == budget)
        _heading(ax, budget, data.tunable[data.budget.eq(budget)].max(), top - 0.95)


def _heading(ax: Axes, budget: str, tunable: float, y: float) -> None:
    """Over a block, its number of parameters: as the study writes it, and what that is on this PLM."""
    count = "" if budget.isdigit() or pd.isna(tunable) else f" ({style.short(tunable)})"
    unit = "" if budget.startswith("@") else " parameters"
    look: dict[str, Any] = {
        "fontsize": 6,
        "color": style.DARK,
        "va": "center",
        "bbox": {"facecolor": "white", "linewidth": 0, "pad": 0.6},
    }
    text = f"at {style.budget_name(budget)}{unit}{count}"
    ax.text(0.01, y, text, transform=ax.get_yaxis_transform(), zorder=1.2, **look)


def _row(ax: Axes, tasks: pd.DataFrame, mean: pd.Series, y: float) -> None:
    """One placement: single tasks as dots, their mean with its interval; or that there are no data."""
    colour, marker, _ = style.LOOKS[mean.placement]
    ax.plot(tasks.difference, [y] * len(tasks), ".", color="#9A9A9A", markersize=3, zorder=2, label="one task")
    if pd.isna(mean.difference):
        ax.text(0.99, y, panels.MISSING, transform=ax.get_yaxis_transform(), fontsize=6, ha="right", va="center")
        return
    told = mean.p_adjusted < 1 - CONFIDENCE
    look = {"color": colour, "marker": marker, "markersize": 4.8, "markeredgewidth": 0.8, "elinewidth": 1.1}
    face = colour if told else "white"
    panels.errorbars(ax, [mean.difference], [y], [mean.low], [mean.high], True, markerfacecolor=face, zorder=3, **look)
    for filled, label in ((True, "mean over tasks, told from 0"), (False, "mean over tasks, not told from 0")):
        face = style.DARK if filled else "white"
        ax.plot([], [], "o", color=style.DARK, markerfacecolor=face, markersize=4, markeredgewidth=0.8, label=label)


def _note(evidence: AnalysisInputs, data: pd.DataFrame) -> str:
    pairs_there = int(data.difference[data.task.ne(MEAN)].notna().sum())
    units = data.units[data.task.ne(MEAN) & data.units.gt(0)]
    return (
        f"{pairs_there} pairs of cells (PLM, task, placement, budget), {style.span(units)} replicate(s) in the smaller "
        "of the two. Right of the line: better than APET everywhere with as many parameters. Whiskers: 95 % intervals "
        "of the mean over these tasks, paired by test rows, over replicates and test rows. Filled: p < 0.05 after "
        "Holm's correction over all means of the family. Colours: part of the block, depth, structure. "
        f"{style.count_note(evidence.frame)}"
    )
