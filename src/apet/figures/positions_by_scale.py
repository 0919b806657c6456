"""Spread of APET's scores over random positions by PLM size: do positions matter less for larger PLMs?

APET has several plans with random positions at each method's count of trainable parameters. Above: each plan's score
relative to the mean of the plans, and the method itself. Below: the standard deviation between plans, which includes
all noise; the standard deviation due to the plan only, without the part explained by seeds and test rows; and the
standard deviation between seeds of the method, whose positions are fixed. Whiskers are 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.claims import POINTS, AnalysisInputs
from apet.analysis.intervals import mls_interval, satterthwaite
from apet.analysis.means import MATCHED, MEAN, RANDOM, has_means, method_scores, own_count
from apet.analysis.resampling import PLM, study_cells
from apet.analysis.variance import position_components, position_spread, sd_interval
from apet.figures import panels, style
from apet.figures.panels import with_mean

KEYS = ["model", "task", "method"]
ONE_PLAN = "one plan:\nno S.D."
DODGE = 0.06
DOTS: dict[str, dict[str, Any]] = {
    "plan": {
        "marker": "o",
        "s": 7,
        "linewidth": 0,
        "facecolor": style.STYLES[RANDOM][0],
        "edgecolor": style.STYLES[RANDOM][0],
        "label": "APET, one plan",
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
    "sd": {"label": "S.D. between plans", "color": style.STYLES[RANDOM][0], "marker": "P"},
    "plan sd": {
        "label": "S.D. due to the plan only",
        "color": style.STYLES[RANDOM][0],
        "marker": "o",
        "markerfacecolor": "white",
        "linestyle": ":",
    },
    "seed sd": {
        "label": "S.D. between seeds of the method",
        "color": style.DARK,
        "marker": "D",
        "markerfacecolor": "white",
        "linestyle": "--",
    },
}


@style.styled
def draw(inputs: AnalysisInputs) -> tuple[Figure, pd.DataFrame]:
    """Draw a column per matched budget of the study and two rows per family: plans around their mean, and their S.D."""
    data = numbers(inputs)
    if data.empty:
        return panels.without_data("APET at the number of parameters of a method is not in this study."), data
    means = has_means(inputs.samples.tasks)
    families, budgets = list(data.family.unique()), [name for name in MATCHED if name in set(data.method)]
    rows = list(product(families, (_plans_panel, _spread_panel)))
    fig, grid = panels.panels(len(rows), len(budgets), 50, _note(inputs, data), (False, "row"), top=16)
    for ((family, panel), method), ax in zip(product(rows, budgets), grid.flat, strict=True):
        of_family = data[data.family.eq(family)]
        panel(ax, of_family[of_family.method.eq(method)], means)
        panels.scale_axis(ax, list(of_family.non_embedding_params))
        if panel is _plans_panel:
            prefix = "APET at" if len(families) == 1 else f"{family},"
            ax.set_title(f"{prefix} {style.budget_name('@' + method)}")
        if panel is _spread_panel and method == budgets[-1]:
            ax.set_ylim(0, _top(of_family))
    labels = ("score − mean of plans\n(points)", "S.D. (points)")
    panels.name_axes(list(grid.flat), len(budgets), "non-embedding parameters", labels)
    panels.legend(fig, grid.flat, 3)
    return fig, data


def numbers(inputs: AnalysisInputs) -> pd.DataFrame:
    """Compute how much scores depend on the positions of the trained parameters.

    `plan`: a plan's score minus the mean of the plans, if there are several. `method`: the method's score minus that
    mean. `sd`: S.D. between plans, with its 95 % interval. `plan variance` (points², may be negative): variance
    between plans that seeds and test rows do not explain, with its interval; `plan sd`: its root, 0 if it is negative;
    both NaN with one seed per plan. `seed sd`: S.D. between seeds of the method, shrunken over cells. The last four
    also as `mean over tasks`, `plan sd` as the root of the mean variance.

    Args:
        inputs: data of the study.

    Returns:
        One row per PLM, task, matched method of the study and `kind` (and plan, for `plan`), with value, low and high
        in percentage points. A cell without data has NaN. num_plans, for `sd`: number of plans with a score, the
        smallest of a mean.
    """
    frame = inputs.frame
    chosen = frame[frame.placement.eq(RANDOM) & frame.budget.isin([f"@{name}" for name in MATCHED])]
    plans = chosen.assign(method=_method(chosen)).groupby([*KEYS, "plan_index"], as_index=False).test_score.mean()
    centre = plans.groupby(KEYS).test_score.mean()
    cells = study_cells(frame)
    matched = pd.DataFrame({"method": MATCHED, "budget": [f"@{name}" for name in MATCHED]}, dtype=object)
    grid = matched.merge(cells[cells.placement.eq(RANDOM)]).drop(columns=["placement", "budget"])
    grid = grid.sort_values([*PLM, "task"], ignore_index=True, kind="stable")
    with_method = cells[own_count(cells)].rename(columns={"placement": "method"})[KEYS].drop_duplicates()
    own, tasks = method_scores(inputs.samples).rename(columns={"placement": "method"}), inputs.samples.tasks
    columns = [*PLM, "method", "task", "kind", "plan_index", "num_plans", "value", "low", "high"]
    if grid.empty:
        return pd.DataFrame(columns=columns)
    apet = grid.merge(plans, "left").assign(kind="plan", value=lambda f: f.test_score - _at(f, centre))
    is_only = apet.groupby(KEYS).plan_index.transform("size").eq(1) & apet.value.notna()
    apet = apet[~is_only]
    method = grid.merge(with_method).merge(own[[*KEYS, "mean"]], "left")
    method = method.assign(kind="method", value=lambda f: f["mean"] - _at(f, centre))
    data = pd.concat(
        [apet, method, _sds(grid, chosen, tasks), _components(grid, chosen, tasks), _seed_sds(grid, own, tasks)],
        ignore_index=True,
    )
    data[["value", "low", "high"]] *= np.where(data.kind.eq("plan variance"), POINTS**2, POINTS)[:, None]
    return data[columns]


def _method(frame: pd.DataFrame) -> pd.Series:
    return frame.budget.str.lstrip("@")


def _at(frame: pd.DataFrame, values: pd.Series) -> np.ndarray:
    return values.reindex(pd.MultiIndex.from_frame(frame[KEYS])).to_numpy()


Tasks = Mapping[str, Sequence[str]]
"""Tasks of means over tasks, by family."""


def _groups(grid: pd.DataFrame, tasks: Tasks) -> list[tuple[dict, Sequence[str]]]:
    """Return the facts of each mean over tasks, of a PLM and method, and the tasks of the mean."""
    rows = with_mean(grid, tasks)
    return [(facts, tasks[facts["family"]]) for facts in rows[rows.task.eq(MEAN)].to_dict("records")]


def _sds(grid: pd.DataFrame, chosen: pd.DataFrame, tasks_of_means: Tasks) -> pd.DataFrame:
    spread = position_spread(chosen)
    spread = spread.assign(method=_method(spread))[[*KEYS, "sd", "num_plans", "low", "high"]]
    sds = grid.merge(spread.rename(columns={"sd": "value"}), "left").fillna({"num_plans": 0})
    by_key, means = sds.set_index(KEYS), []
    for facts, tasks in _groups(grid, tasks_of_means):
        own = by_key.reindex([(facts["model"], task, facts["method"]) for task in tasks])
        low, high = sd_interval(own.value.to_numpy(), own.num_plans.to_numpy() - 1)
        value, num_plans = own.value.mean(skipna=False), own.num_plans.min()
        means.append({**facts, "num_plans": num_plans, "value": value, "low": low, "high": high})
    return pd.concat([sds, pd.DataFrame(means)]).assign(kind="sd")


def _components(grid: pd.DataFrame, chosen: pd.DataFrame, tasks_of_means: Tasks) -> pd.DataFrame:
    """Return the variances due to the plan, with intervals by mean squares, and their roots."""
    squares = position_components(chosen)
    by_key = squares.assign(method=_method(squares)).set_index(KEYS)
    rows = []
    for facts, tasks in [*((row, [row["task"]]) for row in grid.to_dict("records")), *_groups(grid, tasks_of_means)]:
        keys = [(facts["model"], task, facts["method"]) for task in tasks]
        known = bool(keys) and set(keys) <= set(by_key.index)
        value, low, high = _component(by_key.loc[keys]) if known else (np.nan,) * 3
        rows.append({**facts, "kind": "plan variance", "value": value, "low": low, "high": high})
    variances = pd.DataFrame(rows)
    roots = np.sqrt(variances[["value", "low", "high"]].clip(lower=0))
    return pd.concat([variances, variances.assign(kind="plan sd", **roots)])


def _component(cells: pd.DataFrame) -> tuple[float, float, float]:
    """Return the mean over cells of the variance due to the plan, and its interval."""
    share = 1 / (len(cells) * cells.n0)
    parts = [
        (sign, *satterthwaite((share * cells[name]).to_numpy(), cells[df].to_numpy()))
        for sign, name, df in ((1, "between", "df_between"), (-1, "within", "df_within"))
    ]
    signs, squares, dfs = np.array(parts).T
    estimate = mls_interval(signs * squares, dfs, -float(cells.rows.mean()))
    return estimate.value, *estimate.interval


def _seed_sds(grid: pd.DataFrame, own: pd.DataFrame, tasks_of_means: Tasks) -> pd.DataFrame:
    several = own[own.num_replicates.gt(1)]
    several = several.assign(value=several.error * np.sqrt(several.num_replicates))
    sds = grid.merge(several[[*KEYS, "value"]], "left")
    by_key, means = sds.set_index(KEYS).value, []
    for facts, tasks in _groups(grid, tasks_of_means):
        own_sds = by_key.reindex([(facts["model"], task, facts["method"]) for task in tasks])
        means.append({**facts, "value": own_sds.mean(skipna=False)})
    return pd.concat([sds, pd.DataFrame(means)]).assign(kind="seed sd")


def _plans_panel(ax: Axes, data: pd.DataFrame, means: bool) -> None:
    if data.empty:
        return panels.absent(ax)
    if data.value[data.kind.isin(DOTS)].isna().all():
        panels.empty(ax)
    tasks = list(data.task[data.task.ne(MEAN)].unique())
    shift = {task: 10 ** (DODGE * (2 * (i + 0.5) / len(tasks) - 1)) for i, task in enumerate(tasks)}
    for kind, options in DOTS.items():
        points = data[data.kind.eq(kind)]
        x = points.non_embedding_params * points.task.map(shift)
        if len(points):
            ax.scatter(x, points.value, **options)
        panels.mark_missing(ax, list(x[points.value.isna()]), options["edgecolor"])
    ax.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)


def _spread_panel(ax: Axes, data: pd.DataFrame, means: bool) -> None:
    if data.empty:
        return panels.absent(ax)
    spread = data[data.kind.eq("sd")]
    if spread.value.isna().all():
        panels.empty(ax, ONE_PLAN if spread.num_plans.eq(1).any() else panels.MISSING)
    for _, line in spread[spread.task.ne(MEAN)].groupby("task") if means else ():
        options: dict[str, Any] = {"color": "#9A9A9A", "linewidth": 0.6, "marker": ".", "markersize": 2}
        ax.plot(line.non_embedding_params, line.value, label="S.D. between plans, one task", **options)
    for offset, (kind, options) in zip(panels.side_by_side(3, DODGE), LINES.items(), strict=True):
        mean = data[data.kind.eq(kind) & data.task.eq(MEAN)]
        if mean.value.notna().any():
            label = f"{options['label']}, mean over tasks" if means and kind == "sd" else options["label"]
            x, marks = mean.non_embedding_params * offset, {**options, "label": label}
            panels.errorbars(ax, x, mean.value, mean.low, mean.high, **marks)
    mean = spread[spread.task.eq(MEAN)]
    panels.mark_missing(ax, list(mean.non_embedding_params[mean.num_plans.eq(0)]), style.STYLES[RANDOM][0])


def _top(data: pd.DataFrame) -> float:
    """Return the upper limit of the axis of S.D.s: above all S.D.s and most intervals of means."""
    means = data[data.kind.isin(LINES) & data.task.eq(MEAN)]
    most = np.fmax(data.value[data.kind.eq("sd")].max(), means.value.max())
    return 1.08 * np.fmax(most, np.fmin(means.high.max(), 3 * most)) if most > 0 else 1.0


def _note(inputs: AnalysisInputs, data: pd.DataFrame) -> str:
    frame = inputs.frame
    chosen = frame[frame.placement.eq(RANDOM) & frame.budget.isin([f"@{name}" for name in MATCHED])]
    own = method_scores(inputs.samples)
    replicates = own.num_replicates[own.placement.isin(MATCHED)]
    counts = chosen.groupby(["model", "task", "budget"])[["plan_index", "seed_index"]].nunique()
    plan = data.value[data.kind.eq("plan variance") & data.task.eq(MEAN)]
    plan_note = (
        f"a mean variance below 0 ({plan.lt(0).sum()} of {plan.count()}) is shown as 0"
        if plan.notna().any()
        else "unknown here, because it needs plans with several seeds"
    )
    return (
        f"APET: {style.span(counts.plan_index, 'plan')} per cell, {style.span(counts.seed_index, 'seed')} per plan; "
        f"the method: {style.span(replicates, 'seed')}. Above, tasks are side by side at each PLM. Whiskers: 95 % "
        "intervals; whiskers that leave the panel are cut. The S.D. between plans includes the noise of seeds and test "
        f"rows; due to the plan only: {plan_note}. {style.means_note(inputs)}{style.count_note(frame)}"
    )
