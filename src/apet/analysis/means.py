"""Mean scores of cells, of methods and over tasks, and paired differences of them, each with its interval."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from apet.analysis.intervals import CONFIDENCE, t_interval
from apet.analysis.resampling import CELL, MeanSamples

METHODS = ("full", "lora", "adapter", "prompt", "bitfit", "none")
MATCHED = ("lora", "adapter", "prompt", "bitfit")
RANDOM = "uniform"
MEAN = "mean over tasks"
FEW = 10
DFS = np.concatenate([np.arange(1, 20), np.geomspace(20, 1000, 30)])
RATIOS = stats.t.ppf(0.975, DFS) / stats.t.ppf(0.75, DFS)
"""Half the width of the 95 % interval over the upper quartile of Student's t, by degrees of freedom."""
PLACE = ["family", "non_embedding", "model", "placement", "budget"]
"""What is one over tasks. The number of parameters may differ between tasks, by the trained head of a PLM."""


def own_count(frame: pd.DataFrame) -> pd.Series:
    """Mask of the rows where a named method runs at its own count of tunable parameters."""
    own = frame.budget.eq("@own") | frame.budget.eq("@" + frame.placement) | frame.placement.eq("none")
    return own & frame.placement.isin(METHODS)


def models_by_scale(frame: pd.DataFrame) -> list[str]:
    """Names of the PLMs, family by family, from small to large."""
    return list(frame.sort_values(["family", "non_embedding", "model"]).model.unique())


def chance_level(frame: pd.DataFrame) -> pd.Series:
    """Score of a guess, by task: the larger of a uniform guess's and of always the best label's, fraction."""
    return frame.assign(level=np.fmax(frame.chance, frame.majority)).groupby("task")["level"].max()


def methods(draws: MeanSamples) -> MeanSamples:
    """The named methods at their own count, however the study writes that budget."""
    return draws.select(own_count(draws.cells), budget="@own")


def matched(draws: MeanSamples) -> MeanSamples:
    """`methods`, and APET at each method's count."""
    own = own_count(draws.cells)
    apet = draws.cells.placement.eq(RANDOM) & draws.cells.budget.isin([f"@{name}" for name in MATCHED])
    chosen = draws.select(own | apet)
    return MeanSamples(
        chosen.cells.assign(budget=chosen.cells.budget.where(~own_count(chosen.cells), "@own")), chosen.values
    )


def cell_scores(draws: MeanSamples) -> pd.DataFrame:
    """`draws.cells` with `low` and `high`, the 95 % interval of each mean score over replicates and test rows."""
    low, high = _quantiles(draws.values)
    return draws.cells.assign(low=np.clip(low, 0, 1), high=np.clip(high, 0, 1))


def method_scores(draws: MeanSamples) -> pd.DataFrame:
    """`cell_scores` of `methods`."""
    return cell_scores(methods(draws))


def wilson(score: float, n: int) -> tuple[float, float]:
    """95 % interval of one run's mean score over n test rows: Wilson (1927), wide where rows score between 0 and 1."""
    low, high = proportion_confint(score * n, n, 1 - CONFIDENCE, method="wilson")
    return float(low), float(high)


def over_tasks(draws: MeanSamples, tasks: list[str]) -> pd.DataFrame:
    """Mean over `tasks` of the mean scores, by PLM, placement and budget.

    low, high: 95 % interval with these tasks fixed. low_beyond, high_beyond: with the tasks a sample of many, Student's
    t over the tasks' means, which holds all noise (Hartung and Knapp 2001); NaN for one task. A mean that lacks one of
    `tasks` is NaN, for a mean over other tasks would be another quantity. sd: mean over tasks of the S.D. between
    units, n: sum of test rows, units: the fewest of a task.
    """
    rows = []
    for place, group in draws.cells.groupby(PLACE):
        whole = len(group) == len(tasks) and group["mean"].notna().all()
        means = group["mean"].to_numpy() if whole else np.full(len(group), np.nan)
        low, high = np.clip(_quantiles(draws.values[:, group.index].mean(axis=1)), 0, 1) if whole else (np.nan, np.nan)
        several = whole and len(means) > 1
        low_beyond, high_beyond = np.clip(t_interval(means).interval, 0, 1) if several else (np.nan, np.nan)
        rows.append(
            {
                **dict(zip(PLACE, place, strict=True)),
                "tunable": group.tunable.iloc[0],
                "n": group.n.sum(),
                "units": group.units.min(),
                "mean": means.mean(),
                "sd": group.sd.mean(skipna=False) if whole else np.nan,
                "low": low,
                "high": high,
                "low_beyond": low_beyond,
                "high_beyond": high_beyond,
            }
        )
    columns = [*PLACE, "tunable", "n", "units", "mean", "sd", "low", "high", "low_beyond", "high_beyond"]
    return pd.DataFrame(rows, columns=columns)


def differences(draws: MeanSamples, against: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Differences of mean score between pairs of cells of one PLM and task, on the same test rows.

    against: from `draws.cells` to CELL of the cells to compare with, in the same order; a cell without a partner has
    no row. A row: CELL, family, non_embedding, tunable, other (placement of the partner), other_budget, n, units (the
    fewer of the two), difference (fraction) with its 95 % interval low and high, p (two-sided), p_adjusted. Then the
    same as `mean over tasks`, for pairs that stand in every task. Holm's correction (1979) is over all rows of tasks,
    and apart over all means.
    """
    cells = draws.cells
    place = pd.Series(cells.index, index=pd.MultiIndex.from_frame(cells[CELL]))
    partners = against(cells)
    other = place.reindex(pd.MultiIndex.from_frame(partners[CELL])).to_numpy()
    paired = ~np.isnan(other) & cells["mean"].notna().to_numpy()
    own, other = np.flatnonzero(paired), other[paired].astype(int)
    scored = cells["mean"].notna().to_numpy()[other]
    own, other = own[scored], other[scored]
    values = draws.values[:, own] - draws.values[:, other]
    table = cells.loc[own, [*CELL, "family", "non_embedding", "tunable", "n"]].reset_index(drop=True)
    table["other"], table["other_budget"] = cells.placement.to_numpy()[other], cells.budget.to_numpy()[other]
    table["units"] = np.minimum(cells.units.to_numpy()[own], cells.units.to_numpy()[other])
    table["difference"] = cells["mean"].to_numpy()[own] - cells["mean"].to_numpy()[other]
    return pd.concat([_judged(table, values), _over_tasks(table, values, cells.task.nunique())], ignore_index=True)


def method_differences(draws: MeanSamples) -> pd.DataFrame:
    """`differences` of each named method against full fine-tuning, and of APET at a method's count against it."""

    def against(cells: pd.DataFrame) -> pd.DataFrame:
        method = cells.budget.str.lstrip("@").where(cells.placement.eq(RANDOM), "full")
        return cells.assign(placement=method.where(cells.placement.ne(method), ""), budget="@own")

    return differences(matched(draws), against)


def _over_tasks(table: pd.DataFrame, values: np.ndarray, tasks: int) -> pd.DataFrame:
    """Rows of the pairs' means over tasks."""
    key = ["family", "non_embedding", "model", "placement", "budget", "other", "other_budget"]
    rows, drawn = [], []
    for pair, group in table.groupby(key):
        if len(group) == tasks:
            facts = {"task": MEAN, "tunable": group.tunable.iloc[0], "n": group.n.sum(), "units": group.units.min()}
            rows.append(dict(zip(key, pair, strict=True)) | facts | {"difference": group.difference.mean()})
            drawn.append(values[:, group.index].mean(axis=1))
    means = pd.DataFrame(rows, columns=table.columns)
    return _judged(means, np.stack(drawn, axis=1) if drawn else np.empty((len(values), 0)))


def _judged(table: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """The table with interval, p and adjusted p of `values` [draws, rows]."""
    low, high = _quantiles(values)
    p = _p_values(values)
    adjusted = multipletests(p, method="holm")[1] if len(p) else p
    return table.assign(low=low, high=high, p=p, p_adjusted=adjusted)


def _p_values(values: np.ndarray) -> np.ndarray:
    """Two-sided p-values of 0 under the draws [draws, rows]: twice the share beyond 0.

    Where fewer than FEW draws lie there, the tail of Student's t through the draws' quartiles and 95 % interval, for a
    correction over hundreds of tests asks for smaller shares than some thousand draws can show.
    """
    beyond = np.minimum((values <= 0).sum(axis=0), (values >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (beyond + 1) / (len(values) + 1))
    if not values.size:
        return p
    low, lower, upper, high = np.quantile(values, [0.025, 0.25, 0.75, 0.975], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.interp(-(high - low) / (upper - lower), -RATIOS, DFS)
        tail = 2 * stats.t.sf(np.abs(low + high) / (high - low) * stats.t.ppf(0.975, df), df)
    return np.where((beyond < FEW) & (high > low), np.minimum(tail, p), p)


def _quantiles(values: np.ndarray) -> np.ndarray:
    """The 95 % percentile interval of draws, along the first axis: [2, …]."""
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    return np.quantile(values, tails, axis=0) if values.size else np.empty((2, *values.shape[1:]))
