"""Whether one PLM needs about the same number of parameters on different tasks: the spread of thresholds over tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from apet.analysis.confidence import Estimate, NotEstimable, of_draws
from apet.analysis.trends import Compared, Measured, check_ends


def spread_over_tasks(measured: Measured, models: Sequence[str]) -> Compared:
    """The S.D. over tasks of a PLM's values, pooled over PLMs (root of the mean variance), less `measured.reference`.

    On these tasks: `variance_of_truth`. Beyond them tasks are a sample and log thresholds normal: χ² with tasks − 1
    degrees of freedom, however many PLMs, for they share the tasks. Where values are censored the S.D. is known from
    below only, since clipping brings values together: the upper bounds are infinite.
    Raises NotEstimable without two tasks on one PLM, or where nearly all values are censored at one end.
    """
    rows = _of_two_tasks(measured, models)
    check_ends(measured, rows)
    assert measured.values is not None and measured.end is not None  # as all thresholds have
    places = {name: rows & measured.table.model.eq(name).to_numpy() for name in measured.table.model[rows].unique()}
    parts = [measured.values[:, place] for place in places.values()]
    these = variance_of_truth(parts)
    beyond = _of_more_tasks(
        these, float(np.mean([part[0].var(ddof=1) for part in parts])), min(p.shape[1] for p in parts)
    )
    censored = measured.end != 0
    values = {
        name: _sd(variance_of_truth([part]), 0.0, bool(censored[place].any()))
        for (name, place), part in zip(places.items(), parts, strict=True)
    }
    count = int(censored[rows].sum())
    remark = f"{count} of {rows.sum()} thresholds lie outside the numbers tested: the S.D. is known from below only"
    levels = [_sd(variance, measured.reference, count > 0) for variance in (these, beyond)]
    return Compared(levels[0], levels[1], rows, values, remark if count else "")


def variance_of_truth(parts: Sequence[np.ndarray]) -> Estimate:
    """Mean over `parts` (PLMs) of the variance over tasks of the true values; a part: [1 + draws, tasks], plug-in
    first.

    Noise adds to a variance, and draws about noisy values hold it twice. So a test is inverted (Carpenter 1999): each
    draw's noise is put on the observed deviations from the mean, shrunk by the factor that brings their variance back
    to the one observed; the shrunken variances' quantiles are the bounds, their median the value. The upper bound is at
    least the percentile of the draws' variance, which double noise puts on the wide side.
    """
    observed = float(np.mean([part[0].var(ddof=1) for part in parts]))
    mixed, plain = np.zeros(2)
    for part in parts:
        noise, away = part[1:] - np.median(part[1:], axis=0), part[0] - part[0].mean()
        mixed = mixed + noise @ away / (len(away) - 1) / len(parts)
        plain = plain + noise.var(axis=1, ddof=1) / len(parts)
    inside = np.sqrt(np.maximum(mixed**2 + observed * (observed - plain), 0)) - mixed
    shrunken = np.where(plain < observed, np.maximum(inside, 0) ** 2 / (observed or 1.0), 0.0)
    drawn = np.mean([part[1:].var(axis=1, ddof=1) for part in parts], axis=0)
    value = float(np.median(shrunken))
    truth, above = of_draws(shrunken, value), of_draws(drawn, observed)

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = truth.bounds(alpha)
        return min(max(low, 0.0), value), max(high, above.bounds(alpha)[1], value)

    return Estimate(value, bounds)


def _of_more_tasks(these: Estimate, observed: float, tasks: int) -> Estimate:
    """The variance in the population of tasks: χ² bounds, the lower of what is certain on these tasks, the upper of the
    observed variance, noise and all."""
    df = tasks - 1

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = df / stats.chi2.isf(alpha / 2, df), df / stats.chi2.ppf(alpha / 2, df)
        return these.bounds(alpha)[0] * min(low, 1.0), observed * max(high, 1.0)

    return Estimate(these.value, bounds)


def _of_two_tasks(measured: Measured, models: Sequence[str]) -> np.ndarray:
    """Mask of the rows of those PLMs that have values on two tasks or more."""
    rows = measured.inside(models)
    rows[rows] = measured.table[rows].groupby("model").task.transform("nunique") > 1
    if not rows.any():
        raise NotEstimable("no PLM has values on two tasks")
    return rows


def _sd(variance: Estimate, reference: float, open_above: bool) -> Estimate:
    """From a variance to its root less a reference; no upper bound where censoring leaves none."""

    def bounds(alpha: float) -> tuple[float, float]:
        low, high = (float(np.sqrt(bound)) - reference for bound in variance.bounds(alpha))
        return low, np.inf if open_above else high

    return Estimate(float(np.sqrt(variance.value)) - reference, bounds)
