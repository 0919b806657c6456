"""Joint draws of the true mean scores of all cells, given the data: the one resampling on which intervals rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from apet.analysis.moderation import moderate
from apet.provenance import seed_for

CELL = ["model", "task", "placement", "budget"]
FACTS = ["family", "non_embedding", "tunable", "metric", "chance", "majority"]
COUNT = 2000
PSEUDO = np.array([0.0, 0.0, 1.0, 1.0])
"""Scores of the pseudo-rows that every task gets (Agresti and Coull 1998): a cell at 0 or 1 is not certain either."""


@dataclass(frozen=True)
class Draws:
    """What the data say of all cells together.

    cells: a row each: CELL, FACTS, n (test rows), draws, reruns, units (independent replicates), diverged, mean, sd
    (between units), error (standard error from replicates, moderated) and df (its degrees of freedom).
    values: float64 [draws, cells], joint draws of the cells' true mean scores, fractions; NaN without a score.
    """

    cells: pd.DataFrame
    values: np.ndarray

    def select(self, mask: pd.Series | np.ndarray, **changes: object) -> Draws:
        """Some of the cells, with columns of theirs changed."""
        mask = np.asarray(mask, bool)
        return Draws(self.cells[mask].assign(**changes).reset_index(drop=True), self.values[:, mask])


def draw_means(frame: pd.DataFrame, count: int = COUNT) -> Draws:
    """`count` joint draws of the mean scores of a tidy table's cells.

    Two levels, as replicates and test rows are crossed: every replicate meets the same rows (Owen 2007).
    Test rows are resampled (Efron 1979), with the same weights for all cells of a task, so that cells are paired row by
    row and what is hard for all of them leaves their differences. Replicates are not resampled, for two or three units
    cannot be: a bootstrap of them covers far less than it says. Their part is Student's pivot (Weerahandi 1993),
    mean + error × t, independent for each cell, its variance moderated over the cells of the same PLM (`moderate`). A
    cell of one unit knows its test rows alone. What a replicate does on one row counts in both levels, so that
    intervals err on the wide side.

    The draws are a function of the table, whatever the order of its rows, and a cell's own do not depend on the others
    but through moderation. Raises ValueError for a table without the scores of test rows.
    """
    frame = frame.sort_values([*CELL, "draw", "rerun"], ignore_index=True)
    units = _units(frame)
    cells = _cells(frame, units)
    values = np.full((count, len(cells)), np.nan)
    for task, places in cells.groupby("task").indices.items():
        scored = places[cells["mean"].iloc[places].notna()]
        rows = _row_means(units, cells.iloc[scored])
        values[:, scored] = _resampled(rows, count, seed_for("analysis.rows", task))
    for place, cell in enumerate(cells.itertuples()):
        if cell.error > 0:
            random = np.random.default_rng(seed_for("analysis.replicates", *(getattr(cell, name) for name in CELL)))
            values[:, place] += cell.error * random.standard_t(cell.df, count)
    return Draws(cells, values)


def _units(frame: pd.DataFrame) -> pd.DataFrame:
    """A row an independent unit, the draws of a cell or the reruns of its one draw: mean score, and rows [n] summed
    with the number of replicates in the sum."""
    several = frame.groupby(CELL).draw.transform("nunique") > 1
    scored = frame.assign(unit=frame.draw.where(several, frame.rerun))[frame.score.notna()]
    groups = scored.groupby([*CELL, "unit"])
    units = groups.score.mean().to_frame("score").reset_index()
    places = groups.indices
    found = scored["rows"].to_numpy()
    keys = units[[*CELL, "unit"]].itertuples(index=False, name=None)
    units["rows"] = [_mean_row(found[places[key]]) for key in keys]
    return units


def _mean_row(rows: np.ndarray) -> np.ndarray:
    if not all(map(len, rows)):
        raise ValueError("a replicate with a score has no scores of its test rows")
    return rows[0] if len(rows) == 1 else np.mean(np.stack(list(rows)), axis=0)


def _cells(frame: pd.DataFrame, units: pd.DataFrame) -> pd.DataFrame:
    groups = frame.assign(diverged=frame.outcome.eq("diverged")).groupby(CELL)
    facts = groups.agg(
        **{name: (name, "first") for name in FACTS},
        n=("n", "min"),
        draws=("draw", "nunique"),
        reruns=("rerun", "nunique"),
        diverged=("diverged", "sum"),
    )
    scores = units.groupby(CELL).score.agg(mean="mean", sd="std", units="count")
    cells = facts.join(scores).reset_index()
    cells["units"] = cells.units.fillna(0).astype(int)
    cells[["error", "df"]] = _errors(cells)
    return cells


def _errors(cells: pd.DataFrame) -> pd.DataFrame:
    """Standard error of the mean over units, and its degrees of freedom; 0 and infinite for a cell of one unit.

    Siblings are the cells of one PLM whose units are of one kind: plans scatter otherwise than reruns of a plan.
    """
    errors = pd.DataFrame({"error": 0.0, "df": np.inf}, index=cells.index)
    several = cells[cells.units > 1]
    for _, group in several.groupby(["model", several.draws > 1]):
        # Scores are multiples of 1/n: rounding leaves a variance of a twelfth of its square (Sheppard 1898).
        variances, dfs = moderate(group.sd.to_numpy() ** 2, group.units.to_numpy() - 1.0, 1 / (12 * group.n**2))
        errors.loc[group.index, "error"] = np.sqrt(variances / group.units.to_numpy())
        errors.loc[group.index, "df"] = dfs
    return errors


def _row_means(units: pd.DataFrame, cells: pd.DataFrame) -> np.ndarray:
    """Mean score on each test row over a cell's units: float64 [n, cells]."""
    if cells.empty:
        return np.empty((0, 0))
    own = units.merge(cells[CELL].assign(place=range(len(cells))), on=CELL)
    rows = np.stack(own["rows"].to_numpy()).astype(np.float64)
    starts = np.flatnonzero(np.diff(own.place, prepend=-1))
    return (np.add.reduceat(rows, starts) / np.diff(starts, append=len(own))[:, None]).T


def _resampled(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Means of `rows` [n, cells] under `count` resamples of the rows: [count, cells]."""
    n = len(rows) + len(PSEUDO)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), count) / n
    return weights[:, : len(rows)] @ rows + (weights[:, len(rows) :] @ PSEUDO)[:, None]
