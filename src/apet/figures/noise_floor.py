"""Noise of a mean score: how large must a difference be to be detected?

Grey: differences that cannot be detected, half the width of the 95 % interval of the difference between two methods of
the study on the same test rows. On top, the sources of noise: the standard deviation between seeds of one plan, by
method, and the standard deviation due to the choice of test rows.
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
from apet.analysis.means import MATCHED, MEAN, RANDOM, has_means, method_differences, method_scores, models_by_scale
from apet.analysis.resampling import PLM, study_pairs
from apet.analysis.variance import position_components
from apet.figures import panels, style
from apet.figures.panels import with_mean

PAIR = ["model", "task"]
ROWS, SEEDS, DIFFERENCE = "test rows", "seeds", "difference"
NOISE_COLUMNS = [*PAIR, "kind", "placement", "value", "low", "high", "n"]
TAILS = [(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2]
UNDETECTED, RANGE = "differences that are not detected", "range over pairs of methods"


@style.styled
def draw(inputs: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """Draw a panel per PLM with a row per task and one for their mean."""
    data = numbers(inputs)
    models = models_by_scale(inputs.frame)
    tasks = [*sorted(set(data.task) - {MEAN}), *([MEAN] if has_means(inputs.samples.tasks) else [])]
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    height = 12 + max(len(tasks), 2) * (8 if rows == 1 else 4.7)
    fig, grid = panels.panels(rows, columns, height, _note(inputs, data), ("all", "all"), height, 14)
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


def numbers(inputs: AnalysisInputs) -> pd.DataFrame:
    """Compute the noise of scores due to seeds, to test rows, and in differences between methods.

    `seeds`: S.D. between seeds of one plan, by placement (APET: pooled over the matched budgets), shrunken over cells,
    with its 95 % χ² interval; n: degrees of freedom. `test rows`: S.D. of a replicate's mean score due to the choice of
    test rows, √(p(1 − p)/n) if rows are right or wrong; low, high: smallest and largest of a replicate; n: rows.
    `difference`: half the width of the 95 % interval between two methods at their own count or APET at one, median,
    smallest and largest of n pairs; also for their means over tasks.

    Args:
        inputs: data of the study.

    Returns:
        One row per PLM, task, kind and placement, with value, low and high in percentage points, and n. NaN if there
        are no data.
    """
    kinds = [_row_noise(inputs.frame), _seed_noise(inputs), _differences(inputs)]
    table = pd.concat([kind[NOISE_COLUMNS] for kind in kinds], ignore_index=True)
    data = with_mean(study_pairs(inputs.frame), inputs.samples.tasks).merge(table, "left", on=PAIR)
    data[["value", "low", "high"]] = data[["value", "low", "high"]].astype(float) * POINTS
    return data[[*PLM, *NOISE_COLUMNS[1:]]]


def _row_noise(frame: pd.DataFrame) -> pd.DataFrame:
    scored = frame[frame.test_score.notna()]
    errors = [np.std(rows, dtype=float) / np.sqrt(len(rows)) for rows in scored.row_scores]
    groups = scored.assign(error=errors).groupby(PAIR)
    noise = groups.agg(value=("error", "median"), low=("error", "min"), high=("error", "max"), n=("n_test", "min"))
    return noise.reset_index().assign(kind=ROWS, placement="")


def _seed_noise(inputs: AnalysisInputs) -> pd.DataFrame:
    own = method_scores(inputs.samples)
    own = own[own.num_replicates.gt(1)]
    own = own.assign(value=own.error * np.sqrt(own.num_replicates), n=own.df)
    frame = inputs.frame
    apet = position_components(frame[frame.budget.isin([f"@{name}" for name in MATCHED])])
    apet = apet.assign(squares=apet.within * apet.df_within)
    pooled = apet.groupby(PAIR, as_index=False).agg(squares=("squares", "sum"), n=("df_within", "sum"))
    pooled = pooled.assign(placement=RANDOM, value=np.sqrt(pooled.squares / pooled.n))
    columns = [*PAIR, "placement", "value", "n"]
    noise = pd.concat([own[columns], pooled[columns]])
    noise = noise.astype({"value": float, "n": float})  # An empty part has no dtype.
    high, low = (noise.value * np.sqrt(noise.n / stats.chi2.ppf(1 - tail, noise.n)) for tail in TAILS)
    return noise.assign(kind=SEEDS, low=low, high=high)


def _differences(inputs: AnalysisInputs) -> pd.DataFrame:
    differences = method_differences(inputs.samples)
    groups = differences.assign(half=(differences.high - differences.low) / 2).groupby(PAIR).half
    halves = groups.agg(value="median", low="min", high="max", n="count").reset_index().dropna()
    return halves.assign(kind=DIFFERENCE, placement="")


def _panel(ax: Axes, data: pd.DataFrame, tasks: list[str]) -> None:
    if data.value.isna().all():
        panels.empty(ax)
    for position, task in enumerate(tasks):
        row = data[data.task.eq(task)]
        if row.empty:
            text = panels.ABSENT.replace("\n", " ")
            ax.text(0.02, position, text, transform=ax.get_yaxis_transform(), fontsize=6, color=style.GREY, va="center")
        for difference in row[row.kind.eq(DIFFERENCE)].itertuples():
            ax.barh(position, difference.value, 0.9, color="#E3E3E3", zorder=0.5, label=UNDETECTED)
            ends: dict[str, Any] = {"color": style.GREY, "linewidth": 2.2, "zorder": 1, "solid_capstyle": "butt"}
            if difference.n > 1:
                ax.plot([difference.low, difference.high], [position + 0.42] * 2, **ends, label=RANGE)
            x, text = max(difference.value, difference.high), f" {difference.value:.1f}"
            ax.text(x, position + 0.32, text, fontsize=6, va="center", color=style.DARK, zorder=5)
        _errors(ax, row, position)


def _errors(ax: Axes, row: pd.DataFrame, position: int) -> None:
    """Draw the S.D.s of one task: test rows as a line, seeds of each method below each other."""
    for error in row[row.kind.eq(ROWS)].itertuples():
        line = ax.vlines(error.value, position - 0.45, position + 0.45, color="#000000", linewidth=1.2, zorder=3)
        line.set_label("S.D. due to test rows")
    seeds = row[row.kind.eq(SEEDS)]
    order = [name for name in style.STYLES if name in set(seeds.placement)]
    ys = position + 0.64 * ((np.arange(len(order)) + 0.5) / max(len(order), 1) - 0.5)
    for y, name in zip(ys, order, strict=True):
        error = seeds[seeds.placement.eq(name)].iloc[0]
        options = style.placement_style(name) | {"markersize": 3, "linestyle": "none", "zorder": 4}
        panels.errorbars(ax, [error.value], [y], [error.low], [error.high], True, **options)


def _note(inputs: AnalysisInputs, data: pd.DataFrame) -> str:
    seeds, halves = data[data.kind.eq(SEEDS)], data[data.kind.eq(DIFFERENCE)]
    df = f"{style.span(seeds.n.round())} degrees of freedom, including those of cells with similar variances"
    parts = {
        f"Markers: S.D. between seeds of one plan, by method, with 95 % intervals ({df}); whiskers that leave the "
        "panel are cut.": len(seeds),
        "Black line: S.D. of one replicate's score due to the choice of test rows.": True,
        "Grey, with its value: half the width of the 95 % interval of a difference, median of "
        f"{style.span(halves.n, 'pair')} of methods; smaller differences are not detected.": len(halves),
        "Dark line: range over the pairs.": halves.n.gt(1).any(),
    }
    text = " ".join(part for part, is_shown in parts.items() if is_shown)
    return f"{text} {style.means_note(inputs)}{style.count_note(inputs.frame)}"
