"""Mean scores of cells, of methods and over tasks, each with its interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

CELL = ["model", "task", "placement", "budget"]
FACTS = ["family", "non_embedding", "tunable"]
METHODS = ("full", "lora", "adapter", "prompt", "bitfit", "none")
MATCHED = ("lora", "adapter", "prompt", "bitfit")
RANDOM = "uniform"
CONFIDENCE = 0.95


def own_count(frame: pd.DataFrame) -> pd.Series:
    """Mask of the rows where a named method runs at its own count of tunable parameters."""
    own = frame.budget.eq("@own") | frame.budget.eq("@" + frame.placement) | frame.placement.eq("none")
    return own & frame.placement.isin(METHODS)


def models_by_scale(frame: pd.DataFrame) -> list[str]:
    """Names of the PLMs, family by family, from small to large."""
    return list(frame.sort_values(["family", "non_embedding", "model"]).model.unique())


def chance_level(frame: pd.DataFrame) -> pd.Series:
    """Score of a guess, by task: the larger of the uniform guess and the majority share, fraction."""
    return frame.assign(level=np.fmax(frame.chance, frame.majority)).groupby("task")["level"].max()


def interval(mean: Any, variance: Any, df: Any, n: Any) -> tuple[Any, Any]:
    """Two-sided 95 % interval for a mean of values in [0, 1]; all arguments broadcast.

    Wilson's score interval (1927) at the effective sample size mean (1 − mean) / variance, with Student's t at `df` in
    place of the normal quantile (Kott and Carr, 1997; Dean and Pagano, 2015). With the binomial variance and df = ∞ it
    is Wilson's own. `n` stands in for the effective size where the variance is 0: at 0 and at 1.
    """
    mean, variance, df, n = (np.asarray(x, float) for x in (mean, variance, df, n))
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(variance > 0, mean * (1 - mean) / variance, n)
        t = stats.t.ppf((1 + CONFIDENCE) / 2, df)
        pull = t**2 / size
        half = np.sqrt(pull * mean * (1 - mean) + pull**2 / 4)
        low, high = (mean + pull / 2 - half) / (1 + pull), (mean + pull / 2 + half) / (1 + pull)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def cell_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: mean score with its 95 % interval over replicates and test rows, S.D., and what it rests on.

    The independent units are the draws, or the reruns where there is one draw. The variance of the mean is
    s²/units + mean (1 − mean)/n: all replicates meet the same n test rows, so their sampling does not average out. The
    second term is exact for accuracy and an upper bound for other scores in [0, 1], and test noise that replicates do
    not share is in both, so the interval errs on the wide side. Degrees of freedom after Satterthwaite (1946), because
    a bootstrap over two or three units covers far less than it says. A cell of one unit has Wilson's interval: test
    rows alone. Replicates without a score are left out and counted in `diverged`.
    """
    draws = frame.groupby(CELL).draw.transform("nunique")
    units = frame.assign(unit=frame.rerun.where(draws == 1, frame.draw)).groupby([*CELL, "unit"]).score.mean()
    scores = units.groupby(CELL).agg(mean="mean", sd="std", units="count")
    diverged = frame.outcome.eq("diverged")
    facts = (
        frame.assign(diverged=diverged)
        .groupby(CELL)
        .agg(
            **{name: (name, "first") for name in FACTS},
            n=("n", "min"),
            draws=("draw", "nunique"),
            reruns=("rerun", "nunique"),
            diverged=("diverged", "sum"),
        )
    )
    cells = facts.join(scores).reset_index()
    between = (cells.sd**2 / cells.units).fillna(0.0)
    cells["variance"] = between + cells["mean"] * (1 - cells["mean"]) / cells.n
    cells["df"] = _satterthwaite(cells.variance, between**2 / (cells.units - 1).clip(lower=1))
    cells["low"], cells["high"] = interval(cells["mean"], cells.variance, cells.df, cells.n)
    return cells


def method_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """`cell_scores` of the named methods at their own count, however the study writes that budget."""
    return cell_scores(frame[own_count(frame)].assign(budget="@own"))


def over_tasks(cells: pd.DataFrame, tasks: list[str]) -> pd.DataFrame:
    """Mean over tasks of `cell_scores`, by PLM, placement and budget, with its 95 % interval.

    Tasks are fixed, not sampled: the variance is that of the tasks' means. A mean that lacks one of `tasks` is NaN, for
    a mean over other tasks would be another quantity. `sd` is the mean over tasks of the S.D., `n` the sum of test
    rows, `units` the fewest of a task.
    """
    groups = cells.assign(weight=cells.variance**2 / cells.df).groupby(["model", "placement", "budget"])
    means = groups.agg(
        **{name: (name, "first") for name in FACTS},
        n=("n", "sum"),
        units=("units", "min"),
        mean=("mean", "mean"),
        sd=("sd", lambda sds: sds.mean(skipna=False)),
        variance=("variance", "sum"),
        weight=("weight", "sum"),
        tasks=("mean", "count"),
    ).reset_index()
    means["df"] = _satterthwaite(means.variance, means.weight)
    means["variance"] /= means.tasks**2
    whole = means.tasks == len(tasks)
    means[["mean", "sd"]] = means[["mean", "sd"]].where(whole, axis=0)
    means["low"], means["high"] = interval(means["mean"], means.variance, means.df, means.n)
    return means.drop(columns="weight")


def _satterthwaite(variance: pd.Series, weight: pd.Series) -> np.ndarray:
    """Degrees of freedom of a sum of variances; `weight` is the sum of squared terms over their degrees of freedom."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 0, variance**2 / weight, np.inf)
