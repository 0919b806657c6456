"""Score by cost: which methods give the highest score for their cost?

A panel per cost and a row per PLM. Costs are ratios: of training to full fine-tuning, of inference to the untuned PLM.
The stepped line is the Pareto front: no method left of it scores as high. Times are medians over interleaved rounds,
with quartiles as whiskers. Vertical whiskers are 95 % intervals of the score.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.claims import AnalysisInputs
from apet.analysis.means import METHOD, models_by_scale
from apet.analysis.measured_costs import COST_METRICS, CostMetric
from apet.figures import panels, style

RATIO = ["ratio", "ratio_low", "ratio_high"]
SCORE = ["score", "score_low", "score_high"]
FRONT = "Pareto front"


@style.styled
def draw(costs: pd.DataFrame, inputs: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """Draw the scores of a study's methods against each of their costs.

    Args:
        costs: measured costs with scores, as `with_scores` returns them.
        inputs: data of the study.

    Returns:
        The figure and its numbers.
    """
    data = numbers(costs)
    models = [model for model in models_by_scale(inputs.frame) if model in set(data.model)]
    if not models:
        return panels.without_data("No method with measured costs has a score."), data
    fig, grid = panels.panels(len(models), len(COST_METRICS), 44, _note(costs, inputs), ("col", "row"), top=16)
    for row, model in zip(grid, models, strict=True):
        for metric, ax in zip(COST_METRICS, row, strict=True):
            _panel(ax, data[data.model.eq(model) & data.cost.eq(metric.name)], metric)
    names = [style.plm_name(model, 30) for model in models]
    panels.name_matrix(grid, [metric.label for metric in COST_METRICS], names, "", style.metric_label(inputs.frame))
    for metric, ax in zip(COST_METRICS, grid[-1], strict=True):
        ax.set_xlabel(f"× {style.STYLES[metric.baseline][2]}")
        panels.ratio_axis(ax, data.loc[data.cost.eq(metric.name), RATIO].to_numpy().ravel())
    panels.legend(fig, grid.flat, 5)
    return fig, data


def numbers(costs: pd.DataFrame) -> pd.DataFrame:
    """Rearrange costs with scores to one row per PLM, cost and method.

    Args:
        costs: the table of `with_scores`.

    Returns:
        METHOD, non_embedding_params, cost (name of the metric), value, ratio, ratio_low and ratio_high (equal to the
        ratio if the cost has no spread), SCORE, and front: whether the method is on the Pareto front. Methods without a
        score are left out.
    """
    tables = []
    for metric in COST_METRICS:
        ratio = costs[f"{metric.name}_ratio"]
        columns = {
            "cost": metric.name,
            "value": costs[metric.name],
            "ratio": ratio,
            "ratio_low": costs.get(f"{metric.name}_ratio_low", ratio),
            "ratio_high": costs.get(f"{metric.name}_ratio_high", ratio),
            "front": costs[f"{metric.name}_front"],
        }
        tables.append(costs[[*METHOD, "non_embedding_params", *SCORE]].assign(**columns))
    return pd.concat(tables, ignore_index=True).dropna(subset="score", ignore_index=True)


def _panel(ax: Axes, data: pd.DataFrame, metric: CostMetric) -> None:
    ax.set_ymargin(0.1)
    if data.ratio.isna().all():
        return panels.empty(ax, f"no {style.STYLES[metric.baseline][2]}\nin this study")
    ax.axvline(1, color=style.GREY, linestyle=":", linewidth=0.8, zorder=1)
    _front(ax, data[data.front & data.ratio.notna()])
    for row in data[data.ratio.notna()].itertuples():
        options = style.placement_style(row.placement) | {"markersize": 3.4, "linestyle": "none", "zorder": 4}
        if row.ratio == 0:  # it has no position on a log axis
            options |= {"transform": ax.get_yaxis_transform(), "clip_on": False}
        panels.errorbars(ax, [row.ratio], [row.score], [row.score_low], [row.score_high], **options)
        if row.ratio > 0:
            ax.plot([row.ratio_low, row.ratio_high], [row.score] * 2, color=options["color"], linewidth=0.7, zorder=3)


def _front(ax: Axes, front: pd.DataFrame) -> None:
    """Draw the front as a step line, from its cheapest method on to the right edge."""
    front = front[front.ratio > 0].sort_values("ratio")
    if len(front):
        x, y = [*front.ratio, np.inf], [*front.score, front.score.iloc[-1]]
        x[-1] = 1e6 * x[-2]  # beyond the edge
        ax.plot(
            x,
            y,
            drawstyle="steps-post",
            color=style.DARK,
            linewidth=0.9,
            alpha=0.7,
            zorder=2,
            label=FRONT,
            scalex=False,
        )


def _note(costs: pd.DataFrame, inputs: AnalysisInputs) -> str:
    tasks = ", ".join(sorted(costs.cost_task.unique()))
    return (
        f"Costs: measured on {tasks}, each PLM in one process, all methods in turn in each of "
        f"{style.span(costs.rounds, 'round')}; a time is compared with the baseline's in the same round. Dotted: as "
        "much as the baseline. The untuned PLM trains nothing; it is on the left edge where its cost is 0. APET has a "
        "marker for each number of parameters. Scores: means of "
        f"{style.span(costs.num_replicates.dropna(), 'replicate')}. "
        f"{style.means_note(inputs)}{style.count_note(inputs.frame)}"
    )
