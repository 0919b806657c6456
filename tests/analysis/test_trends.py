"""Slopes against least squares, with families, tasks and missing values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from apet.analysis.intervals import NotEstimable, percentile_interval
from apet.analysis.trends import ClaimData, slope

SIZES = {"a": 10**4, "b": 10**5, "c": 3 * 10**6}


def claim_data(values: dict[tuple[str, str, str], float], censoring: list[int] | None = None) -> ClaimData:
    """Values of (family, model, task), known without error."""
    rows = [{"family": f, "non_embedding_params": SIZES[m[-1]], "model": m, "task": t} for f, m, t in values]
    number = np.array(list(values.values()))
    return ClaimData(
        pd.DataFrame(rows),
        lambda weights: percentile_interval(np.full(100, number @ weights), float(number @ weights)),
        pd.DataFrame(),
        "nothing was measured",
        censoring=None if censoring is None else np.array(censoring),
    )


def test_slope_of_one_family_is_least_squares_averaged_over_tasks() -> None:
    y = {("f", m, t): v for (m, t), v in zip([(m, t) for t in "tu" for m in "abc"], [1, 2, 4, 5, 3, 3.5], strict=True)}
    found = slope(claim_data(y), list("abc"))
    x = np.log10(list(SIZES.values()))
    expected = [stats.linregress(x, values).slope for values in ([1, 2, 4], [5, 3, 3.5])]
    assert found.fixed_tasks.value == pytest.approx(np.mean(expected))
    assert found.task_population.value == pytest.approx(np.mean(expected))
    assert found.task_population.interval == pytest.approx(
        tuple(stats.t.interval(0.95, 1, np.mean(expected), stats.sem(expected)))
    )
    assert {name: own.value for name, own in found.values.items()} == pytest.approx({"a": 3, "b": 2.5, "c": 3.75})


def test_slope_of_several_families_allows_different_levels() -> None:
    alone = {("f", "fa", "t"): 1.0, ("f", "fc", "t"): 3.0, ("g", "ga", "t"): 11.0, ("g", "gb", "t"): 12.0}
    found = slope(claim_data(alone), ["fa", "fc", "ga", "gb"])
    x, y = np.log10([10**4, 3 * 10**6, 10**4, 10**5]), np.array([1.0, 3.0, 11.0, 12.0])
    design = np.column_stack([x, [1, 1, 0, 0], [0, 0, 1, 1]])
    assert found.fixed_tasks.value == pytest.approx(np.linalg.lstsq(design, y)[0][0])
    assert found.task_population == "one task does not tell how tasks vary"
    assert slope(claim_data(alone), ["fa", "fc"]).fixed_tasks.value == pytest.approx(2 / (x[1] - x[0]))


def test_slope_uses_a_plm_that_lacks_a_task_but_gives_it_no_mean() -> None:
    sizes = {"a": 10**4, "b": 10**5, "d": 10**6}
    SIZES["d"] = sizes["d"]
    y = {("f", m, t): 1.0 for t in "tu" for m in sizes}
    del y["f", "d", "u"]
    found = slope(claim_data(y), list(sizes))
    assert found.rows.sum() == 5
    assert set(found.values) == {"a", "b"}
    assert found.fixed_tasks.value == pytest.approx(0)
    assert found.fixed_tasks.p == 1.0


@pytest.mark.parametrize(
    ("values", "models", "reason"),
    [
        ({("f", "a", "t"): 1.0}, ["a"], "two sizes"),
        ({("f", "fa", "t"): 1.0, ("f", "ga", "t"): 1.0, ("h", "hb", "t"): 2.0}, ["fa", "ga", "hb"], "two sizes"),
        ({("f", "a", "t"): 1.0, ("f", "b", "u"): 1.0}, ["a", "b"], "two sizes"),
        ({("f", "a", "t"): 1.0}, ["b"], "nothing was measured"),
    ],
)
def test_slope_without_two_sizes_raises_with_a_reason(values: dict, models: list[str], reason: str) -> None:
    with pytest.raises(NotEstimable, match=reason):
        slope(claim_data(values), models)


def test_slope_of_values_censored_at_one_end_raises() -> None:
    y = {("f", m, t): float(m == "a") for t in "tu" for m in "abc"}
    with pytest.raises(NotEstimable, match="6 of 6 thresholds are above"):
        slope(claim_data(y, [1] * 6), list("abc"))
    assert slope(claim_data(y, [1, -1, -1] * 2), list("abc")).fixed_tasks.value < 0
