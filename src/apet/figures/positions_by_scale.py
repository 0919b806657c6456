"""Spread of APET's scores over random positions by the size of the PLM: do positions matter less as PLMs grow?

At each method's count of tunable parameters APET's positions are drawn anew. Above, each draw against the mean of the
draws, and the method itself. Below, the standard deviation between draws, which holds all noise; that due to the plan
alone, with what reruns and test rows explain taken off; and that between reruns of the method, whose positions are
fixed. Whiskers are 95 % intervals.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.claims import POINTS, AnalysisInputs
from apet.analysis.intervals import mls_interval, satterthwaite
from apet.analysis.means import MATCHED, MEAN, RANDOM, method_scores
from apet.analysis.variance import position_components, position_spread, sd_interval
from apet.figures import panels, style
from apet.figures.panels import PLM, pairs

KEYS = ["model", "task", "method"]
DODGE = 0.06
DOTS: dict[str, dict[str, Any]] = {
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
        "edgecolor": style.DARK,
        "label": "the method itself",
    },
}
LINES: dict[str, dict[str, Any]] = {
    "sd": {"label": "S.D. between draws, mean over tasks", "color": style.LOOKS[RANDOM][0], "marker": "P"},
    "plan sd": {
        "label": "S.D. due to the plan alone",
        "color": style.LOOKS[RANDOM][0],
        "marker": "o",
        "markerfacecolor": "white",
        "linestyle": ":",
    },
    "rerun sd": {
        "label": "S.D. between reruns of the method",
        "color": style.DARK,
        "marker": "D",
        "markerfacecolor": "white",
        "linestyle": "--",
    },
}


@style.styled
def draw(evidence: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """A column a matched budget, family by family two rows: the draws about their mean, and their S.D."""
    data = numbers(evidence)
    families = list(data.family.unique())
    rows = list(product(families, (_draws_panel, _spread_panel)))
    fig, grid = panels.panels(len(rows), len(MATCHED), 50, _note(evidence, data), (False, "row"), top=16)
    for ((family, panel), method), ax in zip(product(rows, MATCHED), grid.flat, strict=True):
        panel(ax, data[data.family.eq(family) & data.method.eq(method)])
        if panel is _draws_panel:
            whose = "APET at" if len(families) == 1 else f"{family},"
            ax.set_title(f"{whose} {style.budget_name('@' + method)}")
        if panel is _spread_panel and method == MATCHED[-1]:
            ax.set_ylim(0, _top(data[data.family.eq(family)]))
    labels = ("score − mean of draws\n(points)", "S.D. (points)")
    panels.name_axes(list(grid.flat), len(MATCHED), "non-embedding parameters", labels)
    panels.legend(fig, grid.flat, 3)
    return fig, data


def numbers(evidence: AnalysisInputs) -> pd.DataFrame:
    """What is drawn, in percentage points: a row for each PLM, task, matched method and `kind`.

    `draw`: a draw's score less the mean of the draws. `method`: the method's own score less that mean. `sd`: S.D.
    between draws, with its 95 % interval. `plan variance` (points², may be below 0): what of it reruns and test rows
    do not explain, with its interval, and `plan sd`, the roots, 0 for what is below; NaN without reruns of draws.
    `rerun sd`: S.D. between reruns of the method, its positions fixed, moderated over cells. The last four also as
    `mean over tasks`, `plan sd` as the root of the mean variance. A cell without data has NaN.
    """
    frame = evidence.frame
    chosen = frame[frame.placement.eq(RANDOM) & frame.budget.isin([f"@{name}" for name in MATCHED])]
    plans = chosen.assign(method=_method(chosen)).groupby([*KEYS, "draw"], as_index=False).score.mean()
    centre = plans.groupby(KEYS).score.mean()
    grid = pairs(frame)[["family", "non_embedding", "model", "task"]].merge(
        pd.DataFrame({"method": MATCHED}), how="cross"
    )
    own = method_scores(evidence.draws).rename(columns={"placement": "method"})
    draws = grid.merge(plans, "left").assign(kind="draw", value=lambda f: f.score - _at(f, centre))
    method = grid.merge(own[[*KEYS, "mean"]], "left").assign(kind="method", value=lambda f: f["mean"] - _at(f, centre))
    data = pd.concat(
        [draws, method, _sds(grid, chosen), _components(grid, chosen), _reruns(grid, own)], ignore_index=True
    )
    data[["value", "low", "high"]] *= np.where(data.kind.eq("plan variance"), POINTS**2, POINTS)[:, None]
    return data[["family", "non_embedding", "model", "method", "task", "kind", "draw", "value", "low", "high"]]


def _method(frame: pd.DataFrame) -> pd.Series:
    return frame.budget.str.lstrip("@")


def _at(frame: pd.DataFrame, values: pd.Series) -> np.ndarray:
    return values.reindex(pd.MultiIndex.from_frame(frame[KEYS])).to_numpy()


def _groups(grid: pd.DataFrame) -> list[tuple[dict, list[str]]]:
    """For each PLM and method, the facts of its mean over tasks, and the tasks of its family."""
    tasks = grid.groupby("family").task.unique()
    wanted = grid.drop_duplicates(["model", "method"])[[*PLM, "method"]].to_dict("records")
    return [({**facts, "task": MEAN}, list(tasks[facts["family"]])) for facts in wanted]


def _sds(grid: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    spread = position_spread(chosen)
    spread = spread.assign(method=_method(spread))[[*KEYS, "sd", "draws", "low", "high"]]
    found = grid.merge(spread.rename(columns={"sd": "value"}), "left")
    place, means = found.set_index(KEYS), []
    for facts, tasks in _groups(grid):
        own = place.reindex([(facts["model"], task, facts["method"]) for task in tasks])
        low, high = sd_interval(own.value.to_numpy(), own.draws.to_numpy() - 1)
        means.append({**facts, "value": own.value.mean(skipna=False), "low": low, "high": high})
    return pd.concat([found, pd.DataFrame(means)]).assign(kind="sd")


def _components(grid: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The variances due to the plan, with intervals by mean squares, and their roots."""
    squares = position_components(chosen)
    place = squares.assign(method=_method(squares)).set_index(KEYS)
    rows = []
    for facts, tasks in [*((row, [row["task"]]) for row in grid.to_dict("records")), *_groups(grid)]:
        keys = [(facts["model"], task, facts["method"]) for task in tasks]
        value, low, high = _component(place.loc[keys]) if set(keys) <= set(place.index) else (np.nan,) * 3
        rows.append({**facts, "kind": "plan variance", "value": value, "low": low, "high": high})
    found = pd.DataFrame(rows)
    roots = np.sqrt(found[["value", "low", "high"]].clip(lower=0))
    return pd.concat([found, found.assign(kind="plan sd", **roots)])


def _component(cells: pd.DataFrame) -> tuple[float, float, float]:
    """Mean over cells of the variance due to the plan, and its interval."""
    share = 1 / (len(cells) * cells.n0)
    parts = [
        (sign, *satterthwaite((share * cells[name]).to_numpy(), cells[df].to_numpy()))
        for sign, name, df in ((1, "between", "df_between"), (-1, "within", "df_within"))
    ]
    signs, squares, dfs = np.array(parts).T
    estimate = mls_interval(signs * squares, dfs, -float(cells.rows.mean()))
    return estimate.value, *estimate.interval


def _reruns(grid: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    several = own[own.units.gt(1)]
    several = several.assign(value=several.error * np.sqrt(several.units))
    found = grid.merge(several[[*KEYS, "value"]], "left")
    means = found.groupby([*PLM, "method"], sort=False, as_index=False).value.agg(lambda v: v.mean(skipna=False))
    return pd.concat([found, means.assign(task=MEAN)]).assign(kind="rerun sd")


def _draws_panel(ax: Axes, data: pd.DataFrame) -> None:
    if data.value[data.kind.isin(DOTS)].isna().all():
        panels.empty(ax)
    tasks = list(data.task[data.task.ne(MEAN)].unique())
    shift = {task: 10 ** (DODGE * (2 * (i + 0.5) / len(tasks) - 1)) for i, task in enumerate(tasks)}
    for kind, look in DOTS.items():
        points = data[data.kind.eq(kind)]
        x = points.non_embedding * points.task.map(shift)
        ax.scatter(x, points.value, **look)
        panels.mark_missing(ax, list(x[points.value.isna()]), look["edgecolor"])
    ax.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
    panels.scale_axis(ax, list(data.non_embedding))


def _spread_panel(ax: Axes, data: pd.DataFrame) -> None:
    spread = data[data.kind.eq("sd")]
    if spread.value.isna().all():
        panels.empty(ax)
    for _, line in spread[spread.task.ne(MEAN)].groupby("task"):
        look: dict[str, Any] = {"color": "#9A9A9A", "linewidth": 0.6, "marker": ".", "markersize": 2}
        ax.plot(line.non_embedding, line.value, label="S.D. between draws, one task", **look)
    for place, (kind, look) in zip(panels.side_by_side(3, DODGE), LINES.items(), strict=True):
        mean = data[data.kind.eq(kind) & data.task.eq(MEAN)]
        if mean.value.notna().any():
            panels.errorbars(ax, mean.non_embedding * place, mean.value, mean.low, mean.high, **look)
    mean = spread[spread.task.eq(MEAN)]
    panels.mark_missing(ax, list(mean.non_embedding[mean.value.isna()]), style.LOOKS[RANDOM][0])
    panels.scale_axis(ax, list(data.non_embedding))


def _top(data: pd.DataFrame) -> float:
    """Where the axis of S.D.s ends: above all of them, and above their means' intervals up to three times that."""
    means = data[data.kind.isin(LINES) & data.task.eq(MEAN)]
    most = np.fmax(data.value[data.kind.eq("sd")].max(), means.value.max())
    return 1.08 * np.fmax(most, np.fmin(means.high.max(), 3 * most)) if most > 0 else 1.0


def _note(evidence: AnalysisInputs, data: pd.DataFrame) -> str:
    frame = evidence.frame
    chosen = frame[frame.placement.eq(RANDOM) & frame.budget.isin([f"@{name}" for name in MATCHED])]
    own = method_scores(evidence.draws)
    reruns = own.units[own.placement.isin(MATCHED)]
    counts = chosen.groupby(["model", "task", "budget"]).agg(draws=("draw", "nunique"), reruns=("rerun", "nunique"))
    plan = data.value[data.kind.eq("plan variance") & data.task.eq(MEAN)]
    alone = (
        f"a mean variance below 0 ({plan.lt(0).sum()} of {plan.count()}) is drawn as 0"
        if plan.notna().any()
        else "not known here, for that takes reruns of several draws"
    )
    return (
        f"APET: {style.span(counts.draws)} draws a cell, {style.span(counts.reruns)} run(s) a draw; the method: "
        f"{style.span(reruns)} reruns. Above, tasks stand side by side at each PLM. Whiskers: 95 % intervals; one that "
        "leaves the panel is cut. The S.D. between draws holds the noise of reruns and test rows too; due to the plan "
        f"alone: {alone}. {style.count_note(frame)}"
    )
