"""Spread of APET's scores over random positions against the size of the PLM: do positions matter less as PLMs grow?"""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.components import position_spread, sd_interval
from apet.analysis.means import MATCHED, RANDOM, method_scores
from apet.figures import style

MEAN = "mean over tasks"
KEYS = ["model", "task", "method"]
DODGE = 0.06
DARK = "#444444"
DOTS = {
    "draw": {
        "marker": "o",
        "s": 7,
        "linewidth": 0,
        "facecolor": style.LOOKS[RANDOM][0],
        "edgecolor": style.LOOKS[RANDOM][0],
        "label": "APET, one draw",
    },
    "method": {
        "marker": "D",
        "s": 13,
        "linewidth": 0.8,
        "facecolor": "none",
        "edgecolor": DARK,
        "label": "the method itself",
    },
}


@style.styled
def draw(tidy: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A column a matched budget, family by family two rows: the draws about their mean, and their S.D."""
    data = numbers(tidy)
    families = list(data.family.unique())
    rows = list(product(families, (_draws_panel, _spread_panel)))
    fig, axes = style.panels(len(rows) * len(MATCHED), len(MATCHED), 50, _note(tidy), share="row")
    for ((family, panel), method), ax in zip(product(rows, MATCHED), axes, strict=True):
        panel(ax, data[data.family.eq(family) & data.method.eq(method)])
        title = f"APET at the count of {style.LOOKS[method][2]}" if panel is _draws_panel else ""
        ax.set_title(title if len(families) == 1 or not title else f"{family}: {title}")
        if panel is _spread_panel and method == MATCHED[-1]:
            ax.set_ylim(bottom=0)
    labels = ("score − mean of draws (points)", "S.D. (points)")
    style.name_axes(axes, len(MATCHED), "non-embedding parameters", labels)
    style.legend(fig, axes, 3)
    return fig, data


def numbers(tidy: pd.DataFrame) -> pd.DataFrame:
    """What is drawn, in percentage points: a row for each PLM, task, matched method and `kind`.

    `draw`: a draw's score less the mean of the draws. `method`: the method's own score less that mean. `sd`: S.D.
    between draws, with its 95 % interval; `plan sd`: the part of it that reruns of a plan do not explain, NaN without
    reruns; `rerun sd`: S.D. between reruns of the method, its positions fixed. The S.D.s also as `mean over tasks`.
    A cell without data has NaN.
    """
    plans = _plans(tidy)
    centre = plans.groupby(KEYS).score.mean()
    models = tidy[["family", "non_embedding", "model"]].drop_duplicates().sort_values(["family", "non_embedding"])
    grid = models.merge(pd.DataFrame({"method": MATCHED}), how="cross")
    grid = grid.merge(pd.DataFrame({"task": sorted(tidy.task.unique())}), how="cross")
    own = method_scores(tidy).rename(columns={"placement": "method"})
    draws = grid.merge(plans, "left").assign(kind="draw", value=lambda f: f.score - _at(f, centre))
    method = grid.merge(own[[*KEYS, "mean"]], "left").assign(kind="method", value=lambda f: f["mean"] - _at(f, centre))
    data = pd.concat([draws, method, _sds(grid, position_spread(tidy), own)], ignore_index=True)
    data[["value", "low", "high"]] *= 100
    return data[["family", "non_embedding", "model", "method", "task", "kind", "draw", "value", "low", "high"]]


def _plans(tidy: pd.DataFrame) -> pd.DataFrame:
    """Mean score of each draw of APET at a matched budget."""
    chosen = tidy[tidy.placement.eq(RANDOM) & tidy.budget.isin([f"@{name}" for name in MATCHED])]
    return chosen.assign(method=chosen.budget.str.lstrip("@")).groupby([*KEYS, "draw"], as_index=False).score.mean()


def _at(frame: pd.DataFrame, values: pd.Series) -> np.ndarray:
    return values.reindex(pd.MultiIndex.from_frame(frame[KEYS])).to_numpy()


def _sds(grid: pd.DataFrame, spread: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The rows of the three S.D.s, by task and, after them, as mean over tasks."""
    spread = spread.assign(method=spread.budget.str.lstrip("@"))
    tables = {
        "sd": spread[[*KEYS, "sd", "draws", "low", "high"]],
        "plan sd": spread[[*KEYS, "between"]],
        "rerun sd": own[[*KEYS, "sd"]],
    }
    tasks = pd.concat(
        [
            grid.merge(table.rename(columns={"sd": "value", "between": "value"}), "left").assign(kind=kind)
            for kind, table in tables.items()
        ]
    )
    means = []
    for _, group in tasks.groupby(["model", "method", "kind"], sort=False):
        low, high = sd_interval(group.value.to_numpy(), group.draws.to_numpy() - 1)
        mean = {"task": MEAN, "value": group.value.mean(skipna=False), "low": low, "high": high}
        means.append({**group.iloc[0][["family", "non_embedding", "model", "method", "kind"]], **mean})
    return pd.concat([tasks, pd.DataFrame(means)])


def _draws_panel(ax: Axes, data: pd.DataFrame) -> None:
    if data.value[data.kind.isin(DOTS)].isna().all():
        style.empty(ax)
    tasks = list(data.task[data.task.ne(MEAN)].unique())
    shift = {task: 10 ** (DODGE * (2 * (i + 0.5) / len(tasks) - 1)) for i, task in enumerate(tasks)}
    for kind, look in DOTS.items():
        points = data[data.kind.eq(kind)]
        x = points.non_embedding * points.task.map(shift)
        ax.scatter(x, points.value, **look)
        style.mark_missing(ax, list(x[points.value.isna()]), look["edgecolor"])
    ax.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
    style.scale_axis(ax, list(data.non_embedding))


def _spread_panel(ax: Axes, data: pd.DataFrame) -> None:
    spread = data[data.kind.eq("sd")]
    if spread.value.isna().all():
        style.empty(ax)
    for _, line in spread[spread.task.ne(MEAN)].groupby("task"):
        ax.plot(
            line.non_embedding,
            line.value,
            color="#9A9A9A",
            linewidth=0.6,
            marker=".",
            markersize=2,
            label="S.D. between draws, one task",
        )
    reruns = data[data.kind.eq("rerun sd") & data.task.eq(MEAN)]
    ax.plot(
        reruns.non_embedding,
        reruns.value,
        linestyle="--",
        color=DARK,
        marker="D",
        markerfacecolor="white",
        label="S.D. between reruns of the method, mean over tasks",
    )
    plans = data[data.kind.eq("plan sd") & data.task.eq(MEAN)]
    if plans.value.notna().any():
        ax.plot(
            plans.non_embedding,
            plans.value,
            linestyle=":",
            marker="o",
            markerfacecolor="white",
            color=style.look(RANDOM)["color"],
            label="S.D. due to the plan alone, mean over tasks",
        )
    mean = spread[spread.task.eq(MEAN)]
    style.errorbars(
        ax,
        mean.non_embedding,
        mean.value,
        mean.low,
        mean.high,
        **style.look(RANDOM) | {"label": "S.D. between draws, mean over tasks", "linewidth": 1.4},
    )
    style.mark_missing(ax, list(mean.non_embedding[mean.value.isna()]), style.look(RANDOM)["color"])
    style.scale_axis(ax, list(data.non_embedding))


def _note(tidy: pd.DataFrame) -> str:
    chosen = tidy[tidy.placement.eq(RANDOM) & tidy.budget.isin([f"@{name}" for name in MATCHED])]
    own = method_scores(tidy)
    reruns = own.units[own.placement.isin(MATCHED)]
    counts = chosen.groupby(["model", "task", "budget"]).agg(draws=("draw", "nunique"), reruns=("rerun", "nunique"))
    return (
        f"APET: {style.span(counts.draws)} draws a cell, {style.span(counts.reruns)} run(s) a draw; the method: "
        f"{style.span(reruns)} reruns. Above, tasks stand side by side at each PLM. Whiskers: "
        f"95 % intervals. The S.D. between draws holds the noise of reruns too. {style.rows_note(tidy)}"
    )
