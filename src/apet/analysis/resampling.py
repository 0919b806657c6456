"""Joint draws of the true mean scores of all cells, given the data: the one resampling on which intervals rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

from apet.core.hashing import seed_for

CELL = ["model", "task", "placement", "budget"]
FACTS = ["family", "non_embedding", "tunable", "metric", "chance", "majority"]
COUNT = 2000
PSEUDO = np.array([0.0, 0.0, 1.0, 1.0])
"""Scores of the pseudo-rows that every task gets (Agresti and Coull 1998): a cell at 0 or 1 is not certain either."""


@dataclass(frozen=True)
class MeanSamples:
    """What the data say of all cells together.

    cells: a row each: CELL, FACTS, n (test rows), draws, reruns, units (independent replicates), diverged, mean, sd
    (between units), error (standard error from replicates, moderated) and df (its degrees of freedom).
    values: float64 [draws, cells], joint draws of the cells' true mean scores, fractions; NaN without a score.
    """

    cells: pd.DataFrame
    values: np.ndarray

    def select(self, mask: pd.Series | np.ndarray, **changes: object) -> MeanSamples:
        """Some of the cells, with columns of theirs changed."""
        mask = np.asarray(mask, bool)
        return MeanSamples(self.cells[mask].assign(**changes).reset_index(drop=True), self.values[:, mask])


def sample_means(frame: pd.DataFrame, count: int = COUNT) -> MeanSamples:
    """`count` joint draws of the mean scores of a tidy table's cells.

    Two levels, as replicates and test rows are crossed: every replicate meets the same rows (Owen 2007).
    Test rows are resampled (Efron 1979), with the same weights for all cells of a task, so that cells are paired row by
    row and what is hard for all of them leaves their differences. Replicates are not resampled, for two or three units
    cannot be: a bootstrap of them covers far less than it says. Their part is Student's pivot (Weerahandi 1993),
    mean + error × t, independent for each cell, its variance moderated over the cells of the same PLM (`shrink_variances`). A
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
    return MeanSamples(cells, values)


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
        variances, dfs = shrink_variances(group.sd.to_numpy() ** 2, group.units.to_numpy() - 1.0, 1 / (12 * group.n**2))
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


NOTHING = 1e-9
SMALLEST = 1e-5
"""A variance below this share of the median of all is taken for that, since 0 has no logarithm."""


def shrink_variances(
    variances: np.ndarray, dfs: np.ndarray, seen: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior variances (k,) and their degrees of freedom (k,), given sample variances (k,) with `dfs` (k,).

    seen (k,): the least variance that the resolution of the scores lets be seen; smaller ones are taken for it, or two
    scores that tie by chance would make all others look unlike.

    Smyth (2004), equations 3 and 6 to 8: true variances are taken to scatter as a scaled inverse χ², whose scale and
    degrees of freedom d₀ the sample variances themselves tell. Alike variances give a large d₀, so that two replicates
    borrow the certainty of all cells; unlike ones a small d₀, and each cell speaks for itself. The posterior's degrees
    of freedom are at most the sum of all. On average over cells, t intervals from both cover what they say.
    """
    variances, dfs = np.maximum(np.asarray(variances, float), seen), np.asarray(dfs, float)
    if len(variances) < 2 or not (variances > 0).any():
        return variances, dfs
    prior, prior_df = _prior(np.maximum(variances, SMALLEST * np.median(variances[variances > 0])), dfs)
    if np.isinf(prior_df):
        return np.full_like(variances, prior), np.full_like(dfs, dfs.sum())
    posterior = (prior_df * prior + dfs * variances) / (prior_df + dfs)
    return posterior, np.minimum(prior_df + dfs, dfs.sum())


def _prior(variances: np.ndarray, dfs: np.ndarray) -> tuple[float, float]:
    """Scale s₀² and degrees of freedom d₀ of the prior, by the moments of log variances."""
    logs = np.log(variances) - digamma(dfs / 2) + np.log(dfs / 2)
    excess = np.var(logs, ddof=1) - np.mean(polygamma(1, dfs / 2))
    if excess <= NOTHING:
        # Alike: then the pooled variance is the better estimate than the mean of logarithms.
        return float(np.average(variances, weights=dfs)), np.inf
    half = brentq(lambda x: float(polygamma(1, np.exp(x))) - excess, -20, 30)
    prior_df = 2 * float(np.exp(half))
    return float(np.exp(np.mean(logs) + digamma(prior_df / 2) - np.log(prior_df / 2))), prior_df
