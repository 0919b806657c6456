"""Intervals against closed forms and nominal coverage; p-values against the intervals that they invert."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from apet.analysis.intervals import (
    NotEstimable,
    basic_interval,
    bias_corrected_interval,
    mls_interval,
    percentile_interval,
    satterthwaite,
    t_interval,
    union_interval,
)


def test_mls_interval_of_one_term_equals_the_chi_square_interval() -> None:
    exact = 4.0 * 6 / stats.chi2.ppf([0.975, 0.025], 6)
    assert mls_interval(np.array([4.0]), np.array([6.0])).interval == pytest.approx(tuple(exact))
    total, df = satterthwaite(np.array([3.0, 1.0]), np.array([5.0, 5.0]))
    assert total == 4.0
    assert df == pytest.approx(16 / ((9 + 1) / 7) - 2)
    assert satterthwaite(np.array([4.0]), np.array([6.0])) == (4.0, pytest.approx(6.0))
    assert satterthwaite(np.zeros(2), np.array([1.0, 2.0])) == (0.0, 3.0)


@pytest.mark.parametrize(
    ("plan", "df"), [((9.0, 9.0, 9.0), 12), ((15.0, 9.0, 3.0), 12), ((0.0, 0.0, 0.0), 12), ((9.0, 9.0, 9.0), 3)]
)
def test_mls_interval_of_a_slope_covers_the_truth(plan: tuple, df: int) -> None:
    """The slope over three PLMs of (between − within)/2, pooled over `df` cells of two samples with two reruns each."""
    rng = np.random.default_rng(df)
    slope, sims, missed = np.array([-0.5, 0.0, 0.5]), 1000, 0
    truth = slope @ np.array(plan)
    for _ in range(sims):
        terms = []
        for weight, variance in zip(slope, plan, strict=True):
            between = (2 * variance + 5) * rng.chisquare(1, df) / 2 / df
            within = 5 * rng.chisquare(2, df) / 2 / 2 / df
            for sign, squares, one in ((1, between, 1.0), (-1, within, 2.0)):
                value, found = satterthwaite(abs(weight) * squares, np.full(df, one))
                terms.append((sign * np.sign(weight) * value, found))
        low, high = mls_interval(*np.array([term for term in terms if term[0]]).T).interval
        missed += not low <= truth <= high
    assert missed / sims < 0.05 + 3 * np.sqrt(0.05 * 0.95 / sims)


@pytest.mark.parametrize(("bend", "error"), [(0.0, 1.0), (0.1, np.sqrt(1 + 2 * 0.1**2))])
def test_bias_corrected_interval_removes_the_bias_and_includes_its_noise(bend: float, error: float) -> None:
    """x + bend x² of a normal x of mean 0 and S.D. 1 is too large by `bend`; less that, its S.D. is `error`."""
    rng, values, errors = np.random.default_rng(1), [], []
    for _ in range(400):
        seen = rng.normal()
        samples = seen + rng.normal(size=500)
        second = samples + rng.normal(size=(8, 500))
        found = bias_corrected_interval(samples + bend * samples**2, seen + bend * seen**2, second + bend * second**2)
        values.append(found.value)
        errors.append((found.interval[1] - found.interval[0]) / 2 / stats.norm.isf(0.025))
    assert np.mean(values) == pytest.approx(0, abs=3 / np.sqrt(400))
    assert np.std(values) == pytest.approx(error, rel=0.1)
    assert np.mean(errors) == pytest.approx(error, rel=0.15)


def test_t_interval_equals_students_t() -> None:
    values = np.array([0.3, -0.1, 0.5, 0.2])
    test = stats.ttest_1samp(values, 0)
    found = t_interval(values)
    assert found.interval == pytest.approx(tuple(test.confidence_interval()))
    assert found.p == pytest.approx(test.pvalue, rel=1e-6)
    with pytest.raises(NotEstimable, match="one task"):
        t_interval(values[:1])


@settings(deadline=None, max_examples=50)
@given(st.floats(-3, 3), st.integers(0, 2**32 - 1), st.sampled_from([percentile_interval, basic_interval]))
def test_p_value_is_the_smallest_alpha_whose_interval_excludes_zero(shift: float, seed: int, kind) -> None:
    samples = np.random.default_rng(seed).normal(shift, 1, 400)
    found = kind(samples, shift)
    if found.p < 1:
        inner = found.bounds(found.p * 1.02)
        assert inner[0] > 0 or inner[1] < 0
    outer = found.bounds(found.p * 0.98)
    assert outer[0] <= 0 <= outer[1]
    assert found.p >= 2 / 401 * 0.99, "400 samples cannot tell smaller ones"
    tight, wide = found.bounds(0.2), found.bounds(0.02)
    assert wide[0] <= tight[0] <= tight[1] <= wide[1]


def test_basic_interval_removes_the_noise_from_a_difference_of_variances() -> None:
    """Means with noise of variance 4 here and 1 there: their variances overstate the truth by that, samples twice."""
    rng = np.random.default_rng(3)
    noise, truth = np.array([[[2.0]], [[1.0]]]), np.array([-3.0, -1.0, 0.0, 4.0])
    missed, values = 0, []
    for _ in range(400):
        means = truth + noise * rng.normal(size=(2, 3, 4))
        drawn = means + noise * rng.normal(size=(499, 2, 3, 4))
        change = [np.diff(v.var(axis=-1, ddof=1).mean(axis=-1), axis=-1)[..., 0] for v in (means, drawn)]
        found = basic_interval(change[1], float(change[0]))
        values.append(found.value)
        missed += not found.interval[0] <= 0 <= found.interval[1]
    assert missed / 400 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert np.mean(values) == pytest.approx(0, abs=0.9), "without the pivot -3"


def test_union_interval_contains_both_intervals() -> None:
    one, other = percentile_interval(np.linspace(-1, 1, 999), 0.0), percentile_interval(np.linspace(0, 3, 999), 1.5)
    found = union_interval(one, other)
    assert found.value == 0.0
    assert found.interval == (one.interval[0], other.interval[1])


@pytest.mark.parametrize(
    "kind",
    [
        percentile_interval,
        basic_interval,
        lambda samples, value: bias_corrected_interval(samples, value, samples[None] / 2),
    ],
)
def test_intervals_scale_with_the_unit(kind) -> None:
    samples = np.random.default_rng(0).gamma(2, size=999)
    one, three = kind(samples, 1.5), kind(3 * samples, 4.5)
    assert three.value == pytest.approx(3 * one.value)
    for alpha in (0.01, 0.05, 0.5):
        assert three.bounds(alpha) == pytest.approx([3 * bound for bound in one.bounds(alpha)])


def test_percentile_interval_bounds_are_order_statistics() -> None:
    assert percentile_interval(np.arange(1.0, 39), 20).interval == (-np.inf, np.inf), (
        "38 samples do not tell 2.5 % of the truth"
    )
    assert percentile_interval(np.arange(1.0, 40), 20).interval == (1, 39)
    assert percentile_interval(np.arange(1.0, 80), 40).interval == (2, 78)
    assert percentile_interval(np.arange(1.0, 4), 2).bounds(1.0) == (2, 2)
