"""What each claim's quantity is, by the plainest formula, on one PLM and task and as a slope over sizes."""

from __future__ import annotations

import numpy as np
import pytest

from apet.analysis.claims import AnalysisInputs, method_variance, position_variance
from apet.analysis.intervals import basic_interval, percentile_interval, union_interval
from apet.analysis.means import MATCHED
from apet.analysis.resampling import MeanSamples, sample_means
from apet.analysis.variance import position_components
from simulated_claims import MARGINS, Truth, simulate

FRAME = simulate(Truth(plms=2, tasks=2, draws=2, reruns=2, n=120, plan_change=6.0), 5)
DRAWS = sample_means(FRAME, 200)
EVIDENCE = AnalysisInputs(FRAME, DRAWS, MARGINS)


def test_the_effect_of_positions_is_the_mean_component_over_matched_budgets() -> None:
    measured = position_variance(EVIDENCE)
    cells = position_components(FRAME[FRAME.budget.isin([f"@{name}" for name in MATCHED])])
    component = 100**2 * ((cells.between - cells.within) / cells.n0 - cells.rows)
    expected = component.groupby([cells.model, cells.task]).mean()
    rows = list(zip(measured.table.model, measured.table.task, strict=True))
    assert len(rows) == 4
    for place, row in enumerate(rows):
        found = measured.combine(np.eye(4)[place])
        assert found.value == pytest.approx(expected[row])
        assert found.interval[0] < found.value < found.interval[1]
    weights = np.array([0.5, -1.0, 2.0, 0.0])
    assert measured.combine(weights).value == pytest.approx(sum(weights * [expected[row] for row in rows]))


def test_the_spread_of_methods_is_the_variance_between_their_means() -> None:
    """Draws without noise: what is left is the plug-in. APET and methods at other numbers of parameters stay out."""
    means = DRAWS.cells["mean"].to_numpy()
    measured = method_variance(AnalysisInputs(FRAME, MeanSamples(DRAWS.cells, np.tile(means, (50, 1))), MARGINS))
    own = DRAWS.cells[DRAWS.cells.budget.eq("@own")]
    expected = 100**2 * own.groupby(["model", "task"])["mean"].var(ddof=1)
    for place, row in enumerate(zip(measured.table.model, measured.table.task, strict=True)):
        assert own.groupby(["model", "task"]).size()[row] == 5
        assert measured.combine(np.eye(4)[place]).value == pytest.approx(expected[row])


def test_what_is_no_method_is_no_part_of_their_spread() -> None:
    """The untuned PLM has a count of its own too, and a method at another's count is no method at its own."""
    cells, means = DRAWS.cells.copy(), DRAWS.cells["mean"].to_numpy()
    cells.loc[cells.placement.eq("prompt"), "placement"] = "none"
    cells.loc[cells.placement.eq("bitfit"), "budget"] = "100"
    measured = method_variance(AnalysisInputs(FRAME, MeanSamples(cells, np.tile(means, (50, 1))), MARGINS))
    left = cells[cells.placement.isin(["full", "lora", "adapter"]) & cells.budget.eq("@own")]
    expected = 100**2 * left.groupby(["model", "task"])["mean"].var(ddof=1)
    found = [measured.combine(row).value for row in np.eye(4)]
    assert found == pytest.approx(
        [expected[row] for row in zip(measured.table.model, measured.table.task, strict=True)]
    )


def test_one_variance_has_the_wider_interval_and_a_difference_the_pivot_alone() -> None:
    measured = method_variance(EVIDENCE)
    own = DRAWS.cells.budget.eq("@own") & DRAWS.cells.task.eq("task0")
    drawn, seen = [], []
    for model in ("plm00", "plm01"):
        place = np.flatnonzero(own & DRAWS.cells.model.eq(model))
        drawn.append(100**2 * DRAWS.values[:, place].var(axis=1, ddof=1))
        seen.append(100**2 * DRAWS.cells["mean"].to_numpy()[place].var(ddof=1))
    rows = [tuple(row) for row in measured.table[["model", "task"]].to_numpy()]
    first, second = (np.eye(4)[rows.index((model, "task0"))] for model in ("plm00", "plm01"))
    pivot = basic_interval(drawn[0], seen[0])
    assert measured.combine(first).interval == pytest.approx(
        union_interval(pivot, percentile_interval(drawn[0], seen[0])).interval
    )
    assert measured.combine(first).interval != pytest.approx(pivot.interval)
    difference = basic_interval(drawn[0] - drawn[1], seen[0] - seen[1])
    assert measured.combine(first - second).interval == pytest.approx(difference.interval)


def test_methods_of_one_kind_alone_have_no_spread() -> None:
    some = DRAWS.cells.placement.isin(["lora", "uniform"]).to_numpy()
    measured = method_variance(AnalysisInputs(FRAME, DRAWS.select(some), MARGINS))
    assert measured.table.empty
