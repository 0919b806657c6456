"""Joint samples of the true mean scores of all cells, the basis of the intervals of means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from apet.core.hashing import seed_for
from apet.data.label_metrics import LOWEST

CELL = ["model", "task", "placement", "budget"]
"""Columns that identify a cell."""
CELL_FACTS = ["family", "non_embedding_params", "trainable_params", "metric", "chance_uniform", "chance_majority"]
SAMPLE_COUNT = 2000
PSEUDO_ROWS = 2
"""Pseudo-rows at each end of the metric's range that are added to every task (Agresti and Coull 1998), so that a cell
at an end is uncertain too."""


def lowest_scores(cells: pd.DataFrame) -> pd.Series:
    """Return the lowest possible score of each cell's metric. The highest is 1."""
    return cells.metric.map(lambda metric: LOWEST.get(metric, 0.0)).astype(float)


@dataclass(frozen=True)
class MeanSamples:
    """Mean scores of all cells and joint samples of their true values."""

    cells: pd.DataFrame
    """One row per cell: CELL, CELL_FACTS, n_test, num_plans, num_seeds, num_replicates (independent ones: plans, or
    the seeds of a single plan), diverged, mean, sd (between replicates), error (standard error from replicates, with a
    shrunken variance) and df (its degrees of freedom)."""
    values: np.ndarray
    """float64 [samples, cells], fractions; NaN for a cell without a score."""
    tasks: Mapping[str, Sequence[str]]
    """By family, the tasks of means over tasks, as `tasks_of_means` returns them."""

    def select(self, mask: pd.Series | np.ndarray, **changes: object) -> MeanSamples:
        """Return the cells of a mask, with columns changed."""
        mask = np.asarray(mask, bool)
        cells = self.cells[mask].assign(**changes).reset_index(drop=True)
        return replace(self, cells=cells, values=self.values[:, mask])


PLM = ["family", "non_embedding_params", "model"]


def study_cells(frame: pd.DataFrame) -> pd.DataFrame:
    """List every cell of the study, with data or missing. A grid entry may be limited to some PLMs or tasks.

    Args:
        frame: the tidy table with its attrs.

    Returns:
        Columns family, non_embedding_params, model, task, placement, budget, sorted by family, size and task. A PLM
        without any data has no known size and is left out; notes count it.
    """
    missing = pd.DataFrame(list(frame.attrs.get("missing", ())), columns=CELL)
    cells = pd.concat([frame[CELL], missing]).drop_duplicates()
    facts = frame[PLM].drop_duplicates("model")
    cells = cells.merge(facts, on="model")[[*PLM, *CELL[1:]]]
    return cells.sort_values([*PLM, "task"], ignore_index=True, kind="stable")


def study_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """List every pair of PLM and task of `study_cells`, without placement and budget."""
    return study_cells(frame)[[*PLM, "task"]].drop_duplicates(ignore_index=True)


def tasks_of_means(pairs: pd.DataFrame) -> dict[str, list[str]]:
    """Return the tasks of means over tasks: by family, those that the study has for every PLM of the family.

    Means of PLMs that are compared are then over the same tasks. A task of which data are missing stays in the list, so
    that a mean does not change its meaning when a cell fails: it is not given.

    Args:
        pairs: the study's pairs of PLM and task, as `study_pairs` returns them.

    Returns:
        Sorted names of tasks by family.
    """
    shared = pairs.groupby(["family", "task"]).model.nunique().eq(pairs.groupby("family").model.nunique())
    return {family: [] for family in pairs.family} | {
        family: sorted(task for _, task in group.index) for family, group in shared[shared].groupby("family")
    }


def sample_means(frame: pd.DataFrame, count: int = SAMPLE_COUNT) -> MeanSamples:
    """Sample the true mean scores of a tidy table's cells jointly.

    Replicates and test rows are crossed, because every replicate is scored on the same rows (Owen 2007). Test rows are
    resampled (Efron 1979) with the same weights for all cells of a task: cells are paired row by row, and the
    difficulty that they share cancels in differences. Two or three replicates are too few for a bootstrap. Their part
    is Student's pivot (Weerahandi 1993), mean + error × t, independent between cells, with a variance shrunken over the
    cells of the PLM (`shrink_variances`). A cell of one replicate has the uncertainty of its test rows only. The
    interaction of replicates and rows counts in both levels, so intervals are conservative.

    The samples are a function of the table, whatever the order of its rows. The samples of a cell depend on other cells
    only through the shrunken variance.

    Args:
        frame: the tidy table.
        count: number of samples.

    Returns:
        Cells and samples.

    Raises:
        ValueError: the table has no row scores.
    """
    tasks = tasks_of_means(study_pairs(frame))
    frame = frame.sort_values([*CELL, "plan_index", "seed_index"], ignore_index=True)
    replicates = _independent_replicates(frame)
    cells = _cells(frame, replicates)
    values = np.full((count, len(cells)), np.nan)
    for task, indices in cells.groupby("task").indices.items():
        scored = indices[cells["mean"].iloc[indices].notna()]
        row_means, lowest = _row_means(replicates, cells.iloc[scored]), lowest_scores(cells.iloc[scored]).to_numpy()
        values[:, scored] = _resample_rows(row_means, lowest, count, seed_for("analysis.rows", task))
    for index, cell in enumerate(cells.itertuples()):
        if cell.error > 0:
            rng = np.random.default_rng(seed_for("analysis.replicates", *(getattr(cell, name) for name in CELL)))
            values[:, index] += cell.error * rng.standard_t(cell.df, count)
    return MeanSamples(cells, values, tasks)


def _independent_replicates(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row per plan of a cell, or per seed of its only plan: mean score and mean row scores [n]."""
    several = frame.groupby(CELL).plan_index.transform("nunique") > 1
    scored = frame.assign(index=frame.plan_index.where(several, frame.seed_index))[frame.test_score.notna()]
    groups = scored.groupby([*CELL, "index"])
    replicates = groups.test_score.mean().to_frame("test_score").reset_index()
    indices, row_scores = groups.indices, scored.row_scores.to_numpy()
    keys = replicates[[*CELL, "index"]].itertuples(index=False, name=None)
    replicates["row_scores"] = [_mean_row(row_scores[indices[key]]) for key in keys]
    return replicates


def _mean_row(rows: np.ndarray) -> np.ndarray:
    if not all(map(len, rows)):
        raise ValueError("a replicate with a score has no scores of its test rows")
    return rows[0] if len(rows) == 1 else np.mean(np.stack(list(rows)), axis=0)


def _cells(frame: pd.DataFrame, replicates: pd.DataFrame) -> pd.DataFrame:
    groups = frame.assign(diverged=frame.outcome.eq("diverged")).groupby(CELL)
    facts = groups.agg(
        **{name: (name, "first") for name in CELL_FACTS},
        n_test=("n_test", "min"),
        num_plans=("plan_index", "nunique"),
        num_seeds=("seed_index", "nunique"),
        diverged=("diverged", "sum"),
    )
    scores = replicates.groupby(CELL).test_score.agg(mean="mean", sd="std", num_replicates="count")
    cells = facts.join(scores).reset_index()
    cells["num_replicates"] = cells.num_replicates.fillna(0).astype(int)
    cells[["error", "df"]] = _errors(cells)
    return cells


def _errors(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the standard error over replicates and its degrees of freedom; 0 and infinite for a single replicate.

    Variances are shrunken over cells of one PLM whose replicates are of one kind: plans vary more than seeds.
    """
    errors = pd.DataFrame({"error": 0.0, "df": np.inf}, index=cells.index)
    several = cells[cells.num_replicates > 1]
    for _, group in several.groupby(["model", several.num_plans > 1]):
        # Scores are multiples of range/n: rounding adds a variance of (range/n)²/12 (Sheppard 1898).
        count, step = group.num_replicates.to_numpy(), ((1 - lowest_scores(group)) / group.n_test).to_numpy()
        variances, dfs = shrink_variances(group.sd.to_numpy() ** 2, count - 1.0, step**2 / 12)
        errors.loc[group.index, "error"] = np.sqrt(variances / count)
        errors.loc[group.index, "df"] = dfs
    return errors


def _row_means(replicates: pd.DataFrame, cells: pd.DataFrame) -> np.ndarray:
    """Return the mean score on each test row over a cell's replicates: float64 [n, cells]."""
    if cells.empty:
        return np.empty((0, 0))
    own = replicates.merge(cells[CELL].assign(position=range(len(cells))), on=CELL)
    rows = np.stack(own.row_scores.to_numpy()).astype(np.float64)
    starts = np.flatnonzero(np.diff(own.position, prepend=-1))
    return (np.add.reduceat(rows, starts) / np.diff(starts, append=len(own))[:, None]).T


def _resample_rows(rows: np.ndarray, lowest: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the means of `rows` [n, cells] under `count` resamples of the rows: [count, cells].

    The metrics of the cells range from `lowest` [cells] to 1.
    """
    n = len(rows) + 2 * PSEUDO_ROWS
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), count) / n
    own, at_lowest, at_highest = np.split(weights, [len(rows), len(rows) + PSEUDO_ROWS], axis=1)
    return own @ rows + np.outer(at_lowest.sum(axis=1), lowest) + at_highest.sum(axis=1)[:, None]


NO_EXCESS = 1e-9
SMALLEST_RATIO = 1e-5
"""Lower limit of a variance relative to the median of all, because 0 has no logarithm."""


def shrink_variances(
    variances: np.ndarray, dfs: np.ndarray, resolution: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Shrink sample variances towards each other (limma's `squeezeVar`; Smyth 2004, equations 3 and 6 to 8).

    The prior of the true variances is a scaled inverse χ², whose scale and degrees of freedom d₀ are estimated from the
    sample variances. Similar variances give a large d₀, so that two replicates borrow information from all cells;
    dissimilar ones give a small d₀. Averaged over cells, t intervals from the posterior have nominal coverage.

    Args:
        variances: sample variances (k,).
        dfs: their degrees of freedom (k,).
        resolution: lower limit of the variances (k,) from the resolution of the scores. Without it, two scores that tie
            by chance would make all others look dissimilar.

    Returns:
        Posterior variances (k,) and their degrees of freedom (k,), at most the sum of `dfs`.
    """
    variances, dfs = np.maximum(np.asarray(variances, float), resolution), np.asarray(dfs, float)
    if len(variances) < 2 or not (variances > 0).any():
        return variances, dfs
    prior, prior_df = _prior(np.maximum(variances, SMALLEST_RATIO * np.median(variances[variances > 0])), dfs)
    if np.isinf(prior_df):
        return np.full_like(variances, prior), np.full_like(dfs, dfs.sum())
    posterior = (prior_df * prior + dfs * variances) / (prior_df + dfs)
    return posterior, np.minimum(prior_df + dfs, dfs.sum())


def _prior(variances: np.ndarray, dfs: np.ndarray) -> tuple[float, float]:
    """Return scale s₀² and degrees of freedom d₀ of the prior, by the moments of log variances."""
    logs = np.log(variances) - digamma(dfs / 2) + np.log(dfs / 2)
    excess = np.var(logs, ddof=1) - np.mean(polygamma(1, dfs / 2))
    if excess <= NO_EXCESS:
        # Of equal variances the pooled one is a better estimate than the mean of logarithms.
        return float(np.average(variances, weights=dfs)), np.inf
    half = brentq(lambda x: float(polygamma(1, np.exp(x))) - excess, -20, 30)
    prior_df = 2 * float(np.exp(half))
    return float(np.exp(np.mean(logs) + digamma(prior_df / 2) - np.log(prior_df / 2))), prior_df
