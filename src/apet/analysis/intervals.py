"""Point estimates with intervals at any level. The p-value is the smallest alpha whose interval excludes 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

from apet.analysis.single_run import CONFIDENCE

SMALLEST_P = 1e-6
"""Lower limit of p-values."""

Bounds = Callable[[float], tuple[float, float]]


class NotEstimable(Exception):
    """The data do not determine an estimate. The message is the reason, for readers of the findings."""


@dataclass(frozen=True)
class Estimate:
    """A value with two-sided intervals at every level."""

    value: float
    bounds: Bounds
    """alpha -> (low, high) at confidence 1 − alpha; intervals are nested."""

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high at 95 %."""
        return self.bounds(1 - CONFIDENCE)

    @property
    def p(self) -> float:
        """Two-sided p-value of "the true value is 0": the smallest alpha whose interval excludes 0, by bisection."""
        if not self._excludes_zero(1.0):
            return 1.0
        low, high = np.log(SMALLEST_P), 0.0
        if self._excludes_zero(SMALLEST_P):
            return SMALLEST_P
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self._excludes_zero(np.exp(middle)) else (middle, high)
        return float(np.exp(high))

    def _excludes_zero(self, alpha: float) -> bool:
        low, high = self.bounds(alpha)
        return low > 0 or high < 0


def percentile_interval(samples: np.ndarray, value: float) -> Estimate:
    """Return percentile intervals (Efron 1979), which stay within the range of the samples.

    Args:
        samples: bootstrap samples (count,).
        value: plug-in estimate.

    Returns:
        `value` with the quantiles of the samples.
    """
    ordered = np.sort(samples)
    return Estimate(float(value), lambda alpha: _quantiles(ordered, alpha))


def basic_interval(samples: np.ndarray, plug_in: float) -> Estimate:
    """Return basic bootstrap intervals, 2 × plug-in − quantiles (Davison and Hinkley 1997, 5.2).

    They remove the bias of a plug-in variance. The value is the median of the same confidence distribution, because the
    square of a Student's t variate with few degrees of freedom has no mean.

    Args:
        samples: bootstrap samples (count,).
        plug_in: plug-in estimate.

    Returns:
        The bias-corrected value with its intervals.
    """
    ordered = np.sort(samples)

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = _quantiles(ordered, alpha)
        return 2 * plug_in - high, 2 * plug_in - low

    return Estimate(float(2 * plug_in - np.median(samples)), bounds)


def bias_corrected_interval(samples: np.ndarray, plug_in: float, double_bootstrap: np.ndarray) -> Estimate:
    """Return a plug-in estimate minus its bias, with normal intervals (Davison and Hinkley 1997, 5.2 and 3.9).

    The bias correction is noisy too. The standard error is therefore the S.D. of samples that are corrected in the same
    way, each by its own second-level samples (double bootstrap, Hall 1986).

    Args:
        samples: bootstrap samples (count,).
        plug_in: plug-in estimate.
        double_bootstrap: second-level samples (repeats, count).

    Returns:
        The corrected value with its intervals.
    """
    value = 2 * plug_in - float(np.mean(samples))
    error = float(np.std(2 * samples - double_bootstrap.mean(axis=0)))
    return Estimate(value, _symmetric(value, error, stats.norm.isf))


def union_interval(first: Estimate, second: Estimate) -> Estimate:
    """Return the value of `first` with the outer bounds of both estimates."""

    def bounds(alpha: float) -> tuple[float, float]:
        lows, highs = zip(first.bounds(alpha), second.bounds(alpha), strict=True)
        return min(lows), max(highs)

    return Estimate(first.value, bounds)


def t_interval(values: np.ndarray) -> Estimate:
    """Estimate a population mean by unweighted Student's t, as Hartung and Knapp (2001) do.

    The scatter of the values includes their measurement noise.

    Args:
        values: one value per task (tasks,), a sample of the population of tasks.

    Returns:
        The mean with its intervals.

    Raises:
        NotEstimable: fewer than two values.
    """
    count = len(values)
    if count < 2:
        raise NotEstimable("one task does not tell how tasks vary")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(count))
    return Estimate(mean, _symmetric(mean, error, lambda tail: stats.t.isf(tail, count - 1)))


def mls_interval(terms: np.ndarray, dfs: np.ndarray, offset: float = 0.0) -> Estimate:
    """Estimate Σ terms + offset by modified large samples.

    Graybill and Wang (1980); for differences Burdick and Graybill (1992), chapter 3, without their cross terms, which
    is the MOVER of Zou and Donner (2008): the distances of the terms to their own χ² bounds, squared and summed. Exact
    for one term.

    Args:
        terms: signed multiples of independent mean squares (k,).
        dfs: their degrees of freedom (k,).
        offset: a constant.

    Returns:
        The sum with its intervals.
    """
    value = float(np.sum(terms) + offset)

    def bounds(alpha: float) -> tuple[float, float]:
        near = np.maximum(1 - dfs / stats.chi2.isf(alpha / 2, dfs), 0) * np.abs(terms)
        far = (dfs / stats.chi2.ppf(alpha / 2, dfs) - 1) * np.abs(terms)
        down, up = np.where(terms > 0, near, far), np.where(terms > 0, far, near)
        return value - float(np.sqrt(np.sum(down**2))), value + float(np.sqrt(np.sum(up**2)))

    return Estimate(value, bounds)


def satterthwaite(terms: np.ndarray, dfs: np.ndarray) -> tuple[float, float]:
    """Sum mean squares and compute the effective degrees of freedom of the sum (Satterthwaite 1946).

    The square of a mean square overestimates the squared truth by (df + 2)/df; this is corrected, as are the 2 degrees
    of the sum itself, so that a single term keeps its df.

    Args:
        terms: positive multiples of mean squares (k,).
        dfs: their degrees of freedom (k,).

    Returns:
        The sum, and its degrees of freedom: at least the smallest of `dfs`, at most their sum.
    """
    total, weight = np.sum(terms), np.sum(terms**2 / (dfs + 2))
    df = total**2 / weight - 2 if weight > 0 else np.sum(dfs)
    return float(total), float(np.clip(df, np.min(dfs), np.sum(dfs)))


def _symmetric(value: float, error: float, quantile: Callable[[float], float]) -> Bounds:
    def bounds(alpha: float) -> tuple[float, float]:
        half = float(quantile(alpha / 2)) * error
        return value - half, value + half

    return bounds


def _quantiles(ordered: np.ndarray, alpha: float) -> tuple[float, float]:
    """Return the outermost samples with at least alpha/2 beyond each; infinite if there are too few samples."""
    count = len(ordered)
    cut = min(int(alpha / 2 * (count + 1)), (count + 1) // 2)
    return (float(ordered[cut - 1]), float(ordered[count - cut])) if cut else (-np.inf, np.inf)
