"""Thresholds: numbers of trainable parameters that exceed chance or match full fine-tuning, with censoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from apet.analysis.intervals import percentile_interval
from apet.analysis.means import RANDOM, own_count
from apet.analysis.resampling import CELL, MeanSamples
from apet.core.hashing import seed_for

THRESHOLD_KINDS = ("chance", "full_ft")
DOUBLE_BOOTSTRAP = 8
"""Second-level samples per sample, which measure the noise of a bias correction."""
PAIR = ["family", "non_embedding_params", "model", "task"]
CENSORED = {-np.inf: "below", np.inf: "above"}


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of every PLM and task."""

    table: pd.DataFrame
    """One row per model, task and kind; see `thresholds`."""
    values: np.ndarray
    """[samples, rows], joint samples of `log10`."""
    double_bootstrap: np.ndarray
    """[DOUBLE_BOOTSTRAP, samples, rows], second-level samples."""


def thresholds(samples: MeanSamples, margins: Mapping[str, float]) -> pd.DataFrame:
    """Estimate the thresholds of every PLM and task.

    Args:
        samples: cells and samples.
        margins: chance_margin and full_ft_margin, points.

    Returns:
        One row per model, task and kind (chance, full_ft): family, non_embedding_params, level (fraction that the mean
        score must reach), log10 (of the number of parameters) with its 95 % interval low and high, censored ("",
        "above", "below"), smallest and largest number tested, budgets (how many were tested). −inf and "below": the
        smallest number tested suffices. +inf and "above": no number tested suffices. log10, low and high are NaN for
        kind full_ft without full fine-tuning.
    """
    return threshold_samples(samples, margins).table


def threshold_samples(samples: MeanSamples, margins: Mapping[str, float]) -> Thresholds:
    """Estimate the thresholds of every PLM and task with APET, and sample them jointly.

    chance: number of parameters from which APET's mean score exceeds chance by `chance_margin` points. full_ft: number
    from which it is at most `full_ft_margin` points below full fine-tuning. Margins are needed because no finite study
    resolves a difference of 0. Scores are taken to rise with the number of parameters (`crossing`), in the data and in
    each sample. Intervals are percentiles of the samples.

    Args:
        samples: cells and samples.
        margins: chance_margin and full_ft_margin, points.

    Returns:
        Table and samples.
    """
    cells, sampled = samples.cells.reset_index(drop=True), with_plan_variance(samples)
    count = len(sampled)
    chance = np.fmax(cells.chance_uniform, cells.chance_majority) + margins["chance_margin"] / 100
    scored = cells["mean"].notna()
    full = cells[own_count(cells) & cells.placement.eq("full") & scored].drop_duplicates(["model", "task"])
    full = full.reset_index().set_index(["model", "task"])["index"]
    rows, values = [], []
    for pair, group in cells[cells.placement.eq(RANDOM) & scored].groupby(PAIR, sort=True):
        group = group.sort_values("trainable_params")
        facts = dict(zip(PAIR, pair, strict=True)) | _range_tested(group.trainable_params)
        curves = _with_samples(cells, sampled, group.index)
        full_index = full.get(pair[2:])
        levels = {
            "chance": np.full(len(curves), chance[group.index[0]]),
            "full_ft": (
                np.full(len(curves), np.nan)
                if full_index is None
                else _with_samples(cells, sampled, [full_index])[:, 0] - margins["full_ft_margin"] / 100
            ),
        }
        x, weights = np.log10(group.trainable_params), group.num_replicates.to_numpy(float)
        for kind in THRESHOLD_KINDS:
            level = levels[kind]
            crossings = crossing(x, curves - level[:, None], weights)
            rows.append(facts | {"kind": kind, "level": level[0], **_interval(crossings[: 1 + count])})
            values.append(crossings[1:])
    numbers = ["smallest", "largest", "level", "log10", "low", "high"]
    columns = [*PAIR, "smallest", "largest", "budgets", "kind", "level", "log10", "low", "high", "censored"]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(numbers, float))
    stacked = np.stack(values, axis=1) if values else np.empty(((1 + DOUBLE_BOOTSTRAP) * count, 0))
    return Thresholds(table, stacked[:count], stacked[count:].reshape(DOUBLE_BOOTSTRAP, count, len(table)))


def with_plan_variance(samples: MeanSamples) -> np.ndarray:
    """Return the samples' values with the variance between plans added to APET's cells of a single plan.

    A single plan does not show how other plans score, and a curve through single plans follows each of them. Their
    variance and degrees of freedom are pooled from the cells of several plans on the same PLM, if there are any.

    Args:
        samples: cells and samples.

    Returns:
        Values [samples, cells], fractions.
    """
    cells, values = samples.cells.reset_index(drop=True), samples.values.copy()
    for _, group in cells[cells.placement.eq(RANDOM) & cells["mean"].notna()].groupby("model"):
        several = group[group.num_plans.gt(1) & group.num_replicates.gt(1)]
        df = (several.num_replicates - 1).sum()
        variance = (several.sd**2 * (several.num_replicates - 1)).sum() / max(df, 1)
        for index, cell in group[group.num_plans.eq(1)].iterrows() if variance > 0 else ():
            rng = np.random.default_rng(seed_for("analysis.plans", *(cell[name] for name in CELL)))
            values[:, index] += np.sqrt(variance) * rng.standard_t(df, len(values))
    return values


def _with_samples(cells: pd.DataFrame, sampled: np.ndarray, indices: Sequence[int]) -> np.ndarray:
    """Stack means, samples and second-level samples of some cells: [1 + (1 + DOUBLE_BOOTSTRAP) * samples, cells].

    A second-level sample is a sample plus the deviations of another sample.
    """
    first = sampled[:, indices]
    deviations = first - np.median(first, axis=0)
    second = (first + np.roll(deviations, shift, axis=0) for shift in range(1, DOUBLE_BOOTSTRAP + 1))
    return np.vstack([cells["mean"].iloc[indices], first, *second])


def crossing(x: np.ndarray, excess: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Find the zero crossings of isotonic least-squares curves.

    The points with an isotonic fit ≥ 0 are the tail with the largest weighted sum of `excess` (Robertson, Wright and
    Dykstra, Order Restricted Statistical Inference, 1988, 1.4). The fit is therefore needed at two points only, on
    either side of the crossing: the largest mean of values up to it and the smallest mean from it on. Between them the
    curve is a line.

    Args:
        x: positions in ascending order (points,).
        excess: values of k curves (k, points).
        weights: weight of each point (points,).

    Returns:
        Crossings (k,): −inf if a curve is ≥ 0 everywhere, +inf if nowhere, NaN if `excess` is NaN.
    """
    x, excess, weights = _merge_ties(np.asarray(x, float), excess, weights)
    count = len(x)
    weighted = np.concatenate([np.zeros((len(excess), 1)), np.cumsum(excess * weights, axis=1)], axis=1)
    size = np.concatenate([[0.0], np.cumsum(weights)])
    start = np.argmin(weighted, axis=1)
    inside = (start > 0) & (start < count)
    cut = np.where(inside, start, 1)
    sums = weighted - np.take_along_axis(weighted, cut[:, None], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / (size - size[cut][:, None])
    position = np.arange(count + 1)
    before = np.max(np.where(position < cut[:, None], means, -np.inf), axis=1)
    after = np.min(np.where(position > cut[:, None], means, np.inf), axis=1)
    left, right = x[cut - 1], x[np.minimum(cut, count - 1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = left + (right - left) * before / (before - after)
    crossings = np.where(inside, between, np.where(start == 0, -np.inf, np.inf))
    return np.where(np.isnan(weighted[:, -1]), np.nan, crossings)


@dataclass(frozen=True)
class RestrictedThresholds:
    """Thresholds of one kind, clipped to the range of parameters that was tested throughout a group."""

    table: pd.DataFrame
    """PAIR columns, `log10` (clipped), `censoring` (−1 or 1 at the lower or upper end of the range, else 0; never −1 if
    the range starts at one parameter)."""
    values: np.ndarray
    """[1 + samples, rows]: `log10` and its samples."""
    double_bootstrap: np.ndarray
    """[DOUBLE_BOOTSTRAP, samples, rows], second-level samples."""


def restricted(thresholds: Thresholds, kind: str, group_keys: list[str]) -> RestrictedThresholds:
    """Clip thresholds to the range of parameters that was tested for all rows of a group.

    A censored threshold then has a value, and means and slopes are those of restricted thresholds (Irwin 1949; Royston
    and Parmar 2013), without a model of the region beyond the range. A threshold is at least one parameter, so that
    nothing is censored below a range that starts there.

    Args:
        thresholds: thresholds and samples.
        kind: chance or full_ft.
        group_keys: columns that are equal within a group.

    Returns:
        The clipped thresholds. Rows without a threshold, or of a group without two common budgets, are left out.
    """
    rows = thresholds.table.kind.eq(kind) & thresholds.table.log10.notna()
    table = thresholds.table[rows]
    groups = table.groupby(group_keys)
    low, high = np.log10(groups.smallest.transform("max")), np.log10(groups.largest.transform("min"))
    usable = (low < high).to_numpy()
    table, low, high = table[usable], low[usable].to_numpy(), high[usable].to_numpy()
    # Nothing is below one parameter: if it suffices, it is the threshold.
    censoring = (table.log10 >= high).astype(int) - ((table.log10 <= low) & (low > 0))
    indices = np.flatnonzero(rows)[usable]
    values = np.vstack([table.log10, thresholds.values[:, indices]]).clip(low, high)
    table = table[PAIR].assign(log10=values[0], censoring=censoring).reset_index(drop=True)
    return RestrictedThresholds(table, values, thresholds.double_bootstrap[:, :, indices].clip(low, high))


def _merge_ties(x: np.ndarray, excess: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replace points of equal x by their weighted mean."""
    unique, starts = np.unique(x, return_index=True)
    total = np.add.reduceat(weights, starts)
    return unique, np.add.reduceat(excess * weights, starts, axis=1) / total, total


def _range_tested(counts: pd.Series) -> dict[str, int]:
    return {"smallest": int(counts.min()), "largest": int(counts.max()), "budgets": int(counts.nunique())}


def _interval(crossings: np.ndarray) -> dict[str, object]:
    value = float(crossings[0])
    low, high = (np.nan, np.nan) if np.isnan(value) else percentile_interval(crossings[1:], value).interval
    return {"log10": value, "low": low, "high": high, "censored": CENSORED.get(value, "")}
