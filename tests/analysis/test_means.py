"""Means, methods and paired differences, with the coverage of their intervals."""

from __future__ import annotations

import json
from dataclasses import replace

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
    mean_note,
    method_differences,
    method_scores,
    models_by_scale,
    over_tasks,
    own_count,
)
from apet.analysis.resampling import CELL, PLM, sample_means, tasks_of_means
from apet.analysis.single_run import run_interval, wilson
from simulated_cells import Design, simulate
from simulated_study import MODELS, frame_of, record, study

STUDIES = 16
DESIGNS = {
    "one unit": Design(replicates=1, replicate_sd=0.0),
    "two units": Design(),
    "ten units": Design(replicates=10),
    "uneven noise": Design(uneven=2.0),
    "near one": Design(score=0.98, replicate_sd=0.005),
}


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_matches_scipy(hits: int, more: int) -> None:
    n = hits + more
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-9)
    of_answers = {"type": "generation", "metric": "f1"}
    assert run_interval(of_answers, hits / n, n) == wilson(hits / n, n)
    assert run_interval(of_answers | {"type": "classification"}, hits / n, n) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_intervals_of_simulated_cells_have_nominal_coverage(name: str) -> None:
    """Intervals of one study share its rows, so that the Monte Carlo error is over studies."""
    design = DESIGNS[name]
    shares: dict[str, list[float]] = {"cells": [], "differences": [], "tasks": []}
    for seed in range(STUDIES):
        frame, truth = simulate(design, seed)
        samples = sample_means(frame, 400)
        cells = cell_scores(samples)
        true = truth[cells.task.astype(int)]
        shares["cells"].append(((cells.low <= true) & (true <= cells.high)).mean())
        pairs = differences(samples, lambda cells: cells.assign(budget="0"))
        pairs = pairs[pairs.task.ne(MEAN) & pairs.budget.ne("0")]
        shares["differences"].append(((pairs.low <= 0) & (pairs.high >= 0)).mean())
        means = over_tasks(samples)
        shares["tasks"].append(((means.low <= truth.mean()) & (truth.mean() <= means.high)).mean())
    for estimator, found in shares.items():
        error = np.std(found, ddof=1) / np.sqrt(STUDIES)
        assert np.mean(found) > 0.95 - 3 * max(error, 0.005), estimator
        # A replicate's chance on a row counts twice: intervals may be wide, but not without measure.
        assert np.mean(found) < 0.998, estimator


def test_intervals_are_percentiles_of_the_samples() -> None:
    """Of cells, of differences (each cell against the first of its task), and of their means over tasks."""
    samples = sample_means(simulate(Design(cells=3, tasks=2), 0)[0], 400)
    cells, values, tails = samples.cells, samples.values, (0.025, 0.975)

    def bounds(table: pd.DataFrame) -> np.ndarray:
        return table[["low", "high"]].to_numpy().T

    assert bounds(cell_scores(samples)) == pytest.approx(np.quantile(values, tails, axis=0))
    places = [np.flatnonzero(cells.budget.eq(budget)) for budget in "012"]
    tasks = np.stack([values[:, place].mean(axis=1) for place in places], axis=1)
    assert bounds(over_tasks(samples)) == pytest.approx(np.quantile(tasks, tails, axis=0))
    pairs = differences(samples, lambda cells: cells.assign(budget="0"))
    means = pairs[pairs.task.eq(MEAN) & pairs.budget.ne("0")]
    assert bounds(means) == pytest.approx(np.quantile(tasks[:, 1:] - tasks[:, :1], tails, axis=0))


@pytest.mark.slow
def test_over_tasks_population_interval_covers_the_population_mean() -> None:
    design = Design(tasks=5, cells=3, task_sd=0.05)
    held = []
    for seed in range(60):
        means = over_tasks(sample_means(simulate(design, seed)[0], 200))
        held.append((means.low_population <= design.score) & (design.score <= means.high_population))
    assert np.mean(held) == pytest.approx(0.95, abs=0.06)


def test_over_tasks_of_different_tasks_widens_only_the_population_interval() -> None:
    means = over_tasks(sample_means(simulate(Design(tasks=5, task_sd=0.1), 1)[0]))
    assert (means.high_population - means.low_population > 2 * (means.high - means.low)).all()
    one = over_tasks(sample_means(simulate(Design(tasks=1), 1)[0]))
    assert one.low_population.isna().all() and one.low.notna().all()


def test_over_tasks_with_a_missing_task_is_nan() -> None:
    frame, _ = simulate(Design(), 2)
    samples = sample_means(frame)
    means = over_tasks(samples).set_index("budget")
    assert means.loc["4", "mean"] == pytest.approx(frame[frame.budget.eq("4")].test_score.mean())
    assert means.loc["4", "n_test"] == 1200 and means.loc["4", "low"] < means.loc["4", "mean"] < means.loc["4", "high"]
    more = replace(samples, tasks={family: [*tasks, "3"] for family, tasks in samples.tasks.items()})
    assert over_tasks(more)[["mean", "sd", "low", "high"]].isna().all(axis=None)


def test_tasks_of_means_are_those_of_all_plms_of_a_family() -> None:
    """Excluded pairs take their task out of the family's means; cells that are missing do not."""
    pairs = pd.DataFrame(
        [("bloom", 1, "a", "x"), ("bloom", 1, "a", "y"), ("bloom", 2, "b", "x"), ("bert", 1, "c", "y"),
         ("t5", 1, "d", "x"), ("t5", 2, "e", "y")],
        columns=[*PLM, "task"],
    )  # fmt: skip
    tasks = tasks_of_means(pairs)
    assert tasks == {"bloom": ["x"], "bert": ["y"], "t5": []}
    assert mean_note(tasks) == (
        "Means are over the tasks that all PLMs of a family have. bloom: x; bert: y; t5: none (its PLMs share no task)."
    )
    assert mean_note({"bloom": ["x"], "bert": ["y"]}) == "" and mean_note({"a": ["x", "y"]}) == "Means are over x, y."


def test_means_of_a_plm_without_data_on_a_task_are_nan_everywhere() -> None:
    """In the table of means, in differences and in the samples of a part of the cells."""
    frame, _ = simulate(Design(tasks=3, cells=2), 3)
    lost = frame[frame.task.eq("1") & frame.budget.eq("0")].iloc[0]
    kept = frame[~(frame.task.eq("1") & frame.budget.eq("0"))]
    kept.attrs["missing"] = [{name: lost[name] for name in CELL}]
    samples = sample_means(kept)
    assert all(len(tasks) == 3 for tasks in samples.tasks.values())
    means = over_tasks(samples).set_index("budget")["mean"]
    assert np.isnan(means["0"]) and np.isfinite(means["1"])
    assert MEAN not in set(differences(samples, lambda cells: cells.assign(budget="0")).task)
    part = samples.select(samples.cells.task.ne("2"))
    assert over_tasks(part)["mean"].isna().all()


def test_equal_scores_of_all_rows_have_no_interval() -> None:
    frame, _ = simulate(Design(tasks=1, cells=2, replicates=1), 3)
    first = frame[frame.budget.eq("0")].iloc[0]
    same = frame.assign(test_score=first.test_score, row_scores=[first.row_scores] * len(frame))
    found = differences(sample_means(same), lambda cells: cells.assign(budget="0"))
    assert found.difference.eq(0).all() and found[["low", "high"]].isna().all(axis=None) and found.p.eq(1).all()


def test_differences_without_a_baseline_have_no_row() -> None:
    frame, _ = simulate(Design(), 7)
    samples = sample_means(frame)
    found = differences(samples, lambda cells: cells.assign(budget=cells.budget.where(cells.budget.eq("0"), "1")))
    row = found[found.task.eq("2") & found.budget.eq("5")].iloc[0]
    scores = samples.cells.set_index(["task", "budget"])["mean"]
    assert row.difference == pytest.approx(scores["2", "5"] - scores["2", "1"])
    mean = found[found.task.eq(MEAN) & found.budget.eq("5")].iloc[0]
    assert mean.difference == pytest.approx(found[found.budget.eq("5") & found.task.ne(MEAN)].difference.mean())
    assert (found.p_adjusted >= found.p).all()
    alone = differences(samples, lambda cells: cells.assign(budget="nowhere"))
    assert alone.empty


def test_differences_detect_a_real_difference_and_adjust_p_by_holm() -> None:
    frame, _ = simulate(Design(replicate_sd=0.005, cells=4), 1)
    worse = frame.budget.eq("3")
    frame.loc[worse, "row_scores"] = frame.loc[worse, "row_scores"].map(lambda rows: rows * (np.arange(len(rows)) % 2))
    frame["test_score"] = frame["row_scores"].map(lambda rows: float(rows.mean(dtype=float)))
    found = differences(sample_means(frame), lambda cells: cells.assign(budget="0"))
    tasks = found[found.task.ne(MEAN)]
    real = tasks.budget.eq("3")
    assert (tasks.p_adjusted[real] < 0.05).all() and (tasks.high[real] < 0).all()
    smallest = tasks.p.min()
    assert tasks.p_adjusted.min() == pytest.approx(min(1, smallest * len(tasks)))


@pytest.mark.parametrize("df", [2.5, 8, 1e6])
def test_p_values_beyond_the_samples_use_the_t_tail(df: float) -> None:
    """Of Student's t about 0.1: as the formula says, where no draw lies beyond 0."""
    random = np.random.default_rng(1)
    for distance in (1.0, 6.0):
        values = 0.1 + 0.1 / distance * random.standard_t(df, (20_000, 8))
        expected = 2 * stats.t.sf(distance, df)
        assert np.log10(np.median(_p_values(values))) == pytest.approx(np.log10(expected), abs=0.02 * distance**2)


def test_means_do_not_depend_on_the_order_of_rows() -> None:
    frame = frame_of(study())
    mixed = frame.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(cell_scores(sample_means(frame)), cell_scores(sample_means(mixed)))
    assert summary(frame, "s") == summary(mixed, "s")


def test_method_differences_pair_methods_with_full_and_apet_with_its_method() -> None:
    found = method_differences(sample_means(frame_of(study())))
    pairs = set(zip(found.placement, found.budget, found.baseline, strict=True))
    methods = {(name, "@own", "full") for name in ("lora", "adapter", "prompt", "bitfit", "none")}
    assert pairs == methods | {("uniform", f"@{name}", name) for name in ("lora", "adapter", "prompt", "bitfit")}
    assert set(found.baseline_budget) == {"@own"}
    assert len(found) == len(MODELS) * 9 * 3


def test_own_count_accepts_both_spellings() -> None:
    written = [("lora", "@own"), ("bitfit", "@bitfit"), ("none", "0"), ("lora", "4096"), ("uniform", "@lora")]
    written.append(("attention", "@own"))
    frame = frame_of([record("bloom-mid", "topics", *pair, [[0.5]], 10) for pair in written])
    found = set(zip(frame.placement[own_count(frame)], frame.budget[own_count(frame)], strict=True))
    assert found == {("lora", "@own"), ("bitfit", "@bitfit"), ("none", "0")}
    samples = sample_means(frame)
    assert set(method_scores(samples).placement) == {"lora", "bitfit", "none"}
    assert set(matched(samples).cells.placement) == {"lora", "bitfit", "none", "uniform"}


def test_chance_level_is_the_larger_guess() -> None:
    cells = [*study()[:13], record("bloom-large", "sentiment", "lora", "@own", [[0.5]], 10)]
    cells[-1][1]["task"].update(majority=None, labels=None)
    assert chance_level(frame_of(cells)).to_dict() == {"sentiment": 0.5, "topics": 0.237}


def test_models_by_scale_sorts_from_small_to_large() -> None:
    assert models_by_scale(frame_of(study())) == list(MODELS)


def test_summary_has_rounded_numbers_for_all_cells() -> None:
    frame = frame_of(study())
    found = summary(frame, "ab")
    numbers = [v for v in json.loads(json.dumps(found, allow_nan=False))["score"].values() for v in v.values()]
    assert found["study"] == "ab"
    assert len(numbers) == len(MODELS) * 13
    assert all(round(number, 4) == number for number in numbers)
    assert any(round(number, 3) != number for number in numbers)
    own = frame[frame.model.eq("bloom-mid") & frame.placement.eq("lora")]
    topics = own.test_score[own.task.eq("topics")].mean()
    assert found["score"]["bloom-mid"]["lora@own"] == pytest.approx(own.test_score.mean(), abs=1e-4)
    assert found["task"]["bloom-mid"]["topics"]["lora"] == pytest.approx(topics, abs=1e-4)
    assert set(found["position_sd"]["bloom-mid"]) == {"lora", "adapter", "prompt", "bitfit", "1", "100", "10000"}


def test_summary_with_a_missing_task_is_null() -> None:
    cells = [c for c in study() if c[0] not in ("bloom-mid/topics/lora-@own", "bloom-mid/topics/uniform-@lora")]
    found = summary(frame_of(cells), "ab")
    assert found["score"]["bloom-mid"]["lora@own"] is None
    assert found["position_sd"]["bloom-mid"]["lora"] is None
    assert found["score"]["bloom-large"]["lora@own"] is not None


def test_cell_scores_have_the_columns_that_figures_use() -> None:
    assert {
        *CELL,
        "trainable_params",
        "mean",
        "sd",
        "low",
        "high",
        "n_test",
        "num_plans",
        "num_replicates",
        "diverged",
    } <= set(cell_scores(sample_means(frame_of(study()))).columns)
