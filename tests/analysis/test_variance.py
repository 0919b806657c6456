"""Variance components against the analysis of variance, simulated truth and closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from apet.analysis.tidy import tidy
from apet.analysis.variance import components, mean_squares, position_components, position_spread, sd_interval
from simulated_claims import Truth, simulate
from simulated_study import MODELS, TASKS, study


def test_components_match_the_analysis_of_variance() -> None:
    groups = [[0.5, 0.6, 0.58], [0.7, 0.75], [0.4, 0.45, 0.5, 0.42]]
    scores, plans = np.concatenate(groups), np.repeat([7, 3, 9], [3, 2, 4])
    found = components(scores, plans)
    within = sum(np.var(g) * len(g) for g in groups) / 6
    n0 = (9 - (9 + 4 + 16) / 9) / 2
    assert found.within == pytest.approx(np.sqrt(within))
    ratio = stats.f_oneway(*groups).statistic
    assert found.between == pytest.approx(np.sqrt((ratio - 1) * within / n0))
    assert found.sd == pytest.approx(np.std([np.mean(g) for g in groups], ddof=1))


def test_components_recover_the_truth_and_truncate_at_zero() -> None:
    rng = np.random.default_rng(5)
    plans = np.repeat(np.arange(2000), 3)
    noise = rng.normal(0, 0.02, 6000)
    found = components(0.6 + rng.normal(0, 0.05, 2000)[plans] + noise, plans)
    assert found.between == pytest.approx(0.05, rel=0.05)
    assert found.within == pytest.approx(0.02, rel=0.05)
    assert found.sd > found.between
    assert components(np.array([0.4, 0.6, 0.4, 0.6]), np.array([0, 0, 1, 1])).between == 0


@pytest.mark.parametrize(("scores", "plans", "number"), [([0.5, 0.6], [0, 1], 2), ([0.5, 0.6], [0, 0], 1), ([], [], 0)])
def test_components_without_seeds_or_plans_are_nan(scores: list, plans: list, number: int) -> None:
    found = components(np.array(scores), np.array(plans, dtype=int))
    assert found.num_plans == number
    assert np.isnan(found.between)
    assert np.isnan(found.sd) == (number < 2)


@pytest.mark.parametrize("df", [2, 4, 9])
def test_sd_interval_of_one_sd_equals_the_chi_square_interval(df: int) -> None:
    low, high = sd_interval(np.array([0.03]), np.array([df]))
    exact = 0.03 * np.sqrt(df / stats.chi2.ppf([0.975, 0.025], df))
    assert (low, high) == pytest.approx(tuple(exact), rel=0.05)


def test_sd_interval_of_a_mean_covers_the_truth_and_is_seeded() -> None:
    rng = np.random.default_rng(11)
    truth = np.array([0.01, 0.02, 0.03, 0.04])
    sds = rng.normal(0, truth[:, None], (200, 4, 3)).std(axis=2, ddof=1)
    bounds = np.array([sd_interval(row, np.full(4, 2)) for row in sds])
    covered = ((bounds[:, 0] <= truth.mean()) & (truth.mean() <= bounds[:, 1])).mean()
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)
    assert sd_interval(sds[0], np.full(4, 2)) == sd_interval(sds[0], np.full(4, 2))


def test_sd_interval_without_an_estimate_is_nan() -> None:
    assert np.isnan(sd_interval(np.array([0.1, np.nan]), np.array([2, 2]))).all()
    assert np.isnan(sd_interval(np.array([0.1]), np.array([0]))).all()
    assert np.isnan(sd_interval(np.array([]), np.array([]))).all()
    low, high = sd_interval(np.zeros(2), np.full(2, 2))
    assert low == 0
    assert np.isnan(high)


def test_position_spread_uses_apet_cells_only() -> None:
    frame = tidy(study())
    spread = position_spread(frame).set_index(["model", "task", "budget"])
    assert len(spread) == len(MODELS) * len(TASKS) * 7
    chosen = frame[frame.model.eq("bloom-mid") & frame.task.eq("topics") & frame.placement.eq("uniform")]
    expected = chosen[chosen.budget.eq("@lora")].test_score.std()
    assert spread.loc[("bloom-mid", "topics", "@lora"), "sd"] == pytest.approx(expected)
    interval = expected * np.sqrt(2 / stats.chi2.ppf([0.975, 0.025], 2))  # of three plans
    assert spread.loc[("bloom-mid", "topics", "@lora"), ["low", "high"]].to_list() == pytest.approx(interval, rel=0.1)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), min_size=2, max_size=5).filter(lambda sizes: max(sizes) > 1)
)
def test_mean_squares_match_the_components_of_scores(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    plans = np.repeat(np.arange(len(sizes)), sizes)
    rows = (rng.random((len(plans), 50)) < 0.6).astype(np.float32)
    found, scores = mean_squares(rows, plans), components(rows.mean(axis=1, dtype=float), plans)
    assert found.within == pytest.approx(scores.within**2, abs=1e-9)
    assert max(0.0, found.between - found.within) / found.n0 == pytest.approx(scores.between**2, abs=1e-6)
    assert (found.df_between, found.df_within) == (len(sizes) - 1, sum(sizes) - len(sizes))
    order = rng.permutation(len(plans))
    assert vars(mean_squares(rows[order], plans[order])) == pytest.approx(vars(found), abs=1e-12)


def test_mean_squares_of_equal_plans_exclude_the_interaction_with_rows() -> None:
    """Plans that are equally good but err on different rows: scores on these rows differ, on new rows they do not."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(600):
        right = rng.random((3, 1, 100)) < 0.5
        noise = rng.random((3, 2, 100)) < 0.1
        found.append(mean_squares((right ^ noise).reshape(6, 100), np.repeat([0, 1, 2], 2)))
    raw = np.mean([(one.between - one.within) / one.n0 for one in found])
    assert raw > 0.0012, "the interaction alone makes 0.16/100"
    assert np.mean([one.component for one in found]) == pytest.approx(0, abs=3 * 0.0023 / np.sqrt(600))


@pytest.mark.slow
@pytest.mark.parametrize(("num_plans", "num_seeds"), [(2, 2), (3, 3)])
def test_position_components_of_simulated_studies_are_unbiased(num_plans: int, num_seeds: int) -> None:
    truth = Truth(num_plans=num_plans, num_seeds=num_seeds, plan_variance=9.0, plan_change=-6.0, sweep=(), n=100)
    found = pd.concat([position_components(simulate(truth, seed)) for seed in range(8)])
    means = found.groupby("model").component.agg(["mean", "sem"]) * 1e4
    assert means["mean"].to_numpy() == pytest.approx([15, 9, 3], abs=4 * means["sem"].max())


@pytest.mark.parametrize(("num_plans", "num_seeds"), [(1, 3), (3, 1)])
def test_position_components_without_seeds_or_plans_are_empty(num_plans: int, num_seeds: int) -> None:
    assert position_components(simulate(Truth(num_plans=num_plans, num_seeds=num_seeds, n=50, sweep=()), 0)).empty


def test_mean_squares_rows_match_the_textbook_interactions() -> None:
    """Mean squares of plan × row and rerun × row by their textbook sums, on few rows, where each degree counts."""
    rows, plans = np.random.default_rng(2).random((6, 4)), np.array([0, 0, 1, 1, 2, 2])
    found = mean_squares(rows, plans)
    cube = rows.reshape(3, 2, 4)
    means, grand_mean = cube.mean(axis=1), rows.mean()
    by_row = means - means.mean(axis=1, keepdims=True) - means.mean(axis=0) + grand_mean
    by_seed = cube - means[:, None] - cube.mean(axis=2, keepdims=True) + means.mean(axis=1)[:, None, None]
    plan_row, seed_row = 2 * np.sum(by_row**2) / (2 * 3), np.sum(by_seed**2) / (3 * 3)
    assert (found.n0, found.df_between, found.df_within) == (2, 2, 3)
    assert found.rows == pytest.approx((plan_row - seed_row) / (2 * 4))
    assert found.component == pytest.approx((found.between - found.within) / 2 - found.rows)
