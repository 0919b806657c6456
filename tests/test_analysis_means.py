"""Means, methods, paired differences: what they are, and that their intervals hold the truth as often as they say."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from apet.analysis.findings import summary
from apet.analysis.means import (
    MEAN,
    _p_values,
    cell_scores,
    chance_level,
    differences,
    matched,
    method_differences,
    method_scores,
    models_by_scale,
    over_tasks,
    own_count,
    wilson,
)
from apet.analysis.resampling import CELL, sample_means
from simulated_cells import Design, simulate
from simulated_study import MODELS, frame_of, record, study

STUDIES = 24
DESIGNS = {
    "one unit": Design(units=1, replicate_sd=0.0),
    "two units": Design(),
    "ten units": Design(units=10),
    "uneven noise": Design(uneven=2.0),
    "near one": Design(score=0.98, replicate_sd=0.005),
}


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_is_wilson_s(hits: int, more: int) -> None:
    n = hits + more
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("name", DESIGNS)
def test_intervals_hold_the_truth_as_often_as_they_say(name: str) -> None:
    """Intervals of one study share its rows, so that the Monte Carlo error is over studies."""
    design = DESIGNS[name]
    shares: dict[str, list[float]] = {"cells": [], "differences": [], "tasks": []}
    for seed in range(STUDIES):
        frame, truth = simulate(design, seed)
        draws = sample_means(frame, 500)
        cells = cell_scores(draws)
        true = truth[cells.task.astype(int)]
        shares["cells"].append(((cells.low <= true) & (true <= cells.high)).mean())
        pairs = differences(draws, lambda cells: cells.assign(budget="0"))
        pairs = pairs[pairs.task.ne(MEAN) & pairs.budget.ne("0")]
        shares["differences"].append(((pairs.low <= 0) & (pairs.high >= 0)).mean())
        means = over_tasks(draws, sorted(frame.task.unique()))
        shares["tasks"].append(((means.low <= truth.mean()) & (truth.mean() <= means.high)).mean())
    for estimator, found in shares.items():
        error = np.std(found, ddof=1) / np.sqrt(STUDIES)
        assert np.mean(found) > 0.95 - 3 * max(error, 0.005), estimator
        # A replicate's chance on a row counts twice: intervals may be wide, but not without measure.
        assert np.mean(found) < 0.998, estimator


def test_intervals_are_percentiles_of_the_draws() -> None:
    """Of cells, of differences (each cell against the first of its task), and of their means over tasks."""
    draws = sample_means(simulate(Design(cells=3, tasks=2), 0)[0], 400)
    cells, values, tails = draws.cells, draws.values, (0.025, 0.975)

    def bounds(table: pd.DataFrame) -> np.ndarray:
        return table[["low", "high"]].to_numpy().T

    assert bounds(cell_scores(draws)) == pytest.approx(np.quantile(values, tails, axis=0))
    places = [np.flatnonzero(cells.budget.eq(budget)) for budget in "012"]
    tasks = np.stack([values[:, place].mean(axis=1) for place in places], axis=1)
    assert bounds(over_tasks(draws, ["0", "1"])) == pytest.approx(np.quantile(tasks, tails, axis=0))
    pairs = differences(draws, lambda cells: cells.assign(budget="0"))
    means = pairs[pairs.task.eq(MEAN) & pairs.budget.ne("0")]
    assert bounds(means) == pytest.approx(np.quantile(tasks[:, 1:] - tasks[:, :1], tails, axis=0))


def test_tasks_as_a_sample_hold_the_mean_of_all_tasks() -> None:
    design = Design(tasks=5, cells=3, task_sd=0.05)
    held = []
    for seed in range(150):
        means = over_tasks(sample_means(simulate(design, seed)[0], 200), list("01234"))
        held.append((means.low_beyond <= design.score) & (design.score <= means.high_beyond))
    assert np.mean(held) == pytest.approx(0.95, abs=0.06)


def test_tasks_that_differ_widen_what_is_said_beyond_them_alone() -> None:
    means = over_tasks(sample_means(simulate(Design(tasks=5, task_sd=0.1), 1)[0]), list("01234"))
    assert (means.high_beyond - means.low_beyond > 2 * (means.high - means.low)).all()
    one = over_tasks(sample_means(simulate(Design(tasks=1), 1)[0]), ["0"])
    assert one.low_beyond.isna().all() and one.low.notna().all()


def test_a_mean_over_tasks_is_their_mean_and_never_of_others() -> None:
    frame, _ = simulate(Design(), 2)
    draws = sample_means(frame)
    means = over_tasks(draws, list("012")).set_index("budget")
    assert means.loc["4", "mean"] == pytest.approx(frame[frame.budget.eq("4")].score.mean())
    assert means.loc["4", "n"] == 1200 and means.loc["4", "low"] < means.loc["4", "mean"] < means.loc["4", "high"]
    assert over_tasks(draws, list("0123"))[["mean", "sd", "low", "high"]].isna().all(axis=None)


def test_differences_are_paired_and_say_whose_partner_is_missing() -> None:
    frame, _ = simulate(Design(), 7)
    draws = sample_means(frame)
    found = differences(draws, lambda cells: cells.assign(budget=cells.budget.where(cells.budget.eq("0"), "1")))
    row = found[found.task.eq("2") & found.budget.eq("5")].iloc[0]
    scores = draws.cells.set_index(["task", "budget"])["mean"]
    assert row.difference == pytest.approx(scores["2", "5"] - scores["2", "1"])
    mean = found[found.task.eq(MEAN) & found.budget.eq("5")].iloc[0]
    assert mean.difference == pytest.approx(found[found.budget.eq("5") & found.task.ne(MEAN)].difference.mean())
    assert (found.p_adjusted >= found.p).all()
    alone = differences(draws, lambda cells: cells.assign(budget="nowhere"))
    assert alone.empty


def test_a_real_difference_is_found_and_an_adjusted_p_is_holm_s() -> None:
    frame, _ = simulate(Design(replicate_sd=0.005, cells=4), 1)
    worse = frame.budget.eq("3")
    frame.loc[worse, "rows"] = frame.loc[worse, "rows"].map(lambda rows: rows * (np.arange(len(rows)) % 2))
    frame["score"] = frame["rows"].map(lambda rows: float(rows.mean(dtype=float)))
    found = differences(sample_means(frame), lambda cells: cells.assign(budget="0"))
    tasks = found[found.task.ne(MEAN)]
    real = tasks.budget.eq("3")
    assert (tasks.p_adjusted[real] < 0.05).all() and (tasks.high[real] < 0).all()
    smallest = tasks.p.min()
    assert tasks.p_adjusted.min() == pytest.approx(min(1, smallest * len(tasks)))


@pytest.mark.parametrize("df", [2.5, 8, 1e6])
def test_a_small_p_is_read_off_the_tail(df: float) -> None:
    """Of Student's t about 0.1: as the formula says, where no draw lies beyond 0."""
    random = np.random.default_rng(1)
    for distance in (1.0, 6.0):
        values = 0.1 + 0.1 / distance * random.standard_t(df, (20_000, 8))
        expected = 2 * stats.t.sf(distance, df)
        assert np.log10(np.median(_p_values(values))) == pytest.approx(np.log10(expected), abs=0.02 * distance**2)


def test_rows_in_any_order_give_the_same_numbers() -> None:
    frame = frame_of(study())
    mixed = frame.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(cell_scores(sample_means(frame)), cell_scores(sample_means(mixed)))
    assert summary(frame, "s") == summary(mixed, "s")


def test_methods_are_compared_with_full_fine_tuning_and_apet_with_the_method_of_its_count() -> None:
    found = method_differences(sample_means(frame_of(study())))
    pairs = set(zip(found.placement, found.budget, found.other, strict=True))
    methods = {(name, "@own", "full") for name in ("lora", "adapter", "prompt", "bitfit", "none")}
    assert pairs == methods | {("uniform", f"@{name}", name) for name in ("lora", "adapter", "prompt", "bitfit")}
    assert set(found.other_budget) == {"@own"}
    assert len(found) == len(MODELS) * 9 * 3


def test_own_count_knows_both_ways_to_write_it() -> None:
    written = [("lora", "@own"), ("bitfit", "@bitfit"), ("none", "0"), ("lora", "4096"), ("uniform", "@lora")]
    written.append(("attention", "@own"))
    frame = frame_of([record("bloom-mid", "topics", *pair, [[0.5]], 10) for pair in written])
    found = set(zip(frame.placement[own_count(frame)], frame.budget[own_count(frame)], strict=True))
    assert found == {("lora", "@own"), ("bitfit", "@bitfit"), ("none", "0")}
    draws = sample_means(frame)
    assert set(method_scores(draws).placement) == {"lora", "bitfit", "none"}
    assert set(matched(draws).cells.placement) == {"lora", "bitfit", "none", "uniform"}


def test_chance_is_the_larger_guess() -> None:
    cells = [*study()[:13], record("bloom-large", "sentiment", "lora", "@own", [[0.5]], 10)]
    cells[-1][1]["task"].update(majority=None, labels=None)
    assert chance_level(frame_of(cells)).to_dict() == {"sentiment": 0.5, "topics": 0.237}


def test_models_stand_from_small_to_large() -> None:
    assert models_by_scale(frame_of(study())) == list(MODELS)


def test_summary_can_be_read_and_diffed() -> None:
    frame = frame_of(study())
    found = summary(frame, "ab")
    numbers = [v for v in json.loads(json.dumps(found, allow_nan=False))["score"].values() for v in v.values()]
    assert found["study"] == "ab"
    assert len(numbers) == len(MODELS) * 13
    assert all(round(number, 4) == number for number in numbers)
    assert any(round(number, 3) != number for number in numbers)
    own = frame[frame.model.eq("bloom-mid") & frame.placement.eq("lora")]
    topics = own.score[own.task.eq("topics")].mean()
    assert found["score"]["bloom-mid"]["lora@own"] == pytest.approx(own.score.mean(), abs=1e-4)
    assert found["task"]["bloom-mid"]["topics"]["lora"] == pytest.approx(topics, abs=1e-4)
    assert set(found["position_sd"]["bloom-mid"]) == {"lora", "adapter", "prompt", "bitfit", "1", "100", "10000"}


def test_summary_says_null_where_a_task_is_missing() -> None:
    cells = [c for c in study() if c[0] not in ("bloom-mid/topics/lora-@own", "bloom-mid/topics/uniform-@lora")]
    found = summary(frame_of(cells), "ab")
    assert found["score"]["bloom-mid"]["lora@own"] is None
    assert found["position_sd"]["bloom-mid"]["lora"] is None
    assert found["score"]["bloom-large"]["lora@own"] is not None


def test_columns_of_a_cell_are_what_figures_rely_on() -> None:
    assert {*CELL, "tunable", "mean", "sd", "low", "high", "n", "draws", "units", "diverged"} <= set(
        cell_scores(sample_means(frame_of(study()))).columns
    )
