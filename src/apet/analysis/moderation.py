"""Variances of few replicates, moderated by those of sibling cells (empirical Bayes)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

NOTHING = 1e-9
SMALLEST = 1e-5
"""A variance below this share of the median of all is taken for that, since 0 has no logarithm."""


def moderate(variances: np.ndarray, dfs: np.ndarray, seen: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
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
