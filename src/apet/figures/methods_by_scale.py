"""Score of each method against the size of the PLM: do the methods come together as PLMs grow?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.means import METHODS, chance_level, method_scores, over_tasks
from apet.figures import style

MEAN = "mean over tasks"
DODGE = 0.028


@style.styled
def draw(tidy: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A panel a task and one of their mean, family by family; a line a method at its own count; chance dashed."""
    data = numbers(tidy)
    keys = list(dict.fromkeys(zip(data.family, data.task, strict=True)))
    columns = min(4, len(keys))
    fig, axes = style.panels(len(keys), columns, 52, _note(tidy))
    for (family, task), ax in zip(keys, axes, strict=True):
        _panel(ax, data[data.family.eq(family) & data.task.eq(task)])
        ax.set_title(task if data.family.nunique() == 1 else f"{family}: {task}")
    style.name_axes(axes, columns, "non-embedding parameters", [style.metric_label(tidy)])
    style.legend(fig, axes)
    return fig, data


def numbers(tidy: pd.DataFrame) -> pd.DataFrame:
    """A row for each PLM, task (then their mean) and method: mean, low, high and chance in per cent, units and n.

    A cell without data has NaN and 0 units.
    """
    tasks = sorted(tidy.task.unique())
    scores = method_scores(tidy)
    found = pd.concat([scores, over_tasks(scores, tasks).assign(task=MEAN)]).set_index(["model", "task", "placement"])
    models = tidy[["family", "non_embedding", "model"]].drop_duplicates().sort_values(["family", "non_embedding"])
    methods = [name for name in METHODS if name in set(scores.placement)] or list(METHODS)
    grid = models.merge(pd.DataFrame({"task": [*tasks, MEAN]}), how="cross")
    grid = grid.merge(pd.DataFrame({"placement": methods}), how="cross")
    grid = grid.sort_values("family", kind="stable", ignore_index=True)
    values = found[["mean", "low", "high", "units", "n"]]
    data = grid.join(values, on=["model", "task", "placement"])
    data[["mean", "low", "high"]] *= 100
    data[["units", "n"]] = data[["units", "n"]].fillna(0).astype(int)
    chance = chance_level(tidy)
    return data.assign(chance=100 * data.task.map(chance).fillna(chance.mean()))


def _panel(ax: Axes, data: pd.DataFrame) -> None:
    if data["mean"].isna().all():
        style.empty(ax)
    methods = list(data.placement.unique())
    step = DODGE * max(1.0, np.log10(data.non_embedding.max() / data.non_embedding.min()))
    for index, method in enumerate(methods):
        line = data[data.placement.eq(method)].sort_values("non_embedding")
        x = line.non_embedding * 10 ** (step * (index - (len(methods) - 1) / 2))
        style.errorbars(ax, x, line["mean"], line.low, line.high, **style.look(method))
        style.mark_missing(ax, list(x[line["mean"].isna()]), style.look(method)["color"])
    ax.axhline(data.chance.iloc[0], color=style.GREY, linestyle="--", linewidth=0.8, zorder=1, label="chance")
    style.scale_axis(ax, list(data.non_embedding))


def _note(tidy: pd.DataFrame) -> str:
    scores = method_scores(tidy)
    absent = [style.LOOKS[name][2] for name in METHODS if name not in set(scores.placement)]
    return (
        f"Each method at its own count of tunable parameters, {style.span(scores.units)} replicates a "
        "cell. Whiskers: 95 % intervals over replicates and test rows (test rows alone where there is one "
        "replicate). Chance: the larger of the uniform guess and the majority share. "
        + (f"Not in this study: {', '.join(absent)}. " if absent else "")
        + style.rows_note(tidy)
    )
