"""What the tidy table says of cells: means with intervals, spread between plans, and the summary of a study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from apet.provenance import seed_for

CELL = ["model", "task", "placement", "budget"]
FACTS = ["family", "non_embedding", "tunable"]
METHODS = ("full", "lora", "adapter", "prompt", "bitfit", "none")
MATCHED = ("lora", "adapter", "prompt", "bitfit")
RANDOM = "uniform"
CONFIDENCE = 0.95
SIMULATIONS = 20_000


@dataclass(frozen=True)
class Components:
    """Spread of one cell's scores, fractions. `sd` is the raw S.D. of the draws' means, which holds all noise;
    `between` the S.D. due to the plan alone (0 where its estimate is negative), `within` that of reruns of one plan;
    both NaN without two draws and a draw of two reruns."""

    draws: int
    sd: float
    between: float
    within: float


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


def components(scores: np.ndarray, draws: np.ndarray) -> Components:
    """Components of variance of one cell: scores (replicates,), their draws (replicates,), one-way random effects.

    ANOVA estimator: between = (MSB − MSW)/n0, n0 = (N − Σ nᵢ²/N)/(a − 1), for a draws of nᵢ reruns, N in all (Searle,
    Casella and McCulloch, Variance Components, 1992, chapter 3).
    """
    _, index, sizes = np.unique(draws, return_inverse=True, return_counts=True)
    a, total = len(sizes), len(scores)
    means = np.bincount(index, scores) / sizes
    sd = float(np.std(means, ddof=1)) if a > 1 else float("nan")
    if a < 2 or total == a:
        return Components(a, sd, float("nan"), float("nan"))
    msb = np.sum(sizes * (means - np.mean(scores)) ** 2) / (a - 1)
    msw = np.sum((scores - means[index]) ** 2) / (total - a)
    n0 = (total - np.sum(sizes**2) / total) / (a - 1)
    return Components(a, sd, float(np.sqrt(max(0.0, (msb - msw) / n0))), float(np.sqrt(msw)))


def sd_interval(sds: np.ndarray, dfs: np.ndarray) -> tuple[float, float]:
    """95 % interval for the mean of the S.D.s that `sds` (tasks,) estimate with `dfs` (tasks,) degrees of freedom.

    Parametric bootstrap of the pivot estimate/truth under normal scores, S.D.s in the estimated proportions, seeded. Of
    one S.D. it is the χ² interval, up to the simulation's error. Both bounds are NaN where an S.D. is or has no degree
    of freedom, the upper one where all S.D.s are 0.
    """
    sds, dfs = np.asarray(sds, float), np.asarray(dfs, float)
    if not len(sds) or np.isnan(sds).any() or not (dfs >= 1).all():
        return float("nan"), float("nan")
    if not sds.any():
        return 0.0, float("nan")
    rng = np.random.default_rng(seed_for("analysis.sd_interval"))
    ratio = np.sqrt(rng.chisquare(dfs, (SIMULATIONS, len(dfs))) / dfs) @ (sds / sds.sum())
    low, high = np.quantile(ratio, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(sds.mean() / high), float(sds.mean() / low)


def position_spread(frame: pd.DataFrame) -> pd.DataFrame:
    """Spread between draws of APET, a row for each (model, task, budget): `Components`, and a 95 % interval of `sd`."""
    rows = []
    chosen = frame[frame.placement.eq(RANDOM)]
    for (model, task, budget), cell in chosen.groupby(["model", "task", "budget"]):
        scored = cell[cell.score.notna()]
        found = components(scored.score.to_numpy(), scored.draw.to_numpy())
        low, high = sd_interval(np.array([found.sd]), np.array([found.draws - 1]))
        rows.append({"model": model, "task": task, "budget": budget, **vars(found), "low": low, "high": high})
    columns = ["model", "task", "budget", "draws", "sd", "between", "within", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def summary(frame: pd.DataFrame, study: str) -> dict[str, Any]:
    """The numbers of a study that a person compares between revisions, fractions at 4 decimals; null where data lack.

    `score`: mean over tasks by PLM and placement@budget; `task`: the methods at their own count by PLM and task;
    `position_sd`: mean over tasks of the S.D. between draws by PLM and budget.
    """
    tasks = sorted(frame.task.unique())
    means = over_tasks(cell_scores(frame), tasks)
    own = method_scores(frame)
    spread = position_spread(frame).groupby(["model", "budget"]).sd.agg(["mean", "count"])
    result: dict[str, Any] = {"study": study, "score": {}, "task": {}, "position_sd": {}}
    for row in means.sort_values(["model", "placement", "tunable", "budget"]).itertuples():
        result["score"].setdefault(row.model, {})[f"{row.placement}@{row.budget.lstrip('@')}"] = _number(row.mean)
    for row in own.itertuples():
        result["task"].setdefault(row.model, {}).setdefault(row.task, {})[row.placement] = _number(row.mean)
    for (model, budget), row in spread.iterrows():
        value = row["mean"] if row["count"] == len(tasks) else float("nan")
        result["position_sd"].setdefault(model, {})[budget.lstrip("@")] = _number(value)
    return result


def _satterthwaite(variance: pd.Series, weight: pd.Series) -> np.ndarray:
    """Degrees of freedom of a sum of variances; `weight` is the sum of squared terms over their degrees of freedom."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 0, variance**2 / weight, np.inf)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
