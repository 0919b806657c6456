"""Thresholds against scipy's isotonic regression, closed forms, and the truth of simulated studies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import isotonic_regression

from apet.analysis.claims import AnalysisInputs, chance_threshold, full_ft_threshold
from apet.analysis.intervals import NotEstimable
from apet.analysis.resampling import MeanSamples
from apet.analysis.simulation import with_true_scores
from apet.analysis.thresholds import DOUBLE_BOOTSTRAP, crossing, restricted, threshold_samples, thresholds
from apet.analysis.trends import slope
from apet.analysis.variance import spread_over_tasks, variance_of_truth
from simulated_claims import MARGINS, Truth

INF = np.inf


def by_fitting(x: np.ndarray, excess: np.ndarray, weights: np.ndarray) -> float:
    """The crossing read off scipy's fit."""
    fit = isotonic_regression(excess, weights=weights).x
    start = int(np.sum(fit < 0))
    if start in (0, len(x)):
        return INF if start else -INF
    return x[start - 1] + (x[start] - x[start - 1]) * fit[start - 1] / (fit[start - 1] - fit[start])


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 1.0]))
def test_crossing_matches_scipys_isotonic_fit(count: int, seed: int, rise: float) -> None:
    rng = np.random.default_rng(seed)
    x, weights = np.sort(rng.choice(30, count, replace=False)).astype(float), rng.integers(1, 5, count).astype(float)
    excess = rng.normal(0, 1, (6, count)) + rise * (x - 10)
    expected = [by_fitting(x, row, weights) for row in excess]
    assert crossing(x, excess, weights) == pytest.approx(expected, abs=1e-9)


def test_crossing_handles_ties_nan_and_values_at_the_level() -> None:
    x = np.array([0.0, 1.0, 1.0, 2.0])
    pooled = crossing(np.array([0.0, 1.0, 2.0]), np.array([[-1.0, -0.5, 1.0]]), np.array([1.0, 4.0, 1.0]))
    assert crossing(x, np.array([[-1.0, 0.0, -2 / 3, 1.0]]), np.array([1.0, 1.0, 3.0, 1.0])) == pytest.approx(pooled)
    assert np.isnan(crossing(x[:2], np.array([[np.nan, np.nan]]), np.ones(2))).all()
    assert crossing(x[:2], np.array([[0.0, 1.0]]), np.ones(2)) == -INF


def made(
    scores: dict[tuple[str, str], list[float]], full: float | None = 0.8, noise: float = 0.01, size: int = 500
) -> MeanSamples:
    """Draws of APET's cells at 1, 10, 100, … parameters of each (model, task), and of full fine-tuning."""
    rows = []
    for (model, task), means in scores.items():
        facts = {
            "model": model,
            "task": task,
            "family": "f",
            "non_embedding_params": 1000 * (1 + int(model[-1])),
            "num_replicates": 2,
            "num_plans": 2,
            "sd": noise,
        }
        facts |= {"chance_uniform": 0.2, "chance_majority": 0.3}
        rows += [
            {**facts, "placement": "uniform", "budget": str(10**i), "trainable_params": 10**i, "mean": m}
            for i, m in enumerate(means)
        ]
        if full is not None:
            rows.append({**facts, "placement": "full", "budget": "@own", "trainable_params": 10**6, "mean": full})
    cells = pd.DataFrame(rows)
    values = cells["mean"].to_numpy() + noise * np.random.default_rng(0).normal(size=(size, len(cells)))
    return MeanSamples(cells, values, {})


def test_thresholds_of_a_known_curve_match_interpolation() -> None:
    found = thresholds(made({("m0", "t"): [0.3, 0.3, 0.5, 0.7, 0.8]}), MARGINS).set_index("kind")
    assert found.log10.to_dict() == pytest.approx({"chance": 1 + 0.02 / 0.2, "full_ft": 3 + 0.08 / 0.1})
    assert found.level.to_dict() == pytest.approx({"chance": 0.32, "full_ft": 0.78})
    assert (found.low < found.log10).all() and (found.log10 < found.high).all()
    assert found.censored.tolist() == ["", ""]
    assert found[["smallest", "largest", "budgets"]].iloc[0].tolist() == [1, 10**4, 5]


def test_thresholds_outside_the_numbers_tested_are_censored() -> None:
    found = thresholds(made({("m0", "t"): [0.5, 0.6], ("m0", "u"): [0.3, 0.3]}, noise=0.001), MARGINS)
    found = found.set_index(["task", "kind"])
    assert found.censored.to_dict() == {
        ("t", "chance"): "below",
        ("t", "full_ft"): "above",
        ("u", "chance"): "above",
        ("u", "full_ft"): "above",
    }
    assert found.log10["t", "chance"] == found.low["t", "chance"] == found.high["t", "chance"] == -INF
    assert found.log10["u", "chance"] == found.low["u", "chance"] == INF


def test_thresholds_without_full_fine_tuning_have_no_full_ft_threshold() -> None:
    found = thresholds(made({("m0", "t"): [0.3, 0.5]}, full=None), MARGINS).set_index("kind")
    assert found.loc["full_ft", ["level", "log10", "low", "high"]].isna().all()
    assert found.censored["full_ft"] == ""
    assert np.isfinite(found.log10["chance"])


def test_thresholds_of_single_plans_include_the_variance_between_plans() -> None:
    """Whole curves of single plans are as uncertain as the plans of another task of the PLM say."""
    samples = made({("m0", "t"): [0.3, 0.3, 0.5, 0.7, 0.8], ("m0", "u"): [0.3, 0.3, 0.5, 0.7, 0.8]}, noise=0.001)
    cells = samples.cells.assign(sd=0.04)
    certain = thresholds(replace(samples, cells=cells), MARGINS).set_index(["task", "kind"])
    single = cells.task.eq("t") & cells.placement.eq("uniform")
    cells.loc[single, ["num_plans", "num_replicates", "sd"]] = [1, 1, np.nan]
    found = thresholds(replace(samples, cells=cells), MARGINS).set_index(["task", "kind"])
    assert (found.high - found.low)["t", "chance"] > 5 * (certain.high - certain.low)["t", "chance"]
    assert found.loc["u"].equals(certain.loc["u"])
    assert found.log10.equals(certain.log10)


def test_double_bootstrap_deviates_from_samples_like_samples_from_the_data() -> None:
    """Where the curve is a line, thresholds deviate as means do: each draw by its own and by another's deviation."""
    found = threshold_samples(made({("m0", "t"): [0.2, 0.3, 0.5, 0.7, 0.8]}, noise=0.00002), MARGINS)
    away = found.values - np.median(found.values, axis=0)
    assert found.double_bootstrap.shape == (DOUBLE_BOOTSTRAP, *found.values.shape)
    for shift, second in enumerate(found.double_bootstrap, start=1):
        assert second == pytest.approx(found.values + np.roll(away, shift, axis=0), abs=0.1 * away.std())


def test_thresholds_without_apet_are_empty() -> None:
    samples = made({("m0", "t"): [0.3, 0.5]})
    only = samples.cells.placement.eq("full")
    found = threshold_samples(samples.select(only), MARGINS)
    assert len(found.table) == 0
    assert {"log10", "censored", "kind"} <= set(found.table.columns)
    assert len(restricted(found, "chance", ["model"]).table) == 0


def test_restricted_clips_to_the_range_tested_on_all_rows() -> None:
    samples = made({("m0", "t"): [0.3, 0.3, 0.5], ("m1", "t"): [0.3, 0.3, 0.3, 0.3, 0.5]}, noise=0.0001)
    found = threshold_samples(samples, MARGINS)
    clipped = restricted(found, "chance", ["family", "task"])
    assert clipped.table.log10.tolist() == pytest.approx([1.1, 2.0])
    assert clipped.table.censoring.tolist() == [0, 1]
    assert clipped.values[0] == pytest.approx(clipped.table.log10)
    assert restricted(found, "chance", ["model"]).table.log10.tolist() == pytest.approx([1.1, 3.1])


@pytest.mark.parametrize(("spread", "noise"), [(0.0, 0.3), (0.3, 0.3), (1.0, 0.3), (1.0, 0.05)])
@pytest.mark.parametrize("tasks", [2, 3, 11])
def test_variance_of_truth_excludes_the_noise(spread: float, noise: float, tasks: int) -> None:
    rng = np.random.default_rng(tasks)
    truth = np.arange(tasks) - (tasks - 1) / 2
    truth *= spread / truth.std(ddof=1)
    sims, missed, under = 300, 0, 0
    for _ in range(sims):
        seen = truth + noise * rng.normal(size=(3, tasks))
        by_plm = [np.vstack([own, own + noise * rng.normal(size=(400, tasks))]) for own in seen]
        found = variance_of_truth(by_plm)
        low, high = found.interval
        assert low <= found.value <= high
        missed += not low <= spread**2 <= high
        under += spread**2 < low
    assert missed / sims < 0.05 + 3 * np.sqrt(0.05 * 0.95 / sims)
    assert under / sims < 0.025 + 3 * np.sqrt(0.025 * 0.975 / sims)


def test_variance_of_truth_without_spread_has_an_upper_bound_below_the_doubled_noise() -> None:
    """Noise is in the data and again in the samples; it counts once, within the χ² bound of the observed variance."""
    rng, sd = np.random.default_rng(1), 0.3
    by_plm = [seen + np.vstack([np.zeros(6), sd * rng.normal(size=(4000, 6))]) for seen in sd * rng.normal(size=(5, 6))]
    observed = np.mean([values[0].var(ddof=1) for values in by_plm])
    sampled = np.mean([values[1:].var(axis=1, ddof=1) for values in by_plm], axis=0)
    low, high = variance_of_truth(by_plm).interval
    assert low == 0 and high == pytest.approx(observed * sampled.mean() / np.quantile(sampled, 0.025), rel=0.01)
    assert high < np.quantile(sampled, 0.975) and high < observed * 25 / stats.chi2.ppf(0.025, 25)


def slope_of(means: np.ndarray, cells: pd.DataFrame, noise: np.ndarray):
    """The slope of the high threshold from means (cells,) whose noise has the draws `noise` [draws, cells]."""
    samples = MeanSamples(cells.assign(mean=means), means + noise, {})
    return slope(full_ft_threshold(AnalysisInputs(pd.DataFrame(), samples, MARGINS)), ["plm00", "plm01"]).fixed_tasks


@pytest.mark.slow
@pytest.mark.parametrize("change", [-0.4, 0.0])
def test_slope_of_full_ft_thresholds_covers_the_truth(change: float) -> None:
    """Noise draws thresholds together: percentiles of the draws miss a slope of -0.55 in every fifth study."""
    truth = Truth(plms=2, tasks=2, high_change=change)
    tasks = truth.design().groupby("task")
    cells = pd.concat([with_true_scores(group, truth.by_task()[task]) for task, group in tasks])
    cells = cells[cells.placement.isin(["uniform", "full"])].reset_index(drop=True)
    cells = cells.assign(chance_uniform=0.2, chance_majority=truth.chance, num_plans=2, num_replicates=1, sd=0.03)
    means, scatter = cells["mean"].to_numpy(), np.where(cells.placement.eq("full"), 0.005, 0.03)
    rng, sims, missed = np.random.default_rng(3), 150, 0
    true = slope_of(means, cells, np.zeros((2, len(cells)))).value
    assert true == pytest.approx(-0.553 if change else 0, abs=0.002)
    for _ in range(sims):
        noise = scatter * rng.normal(size=(401, len(cells)))
        low, high = slope_of(means + noise[0], cells, noise[1:]).interval
        missed += not low <= true <= high
    assert missed / sims < 0.05 + 3 * np.sqrt(0.05 * 0.95 / sims)


def spread(scores: dict, models: list[str], **how):
    return spread_over_tasks(chance_threshold(AnalysisInputs(pd.DataFrame(), made(scores, **how), MARGINS)), models)


def test_spread_over_tasks_subtracts_the_equivalence_margin() -> None:
    curves = {"t": [0.3, 0.3, 0.5, 0.7], "u": [0.3, 0.5, 0.7, 0.7], "v": [0.3, 0.3, 0.3, 0.5]}
    found = spread({("m0", task): means for task, means in curves.items()}, ["m0"], noise=0.001)
    assert found.fixed_tasks.value == pytest.approx(1.0 - MARGINS["equivalence_margin"], abs=0.05)
    assert found.fixed_tasks.interval[0] > 0
    assert found.task_population.interval == pytest.approx(
        tuple(np.sqrt(2 / stats.chi2.ppf([0.975, 0.025], 2)) - 0.5), rel=0.2
    )
    assert found.values["m0"].value == pytest.approx(1.0, abs=0.05)
    assert found.remark == ""


def test_spread_over_tasks_with_a_censored_threshold_has_no_upper_bound() -> None:
    curves = {"t": [0.3, 0.3, 0.5], "u": [0.3, 0.3, 0.5], "v": [0.3, 0.3, 0.3]}
    found = spread({("m0", task): means for task, means in curves.items()}, ["m0"], noise=0.001)
    assert found.fixed_tasks.interval[1] == INF
    assert found.fixed_tasks.interval[0] <= found.fixed_tasks.value
    assert "1 of 3 thresholds" in found.remark


def test_spread_over_tasks_with_a_threshold_of_one_parameter_is_bounded() -> None:
    """No number of parameters is below one, so that it is the threshold."""
    curves = {"t": [0.4, 0.5, 0.6], "u": [0.3, 0.4, 0.5], "v": [0.3, 0.34, 0.5]}
    scores = {("m0", task): means for task, means in curves.items()}
    found = spread(scores, ["m0"], noise=0.001)
    assert found.fixed_tasks.value == pytest.approx(np.std([0, 0.2, 0.5], ddof=1) - 0.5, abs=0.01)
    assert found.fixed_tasks.interval[1] < 0 and found.remark == ""
    samples = made(scores, noise=0.001)
    samples = replace(samples, cells=samples.cells.assign(trainable_params=10 * samples.cells.trainable_params))
    data = chance_threshold(AnalysisInputs(pd.DataFrame(), samples, MARGINS))
    assert spread_over_tasks(data, ["m0"]).fixed_tasks.interval[1] == INF


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({("m0", "t"): [0.3, 0.5]}, "two tasks"),
        ({("m0", "t"): [0.3], ("m0", "u"): [0.3]}, "fewer than two budgets"),
        ({("m0", "t"): [0.3, 0.3], ("m0", "u"): [0.3, 0.3]}, "2 of 2 thresholds are above"),
    ],
)
def test_spread_over_tasks_without_data_raises_with_a_reason(scores: dict, reason: str) -> None:
    with pytest.raises(NotEstimable, match=reason):
        spread(scores, ["m0"], noise=0.001)
