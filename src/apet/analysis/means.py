"""Mean scores of cells, methods and tasks, and their paired differences, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from apet.analysis.intervals import CONFIDENCE, t_interval
from apet.analysis.resampling import CELL, MeanSamples, lowest_scores
from apet.placement import PLACEMENTS

MATCHED = ("lora", "adapter", "prompt", "bitfit", "layernorm", "ia3", "prefix")
"""Methods at whose number of parameters APET is run."""
METHODS = ("full", *MATCHED, "none")
RANDOM = "uniform"
"""APET: random placement."""
INFORMED = tuple(PLACEMENTS.informed)
MEAN = "mean over tasks"
METHOD = ["model", "placement", "budget"]
"""Columns that identify a method on a PLM."""
CONFIGURATION = ["family", "non_embedding_params", *METHOD]
"""Columns shared by the tasks of a mean. The number of parameters may differ by the trained head of a PLM."""
MOST_NAMED = 6
"""Most tasks of a mean that a sentence lists."""
FEW_SAMPLES = 10
T_DFS = np.concatenate([np.arange(1, 20), np.geomspace(20, 1000, 30)])
T_TAIL_RATIOS = stats.t.ppf(0.975, T_DFS) / stats.t.ppf(0.75, T_DFS)
"""Half the width of the 95 % interval over the upper quartile of Student's t, by degrees of freedom."""


def own_count(frame: pd.DataFrame) -> pd.Series:
    """Mask the rows with a named method at its own number of trainable parameters."""
    own = frame.budget.eq("@own") | frame.budget.eq("@" + frame.placement) | frame.placement.eq("none")
    return own & frame.placement.isin(METHODS)


def models_by_scale(frame: pd.DataFrame) -> list[str]:
    """List the PLMs, family by family, from small to large."""
    return list(frame.sort_values(["family", "non_embedding_params", "model"]).model.unique())


def chance_level(frame: pd.DataFrame) -> pd.Series:
    """Return the chance score by task, a fraction: the larger of a uniform guess and the best constant label."""
    level = np.fmax(frame.chance_uniform, frame.chance_majority)
    return frame.assign(level=level).groupby("task")["level"].max()


def near_chance(frame: pd.DataFrame, margin: float) -> list[str]:
    """List where full fine-tuning hardly exceeds chance, so that scores near it say little about methods.

    Args:
        frame: the tidy table.
        margin: points above chance from which on a score exceeds it.

    Returns:
        `PLM on task`, of the pairs whose mean score of full fine-tuning is below chance plus the margin.
    """
    full = frame[frame.placement.eq("full")].groupby(["model", "task"], sort=False).test_score.mean().dropna()
    level = chance_level(frame).reindex(full.index.get_level_values("task")).to_numpy()
    return [f"{model} on {task}" for model, task in full.index[full.to_numpy() < level + margin / 100]]


def methods(samples: MeanSamples) -> MeanSamples:
    """Select the named methods at their own count, with the budget spelled `@own`."""
    return samples.select(own_count(samples.cells), budget="@own")


def matched(samples: MeanSamples) -> MeanSamples:
    """Select `methods`, and APET at each method's count."""
    own = own_count(samples.cells)
    apet = samples.cells.placement.eq(RANDOM) & samples.cells.budget.isin([f"@{name}" for name in MATCHED])
    selected = samples.select(own | apet)
    budget = selected.cells.budget.where(~own_count(selected.cells), "@own")
    return replace(selected, cells=selected.cells.assign(budget=budget))


def cell_scores(samples: MeanSamples) -> pd.DataFrame:
    """Return `samples.cells` with `low` and `high`, the 95 % interval over replicates and test rows."""
    low, high = _quantiles(samples.values)
    lowest = lowest_scores(samples.cells)
    return samples.cells.assign(low=np.clip(low, lowest, 1), high=np.clip(high, lowest, 1))


def method_scores(samples: MeanSamples) -> pd.DataFrame:
    """Return `cell_scores` of `methods`."""
    return cell_scores(methods(samples))


def mean_note(tasks: Mapping[str, Sequence[str]]) -> str:
    """Name the tasks of means over tasks in a sentence.

    Args:
        tasks: names by family, as `tasks_of_means` returns them.

    Returns:
        A sentence with a full stop; empty if no family has several tasks, because its mean is then that of the task.
    """
    if all(len(own) == 1 for own in tasks.values()):
        return ""
    names = {family: _listed(own) for family, own in tasks.items()}
    if len(set(names.values())) == 1:
        return f"Means are over {next(iter(names.values()))}."
    listed = "; ".join(f"{family}: {own}" for family, own in names.items())
    return f"Means are over the tasks that all PLMs of a family have. {listed}."


def _listed(tasks: Sequence[str]) -> str:
    names = ", ".join(tasks) or "none (its PLMs share no task)"
    return names if len(tasks) <= MOST_NAMED else f"{len(tasks)} tasks (named in metrics.json)"


def in_means(table: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the rows, with columns family and task, that belong to a mean over tasks."""
    return table[np.array([t in tasks[family] for family, t in zip(table.family, table.task, strict=True)], bool)]


def has_means(tasks: Mapping[str, Sequence[str]]) -> bool:
    """Return whether a mean over tasks says more than the tasks themselves: whether a family has several tasks."""
    return any(len(own) > 1 for own in tasks.values())


def over_tasks(samples: MeanSamples) -> pd.DataFrame:
    """Average the mean scores over tasks, by PLM, placement and budget.

    This and `_differences_over_tasks` form all means of scores over tasks. A mean is over the tasks of `samples.tasks`,
    and NaN if it lacks one of them: a mean over other tasks is another quantity.

    Args:
        samples: cells and samples.

    Returns:
        One row per configuration: mean; low and high (95 % interval for these tasks); low_population and
        high_population (95 % interval for the population of which the tasks are a sample: Student's t over the tasks'
        means, Hartung and Knapp 2001; NaN for one task); sd (mean over tasks of the S.D. between replicates), n_test
        (sum) and num_replicates (smallest of a task).
    """
    rows = []
    for configuration, group in in_means(samples.cells, samples.tasks).groupby(CONFIGURATION):
        complete = len(group) == len(samples.tasks[configuration[0]]) and group["mean"].notna().all()
        means = group["mean"].to_numpy() if complete else np.full(len(group), np.nan)
        fixed = population = np.full(2, np.nan)
        lowest = lowest_scores(group).mean()
        if complete:
            fixed = np.clip(_quantiles(samples.values[:, group.index].mean(axis=1)), lowest, 1)
        if complete and len(means) > 1:
            population = np.clip(t_interval(means).interval, lowest, 1)
        counts = (group.trainable_params.iloc[0], group.n_test.sum(), group.num_replicates.min())
        sd = group.sd.mean(skipna=False) if complete else np.nan
        rows.append((*configuration, *counts, means.mean(), sd, *fixed, *population))
    intervals = ["low", "high", "low_population", "high_population"]
    columns = [*CONFIGURATION, "trainable_params", "n_test", "num_replicates", "mean", "sd", *intervals]
    return pd.DataFrame(rows, columns=columns)


def differences(samples: MeanSamples, baseline_of: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Compare pairs of cells of one PLM and task on the same test rows.

    Args:
        samples: cells and samples.
        baseline_of: from `samples.cells` to the CELL columns of their baselines, in the same order. Cells without a
            baseline have no row.

    Returns:
        One row per pair: CELL, family, non_embedding_params, trainable_params, baseline (placement), baseline_budget,
        n_test, num_replicates (the smaller of both), difference (fraction) with its 95 % interval low and high, p
        (two-sided) and p_adjusted. Then the same for `mean over tasks`, for pairs present in every task of
        `samples.tasks`. Holm's correction (1979) is over all rows of tasks, and separately over all means. Bounds are
        NaN if the difference is the same on every test row and in every replicate, so that no scatter is observed.
    """
    cells = samples.cells
    index = pd.Series(cells.index, index=pd.MultiIndex.from_frame(cells[CELL]))
    baseline = index.reindex(pd.MultiIndex.from_frame(baseline_of(cells)[CELL])).to_numpy()
    scored = cells["mean"].notna().to_numpy()
    paired = ~np.isnan(baseline) & scored
    own, baseline = np.flatnonzero(paired), baseline[paired].astype(int)
    own, baseline = own[scored[baseline]], baseline[scored[baseline]]
    values = samples.values[:, own] - samples.values[:, baseline]
    columns = [*CELL, "family", "non_embedding_params", "trainable_params", "n_test"]
    replicates, means = cells.num_replicates.to_numpy(), cells["mean"].to_numpy()
    table = cells.loc[own, columns].reset_index(drop=True)
    table["baseline"] = cells.placement.to_numpy()[baseline]
    table["baseline_budget"] = cells.budget.to_numpy()[baseline]
    table["num_replicates"] = np.minimum(replicates[own], replicates[baseline])
    table["difference"] = means[own] - means[baseline]
    means = _differences_over_tasks(table, values, samples.tasks)
    return pd.concat([_tested(table, values), means], ignore_index=True)


def method_differences(samples: MeanSamples) -> pd.DataFrame:
    """Compare each named method with full fine-tuning, and APET at a method's count with that method.

    Args:
        samples: cells and samples.

    Returns:
        The table of `differences`.
    """

    def baseline_of(cells: pd.DataFrame) -> pd.DataFrame:
        method = cells.budget.str.lstrip("@").where(cells.placement.eq(RANDOM), "full")
        return cells.assign(placement=method.where(cells.placement.ne(method), ""), budget="@own")

    return differences(matched(samples), baseline_of)


def _differences_over_tasks(
    table: pd.DataFrame, values: np.ndarray, tasks: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return the pairs' means over tasks."""
    keys = [*CONFIGURATION, "baseline", "baseline_budget"]
    rows, sampled = [], []
    for pair, group in in_means(table, tasks).groupby(keys):
        if len(group) == len(tasks[pair[0]]):
            counts = (group.trainable_params.iloc[0], group.n_test.sum(), group.num_replicates.min())
            rows.append((*pair, MEAN, *counts, group.difference.mean()))
            sampled.append(values[:, group.index].mean(axis=1))
    columns = [*keys, "task", "trainable_params", "n_test", "num_replicates", "difference"]
    means = pd.DataFrame(rows, columns=columns)[list(table)]
    return _tested(means, np.stack(sampled, axis=1) if sampled else np.empty((len(values), 0)))


def _tested(table: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """Return the table with interval, p and adjusted p of `values` [samples, rows]."""
    low, high = _quantiles(values)
    low, high = (np.where(low < high, bound, np.nan) for bound in (low, high))
    p = _p_values(values)
    adjusted = multipletests(p, method="holm")[1] if len(p) else p
    return table.assign(low=low, high=high, p=p, p_adjusted=adjusted)


def _p_values(values: np.ndarray) -> np.ndarray:
    """Return two-sided p-values of 0 under samples [samples, rows]: twice the fraction beyond 0.

    With fewer than FEW_SAMPLES beyond 0, the tail of Student's t through the samples' quartiles and 95 % interval is
    used, because a correction over hundreds of tests needs smaller p-values than some thousand samples can resolve.
    """
    beyond = np.minimum((values <= 0).sum(axis=0), (values >= 0).sum(axis=0))
    p = np.minimum(1.0, 2 * (beyond + 1) / (len(values) + 1))
    if not values.size:
        return p
    low, lower, upper, high = np.quantile(values, [0.025, 0.25, 0.75, 0.975], axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.interp(-(high - low) / (upper - lower), -T_TAIL_RATIOS, T_DFS)
        tail = 2 * stats.t.sf(np.abs(low + high) / (high - low) * stats.t.ppf(0.975, df), df)
    return np.where((beyond < FEW_SAMPLES) & (high > low), np.minimum(tail, p), p)


def _quantiles(values: np.ndarray) -> np.ndarray:
    """Return the 95 % percentile interval along the first axis: [2, …]."""
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    return np.quantile(values, tails, axis=0) if values.size else np.empty((2, *values.shape[1:]))
