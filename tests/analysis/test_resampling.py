"""Joint samples of mean scores: coverage, pairing by row and independence of order."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from apet.analysis.means import cell_scores
from apet.analysis.resampling import sample_means
from simulated_cells import Design, simulate


def one_cell(hits: int, n: int) -> pd.DataFrame:
    frame, _ = simulate(Design(replicates=1, cells=1, tasks=1, n=n), 0)
    rows = (np.arange(n) < hits).astype(np.float32)
    return frame.assign(row_scores=[rows], test_score=hits / n)


@pytest.mark.parametrize(("hits", "n"), [(200, 400), (280, 400), (8, 400), (0, 100), (100, 100), (30, 40)])
def test_sample_means_of_one_replicate_gives_the_agresti_coull_interval(hits: int, n: int) -> None:
    cell = cell_scores(sample_means(one_cell(hits, n), 20_000)).iloc[0]
    low, high = stats.binom.ppf([0.025, 0.975], n + 4, (hits + 2) / (n + 4)) / (n + 4)
    assert (cell.low, cell.high) == pytest.approx((low, high), abs=1.5 / (n + 4))


def test_sample_means_of_certain_rows_follows_students_pivot() -> None:
    """Where rows are certain the draws are those of t: here one cell, so nothing moderates it."""
    frame = pd.concat([one_cell(400, 400).assign(seed_index=r, test_score=s) for r, s in enumerate((0.5, 0.7, 0.6))])
    frame["row_scores"] = [np.full(400, s, np.float32) for s in frame.test_score]
    samples = sample_means(frame, 40_000)
    assert (samples.cells.num_replicates[0], samples.cells.df[0]) == (3, 2)
    found = np.quantile(samples.values[:, 0], [0.025, 0.5, 0.975])
    expected = 0.6 + 0.1 / np.sqrt(3) * stats.t.ppf([0.025, 0.5, 0.975], 2)
    assert found == pytest.approx(expected, abs=0.02)


def test_sample_means_pairs_cells_of_a_task_by_row() -> None:
    """What makes rows hard for both cells leaves their difference."""
    frame, _ = simulate(Design(replicates=1, cells=2, tasks=1, replicate_sd=0.0), 3)
    samples = sample_means(frame)
    a, b = np.stack(frame.row_scores.to_numpy())
    sampled = (samples.values[:, 0] - samples.values[:, 1]).std()
    assert sampled == pytest.approx((a - b).std() / np.sqrt(len(a)), rel=0.1)
    assert sampled < 0.9 * np.sqrt(a.var() + b.var()) / np.sqrt(len(a))
    assert np.corrcoef(samples.values.T)[0, 1] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=0.1)


def test_sample_means_of_different_tasks_are_independent() -> None:
    samples = sample_means(simulate(Design(replicates=1, cells=1, tasks=2), 3)[0])
    assert abs(np.corrcoef(samples.values.T)[0, 1]) < 0.1


def test_sample_means_shrinks_single_plans_and_several_plans_separately() -> None:
    """Plans scatter otherwise than reruns of a plan, so a cell's variance is that of its own kind."""
    frame, _ = simulate(Design(replicates=2, cells=4, tasks=1), 1)
    scores = {"0": (0.70, 0.72), "1": (0.70, 0.72), "2": (0.60, 0.80), "3": (0.60, 0.80)}
    frame["test_score"] = [scores[row.budget][row.seed_index] for row in frame.itertuples()]
    several = frame.budget.isin(["2", "3"])
    frame["plan_index"] = frame.seed_index.where(several, 0)
    frame["seed_index"] = frame.seed_index.where(~several, 0)
    alone = pd.concat([frame, one_cell(200, 400).assign(budget="one", task="0")], ignore_index=True)
    cells = sample_means(alone, 10).cells.set_index("budget")
    assert cells.error[["0", "1"]].to_numpy() == pytest.approx(np.sqrt((0.02**2 / 2) / 2), rel=0.01)
    assert cells.error[["2", "3"]].to_numpy() == pytest.approx(np.sqrt((0.20**2 / 2) / 2), rel=0.01)
    assert (cells.df[["0", "1", "2", "3"]] == 2).all()
    assert cells.error["one"] == 0 and np.isinf(cells.df["one"])


def test_sample_means_does_not_depend_on_row_order_or_other_cells() -> None:
    frame, _ = simulate(Design(), 5)
    samples = sample_means(frame)
    mixed = sample_means(frame.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(samples.cells, mixed.cells)
    assert np.array_equal(samples.values, mixed.values)
    alone = frame[frame.task.eq("0")]
    own = sample_means(alone.assign(plan_index=0)[alone.budget.eq("3") & alone.seed_index.eq(0)])
    together = sample_means(frame[frame.seed_index.eq(0)])
    place = together.cells.index[together.cells.task.eq("0") & together.cells.budget.eq("3")]
    assert own.values == pytest.approx(together.values[:, place], abs=1e-12)


def test_sample_means_with_several_plans_counts_plans_as_replicates() -> None:
    frame, _ = simulate(Design(replicates=6, cells=1, tasks=1), 2)
    cell = sample_means(frame.assign(plan_index=[0, 0, 1, 1, 2, 2], seed_index=[0, 1] * 3)).cells.iloc[0]
    assert (cell.num_replicates, cell.num_plans, cell.num_seeds) == (3, 3, 2)
    assert cell["mean"] == pytest.approx(frame.test_score.mean())
    assert cell.sd == pytest.approx(frame.test_score.to_numpy().reshape(3, 2).mean(axis=1).std(ddof=1))


def test_sample_means_counts_and_leaves_out_diverged_replicates() -> None:
    frame, _ = simulate(Design(replicates=3, cells=2, tasks=1), 4)
    lost = frame.index[[0, 3, 4, 5]]  # one of the first cell's, all of the second's
    frame.loc[lost, "test_score"], frame.loc[lost, "outcome"] = np.nan, "diverged"
    frame["row_scores"] = [
        np.empty(0, np.float32) if np.isnan(s) else r for s, r in zip(frame.test_score, frame.row_scores, strict=True)
    ]
    samples = sample_means(frame)
    assert list(samples.cells.diverged) == [1, 3] and list(samples.cells.num_replicates) == [2, 0]
    assert samples.cells["mean"][0] == pytest.approx(frame.test_score[[1, 2]].mean())
    assert np.isnan(samples.values[:, 1]).all() and not np.isnan(samples.values[:, 0]).any()


def test_samples_of_mcc_on_balanced_rows_are_those_of_accuracy_on_its_scale() -> None:
    """MCC is 2 × accuracy − 1 then, so everything must scale: pseudo-rows, the variance of rounding, and limits."""
    frame = pd.concat([simulate(Design(cells=3, tasks=1), 0)[0], one_cell(0, 400).assign(budget="9")])
    rows, score = frame.row_scores.map(lambda values: 2 * values - 1), 2 * frame.test_score - 1
    accuracy, mcc = sample_means(frame), sample_means(frame.assign(metric="mcc", row_scores=rows, test_score=score))
    np.testing.assert_allclose(mcc.values, 2 * accuracy.values - 1, atol=1e-6)
    np.testing.assert_allclose(cell_scores(mcc).low, 2 * cell_scores(accuracy).low - 1, atol=1e-6)


def test_sample_means_without_row_scores_raises() -> None:
    frame, _ = simulate(Design(cells=1, tasks=1), 0)
    with pytest.raises(ValueError, match="test rows"):
        sample_means(frame.assign(row_scores=[np.empty(0, np.float32)] * len(frame)))
