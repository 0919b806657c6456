"""How a quantity of PLMs changes with their size: slopes over the decades of parameters, within families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from apet.analysis.intervals import Estimate, NotEstimable, t_interval

NEARLY_ALL = 0.9
"""Where more than this share of values lies at one end of what was tested, a slope says nothing."""
ENDS = {-1: "at or below the smallest", 1: "above the largest"}


@dataclass(frozen=True)
class ClaimData:
    """A quantity of every PLM on every task.

    table: a row each (family, non_embedding, model, task); combine: weights (rows,) -> estimate of the weighted sum;
    cells: the cells (CELL columns) that the quantity rests on; lacking: why a row may be absent, for the reader.
    Of thresholds also values [1 + draws, rows], the plug-in first; end (rows,): −1 or 1 where a value is censored at
    the lower or upper end of what was tested, else 0; and the reference that the quantity is compared with.
    """

    table: pd.DataFrame
    combine: Callable[[np.ndarray], Estimate]
    cells: pd.DataFrame
    lacking: str
    values: np.ndarray | None = None
    end: np.ndarray | None = None
    reference: float = 0.0

    def inside(self, models: Sequence[str]) -> np.ndarray:
        """Mask of the rows of some PLMs; NotEstimable, with the reason, if there are none."""
        found = self.table.model.isin(models).to_numpy(copy=True)
        if not found.any():
            raise NotEstimable(self.lacking)
        return found


@dataclass(frozen=True)
class ClaimResult:
    """What a claim's data say in one scope: the signed quantity on these tasks, and beyond them or why not; rows of the
    measured table that it rests on; each PLM's own value; a remark on what the estimate cannot show."""

    these: Estimate
    beyond: Estimate | str
    rows: np.ndarray
    values: dict[str, Estimate]
    remark: str = ""


def slope(measured: ClaimData, models: Sequence[str]) -> ClaimResult:
    """The mean over tasks of the slope over log10 of non-embedding parameters, pooled least squares within families.

    Raises NotEstimable without two sizes of one family, or where nearly all values are censored at one end.
    """
    rows = _of_two_sizes(measured.table, measured.inside(models))
    if measured.end is not None:
        check_ends(measured, rows)
    weights = slope_weights(measured.table, rows)
    these = measured.combine(weights.mean(axis=0))
    beyond: Estimate | str
    try:
        beyond = t_interval(np.array([measured.combine(task).value for task in weights]))
    except NotEstimable as error:
        beyond = str(error)
    return ClaimResult(these, beyond, rows, plm_means(measured, rows))


def slope_weights(table: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """[tasks, all rows]: what each of `rows` (mask; two sizes a family and task) weighs in its task's slope.

    Sizes are centred within a family, so that families differ in their level freely.
    """
    x = pd.Series(np.log10(table.non_embedding.astype(float))).where(rows)
    centred = (x - x.groupby([table.family, table.task]).transform("mean")).fillna(0.0).to_numpy()
    tasks = [table.task.eq(task).to_numpy() for task in sorted(table.task[rows].unique())]
    return np.array([task * centred / np.sum(centred[task] ** 2) for task in tasks])


def plm_means(measured: ClaimData, rows: np.ndarray) -> dict[str, Estimate]:
    """Each PLM's mean over the tasks of `rows`; a PLM that lacks one of its family's tasks there has none."""
    table, found = measured.table, {}
    for model, group in table[rows].groupby("model", sort=False):
        tasks = table.task[rows & table.family.eq(group.family.iloc[0]).to_numpy()].nunique()
        if len(group) == tasks:
            found[model] = measured.combine((rows & table.model.eq(model).to_numpy()) / tasks)
    return found


def _of_two_sizes(table: pd.DataFrame, inside: np.ndarray) -> np.ndarray:
    """Those of the rows `inside` whose family has PLMs of two sizes on the task."""
    sizes = table[inside].groupby(["family", "task"]).non_embedding.transform("nunique")
    rows = inside.copy()
    rows[inside] = sizes > 1
    if not rows.any():
        raise NotEstimable("no family has PLMs of two sizes that can be compared")
    return rows


def check_ends(measured: ClaimData, rows: np.ndarray) -> None:
    """NotEstimable where nearly all of the values are censored at one end."""
    assert measured.end is not None
    for end, name in ENDS.items():
        count, total = int(np.sum(measured.end[rows] == end)), int(rows.sum())
        if count > NEARLY_ALL * total:
            raise NotEstimable(
                f"{count} of {total} thresholds lie {name} number of parameters tested in all that is compared"
            )
