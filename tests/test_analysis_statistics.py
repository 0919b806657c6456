"""Estimators against closed forms and scipy, intervals against their own coverage."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from apet.analysis.components import components, position_spread, sd_interval
from apet.analysis.means import (
    cell_scores,
    chance_level,
    interval,
    method_scores,
    models_by_scale,
    over_tasks,
    own_count,
)
from apet.analysis.summary import summary
from apet.analysis.tidy import tidy
from simulated_study import MODELS, TASKS, record, study


def frame_of(scores: np.ndarray, n: int = 400) -> pd.DataFrame:
    """Cells m0, m1, … of one draw; `scores`: (cells, reruns)."""
    cells, reruns = scores.shape
    return pd.DataFrame(
        {
            "model": np.repeat([f"m{i}" for i in range(cells)], reruns),
            "family": "f",
            "non_embedding": 1,
            "tunable": 1,
            "task": "t",
            "placement": "lora",
            "budget": "@own",
            "draw": 0,
            "rerun": np.tile(np.arange(reruns), cells),
            "score": scores.ravel(),
            "n": n,
            "outcome": "ok",
        }
    )


@given(st.integers(1, 500), st.data())
def test_interval_is_wilson_for_one_proportion(n: int, data) -> None:
    hits = data.draw(st.integers(0, n))
    p = hits / n
    low, high = interval(p, p * (1 - p) / n, np.inf, n)
    wilson = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


@given(st.integers(0, 1000), st.floats(1e-6, 3), st.floats(1, 100), st.integers(1, 1000))
def test_interval_stays_in_range_and_holds_the_mean(hits: int, factor: float, df: float, n: int) -> None:
    mean = hits / 1000
    low, high = interval(mean, factor * mean * (1 - mean), df, n)
    assert 0 <= low <= mean + 1e-9
    assert mean - 1e-9 <= high <= 1


def test_cell_scores_of_one_and_of_two_reruns() -> None:
    one = cell_scores(frame_of(np.array([[0.8]]))).iloc[0]
    wilson = stats.binomtest(320, 400).proportion_ci(method="wilson")
    assert (one.low, one.high) == pytest.approx((wilson.low, wilson.high))
    assert np.isnan(one.sd)
    two = cell_scores(frame_of(np.array([[0.8, 0.7]]))).iloc[0]
    between, sampling = 0.005 / 2, 0.75 * 0.25 / 400
    assert two["mean"] == pytest.approx(0.75)
    assert two.sd == pytest.approx(np.sqrt(0.005))
    assert two.variance == pytest.approx(between + sampling)
    assert two.df == pytest.approx((between + sampling) ** 2 / between**2)


def test_draws_are_the_units_where_there_are_several() -> None:
    scores = np.array([[0.8, 0.6], [0.5, 0.5], [0.4, 0.2]])
    cell = cell_scores(tidy([record("bloom-mid", "topics", "uniform", "@lora", scores, 10)])).iloc[0]
    assert (cell.units, cell.draws, cell.reruns) == (3, 3, 2)
    assert cell["mean"] == pytest.approx(0.5)
    assert cell.sd == pytest.approx(0.2)


def test_a_diverged_replicate_is_counted_and_left_out() -> None:
    path, metrics = record("bloom-mid", "topics", "lora", "@own", [[0.8, 0.6, 0.1]], 10)
    metrics["replicates"][2]["outcome"] = "diverged"
    metrics["replicates"][2]["test"]["score"] = None
    cell = cell_scores(tidy([(path, metrics)])).iloc[0]
    assert (cell.units, cell.diverged) == (2, 1)
    assert cell["mean"] == pytest.approx(0.7)


@pytest.mark.parametrize("reruns", [1, 2, 4])
def test_interval_covers_at_least_what_it_says(reruns: int) -> None:
    """Shared test rows of varying difficulty, and runs that differ by an S.D. of 0.03 (0 for a single run)."""
    rng = np.random.default_rng(reruns)
    cells, n = 800, 400
    rows = rng.beta(5, 5, (cells, 1, n))
    runs = rng.normal(0, 0.0 if reruns == 1 else 0.03, (cells, reruns, 1))
    scores = (rng.random((cells, reruns, n)) < np.clip(rows + runs, 0, 1)).mean(axis=2)
    found = cell_scores(frame_of(scores, n))
    covered = ((found.low <= 0.5) & (found.high >= 0.5)).mean()
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / cells)
    assert (found.high - found.low).median() < 0.2


def test_rows_in_any_order_give_the_same_numbers() -> None:
    frame = tidy(study())
    mixed = frame.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(cell_scores(frame), cell_scores(mixed))
    pd.testing.assert_frame_equal(position_spread(frame), position_spread(mixed))
    assert summary(frame, "s") == summary(mixed, "s")


def test_mean_over_tasks_and_its_variance() -> None:
    cells = [
        record("bloom-mid", "topics", "lora", "@own", [[0.8, 0.7]], 10),
        record("bloom-mid", "sentiment", "lora", "@own", [[0.6, 0.62]], 10),
    ]
    scores = cell_scores(tidy(cells))
    mean = over_tasks(scores, ["sentiment", "topics"]).iloc[0]
    assert mean["mean"] == pytest.approx((0.75 + 0.61) / 2)
    assert mean.variance == pytest.approx(scores.variance.sum() / 4)
    assert mean.df == pytest.approx(scores.variance.sum() ** 2 / (scores.variance**2 / scores.df).sum())
    assert mean.sd == pytest.approx(scores.sd.mean())
    assert mean.low < mean["mean"] < mean.high


def test_a_mean_that_lacks_a_task_is_not_a_mean_of_the_others() -> None:
    scores = cell_scores(tidy([record("bloom-mid", "topics", "lora", "@own", [[0.8, 0.7]], 10)]))
    mean = over_tasks(scores, ["sentiment", "topics"]).iloc[0]
    assert mean[["mean", "sd", "low", "high"]].isna().all()


def test_components_match_the_analysis_of_variance() -> None:
    groups = [[0.5, 0.6, 0.58], [0.7, 0.75], [0.4, 0.45, 0.5, 0.42]]
    scores, draws = np.concatenate(groups), np.repeat([7, 3, 9], [3, 2, 4])
    found = components(scores, draws)
    within = sum(np.var(g) * len(g) for g in groups) / 6
    n0 = (9 - (9 + 4 + 16) / 9) / 2
    assert found.within == pytest.approx(np.sqrt(within))
    ratio = stats.f_oneway(*groups).statistic
    assert found.between == pytest.approx(np.sqrt((ratio - 1) * within / n0))
    assert found.sd == pytest.approx(np.std([np.mean(g) for g in groups], ddof=1))


def test_components_recover_the_truth_and_truncate_at_zero() -> None:
    rng = np.random.default_rng(5)
    draws = np.repeat(np.arange(2000), 3)
    noise = rng.normal(0, 0.02, 6000)
    found = components(0.6 + rng.normal(0, 0.05, 2000)[draws] + noise, draws)
    assert found.between == pytest.approx(0.05, rel=0.05)
    assert found.within == pytest.approx(0.02, rel=0.05)
    assert found.sd > found.between
    assert components(np.array([0.4, 0.6, 0.4, 0.6]), np.array([0, 0, 1, 1])).between == 0


@pytest.mark.parametrize(("scores", "draws", "number"), [([0.5, 0.6], [0, 1], 2), ([0.5, 0.6], [0, 0], 1), ([], [], 0)])
def test_components_without_reruns_or_draws_are_unknown(scores: list, draws: list, number: int) -> None:
    found = components(np.array(scores), np.array(draws, dtype=int))
    assert found.draws == number
    assert np.isnan(found.between)
    assert np.isnan(found.sd) == (number < 2)


@pytest.mark.parametrize("df", [2, 4, 9])
def test_interval_of_one_sd_is_the_chi_square_one(df: int) -> None:
    low, high = sd_interval(np.array([0.03]), np.array([df]))
    exact = 0.03 * np.sqrt(df / stats.chi2.ppf([0.975, 0.025], df))
    assert (low, high) == pytest.approx(tuple(exact), rel=0.05)


def test_interval_of_a_mean_sd_covers_and_is_seeded() -> None:
    rng = np.random.default_rng(11)
    truth = np.array([0.01, 0.02, 0.03, 0.04])
    sds = rng.normal(0, truth[:, None], (200, 4, 3)).std(axis=2, ddof=1)
    bounds = np.array([sd_interval(row, np.full(4, 2)) for row in sds])
    covered = ((bounds[:, 0] <= truth.mean()) & (truth.mean() <= bounds[:, 1])).mean()
    assert covered > 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)
    assert sd_interval(sds[0], np.full(4, 2)) == sd_interval(sds[0], np.full(4, 2))


def test_interval_of_an_sd_that_cannot_be_had() -> None:
    assert np.isnan(sd_interval(np.array([0.1, np.nan]), np.array([2, 2]))).all()
    assert np.isnan(sd_interval(np.array([0.1]), np.array([0]))).all()
    assert np.isnan(sd_interval(np.array([]), np.array([]))).all()
    low, high = sd_interval(np.zeros(2), np.full(2, 2))
    assert low == 0
    assert np.isnan(high)


def test_position_spread_is_of_apet_alone() -> None:
    frame = tidy(study())
    spread = position_spread(frame).set_index(["model", "task", "budget"])
    assert len(spread) == len(MODELS) * len(TASKS) * 7
    chosen = frame[frame.model.eq("bloom-mid") & frame.task.eq("topics") & frame.placement.eq("uniform")]
    expected = chosen[chosen.budget.eq("@lora")].score.std()
    assert spread.loc[("bloom-mid", "topics", "@lora"), "sd"] == pytest.approx(expected)


def test_own_count_knows_both_ways_to_write_it() -> None:
    cells = [
        record("bloom-mid", "topics", placement, budget, [[0.5]], 10)
        for placement, budget in [
            ("lora", "@own"),
            ("bitfit", "@bitfit"),
            ("none", "0"),
            ("lora", "4096"),
            ("uniform", "@lora"),
            ("attention", "@own"),
        ]
    ]
    frame = tidy(cells)
    assert set(zip(frame.placement[own_count(frame)], frame.budget[own_count(frame)], strict=True)) == {
        ("lora", "@own"),
        ("bitfit", "@bitfit"),
        ("none", "0"),
    }
    assert set(method_scores(frame).placement) == {"lora", "bitfit", "none"}


def test_chance_is_the_larger_guess() -> None:
    cells = [*study()[:13], record("bloom-large", "sentiment", "lora", "@own", [[0.5]], 10)]
    cells[-1][1]["task"].update(majority=None, labels=None)
    assert chance_level(tidy(cells)).to_dict() == {"sentiment": 0.5, "topics": 0.237}


def test_models_stand_from_small_to_large() -> None:
    assert models_by_scale(tidy(study())) == list(MODELS)


def test_summary_can_be_read_and_diffed() -> None:
    frame = tidy(study())
    found = summary(frame, "ab")
    numbers = [v for v in json.loads(json.dumps(found, allow_nan=False))["score"].values() for v in v.values()]
    assert found["study"] == "ab"
    assert len(numbers) == len(MODELS) * 13
    assert all(round(number, 4) == number for number in numbers)
    own = frame[frame.model.eq("bloom-mid") & frame.placement.eq("lora")]
    topics = own.score[own.task.eq("topics")].mean()
    assert found["score"]["bloom-mid"]["lora@own"] == pytest.approx(own.score.mean(), abs=1e-4)
    assert found["task"]["bloom-mid"]["topics"]["lora"] == pytest.approx(topics, abs=1e-4)
    assert set(found["position_sd"]["bloom-mid"]) == {"lora", "adapter", "prompt", "bitfit", "1", "100", "10000"}


def test_summary_says_null_where_a_task_is_missing() -> None:
    cells = [c for c in study() if c[0] not in ("bloom-mid/topics/lora-@own", "bloom-mid/topics/uniform-@lora")]
    found = summary(tidy(cells), "ab")
    assert found["score"]["bloom-mid"]["lora@own"] is None
    assert found["position_sd"]["bloom-mid"]["lora"] is None
    assert found["score"]["bloom-large"]["lora@own"] is not None
