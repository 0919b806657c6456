"""Variance components: how much of the spread of scores is due to positions, to seeds and to test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from apet.analysis.intervals import CONFIDENCE, Estimate, NotEstimable, percentile_interval
from apet.analysis.means import RANDOM
from apet.analysis.resampling import CELL
from apet.analysis.trends import ClaimData, ClaimResult, check_censoring
from apet.core.hashing import seed_for

SIMULATIONS = 20_000


@dataclass(frozen=True)
class Components:
    """Spread of one cell's scores, fractions. `between` and `within` are NaN without two plans, one with two seeds."""

    num_plans: int
    sd: float
    """S.D. of the plans' means, which includes all noise."""
    between: float
    """S.D. due to the plan only; 0 if its variance estimate is negative."""
    within: float
    """S.D. between seeds of one plan."""


def components(scores: np.ndarray, plans: np.ndarray) -> Components:
    """Estimate the variance components of one cell by one-way random effects.

    ANOVA estimator: between = (MSB − MSW)/n0, n0 = (N − Σ nᵢ²/N)/(a − 1), for a plans with nᵢ seeds, N replicates
    (Searle, Casella and McCulloch, Variance Components, 1992, chapter 3).

    Args:
        scores: fractions (replicates,).
        plans: index of each replicate's plan (replicates,).

    Returns:
        The components as S.D.s.
    """
    _, index, sizes = np.unique(plans, return_inverse=True, return_counts=True)
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
    """Mean squares of one cell's scores, fractions²."""

    between: float
    within: float
    n0: float
    """Effective number of seeds per plan."""
    df_between: int
    df_within: int
    rows: float
    """Variance due to the interaction of plans with test rows."""

    @property
    def component(self) -> float:
        """Variance due to the plan on new test rows: (between − within)/n0 − rows."""
        return (self.between - self.within) / self.n0 - self.rows


def mean_squares(rows: np.ndarray, plans: np.ndarray) -> MeanSquares | None:
    """Compute one cell's analysis of variance.

    Plans and seeds (nested in plans) are crossed with the test rows. The mean square between plans has the expectation
    n0 (σ²plan + σ²plan×row/n) + σ²seed + σ²seed×row/n, the one within plans the last two terms. The interaction
    plan × row (equally good plans err on different rows) depends on the choice of rows. It is subtracted by the mean
    squares of the interactions (Searle, Casella and McCulloch 1992, chapter 4; Brennan, Generalizability Theory, 2001).

    Args:
        rows: row scores (replicates, n).
        plans: index of each replicate's plan (replicates,).

    Returns:
        The mean squares; None without two plans, one of them with two seeds.
    """
    names, index, sizes = np.unique(plans, return_inverse=True, return_counts=True)
    a, total, n = len(names), len(rows), rows.shape[1]
    if a < 2 or total == a or n < 2:
        return None
    n0 = (total - np.sum(sizes**2) / total) / (a - 1)
    rows = rows.astype(float)
    plan_means = np.stack([rows[index == i].mean(axis=0) for i in range(a)])
    off_plan, off_all = rows - plan_means[index], plan_means - rows.mean(axis=0)
    between = np.sum(sizes * off_all.mean(axis=1) ** 2) / (a - 1)
    within = np.sum(off_plan.mean(axis=1) ** 2) / (total - a)
    seed_row = np.sum(off_plan.var(axis=1)) * n / ((total - a) * (n - 1))
    plan_row = np.sum(sizes * off_all.var(axis=1)) * n / ((a - 1) * (n - 1))
    return MeanSquares(between, within, n0, a - 1, total - a, (plan_row - seed_row) / (n0 * n))


def position_components(frame: pd.DataFrame) -> pd.DataFrame:
    """Compute `MeanSquares` of APET's cells.

    Diverged replicates are left out. With few of them the mean square between plans is χ² only approximately.

    Args:
        frame: the tidy table.

    Returns:
        One row per cell with mean squares: CELL, family, non_embedding_params, the fields of `MeanSquares`, component.
    """
    facts, rows = ["family", "non_embedding_params"], []
    scored = frame[frame.placement.eq(RANDOM) & frame.test_score.notna()]
    for cell, group in scored.groupby(CELL, observed=True):
        squares = mean_squares(np.stack(group.row_scores.to_list()), group.plan_index.to_numpy())
        if squares is not None:
            coordinates = dict(zip(CELL, cell, strict=True))
            rows.append({**coordinates, **group.iloc[0][facts], **vars(squares), "component": squares.component})
    numbers = [*MeanSquares.__dataclass_fields__, "component"]
    return pd.DataFrame(rows, columns=[*CELL, *facts, *numbers]).astype(dict.fromkeys(numbers, float))


def sd_interval(sds: np.ndarray, dfs: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % interval of a mean of S.D.s.

    Seeded parametric bootstrap of the pivot estimate/truth under normal scores, with true S.D.s in the estimated
    proportions. For one S.D. it is the χ² interval, up to simulation error.

    Args:
        sds: estimated S.D.s (tasks,).
        dfs: their degrees of freedom (tasks,).

    Returns:
        Low and high. Both are NaN if an S.D. is NaN or has no degree of freedom; high is NaN if all S.D.s are 0.
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
    """Compute the spread between APET's plans.

    Args:
        frame: the tidy table.

    Returns:
        One row per model, task and budget: the fields of `Components`, and the 95 % interval of `sd`.
    """
    rows = []
    keys = ["model", "task", "budget"]
    for cell, group in frame[frame.placement.eq(RANDOM)].groupby(keys):
        scored = group[group.test_score.notna()]
        spread = components(scored.test_score.to_numpy(), scored.plan_index.to_numpy())
        low, high = sd_interval(np.array([spread.sd]), np.array([spread.num_plans - 1]))
        rows.append({**dict(zip(keys, cell, strict=True)), **vars(spread), "low": low, "high": high})
    return pd.DataFrame(rows, columns=[*keys, *Components.__dataclass_fields__, "low", "high"])


def spread_over_tasks(data: ClaimData, models: Sequence[str]) -> ClaimResult:
    """Estimate the S.D. over tasks of a PLM's values minus `data.reference`.

    The S.D. is pooled over PLMs (root of the mean variance). For the study's tasks see `variance_of_truth`. For the
    population of tasks log thresholds are taken as normal: χ² with tasks − 1 degrees of freedom whatever the number of
    PLMs, because PLMs share the tasks. Censored values are clipped, which reduces their spread, so upper bounds are
    infinite if any value is censored.

    Args:
        data: log10 thresholds by PLM and task.
        models: PLMs of the scope.

    Returns:
        The difference of S.D. and reference, and each PLM's S.D.

    Raises:
        NotEstimable: no PLM has two tasks, or nearly all values are censored at one end.
    """
    rows = _with_two_tasks(data, models)
    assert data.values is not None and data.censoring is not None  # Thresholds have both.
    check_censoring(data.censoring[rows])
    masks = {name: rows & data.table.model.eq(name).to_numpy() for name in data.table.model[rows].unique()}
    by_plm = [data.values[:, mask] for mask in masks.values()]
    fixed = variance_of_truth(by_plm)
    observed = float(np.mean([values[0].var(ddof=1) for values in by_plm]))
    population = _population_variance(fixed, observed, min(values.shape[1] for values in by_plm))
    censored = data.censoring != 0
    sds = {
        name: _sd(variance_of_truth([values]), 0.0, bool(censored[mask].any()))
        for (name, mask), values in zip(masks.items(), by_plm, strict=True)
    }
    count = int(censored[rows].sum())
    remark = f"{count} of {rows.sum()} thresholds are outside the numbers tested: the S.D. has a lower bound only"
    estimates = [_sd(variance, data.reference, count > 0) for variance in (fixed, population)]
    return ClaimResult(estimates[0], estimates[1], rows, sds, remark if count else "")


def variance_of_truth(by_plm: Sequence[np.ndarray]) -> Estimate:
    """Estimate the variance over tasks of true values, averaged over PLMs.

    Noise inflates a variance, and samples around noisy values contain it twice. A test is inverted instead (Carpenter
    1999): each sample's noise is added to the observed deviations from the mean, shrunken by the factor that restores
    the observed variance. The quantiles of the shrunken variances are the bounds, their median is the value.

    Isotonic curves pull noisy thresholds together, and their noise depends on the truth, which an inversion ignores.
    Both bounds are therefore at least as wide as those of the observed variance, whose distances from its expectation
    are those of the samples' variance from its mean. Below, the noise is subtracted with the absolute distance. Above,
    it is not subtracted, against the pull; the distance is the ratio, unless the percentile itself is nearer.

    Args:
        by_plm: per PLM [1 + samples, tasks], the plug-in estimate first.

    Returns:
        The variance with its intervals.
    """
    observed = float(np.mean([values[0].var(ddof=1) for values in by_plm]))
    mixed, plain = np.zeros(2)
    for values in by_plm:
        noise, deviations = values[1:] - np.median(values[1:], axis=0), values[0] - values[0].mean()
        mixed = mixed + noise @ deviations / (len(deviations) - 1) / len(by_plm)
        plain = plain + noise.var(axis=1, ddof=1) / len(by_plm)
    root = np.sqrt(np.maximum(mixed**2 + observed * (observed - plain), 0)) - mixed
    shrunken = np.where(plain < observed, np.maximum(root, 0) ** 2 / (observed or 1.0), 0.0)
    sampled = np.mean([values[1:].var(axis=1, ddof=1) for values in by_plm], axis=0)
    value = float(np.median(shrunken))
    truth, noisy = percentile_interval(shrunken, value), percentile_interval(sampled, observed)
    mean, noise_variance = float(np.mean(sampled)), float(np.mean(plain))

    def bounds(alpha: float) -> tuple[float, float]:
        (low, high), (low_sample, high_sample) = truth.bounds(alpha), noisy.bounds(alpha)
        low = min(low, observed - (high_sample - mean) - noise_variance)
        ratio = mean / low_sample if low_sample > 0 else np.inf
        return min(max(low, 0.0), value), max(high, min(high_sample, observed * ratio), value)

    return Estimate(value, bounds)


def _population_variance(fixed: Estimate, observed: float, tasks: int) -> Estimate:
    """Return the variance in the population of tasks by χ² bounds: of `fixed` below, of the noisy variance above."""
    df = tasks - 1

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = df / stats.chi2.isf(alpha / 2, df), df / stats.chi2.ppf(alpha / 2, df)
        return fixed.bounds(alpha)[0] * min(low, 1.0), observed * max(high, 1.0)

    return Estimate(fixed.value, bounds)


def _with_two_tasks(data: ClaimData, models: Sequence[str]) -> np.ndarray:
    """Mask the rows of PLMs that have values on at least two tasks."""
    rows = data.rows_of(models)
    rows[rows] = data.table[rows].groupby("model").task.transform("nunique") > 1
    if not rows.any():
        raise NotEstimable("no PLM has values on two tasks")
    return rows


def _sd(variance: Estimate, reference: float, unbounded: bool) -> Estimate:
    """Return the root of a variance minus a reference, without an upper bound if values are censored."""

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = (float(np.sqrt(bound)) - reference for bound in variance.bounds(alpha))
        return low, np.inf if unbounded else high

    return Estimate(float(np.sqrt(variance.value)) - reference, bounds)
