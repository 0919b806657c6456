"""Change of a quantity with PLM size: slopes per tenfold increase in parameters, within families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from apet.analysis.intervals import Estimate, NotEstimable, t_interval

MOST_CENSORED = 0.9
"""Largest fraction of values censored at one end for which a slope is estimated."""
CENSORED_ENDS = {-1: "at or below the smallest", 1: "above the largest"}


@dataclass(frozen=True)
class ClaimData:
    """The quantity of a claim for every PLM and task."""

    table: pd.DataFrame
    """One row per PLM and task: family, non_embedding_params, model, task."""
    combine: Callable[[np.ndarray], Estimate]
    """Weights (rows,) -> estimate of the weighted sum."""
    source_cells: pd.DataFrame
    """Cells (CELL columns) from which the quantity is computed."""
    missing_reason: str
    """Reason why rows may be missing, for readers of the findings."""
    values: np.ndarray | None = None
    """Of thresholds: [1 + samples, rows], the plug-in estimate first."""
    censoring: np.ndarray | None = None
    """Of thresholds (rows,): −1 or 1 if censored at the smallest or largest tested number of parameters, else 0."""
    reference: float = 0.0
    """Value with which the quantity is compared."""

    def rows_of(self, models: Sequence[str]) -> np.ndarray:
        """Mask the rows of some PLMs. Raises NotEstimable, with the reason, if there are none."""
        rows = self.table.model.isin(models).to_numpy(copy=True)
        if not rows.any():
            raise NotEstimable(self.missing_reason)
        return rows


@dataclass(frozen=True)
class ClaimResult:
    """A claim's signed quantity in one scope."""

    fixed_tasks: Estimate
    """Estimate for the study's tasks."""
    task_population: Estimate | str
    """Estimate for the population of which the tasks are a sample, or the reason why there is none."""
    rows: np.ndarray
    """Mask of the rows of `ClaimData.table` that are used."""
    values: dict[str, Estimate]
    """Value of each PLM."""
    remark: str = ""
    """Limitation of the estimate."""


def slope(data: ClaimData, models: Sequence[str]) -> ClaimResult:
    """Estimate the mean over tasks of the slope over log10 of non-embedding parameters.

    Slopes are pooled least squares within families.

    Args:
        data: the quantity by PLM and task.
        models: PLMs of the scope.

    Returns:
        The slopes, and each PLM's mean.

    Raises:
        NotEstimable: no family has two sizes, or nearly all values are censored at one end.
    """
    rows = with_two_sizes(data.table, data.rows_of(models))
    if data.censoring is not None:
        check_censoring(data.censoring[rows])
    weights = slope_weights(data.table, rows)
    population: Estimate | str
    try:
        population = t_interval(np.array([data.combine(task).value for task in weights]))
    except NotEstimable as error:
        population = str(error)
    return ClaimResult(data.combine(weights.mean(axis=0)), population, rows, plm_means(data, rows))


def slope_weights(table: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """Compute the weight of each row in its task's slope.

    Sizes are centred within a family, so that families may differ in level.

    Args:
        table: `ClaimData.table`.
        rows: mask of the rows used, with two sizes per family and task.

    Returns:
        Weights [tasks, all rows].
    """
    x = pd.Series(np.log10(table.non_embedding_params.astype(float))).where(rows)
    centred = (x - x.groupby([table.family, table.task]).transform("mean")).fillna(0.0).to_numpy()
    tasks = [table.task.eq(task).to_numpy() for task in sorted(table.task[rows].unique())]
    return np.array([task * centred / np.sum(centred[task] ** 2) for task in tasks])


def plm_means(data: ClaimData, rows: np.ndarray) -> dict[str, Estimate]:
    """Return each PLM's mean over the tasks of `rows`; PLMs that lack one of their family's tasks are left out."""
    table, means = data.table, {}
    for model, group in table[rows].groupby("model", sort=False):
        tasks = table.task[rows & table.family.eq(group.family.iloc[0]).to_numpy()].nunique()
        if len(group) == tasks:
            means[model] = data.combine((rows & table.model.eq(model).to_numpy()) / tasks)
    return means


def with_two_sizes(table: pd.DataFrame, mask: np.ndarray) -> np.ndarray:
    """Mask the rows whose family has PLMs of two sizes on the task."""
    sizes = table[mask].groupby(["family", "task"]).non_embedding_params.transform("nunique")
    rows = mask.copy()
    rows[mask] = sizes > 1
    if not rows.any():
        raise NotEstimable("no family has PLMs of two sizes that can be compared")
    return rows


def check_censoring(censoring: np.ndarray) -> None:
    """Raise NotEstimable if nearly all values (rows,) are censored at the same end."""
    for end, name in CENSORED_ENDS.items():
        count, total = int(np.sum(censoring == end)), len(censoring)
        if count > MOST_CENSORED * total:
            raise NotEstimable(f"{count} of {total} thresholds are {name} number of parameters tested for all of them")
