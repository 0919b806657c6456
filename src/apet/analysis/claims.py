"""The paper's claims (Su et al., EMNLP 2023), each as one signed quantity that is negative where the claim holds."""

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
from apet.analysis.means import MATCHED, RANDOM, own_count
from apet.analysis.resampling import CELL, MeanSamples
from apet.analysis.thresholds import PAIR, Thresholds, restricted, threshold_samples
from apet.analysis.trends import ClaimData, ClaimResult, slope
from apet.analysis.variance import position_components, spread_over_tasks

POINTS = 100.0
"""Points are per cent of the score."""


@dataclass(frozen=True)
class AnalysisInputs:
    """What claims are measured on: the tidy table, the joint draws of its cells' means, and the study's margins."""

    frame: pd.DataFrame
    draws: MeanSamples
    margins: Mapping[str, float]

    @cached_property
    def thresholds(self) -> Thresholds:
        return threshold_samples(self.draws, self.margins)


@dataclass(frozen=True)
class Claim:
    """statement: what the paper says, in our words. quantity: what is estimated, negative where that holds. measure:
    the quantity's values of every PLM and task; compare: from them to the quantity in a scope of some PLMs."""

    name: str
    statement: str
    quantity: str
    unit: str
    measure: Callable[[AnalysisInputs], ClaimData]
    compare: Callable[[ClaimData, Sequence[str]], ClaimResult]


def position_variance(evidence: AnalysisInputs) -> ClaimData:
    """Variance between APET's plans beyond reruns and test rows, points², mean over the matched budgets at which
    all PLMs of the family have it on the task."""
    frame = evidence.frame
    cells = position_components(frame[frame.budget.isin([f"@{name}" for name in MATCHED])])
    cells = _shared(cells, "budget")
    table = cells.groupby(PAIR, as_index=False).agg(budgets=("budget", "size"))
    row = cells.merge(table.reset_index(names="row"), on=PAIR, how="left")
    weight = POINTS**2 / (row.budgets * row.n0)

    def combine(weights: np.ndarray) -> Estimate:
        terms = row.assign(scale=weights[row.row] * weight)
        terms = terms[terms.scale != 0]
        found = [
            (
                sign * np.sign(group.scale.iloc[0]),
                *satterthwaite((group.scale.abs() * group[name]).to_numpy(), group[df].to_numpy()),
            )
            for _, group in terms.groupby(["model", np.sign(terms.scale)])
            for sign, name, df in ((1, "between", "df_between"), (-1, "within", "df_within"))
        ]
        signs, squares, dfs = np.array(found).T
        return mls_interval(signs * squares, dfs, -float(np.sum(terms.scale * terms.n0 * terms.rows)))

    return ClaimData(
        table, combine, cells[CELL], "no matched budget has APET with two draws, one of them with two reruns"
    )


def method_variance(evidence: AnalysisInputs) -> ClaimData:
    """Variance between the methods' mean scores, points², of those methods that all PLMs of the family have on the
    task; the noise of the means is taken off by the pivot. Of one variance, not a difference, the pivot is too short
    above: the draws about a variance that came out small scatter little."""
    cells = evidence.draws.cells.reset_index(drop=True)
    own = own_count(cells) & cells.placement.isin(("full", *MATCHED)) & cells["mean"].notna()
    own = _shared(cells[own].drop_duplicates(["model", "task", "placement"]), "placement")
    scores = np.vstack([own["mean"], evidence.draws.values[:, own.index]])
    places = own.reset_index(drop=True).groupby(PAIR).indices
    pairs = {pair: place for pair, place in places.items() if len(place) > 1}
    table = pd.DataFrame(list(pairs), columns=PAIR)
    values = np.array([scores[:, place].var(axis=1, ddof=1) for place in pairs.values()]).T * POINTS**2
    lacking = "fewer than two methods have been run at their own count on all PLMs of the family"

    def combine(weights: np.ndarray) -> Estimate:
        drawn, plug_in = values[1:] @ weights, float(values[0] @ weights)
        pivot = basic_interval(drawn, plug_in)
        return union_interval(pivot, percentile_interval(drawn, plug_in)) if (weights >= 0).all() else pivot

    return ClaimData(table, combine, own[CELL], lacking)


def high_threshold(evidence: AnalysisInputs) -> ClaimData:
    """log10 of the parameters that match full fine-tuning, within the budgets tested on all PLMs of the family."""
    lacking = "no high threshold: full fine-tuning or APET is missing, or no two budgets are shared"
    return _threshold(evidence, "high", ["family", "task"], lacking)


def low_threshold(evidence: AnalysisInputs) -> ClaimData:
    """log10 of the parameters that beat a guess, within the budgets tested on all tasks of the PLM."""
    lacking = "no low threshold: APET has not been run, or no two budgets are shared by the tasks"
    return _threshold(evidence, "low", ["model"], lacking, evidence.margins["equivalence_decades"])


def _threshold(
    evidence: AnalysisInputs, kind: str, alike: list[str], lacking: str, reference: float = 0.0
) -> ClaimData:
    found = restricted(evidence.thresholds, kind, alike)
    cells = evidence.draws.cells
    used = cells.placement.eq(RANDOM) | (own_count(cells) & cells.placement.eq("full") & (kind == "high"))

    def combine(weights: np.ndarray) -> Estimate:
        plug_in, drawn = float(found.values[0] @ weights), found.values[1:] @ weights
        if (weights >= 0).all():
            return union_interval(percentile_interval(drawn, plug_in), basic_interval(drawn, plug_in))
        # Noise draws thresholds together, towards the ends of the range and the gaps between budgets.
        return bias_corrected_interval(drawn, plug_in, found.again @ weights)

    behind = cells[used & cells["mean"].notna()][CELL]
    return ClaimData(found.table, combine, behind, lacking, found.values, found.table.end.to_numpy(), reference)


def _shared(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    """Cells whose `column` has a value that all PLMs of the family with any such cell on the task share."""
    plms = cells.groupby(["family", "task"]).model.transform("nunique")
    return cells[cells.groupby(["family", "task", column]).model.transform("nunique") == plms]


CLAIMS = (
    Claim(
        "positions",
        "The larger the PLM, the less the positions of the tunable parameters matter.",
        "change of the variance between random plans at a matched number of parameters beyond that of reruns; where "
        "there is none, it is estimated below 0 as often as above",
        "points² a decade",
        position_variance,
        slope,
    ),
    Claim(
        "high_threshold",
        "The larger the PLM, the fewer tunable parameters match full fine-tuning.",
        "change of the number of parameters from which on APET is within the margin of full fine-tuning",
        "decades a decade",
        high_threshold,
        slope,
    ),
    Claim(
        "low_threshold",
        "On one PLM, about the same number of tunable parameters beats a guess on different tasks.",
        "S.D. over tasks of the number of parameters that beats a guess, less what counts as about the same",
        "decades",
        low_threshold,
        spread_over_tasks,
    ),
    Claim(
        "methods",
        "The larger the PLM, the less the tuning methods differ.",
        "change of the variance between the methods' mean scores",
        "points² a decade",
        method_variance,
        slope,
    ),
)
