"""Quantities of the claims against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from apet.analysis.claims import AnalysisInputs, method_variance, position_variance
from apet.analysis.intervals import basic_interval, percentile_interval, union_interval
from apet.analysis.means import MATCHED
from apet.analysis.resampling import MeanSamples, sample_means
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
    data = method_variance(AnalysisInputs(FRAME, MeanSamples(SAMPLES.cells, np.tile(means, (50, 1))), MARGINS))
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
    data = method_variance(AnalysisInputs(FRAME, MeanSamples(cells, np.tile(means, (50, 1))), MARGINS))
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
