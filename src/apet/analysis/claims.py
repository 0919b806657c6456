"""Claims, each as a signed quantity that is negative if the claim holds.

The claim about informed placements is this project's, the others are those of the paper (Su et al., EMNLP 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from apet.analysis.intervals import (
    Estimate,
    basic_interval,
    bias_corrected_interval,
    mls_interval,
    percentile_interval,
    satterthwaite,
    union_interval,
)
from apet.analysis.means import INFORMED, MATCHED, RANDOM, own_count
from apet.analysis.resampling import CELL, MeanSamples, sample_means
from apet.analysis.thresholds import PAIR, Thresholds, restricted, threshold_samples, with_plan_variance
from apet.analysis.trends import ClaimData, ClaimResult, slope
from apet.analysis.variance import position_components, spread_over_tasks

POINTS = 100.0
"""Points per unit of a score that is a fraction."""
PER_TENFOLD = "per tenfold increase in parameters"


@dataclass(frozen=True)
class AnalysisInputs:
    """Data of claims and figures."""

    frame: pd.DataFrame
    """The tidy table."""
    samples: MeanSamples
    """Joint samples of the mean scores of its cells."""
    margins: Mapping[str, float]
    """The study's `analysis` settings."""

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, samples: MeanSamples | None = None) -> AnalysisInputs:
        """Build the inputs from a tidy table with its attrs, and its samples if they have been computed."""
        return cls(frame, sample_means(frame) if samples is None else samples, frame.attrs["margins"])

    @cached_property
    def thresholds(self) -> Thresholds:
        """Thresholds of every PLM and task."""
        return threshold_samples(self.samples, self.margins)


@dataclass(frozen=True)
class Claim:
    """A claim and its quantity."""

    name: str
    statement: str
    """The statement; those of the paper are reworded."""
    quantity: str
    """Description of the quantity, which is negative if the statement holds."""
    unit: str
    measure: Callable[[AnalysisInputs], ClaimData]
    """Values of the quantity for every PLM and task."""
    compare: Callable[[ClaimData, Sequence[str]], ClaimResult]
    """Quantity for the PLMs of a scope."""


def position_variance(inputs: AnalysisInputs) -> ClaimData:
    """Measure the variance between APET's plans, without the variance due to seeds and test rows.

    Args:
        inputs: data of the study.

    Returns:
        Points², means over the matched budgets at which all PLMs of the family have the variance on the task.
    """
    frame = inputs.frame
    cells = position_components(frame[frame.budget.isin([f"@{name}" for name in MATCHED])])
    cells = _shared_by_family(cells, "budget")
    table = cells.groupby(PAIR, as_index=False).agg(budgets=("budget", "size"))
    terms = cells.merge(table.reset_index(names="row"), on=PAIR, how="left")
    factor = POINTS**2 / (terms.budgets * terms.n0)

    def combine(weights: np.ndarray) -> Estimate:
        scaled = terms.assign(scale=weights[terms.row] * factor)
        scaled = scaled[scaled.scale != 0]
        squares = [
            (
                sign * np.sign(group.scale.iloc[0]),
                *satterthwaite((group.scale.abs() * group[name]).to_numpy(), group[df].to_numpy()),
            )
            for _, group in scaled.groupby(["model", np.sign(scaled.scale)])
            for sign, name, df in ((1, "between", "df_between"), (-1, "within", "df_within"))
        ]
        signs, sums, dfs = np.array(squares).T
        return mls_interval(signs * sums, dfs, -float(np.sum(scaled.scale * scaled.n0 * scaled.rows)))

    reason = "no matched budget has APET with two plans, one of them with two seeds"
    return ClaimData(table, combine, cells[CELL], reason)


def method_variance(inputs: AnalysisInputs) -> ClaimData:
    """Measure the variance between the methods' mean scores, with the noise of the means removed by the pivot.

    For a single variance (not a difference) the pivot's upper bound is too low, because samples around a small variance
    vary little. The union with the percentile interval is used there.

    Args:
        inputs: data of the study.

    Returns:
        Points², of the methods that all PLMs of the family have on the task.
    """
    cells = inputs.samples.cells.reset_index(drop=True)
    own = own_count(cells) & cells.placement.isin(("full", *MATCHED)) & cells["mean"].notna()
    own = _shared_by_family(cells[own].drop_duplicates(["model", "task", "placement"]), "placement")
    scores = np.vstack([own["mean"], inputs.samples.values[:, own.index]])
    indices = own.reset_index(drop=True).groupby(PAIR).indices
    pairs = {pair: index for pair, index in indices.items() if len(index) > 1}
    table = pd.DataFrame(list(pairs), columns=PAIR)
    values = np.array([scores[:, index].var(axis=1, ddof=1) for index in pairs.values()]).T * POINTS**2

    def combine(weights: np.ndarray) -> Estimate:
        samples, plug_in = values[1:] @ weights, float(values[0] @ weights)
        pivot = basic_interval(samples, plug_in)
        return union_interval(pivot, percentile_interval(samples, plug_in)) if (weights >= 0).all() else pivot

    reason = "fewer than two methods were run at their own count on all PLMs of the family"
    return ClaimData(table, combine, own[CELL], reason)


def informed_gain(inputs: AnalysisInputs) -> ClaimData:
    """Measure the mean score of informed placements minus that of APET with as many trainable parameters.

    Both cells need two replicates, because one says nothing about their noise. APET's cells of a single plan get the
    variance between plans of its other cells (`with_plan_variance`).

    Args:
        inputs: data of the study.

    Returns:
        Points, means over the pairs of informed placement and budget that all PLMs of the family have on the task.
    """
    cells = inputs.samples.cells.reset_index(drop=True)
    cells = cells[cells["mean"].notna() & cells.num_replicates.gt(1)].reset_index(names="index")
    key = ["model", "task", "budget"]
    apet = cells[cells.placement.eq(RANDOM)][[*key, "index"]]
    pairs = cells[cells.placement.isin(INFORMED)].merge(apet, on=key, suffixes=("", "_apet"))
    pairs = _shared_by_family(pairs.assign(pair=pairs.placement + " " + pairs.budget), "pair").reset_index(drop=True)
    scores = np.vstack([inputs.samples.cells["mean"], with_plan_variance(inputs.samples)])
    gains = POINTS * (scores[:, pairs["index"]] - scores[:, pairs["index_apet"]])
    indices = pairs.groupby(PAIR).indices
    table = pd.DataFrame(list(indices), columns=PAIR)
    values = np.array([gains[:, index].mean(axis=1) for index in indices.values()]).reshape(len(table), len(scores)).T

    def combine(weights: np.ndarray) -> Estimate:
        return percentile_interval(values[1:] @ weights, float(values[0] @ weights))

    reason = "no informed placement and APET were run at one budget, each with two replicates, on all PLMs of a family"
    sources = pd.concat([pairs[CELL], pairs.assign(placement=RANDOM)[CELL]]).drop_duplicates()
    return ClaimData(table, combine, sources, reason)


def full_ft_threshold(inputs: AnalysisInputs) -> ClaimData:
    """Measure log10 of the parameters that match full fine-tuning, within the budgets tested on the whole family.

    Args:
        inputs: data of the study.

    Returns:
        log10 thresholds.
    """
    reason = "no full fine-tuning threshold: full fine-tuning or APET is missing, or PLMs share fewer than two budgets"
    return _threshold(inputs, "full_ft", ["family", "task"], reason)


def chance_threshold(inputs: AnalysisInputs) -> ClaimData:
    """Measure log10 of the parameters that exceed chance, within the budgets tested on all tasks of the PLM.

    Args:
        inputs: data of the study.

    Returns:
        log10 thresholds.
    """
    reason = "no chance threshold: APET was not run, or tasks share fewer than two budgets"
    return _threshold(inputs, "chance", ["model"], reason, inputs.margins["equivalence_margin"])


def _threshold(
    inputs: AnalysisInputs, kind: str, group_keys: list[str], missing_reason: str, reference: float = 0.0
) -> ClaimData:
    thresholds = restricted(inputs.thresholds, kind, group_keys)
    cells = inputs.samples.cells
    full = own_count(cells) & cells.placement.eq("full") & (kind == "full_ft")
    sources = cells[(cells.placement.eq(RANDOM) | full) & cells["mean"].notna()][CELL]

    def combine(weights: np.ndarray) -> Estimate:
        plug_in, samples = float(thresholds.values[0] @ weights), thresholds.values[1:] @ weights
        if (weights >= 0).all():
            return union_interval(percentile_interval(samples, plug_in), basic_interval(samples, plug_in))
        # Noise pulls thresholds together, towards the ends of the range and the gaps between budgets.
        return bias_corrected_interval(samples, plug_in, thresholds.double_bootstrap @ weights)

    table = thresholds.table
    return ClaimData(table, combine, sources, missing_reason, thresholds.values, table.censoring.to_numpy(), reference)


def _shared_by_family(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the cells whose value of `column` occurs on all PLMs of the family that have such cells on the task."""
    plms = cells.groupby(["family", "task"]).model.transform("nunique")
    return cells[cells.groupby(["family", "task", column]).model.transform("nunique") == plms]


CLAIMS = (
    Claim(
        "positions",
        "The larger the PLM, the less the positions of the trainable parameters matter.",
        "change of the variance between random plans at a matched number of parameters, without the variance between "
        "seeds; if the true change is 0, the estimate is below 0 as often as above",
        f"points² {PER_TENFOLD}",
        position_variance,
        slope,
    ),
    Claim(
        "full_ft_threshold",
        "The larger the PLM, the fewer trainable parameters match full fine-tuning.",
        "change of log₁₀ of the number of parameters from which APET is within the margin of full fine-tuning",
        f"powers of ten {PER_TENFOLD}",
        full_ft_threshold,
        slope,
    ),
    Claim(
        "chance_threshold",
        "On one PLM, about the same number of trainable parameters exceeds chance on different tasks.",
        "S.D. over tasks of log₁₀ of the number of parameters that exceeds chance, minus the equivalence margin",
        "powers of ten",
        chance_threshold,
        spread_over_tasks,
    ),
    Claim(
        "methods",
        "The larger the PLM, the less the tuning methods differ.",
        "change of the variance between the methods' mean scores",
        f"points² {PER_TENFOLD}",
        method_variance,
        slope,
    ),
    Claim(
        "informed",
        "The larger the PLM, the less informed placement gains over random placement (a claim of this project).",
        "change of the mean score of informed placements minus that of APET, at a matched number of parameters",
        f"points {PER_TENFOLD}",
        informed_gain,
        slope,
    ),
)
