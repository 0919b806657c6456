"""How much of the spread of scores is due to the positions, and how much to rerunning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from apet.analysis.confidence import CONFIDENCE
from apet.analysis.means import RANDOM
from apet.analysis.resampling import CELL
from apet.provenance import seed_for

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


@dataclass(frozen=True)
class MeanSquares:
    """Mean squares of one cell's scores, fractions², that add up to its variance due to the plan on new test rows:
    (between − within)/n0 − rows. dfs: degrees of freedom of the two."""

    between: float
    within: float
    n0: float
    df_between: int
    df_within: int
    rows: float

    @property
    def component(self) -> float:
        return (self.between - self.within) / self.n0 - self.rows


def mean_squares(rows: np.ndarray, draws: np.ndarray) -> MeanSquares | None:
    """One cell's analysis of variance: rows (replicates, n) of scores, draws (replicates,); None where it has none, for
    want of two draws or of a draw of two reruns.

    Plans and reruns (nested in plans) are crossed with the test rows. Between plans the mean square of scores expects
    n0 (σ²plan + σ²plan×row/n) + σ²rerun + σ²rerun×row/n, within plans the last two terms. What plan × row adds, that
    two equally good plans err on different rows, is chance in the choice of rows, and is taken off by the mean squares
    of the interactions (Searle, Casella and McCulloch 1992, chapter 4; Brennan, Generalizability Theory, 2001).
    """
    names, index, sizes = np.unique(draws, return_inverse=True, return_counts=True)
    a, total, n = len(names), len(rows), rows.shape[1]
    if a < 2 or total == a or n < 2:
        return None
    n0 = (total - np.sum(sizes**2) / total) / (a - 1)
    rows = rows.astype(float)
    plans = np.stack([rows[index == i].mean(axis=0) for i in range(a)])
    off_plan, off_all = rows - plans[index], plans - rows.mean(axis=0)
    between, within = (
        np.sum(sizes * off_all.mean(axis=1) ** 2) / (a - 1),
        np.sum(off_plan.mean(axis=1) ** 2) / (total - a),
    )
    rerun_row = np.sum(off_plan.var(axis=1)) * n / ((total - a) * (n - 1))
    plan_row = np.sum(sizes * off_all.var(axis=1)) * n / ((a - 1) * (n - 1))
    return MeanSquares(between, within, n0, a - 1, total - a, (plan_row - rerun_row) / (n0 * n))


def position_components(frame: pd.DataFrame) -> pd.DataFrame:
    """`MeanSquares` of APET's cells (CELL columns, family, non_embedding) at every budget where there are such.

    Replicates that diverged are left out; with one of few gone, the between mean square is χ² only roughly.
    """
    chosen = frame[frame.placement.eq(RANDOM) & frame.score.notna()]
    found = []
    for cell, group in chosen.groupby(CELL, observed=True):
        squares = mean_squares(np.stack(group.rows.to_list()), group.draw.to_numpy())
        if squares is not None:
            facts = group.iloc[0][["family", "non_embedding"]]
            found.append(
                {**dict(zip(CELL, cell, strict=True)), **facts, **vars(squares), "component": squares.component}
            )
    numbers = [*MeanSquares.__dataclass_fields__, "component"]
    table = pd.DataFrame(found, columns=[*CELL, "family", "non_embedding", *numbers])
    return table.astype(dict.fromkeys(numbers, float))


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
