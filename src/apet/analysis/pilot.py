"""Variances and effects of a pilot study, from which the power of other designs is simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from apet.analysis.claims import (
    AnalysisInputs,
    chance_threshold,
    full_ft_threshold,
    informed_gain,
    method_variance,
    position_variance,
)
from apet.analysis.intervals import CONFIDENCE, NotEstimable
from apet.analysis.means import RANDOM, chance_level, models_by_scale, own_count
from apet.analysis.resampling import CELL
from apet.analysis.simulation import Truth
from apet.analysis.trends import ClaimData, slope, slope_weights
from apet.analysis.variance import spread_over_tasks

EFFECTS = ("plan_change", "high_change", "method_change", "gain_change")
"""Fields of `Truth` that are changes with PLM size."""
MEASURES: tuple[tuple[str, Callable[[AnalysisInputs], ClaimData]], ...] = (
    ("plan_variance", position_variance),
    ("high", full_ft_threshold),
    ("method_variance", method_variance),
    ("gain", informed_gain),
)
"""Level of each effect, in the order of EFFECTS, and the measure of both."""
VARIANCES = ("plan_variance", "method_variance")
LARGEST_SHARE = 0.99
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
"""Gauss-Hermite quadrature over a standard normal variate."""
DEFAULT_TRUTH = Truth(plan_change=-3.0, high_change=-0.5, method_change=-3.0, gain_change=-1.5)
DEFAULT_TASK_SDS = {"low": 0.25} | dict.fromkeys(EFFECTS, 0.0)


@dataclass(frozen=True)
class Assumptions:
    """Truth from which the tasks of simulated studies are drawn."""

    truth: Truth = DEFAULT_TRUTH
    """Mean over tasks."""
    task_sds: Mapping[str, float] = field(default_factory=DEFAULT_TASK_SDS.copy)
    """S.D. over tasks, by field of `Truth`."""
    estimated: frozenset[str] = frozenset()
    """Fields of `Truth` that a pilot has determined, and `task_sds.<field>`. The others have their defaults."""

    def scaled(self, factor: float, equivalence_margin: float) -> Assumptions:
        """Return the assumptions with all effects times a factor; that of chance thresholds is S.D. minus margin."""
        changes = {name: factor * getattr(self.truth, name) for name in EFFECTS}
        low = max(0.0, equivalence_margin + factor * (self.task_sds["low"] - equivalence_margin))
        return replace(self, truth=replace(self.truth, **changes), task_sds={**self.task_sds, "low": low})


def estimate_assumptions(frame: pd.DataFrame) -> Assumptions:
    """Estimate variances and effects from a pilot.

    Effects are the estimates of the claims. What a pilot does not determine keeps its default. Thresholds outside the
    numbers tested are taken at the end of the range. S.D.s over tasks are without the noise of the estimates, and 0 if
    the noise explains all of them.

    Args:
        frame: the tidy table of the pilot, as `read_tidy` returns it.

    Returns:
        The assumptions.
    """
    inputs, models, default = AnalysisInputs.from_frame(frame), models_by_scale(frame), Assumptions()
    values: dict[str, Any] = {"chance": float(chance_level(frame).mean())}
    sds: dict[str, float] = {}
    full = frame[own_count(frame) & frame.placement.eq("full")].test_score.mean()
    values |= {"top": float(full)} if np.isfinite(full) else {}
    for effect, (level, measure) in zip(EFFECTS, MEASURES, strict=True):
        data = measure(inputs)
        values |= _mean(data, level)
        with suppress(NotEstimable):
            result = slope(data, models)
            values[effect] = result.fixed_tasks.value
            sds |= _task_sd(data, result.rows, effect)
    chance = chance_threshold(inputs)
    values |= _mean(chance, "low")
    with suppress(NotEstimable):
        sds["low"] = spread_over_tasks(chance, models).fixed_tasks.value + chance.reference
    values |= _seed_sd(frame) | _row_shares(frame)
    estimated = frozenset([*values, *(f"task_sds.{name}" for name in sds)])
    truth = _with_curve_ends(replace(default.truth, **values), inputs.margins, estimated)
    return Assumptions(truth, {**default.task_sds, **sds}, estimated)


def _mean(data: ClaimData, level: str) -> dict[str, float]:
    """Return the mean of a quantity over PLMs and tasks; nothing if it has no values."""
    count = len(data.table)
    if not count:
        return {}
    value = data.combine(np.full(count, 1 / count)).value
    return {level: max(0.0, value) if level in VARIANCES else value}


def _task_sd(data: ClaimData, rows: np.ndarray, effect: str) -> dict[str, float]:
    """Return the S.D. over tasks of an effect, without the noise of its estimates; nothing for one task."""
    estimates = [data.combine(weights) for weights in slope_weights(data.table, rows)]
    if len(estimates) < 2:
        return {}
    widths = np.array([high - low for low, high in (estimate.interval for estimate in estimates)])
    noise = np.mean((widths / 2 / stats.norm.ppf((1 + CONFIDENCE) / 2)) ** 2)
    scatter = np.var([estimate.value for estimate in estimates], ddof=1)
    return {effect: float(np.sqrt(max(0.0, scatter - noise)))}


def _with_curve_ends(truth: Truth, margins: Mapping[str, float], estimated: frozenset[str]) -> Truth:
    """Move `low` and `high` from the thresholds of the pilot to the ends of the curve, which differ by the margins."""
    if not {"low", "high"} <= estimated or truth.high <= truth.low:
        return truth
    margin, full_margin = margins["chance_margin"] / 100, margins["full_ft_margin"] / 100
    rise = (truth.top - full_margin - truth.chance - margin) / (truth.high - truth.low)
    return replace(truth, low=truth.low - margin / rise, high=truth.high + full_margin / rise) if rise > 0 else truth


def _seed_sd(frame: pd.DataFrame) -> dict[str, float]:
    """Return the S.D. between seeds of one plan, points, without their interaction with test rows."""
    variances, dfs = [], []
    for _, group in frame[frame.test_score.notna()].groupby([*CELL, "plan_index"]):
        if len(group) > 1:
            rows = np.stack(group.row_scores.to_list()).astype(float)
            off = rows - rows.mean(axis=0)
            variances.append(
                rows.mean(axis=1).var(ddof=1) - off.var(axis=1).sum() / (len(rows) - 1) / (rows.shape[1] - 1)
            )
            dfs.append(len(rows) - 1)
    return {"seed_sd": 100 * float(np.sqrt(max(0.0, np.average(variances, weights=dfs))))} if dfs else {}


def _row_shares(frame: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Return the row shares of APET, from rows on which two replicates of a cell are both right; nothing without them.

    Only accuracy has rows that are right or wrong.
    Replicates of two plans share what is a row's, those of one plan also what is the plan's on the row.
    """
    scored = frame[frame.placement.eq(RANDOM) & frame.metric.eq("accuracy")]
    scored = scored[scored.test_score.between(1 - LARGEST_SHARE, LARGEST_SHARE)]
    pairs: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
    for _, group in scored.groupby(CELL):
        replicates = zip(group.plan_index, group.test_score, group.row_scores, strict=True)
        for (plan, score, rows), (other_plan, other_score, other_rows) in combinations(replicates, 2):
            both = float(np.mean(rows.astype(float) * other_rows))
            pairs[plan == other_plan].append((*stats.norm.ppf([score, other_score]), both))
    if not pairs[True] or not pairs[False]:
        return {}
    of_row, of_row_and_plan = (_correlation(np.array(pairs[same_plan])) for same_plan in (False, True))
    of_row_and_plan = max(of_row, of_row_and_plan)
    return {"row_shares": (of_row, of_row_and_plan - of_row, 1 - of_row_and_plan)}


def _correlation(pairs: np.ndarray) -> float:
    """Return the correlation, from 0 on, of the normal variates behind pairs [k, (quantile, quantile, both right)]."""
    first, second, both = pairs.T[:, :, None]

    def excess(share: float) -> float:
        right = [
            stats.norm.cdf((quantile - np.sqrt(share) * NODES) / np.sqrt(1 - share)) for quantile in (first, second)
        ]
        return float(np.mean((right[0] * right[1]) @ NODE_WEIGHTS / NODE_WEIGHTS.sum() - both[:, 0]))

    if excess(0.0) >= 0:
        return 0.0
    return brentq(excess, 0.0, LARGEST_SHARE) if excess(LARGEST_SHARE) > 0 else LARGEST_SHARE
