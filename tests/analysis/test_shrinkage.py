"""Shrunken variances against formulas and nominal coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import polygamma

from apet.analysis.resampling import shrink_variances


def sample(prior_df: float, cells: int, df: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True and sample variances under Smyth's model, scale 4."""
    rng = np.random.default_rng(seed)
    truth = np.full(cells, 4.0) if np.isinf(prior_df) else 4.0 * prior_df / rng.chisquare(prior_df, cells)
    return truth, truth * rng.chisquare(df, cells) / df


def test_shrink_variances_of_one_cell_changes_nothing() -> None:
    variances, dfs = shrink_variances(np.array([3.0]), np.array([2.0]))
    assert (variances[0], dfs[0]) == (3.0, 2.0)


def test_shrink_variances_of_zeros_returns_zeros() -> None:
    variances, dfs = shrink_variances(np.zeros(4), np.ones(4))
    assert not variances.any() and (dfs == 1).all()


def test_shrink_variances_of_similar_variances_pools_them() -> None:
    """As if all cells were one sample: the pooled variance, with all degrees of freedom."""
    variances, dfs = shrink_variances(np.array([1.0, 1.1, 0.9, 1.2]), np.array([2.0, 2.0, 2.0, 4.0]))
    assert variances == pytest.approx(np.full(4, (2 * 1.0 + 2 * 1.1 + 2 * 0.9 + 4 * 1.2) / 10))
    assert (dfs == 10).all()


@pytest.mark.parametrize("prior_df", [3.0, 8.0])
def test_shrink_variances_recovers_the_prior_from_many_cells(prior_df: float) -> None:
    """The posterior is the mean of prior and own variance by degrees of freedom, so that both can be read off."""
    _, variances = sample(prior_df, 20_000, 4)
    found, dfs = shrink_variances(variances, np.full(20_000, 4.0))
    assert dfs[0] - 4 == pytest.approx(prior_df, rel=0.1)
    slope, constant = np.polyfit(variances, found, 1)
    assert slope == pytest.approx(4 / (4 + prior_df), rel=0.1)
    assert constant == pytest.approx(4.0 * prior_df / (4 + prior_df), rel=0.1)


@pytest.mark.parametrize("df", [5.0, 6.0])
def test_shrink_variances_matches_smyths_moment_equations(df: float) -> None:
    """trigamma(d₀/2) is the excess variance of log s² over trigamma(d/2)."""
    variances = np.array([0.1, 1.0, 10.0, 0.3, 5.0])
    _, dfs = shrink_variances(variances, np.full(5, df))
    excess = np.var(np.log(variances), ddof=1) - polygamma(1, df / 2)
    assert polygamma(1, (dfs[0] - df) / 2) == pytest.approx(excess)


@pytest.mark.parametrize(("prior_df", "df"), [(np.inf, 1), (np.inf, 3), (4.0, 1), (4.0, 2)])
def test_shrink_variances_gives_t_intervals_with_nominal_coverage(prior_df: float, df: int) -> None:
    truth, variances = sample(prior_df, 5000, df, seed=1)
    found, dfs = shrink_variances(variances, np.full(5000, float(df)))
    error = np.random.default_rng(2).normal(size=5000) * np.sqrt(truth)
    covered = np.mean(np.abs(error) <= stats.t.ppf(0.975, dfs) * np.sqrt(found))
    assert covered == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 5000))


@given(st.lists(st.just(0.0) | st.floats(1e-12, 1e6), min_size=2, max_size=20), st.integers(1, 9))
def test_shrink_variances_of_any_input_is_finite_with_bounded_df(values: list, df: int) -> None:
    variances, dfs = shrink_variances(np.array(values), np.full(len(values), float(df)))
    assert np.isfinite(variances).all() and (variances >= 0).all()
    assert (dfs >= df).all() and (dfs <= df * len(values)).all()
