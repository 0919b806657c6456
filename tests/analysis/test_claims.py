"""Quantities of the claims against plain formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apet.analysis.claims import AnalysisInputs, informed_gain, method_variance, position_variance
from apet.analysis.intervals import basic_interval, percentile_interval, union_interval
from apet.analysis.means import MATCHED
from apet.analysis.resampling import sample_means
from apet.analysis.variance import position_components
from simulated_claims import MARGINS, Truth, simulate

FRAME = simulate(Truth(plms=2, tasks=2, num_plans=2, num_seeds=2, n=120, plan_change=6.0), 5)
SAMPLES = sample_means(FRAME, 200)
INPUTS = AnalysisInputs(FRAME, SAMPLES, MARGINS)


def test_position_variance_averages_the_component_over_matched_budgets() -> None:
    data = position_variance(INPUTS)
    cells = position_components(FRAME[FRAME.budget.isin([f"@{name}" for name in MATCHED])])
    component = 100**2 * ((cells.between - cells.within) / cells.n0 - cells.rows)
    expected = component.groupby([cells.model, cells.task]).mean()
    rows = list(zip(data.table.model, data.table.task, strict=True))
    assert len(rows) == 4
    for place, row in enumerate(rows):
        found = data.combine(np.eye(4)[place])
        assert found.value == pytest.approx(expected[row])
        assert found.interval[0] < found.value < found.interval[1]
    weights = np.array([0.5, -1.0, 2.0, 0.0])
    assert data.combine(weights).value == pytest.approx(sum(weights * [expected[row] for row in rows]))


def test_method_variance_is_the_variance_between_method_means() -> None:
    """Draws without noise: what is left is the plug-in. APET and methods at other numbers of parameters stay out."""
    means = SAMPLES.cells["mean"].to_numpy()
    data = method_variance(AnalysisInputs(FRAME, replace(SAMPLES, values=np.tile(means, (50, 1))), MARGINS))
    own = SAMPLES.cells[SAMPLES.cells.budget.eq("@own")]
    expected = 100**2 * own.groupby(["model", "task"])["mean"].var(ddof=1)
    for place, row in enumerate(zip(data.table.model, data.table.task, strict=True)):
        assert own.groupby(["model", "task"]).size()[row] == 5
        assert data.combine(np.eye(4)[place]).value == pytest.approx(expected[row])


def test_method_variance_ignores_untuned_models_and_other_budgets() -> None:
    """The untuned PLM has a count of its own too, and a method at another's count is no method at its own."""
    cells, means = SAMPLES.cells.copy(), SAMPLES.cells["mean"].to_numpy()
    cells.loc[cells.placement.eq("prompt"), "placement"] = "none"
    cells.loc[cells.placement.eq("bitfit"), "budget"] = "100"
    data = method_variance(
        AnalysisInputs(FRAME, replace(SAMPLES, cells=cells, values=np.tile(means, (50, 1))), MARGINS)
    )
    left = cells[cells.placement.isin(["full", "lora", "adapter"]) & cells.budget.eq("@own")]
    expected = 100**2 * left.groupby(["model", "task"])["mean"].var(ddof=1)
    found = [data.combine(row).value for row in np.eye(4)]
    assert found == pytest.approx([expected[row] for row in zip(data.table.model, data.table.task, strict=True)])


def test_method_variance_uses_the_union_interval_for_one_plm_and_the_pivot_for_differences() -> None:
    data = method_variance(INPUTS)
    own = SAMPLES.cells.budget.eq("@own") & SAMPLES.cells.task.eq("task0")
    drawn, seen = [], []
    for model in ("plm00", "plm01"):
        place = np.flatnonzero(own & SAMPLES.cells.model.eq(model))
        drawn.append(100**2 * SAMPLES.values[:, place].var(axis=1, ddof=1))
        seen.append(100**2 * SAMPLES.cells["mean"].to_numpy()[place].var(ddof=1))
    rows = [tuple(row) for row in data.table[["model", "task"]].to_numpy()]
    first, second = (np.eye(4)[rows.index((model, "task0"))] for model in ("plm00", "plm01"))
    pivot = basic_interval(drawn[0], seen[0])
    assert data.combine(first).interval == pytest.approx(
        union_interval(pivot, percentile_interval(drawn[0], seen[0])).interval
    )
    assert data.combine(first).interval != pytest.approx(pivot.interval)
    difference = basic_interval(drawn[0] - drawn[1], seen[0] - seen[1])
    assert data.combine(first - second).interval == pytest.approx(difference.interval)


def test_method_variance_with_one_method_has_no_rows() -> None:
    some = SAMPLES.cells.placement.isin(["lora", "uniform"]).to_numpy()
    data = method_variance(AnalysisInputs(FRAME, SAMPLES.select(some), MARGINS))
    assert data.table.empty


def test_informed_gain_is_the_mean_difference_over_placements_and_budgets() -> None:
    frame = simulate(Truth(n=100, gain=2.0, sweep=()), 1)
    # A budget that one PLM lacks, and a cell of one replicate, do not count.
    frame = frame[~(frame.model.eq("plm00") & frame.placement.eq("gradient") & frame.budget.eq("@lora"))]
    alone = frame.model.eq("plm01") & frame.placement.eq("magnitude") & frame.budget.eq("@prompt")
    frame = frame[~(alone & frame.seed_index.gt(0))].reset_index(drop=True)
    data = informed_gain(AnalysisInputs(frame, sample_means(frame, 200), MARGINS))
    means = frame.groupby(["model", "task", "placement", "budget"]).test_score.mean()
    pairs = [("gradient", b) for b in ("@adapter", "@prompt", "@bitfit")]
    pairs += [("magnitude", b) for b in ("@lora", "@adapter", "@bitfit")]
    for row in data.table.itertuples():
        gains = [means[row.model, row.task, p, b] - means[row.model, row.task, "uniform", b] for p, b in pairs]
        weights = (data.table.index == row.Index).astype(float)
        assert data.combine(weights).value == pytest.approx(100 * np.mean(gains))
    assert len(data.table) == 9 and set(data.source_cells.placement) == {"gradient", "magnitude", "uniform"}


def test_informed_gain_includes_the_variance_between_plans_of_apet() -> None:
    """APET's cells of one plan say nothing about other plans, so its other cells do."""
    frame = simulate(Truth(n=100, gain=2.0, sweep=(), plan_variance=100.0), 2)
    one_plan = frame.placement.eq("uniform") & frame.budget.eq("@lora") & frame.plan_index.gt(0)
    frame = frame[~one_plan & (frame.budget.eq("@lora") | frame.placement.eq("uniform"))].reset_index(drop=True)
    data = informed_gain(AnalysisInputs(frame, sample_means(frame, 500), MARGINS))
    low, high = data.combine((data.table.index == 0).astype(float)).interval
    assert high - low > 100 * 4 * 0.05  # four standard errors from the plan alone
