"""How much of the spread of scores is due to the positions, and how much to rerunning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from apet.analysis.intervals import CONFIDENCE, Estimate, NotEstimable, percentile_interval
from apet.analysis.means import RANDOM
from apet.analysis.resampling import CELL
from apet.analysis.trends import ClaimData, ClaimResult, check_ends
from apet.core.hashing import seed_for

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


def spread_over_tasks(measured: ClaimData, models: Sequence[str]) -> ClaimResult:
    """The S.D. over tasks of a PLM's values, pooled over PLMs (root of the mean variance), less `measured.reference`.

    On these tasks: `variance_of_truth`. Beyond them tasks are a sample and log thresholds normal: χ² with tasks − 1
    degrees of freedom, however many PLMs, for they share the tasks. Where values are censored the S.D. is known from
    below only, since clipping brings values together: the upper bounds are infinite.
    Raises NotEstimable without two tasks on one PLM, or where nearly all values are censored at one end.
    """
    rows = _of_two_tasks(measured, models)
    check_ends(measured, rows)
    assert measured.values is not None and measured.end is not None  # as all thresholds have
    places = {name: rows & measured.table.model.eq(name).to_numpy() for name in measured.table.model[rows].unique()}
    parts = [measured.values[:, place] for place in places.values()]
    these = variance_of_truth(parts)
    beyond = _of_more_tasks(
        these, float(np.mean([part[0].var(ddof=1) for part in parts])), min(p.shape[1] for p in parts)
    )
    censored = measured.end != 0
    values = {
        name: _sd(variance_of_truth([part]), 0.0, bool(censored[place].any()))
        for (name, place), part in zip(places.items(), parts, strict=True)
    }
    count = int(censored[rows].sum())
    remark = f"{count} of {rows.sum()} thresholds lie outside the numbers tested: the S.D. is known from below only"
    levels = [_sd(variance, measured.reference, count > 0) for variance in (these, beyond)]
    return ClaimResult(levels[0], levels[1], rows, values, remark if count else "")


def variance_of_truth(parts: Sequence[np.ndarray]) -> Estimate:
    """Mean over `parts` (PLMs) of the variance over tasks of the true values; a part: [1 + draws, tasks], plug-in
    first.

    Noise adds to a variance, and draws about noisy values hold it twice. So a test is inverted (Carpenter 1999): each
    draw's noise is put on the observed deviations from the mean, shrunk by the factor that brings their variance back
    to the one observed; the shrunken variances' quantiles are the bounds, their median the value. The upper bound is at
    least the percentile of the draws' variance, which double noise puts on the wide side.
    """
    observed = float(np.mean([part[0].var(ddof=1) for part in parts]))
    mixed, plain = np.zeros(2)
    for part in parts:
        noise, away = part[1:] - np.median(part[1:], axis=0), part[0] - part[0].mean()
        mixed = mixed + noise @ away / (len(away) - 1) / len(parts)
        plain = plain + noise.var(axis=1, ddof=1) / len(parts)
    inside = np.sqrt(np.maximum(mixed**2 + observed * (observed - plain), 0)) - mixed
    shrunken = np.where(plain < observed, np.maximum(inside, 0) ** 2 / (observed or 1.0), 0.0)
    drawn = np.mean([part[1:].var(axis=1, ddof=1) for part in parts], axis=0)
    value = float(np.median(shrunken))
    truth, above = percentile_interval(shrunken, value), percentile_interval(drawn, observed)

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = truth.bounds(alpha)
        return min(max(low, 0.0), value), max(high, above.bounds(alpha)[1], value)

    return Estimate(value, bounds)


def _of_more_tasks(these: Estimate, observed: float, tasks: int) -> Estimate:
    """The variance in the population of tasks: χ² bounds, the lower of what is certain on these tasks, the upper of the
    observed variance, noise and all."""
    df = tasks - 1

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = df / stats.chi2.isf(alpha / 2, df), df / stats.chi2.ppf(alpha / 2, df)
        return these.bounds(alpha)[0] * min(low, 1.0), observed * max(high, 1.0)

    return Estimate(these.value, bounds)


def _of_two_tasks(measured: ClaimData, models: Sequence[str]) -> np.ndarray:
    """Mask of the rows of those PLMs that have values on two tasks or more."""
    rows = measured.inside(models)
    rows[rows] = measured.table[rows].groupby("model").task.transform("nunique") > 1
    if not rows.any():
        raise NotEstimable("no PLM has values on two tasks")
    return rows


def _sd(variance: Estimate, reference: float, open_above: bool) -> Estimate:
    """From a variance to its root less a reference; no upper bound where censoring leaves none."""

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = (float(np.sqrt(bound)) - reference for bound in variance.bounds(alpha))
        return low, np.inf if open_above else high

    return Estimate(float(np.sqrt(variance.value)) - reference, bounds)
