"""Estimates that know their intervals at every level; a p-value is the level at which the interval lets go of 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
SMALLEST = 1e-6
"""p-values are not told apart below this."""


class NotEstimable(Exception):
    """What is asked for cannot be had from these data; the message says why, for the reader of the findings."""


@dataclass(frozen=True)
class Estimate:
    """A number with its two-sided intervals: `bounds(alpha)` gives (low, high) at confidence 1 − alpha, nested."""

    value: float
    bounds: Callable[[float], tuple[float, float]]

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high at 95 %."""
        return self.bounds(1 - CONFIDENCE)

    @property
    def p(self) -> float:
        """Two-sided p-value of "the truth is 0": the smallest alpha whose interval leaves 0 out, by bisection."""
        if not self._excludes(1.0):
            return 1.0
        low, high = np.log(SMALLEST), 0.0
        if self._excludes(SMALLEST):
            return SMALLEST
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self._excludes(np.exp(middle)) else (middle, high)
        return float(np.exp(high))

    def _excludes(self, alpha: float) -> bool:
        low, high = self.bounds(alpha)
        return low > 0 or high < 0


def percentile_interval(draws: np.ndarray, value: float) -> Estimate:
    """Percentile intervals (Efron 1979) of draws (count,) about a plug-in value; keeps to the draws' range."""
    ordered = np.sort(draws)
    return Estimate(float(value), lambda alpha: _quantiles(ordered, alpha))


def basic_interval(draws: np.ndarray, plug_in: float) -> Estimate:
    """Basic bootstrap intervals (Davison and Hinkley 1997, 5.2): 2 × plug-in − quantiles, so that the bias of a plug-in
    variance goes. The value is the median of the same confidence distribution, since Student's draws of few degrees of
    freedom have a square without a mean."""
    ordered = np.sort(draws)

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = _quantiles(ordered, alpha)
        return 2 * plug_in - high, 2 * plug_in - low

    return Estimate(float(2 * plug_in - np.median(draws)), bounds)


def bias_corrected_interval(draws: np.ndarray, plug_in: float, again: np.ndarray) -> Estimate:
    """A plug-in less its bias on draws (count,), with normal intervals (Davison and Hinkley 1997, 5.2 and 3.9).

    The correction has noise of its own, so the standard error is not that of the draws, but that of the draws after the
    same correction, each by the draws about it, `again` (times, count): a bootstrap iterated once (Hall 1986).
    """
    value, error = 2 * plug_in - float(np.mean(draws)), float(np.std(2 * draws - again.mean(axis=0)))

    def bounds(alpha: float) -> tuple[float, float]:
        half = float(stats.norm.isf(alpha / 2)) * error
        return value - half, value + half

    return Estimate(value, bounds)


def union_interval(one: Estimate, other: Estimate) -> Estimate:
    """The value of `one`, with the outer bounds of both."""

    def bounds(alpha: float) -> tuple[float, float]:
        (low, high), (lower, higher) = one.bounds(alpha), other.bounds(alpha)
        return min(low, lower), max(high, higher)

    return Estimate(one.value, bounds)


def t_interval(values: np.ndarray) -> Estimate:
    """The mean of a population of which `values` (tasks,) are a sample: Student's t, unweighted.

    As Hartung and Knapp (2001) do: the scatter holds all noise of the values. NotEstimable for fewer than two values.
    """
    count = len(values)
    if count < 2:
        raise NotEstimable("one task says nothing of other tasks")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(count))

    def bounds(alpha: float) -> tuple[float, float]:
        half = float(stats.t.isf(alpha / 2, count - 1)) * error
        return mean - half, mean + half

    return Estimate(mean, bounds)


def mls_interval(terms: np.ndarray, dfs: np.ndarray, offset: float = 0.0) -> Estimate:
    """Σ terms + offset, `terms` (k,) signed multiples of independent mean squares with `dfs` (k,) degrees of freedom.

    Modified large samples (Graybill and Wang 1980; for differences Burdick and Graybill 1992, chapter 3, here without
    their cross terms, which is Zou and Donner's MOVER of 2008): each term's distance to its own χ² bound, squared and
    summed. Exact for one term.
    """
    value = float(np.sum(terms) + offset)

    def bounds(alpha: float) -> tuple[float, float]:
        near = np.maximum(1 - dfs / stats.chi2.isf(alpha / 2, dfs), 0) * np.abs(terms)
        far = (dfs / stats.chi2.ppf(alpha / 2, dfs) - 1) * np.abs(terms)
        down, up = np.where(terms > 0, near, far), np.where(terms > 0, far, near)
        return value - float(np.sqrt(np.sum(down**2))), value + float(np.sqrt(np.sum(up**2)))

    return Estimate(value, bounds)


def satterthwaite(terms: np.ndarray, dfs: np.ndarray) -> tuple[float, float]:
    """Sum of positive multiples of mean squares and its effective degrees of freedom (Satterthwaite 1946).

    Squares of mean squares overstate the squared truth by (df + 2)/df, which is taken off, and the 2 of the sum itself,
    so that one term keeps its own df; at least the smallest df, at most their sum.
    """
    total, weight = np.sum(terms), np.sum(terms**2 / (dfs + 2))
    df = total**2 / weight - 2 if weight > 0 else np.sum(dfs)
    return float(total), float(np.clip(df, np.min(dfs), np.sum(dfs)))


def _quantiles(ordered: np.ndarray, alpha: float) -> tuple[float, float]:
    """The outermost draws with at least alpha/2 of the confidence beyond each; infinite where the draws are too few."""
    count = len(ordered)
    cut = min(int(alpha / 2 * (count + 1)), (count + 1) // 2)
    return (float(ordered[cut - 1]), float(ordered[count - cut])) if cut else (-np.inf, np.inf)
