"""The joint draws: what they are of, how far they reach, and that cells of a task are paired."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from apet.analysis.means import cell_scores
from apet.analysis.resampling import sample_means
from simulated_cells import Design, simulate


def one_cell(hits: int, n: int) -> pd.DataFrame:
    frame, _ = simulate(Design(units=1, cells=1, tasks=1, n=n), 0)
    rows = (np.arange(n) < hits).astype(np.float32)
    return frame.assign(rows=[rows], score=hits / n)


@pytest.mark.parametrize(("hits", "n"), [(200, 400), (280, 400), (8, 400), (0, 100), (100, 100), (30, 40)])
def test_a_cell_of_one_unit_has_the_interval_of_agresti_and_coull(hits: int, n: int) -> None:
    cell = cell_scores(sample_means(one_cell(hits, n), 20_000)).iloc[0]
    low, high = stats.binom.ppf([0.025, 0.975], n + 4, (hits + 2) / (n + 4)) / (n + 4)
    assert (cell.low, cell.high) == pytest.approx((low, high), abs=1.5 / (n + 4))


def test_replicates_add_student_s_pivot() -> None:
    """Where rows are certain the draws are those of t: here one cell, so nothing moderates it."""
    frame = pd.concat([one_cell(400, 400).assign(rerun=r, score=s) for r, s in enumerate((0.5, 0.7, 0.6))])
    frame["max_samples"] = [np.full(400, s, np.float32) for s in frame.score]
    draws = sample_means(frame, 40_000)
    assert (draws.cells.units[0], draws.cells.df[0]) == (3, 2)
    found = np.quantile(draws.values[:, 0], [0.025, 0.5, 0.975])
    expected = 0.6 + 0.1 / np.sqrt(3) * stats.t.ppf([0.025, 0.5, 0.975], 2)
    assert found == pytest.approx(expected, abs=0.02)


def test_cells_of_a_task_are_paired_row_by_row() -> None:
    """What makes rows hard for both cells leaves their difference."""
    frame, _ = simulate(Design(units=1, cells=2, tasks=1, replicate_sd=0.0), 3)
    draws = sample_means(frame)
    a, b = np.stack(frame["rows"].to_numpy())
    sampled = (draws.values[:, 0] - draws.values[:, 1]).std()
    assert sampled == pytest.approx((a - b).std() / np.sqrt(len(a)), rel=0.1)
    assert sampled < 0.9 * np.sqrt(a.var() + b.var()) / np.sqrt(len(a))
    assert np.corrcoef(draws.values.T)[0, 1] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=0.1)


def test_tasks_are_independent() -> None:
    draws = sample_means(simulate(Design(units=1, cells=1, tasks=2), 3)[0])
    assert abs(np.corrcoef(draws.values.T)[0, 1]) < 0.1


def test_cells_of_one_plan_and_of_several_are_moderated_apart() -> None:
    """Plans scatter otherwise than reruns of a plan, so a cell's variance is that of its own kind."""
    frame, _ = simulate(Design(units=2, cells=4, tasks=1), 1)
    scores = {"0": (0.70, 0.72), "1": (0.70, 0.72), "2": (0.60, 0.80), "3": (0.60, 0.80)}
    frame["score"] = [scores[row.budget][row.rerun] for row in frame.itertuples()]
    several = frame.budget.isin(["2", "3"])
    frame["draw"] = frame.rerun.where(several, 0)
    frame["rerun"] = frame.rerun.where(~several, 0)
    alone = pd.concat([frame, one_cell(200, 400).assign(budget="one", task="0")], ignore_index=True)
    cells = sample_means(alone, 10).cells.set_index("budget")
    assert cells.error[["0", "1"]].to_numpy() == pytest.approx(np.sqrt((0.02**2 / 2) / 2), rel=0.01)
    assert cells.error[["2", "3"]].to_numpy() == pytest.approx(np.sqrt((0.20**2 / 2) / 2), rel=0.01)
    assert (cells.df[["0", "1", "2", "3"]] == 2).all()
    assert cells.error["one"] == 0 and np.isinf(cells.df["one"])


def test_the_order_of_rows_and_the_other_cells_change_nothing() -> None:
    frame, _ = simulate(Design(), 5)
    draws = sample_means(frame)
    mixed = sample_means(frame.sample(frac=1, random_state=1))
    pd.testing.assert_frame_equal(draws.cells, mixed.cells)
    assert np.array_equal(draws.values, mixed.values)
    alone = frame[frame.task.eq("0")]
    own = sample_means(alone.assign(draw=0)[alone.budget.eq("3") & alone.rerun.eq(0)])
    again = sample_means(frame[frame.rerun.eq(0)])
    place = again.cells.index[again.cells.task.eq("0") & again.cells.budget.eq("3")]
    assert own.values == pytest.approx(again.values[:, place], abs=1e-12)


def test_draws_are_the_units_where_there_are_several() -> None:
    frame, _ = simulate(Design(units=6, cells=1, tasks=1), 2)
    cell = sample_means(frame.assign(draw=[0, 0, 1, 1, 2, 2], rerun=[0, 1] * 3)).cells.iloc[0]
    assert (cell.units, cell.draws, cell.reruns) == (3, 3, 2)
    assert cell["mean"] == pytest.approx(frame.score.mean())
    assert cell.sd == pytest.approx(frame.score.to_numpy().reshape(3, 2).mean(axis=1).std(ddof=1))


def test_a_diverged_replicate_is_counted_and_left_out() -> None:
    frame, _ = simulate(Design(units=3, cells=2, tasks=1), 4)
    lost = frame.index[[0, 3, 4, 5]]  # one of the first cell's, all of the second's
    frame.loc[lost, "score"], frame.loc[lost, "outcome"] = np.nan, "diverged"
    frame["max_samples"] = [
        np.empty(0, np.float32) if np.isnan(s) else r for s, r in zip(frame.score, frame["rows"], strict=True)
    ]
    draws = sample_means(frame)
    assert list(draws.cells.diverged) == [1, 3] and list(draws.cells.units) == [2, 0]
    assert draws.cells["mean"][0] == pytest.approx(frame.score[[1, 2]].mean())
    assert np.isnan(draws.values[:, 1]).all() and not np.isnan(draws.values[:, 0]).any()


def test_a_table_without_scores_of_test_rows_is_refused() -> None:
    frame, _ = simulate(Design(cells=1, tasks=1), 0)
    with pytest.raises(ValueError, match="test rows"):
        sample_means(frame.assign(rows=[np.empty(0, np.float32)] * len(frame)))
