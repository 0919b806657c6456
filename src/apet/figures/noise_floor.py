"""Noise of a mean score: how large must a difference be to be seen?

Grey, the differences that cannot be seen: half of the width of the 95 % interval of the difference between two methods
on the same test rows, as the study has them. On it, what the noise is made of: the standard deviation between reruns of
one plan, by method, and that due to the choice of test rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from apet.analysis.claims import POINTS, AnalysisInputs
from apet.analysis.intervals import CONFIDENCE
from apet.analysis.means import MATCHED, MEAN, RANDOM, method_differences, method_scores, models_by_scale
from apet.analysis.variance import position_components
from apet.figures import panels, style
from apet.figures.panels import PLM, by_family, pairs, with_mean

PAIR = ["model", "task"]
ROWS, RERUNS, DIFFERENCE = "test rows", "reruns", "difference"
COLUMNS = [*PAIR, "kind", "placement", "value", "low", "high", "n"]
TAILS = [(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2]
UNSEEN, RANGE = "differences that are not seen", "their range over pairs of methods"


@style.styled
def draw(evidence: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """A panel a PLM, a row a task and one for their mean."""
    data = numbers(evidence)
    models = models_by_scale(evidence.frame)
    tasks = [*sorted(set(data.task) - {MEAN}), MEAN]
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    height = 12 + max(len(tasks), 2) * (8 if rows == 1 else 4.7)
    fig, grid = panels.panels(rows, columns, height, _note(evidence, data), ("all", "all"), height, 14)
    axes = panels.flow(grid, len(models))
    for model, ax in zip(models, axes, strict=True):
        ax.set_title(style.plm_name(model, 40))
        _panel(ax, data[data.model.eq(model)], tasks)
    panels.rows_axis(axes, tasks, range(len(tasks)))
    most = np.fmax(data.value.max(), data.high[data.kind.eq(DIFFERENCE)].max())
    axes[0].set_xlim(0, 1.15 * most if most > 0 else 1)
    panels.name_axes(axes, columns, "test score (points)", [""])
    panels.legend(fig, axes, 5)
    return fig, data


def numbers(evidence: AnalysisInputs) -> pd.DataFrame:
    """A row for each PLM, task, kind and placement, points. NaN where there is nothing to tell it from.

    `reruns`: S.D. between reruns of one plan, by placement (APET: pooled over the matched budgets), moderated over
    cells, with its 95 % χ² interval; n: degrees of freedom. `test rows`: S.D. of a replicate's mean score due to the
    choice of test rows, √(p(1 − p)/n) where rows are right or wrong; low, high: least and largest of one; n: rows.
    `difference`: half of the width of the 95 % interval between two methods at their own count or APET at one,
    median, least and largest of n pairs; also of their means over tasks.
    """
    found = pairs(evidence.frame)
    kinds = [_rows(evidence.frame), _reruns(evidence), _differences(evidence, found)]
    table = pd.concat([part[COLUMNS] for part in kinds], ignore_index=True)
    data = with_mean(found).merge(table, "left", on=PAIR)
    data[["value", "low", "high"]] = data[["value", "low", "high"]].astype(float) * POINTS
    return data[[*PLM, *COLUMNS[1:]]]


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    scored = frame[frame.score.notna()]
    errors = [np.std(rows, dtype=float) / np.sqrt(len(rows)) for rows in scored["rows"]]
    groups = scored.assign(error=errors).groupby(PAIR)
    found = groups.agg(value=("error", "median"), low=("error", "min"), high=("error", "max"), n=("n", "min"))
    return found.reset_index().assign(kind=ROWS, placement="")


def _reruns(evidence: AnalysisInputs) -> pd.DataFrame:
    own = method_scores(evidence.draws)
    own = own[own.units.gt(1)]
    own = own.assign(value=own.error * np.sqrt(own.units), n=own.df)
    frame = evidence.frame
    apet = position_components(frame[frame.budget.isin([f"@{name}" for name in MATCHED])])
    apet = apet.assign(squares=apet.within * apet.df_within)
    pooled = apet.groupby(PAIR, as_index=False).agg(squares=("squares", "sum"), n=("df_within", "sum"))
    pooled = pooled.assign(placement=RANDOM, value=np.sqrt(pooled.squares / pooled.n))
    found = pd.concat([own[[*PAIR, "placement", "value", "n"]], pooled[[*PAIR, "placement", "value", "n"]]])
    found = found.astype({"value": float, "n": float})  # where there are none of one kind, it has no type
    high, low = (found.value * np.sqrt(found.n / stats.chi2.ppf(1 - tail, found.n)) for tail in TAILS)
    return found.assign(kind=RERUNS, low=low, high=high)


def _differences(evidence: AnalysisInputs, found: pd.DataFrame) -> pd.DataFrame:
    parts = [method_differences(own) for own, _ in by_family(evidence.draws, found)]
    found = pd.concat(parts)
    groups = found.assign(half=(found.high - found.low) / 2).groupby(PAIR).half
    halves = groups.agg(value="median", low="min", high="max", n="count").reset_index()
    return halves.assign(kind=DIFFERENCE, placement="")


def _panel(ax: Axes, data: pd.DataFrame, tasks: list[str]) -> None:
    if data.value.isna().all():
        panels.empty(ax)
    for place, task in enumerate(tasks):
        row = data[data.task.eq(task)]
        if row.empty:
            words = panels.ABSENT.replace("\n", " ")
            ax.text(0.02, place, words, transform=ax.get_yaxis_transform(), fontsize=6, color=style.GREY, va="center")
        for difference in row[row.kind.eq(DIFFERENCE)].itertuples():
            ax.barh(place, difference.value, 0.9, color="#E3E3E3", zorder=0.5, label=UNSEEN)
            ends: dict[str, Any] = {"color": style.GREY, "linewidth": 2.2, "zorder": 1, "solid_capstyle": "butt"}
            ax.plot(
                [difference.low, difference.high], [place + 0.42] * 2, **ends, label="their range over pairs of methods"
            )
            said = f" {difference.value:.1f}"
            ax.text(
                max(difference.value, difference.high),
                place + 0.32,
                said,
                fontsize=6,
                va="center",
                color=style.DARK,
                zorder=5,
            )
        _errors(ax, row, place)


def _errors(ax: Axes, row: pd.DataFrame, place: int) -> None:
    """The S.D.s of one task: test rows as a line across, reruns of each method one below the other."""
    for error in row[row.kind.eq(ROWS)].itertuples():
        line = ax.vlines(error.value, place - 0.45, place + 0.45, color="#000000", linewidth=1.2, zorder=3)
        line.set_label("S.D. due to test rows")
    reruns = row[row.kind.eq(RERUNS)]
    order = [name for name in style.LOOKS if name in set(reruns.placement)]
    places = place + 0.64 * ((np.arange(len(order)) + 0.5) / max(len(order), 1) - 0.5)
    for y, name in zip(places, order, strict=True):
        error = reruns[reruns.placement.eq(name)].iloc[0]
        look = style.look(name) | {"markersize": 3, "linestyle": "none", "zorder": 4}
        panels.errorbars(ax, [error.value], [y], [error.low], [error.high], True, **look)


def _note(evidence: AnalysisInputs, data: pd.DataFrame) -> str:
    reruns, halves = data[data.kind.eq(RERUNS)], data[data.kind.eq(DIFFERENCE)]
    df = reruns.n.round()
    told = f"{style.span(df)} degrees of freedom" if len(reruns) else "none in this study, where no plan runs twice"
    return (
        f"Markers: S.D. between reruns of one plan, by method, with 95 % intervals ({told}, borrowed from siblings "
        "where variances are alike); a whisker that leaves the panel is cut. Black line: S.D. of one replicate's score "
        "due to the choice of test rows. Grey, with its end in numbers: half of the width of the 95 % interval of a "
        f"difference, the median of {style.span(halves.n)} pairs of methods; smaller ones are not seen. Dark line: "
        "range over the pairs. "
        f"{style.count_note(evidence.frame)}"
    )
