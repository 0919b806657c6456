"""How many tunable parameters beat a guess (low), and how many match full fine-tuning (high), with what is censored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from apet.analysis.intervals import percentile_interval
from apet.analysis.means import RANDOM, own_count
from apet.analysis.resampling import CELL, MeanSamples
from apet.core.hashing import seed_for

KINDS = ("low", "high")
AGAIN = 8
"""Draws about each draw, which tell how much a bias that was estimated on draws is to be believed."""
PAIR = ["family", "non_embedding", "model", "task"]
NUMBERS = ["smallest", "largest", "level", "log10", "low", "high"]
ENDS = {-np.inf: "below", np.inf: "above"}


@dataclass(frozen=True)
class Thresholds:
    """table: a row for each (model, task, kind), see `thresholds`. values: [draws, rows], joint draws of `log10`.
    again: [AGAIN, draws, rows], of draws about those draws."""

    table: pd.DataFrame
    values: np.ndarray
    again: np.ndarray


def thresholds(draws: MeanSamples, margins: Mapping[str, float]) -> pd.DataFrame:
    """The table of `threshold_samples`: model, family, non_embedding, task, kind (low, high), level (fraction that the
    mean score must reach), log10 (of the number of parameters) with its 95 % interval low, high, censored ("", "above",
    "below"), smallest and largest tested number, budgets (how many were tested).

    −inf and "below": the smallest tested number is enough already; +inf and "above": none tested is. All three numbers
    are NaN for a high threshold without full fine-tuning.
    """
    return threshold_samples(draws, margins).table


def threshold_samples(draws: MeanSamples, margins: Mapping[str, float]) -> Thresholds:
    """Low and high thresholds of every PLM and task with APET, and joint draws of them.

    low: the number of parameters from which on APET's mean score exceeds chance by `chance_margin` points; high: from
    which on it is at most `full_ft_margin` points below full fine-tuning's. A margin, since no finite study tells a
    difference of nothing. Scores are taken to rise with the number of parameters (`crossing`), on the data and on
    each draw. The intervals are percentiles of the draws.
    """
    cells, drawn = draws.cells.reset_index(drop=True), _with_scatter_of_plans(draws)
    count = len(drawn)
    cells["level"] = np.fmax(cells.chance, cells.majority) + margins["chance_margin"] / 100
    scored = cells["mean"].notna()
    full = cells[own_count(cells) & cells.placement.eq("full") & scored].drop_duplicates(["model", "task"])
    full = full.reset_index().set_index(["model", "task"])["index"]
    rows, values = [], []
    for pair, group in cells[cells.placement.eq(RANDOM) & scored].groupby(PAIR, sort=True):
        group = group.sort_values("tunable")
        facts = dict(zip(PAIR, pair, strict=True)) | _tested(group.tunable)
        curve = _with_draws(cells, drawn, group.index)
        low = np.full(len(curve), group.level.iloc[0])
        top = full.get(pair[2:])
        match = np.full(len(curve), np.nan) if top is None else _with_draws(cells, drawn, [top])[:, 0]
        for kind, level in zip(KINDS, (low, match - margins["full_ft_margin"] / 100), strict=True):
            found = crossing(np.log10(group.tunable), curve - level[:, None], group.units.to_numpy(float))
            rows.append(facts | {"kind": kind, "level": level[0], **_interval(found[: 1 + count])})
            values.append(found[1:])
    columns = [*PAIR, "smallest", "largest", "budgets", "kind", "level", "log10", "low", "high", "censored"]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(NUMBERS, float))
    found = np.stack(values, axis=1) if values else np.empty(((1 + AGAIN) * count, 0))
    return Thresholds(table, found[:count], found[count:].reshape(AGAIN, count, len(table)))


def _with_scatter_of_plans(draws: MeanSamples) -> np.ndarray:
    """The draws' values, in which APET's cells of one draw scatter too.

    One plan does not tell how others would do, and a curve through single plans bends with each of them. They are given
    the pooled variance and degrees of freedom of the cells of several draws on the same PLM, if there are any.
    """
    cells, values = draws.cells.reset_index(drop=True), draws.values.copy()
    for _, group in cells[cells.placement.eq(RANDOM) & cells["mean"].notna()].groupby("model"):
        several = group[group.draws.gt(1) & group.units.gt(1)]
        df = (several.units - 1).sum()
        variance = (several.sd**2 * (several.units - 1)).sum() / max(df, 1)
        for place, cell in group[group.draws.eq(1)].iterrows() if variance > 0 else ():
            rng = np.random.default_rng(seed_for("analysis.plans", *(cell[name] for name in CELL)))
            values[:, place] += np.sqrt(variance) * rng.standard_t(df, len(values))
    return values


def _with_draws(cells: pd.DataFrame, drawn: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """[1 + (1 + AGAIN) * draws, places]: the means of some cells, their draws, and draws about the draws, each of which
    is a draw with the deviations of another on top."""
    own = drawn[:, places]
    away = own - np.median(own, axis=0)
    again = (own + np.roll(away, shift, axis=0) for shift in range(1, AGAIN + 1))
    return np.vstack([cells["mean"].iloc[places], own, *again])


def crossing(x: np.ndarray, excess: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Where the isotonic least-squares curves through `excess` (k, points) at ascending `x` (points,) reach 0; (k,).

    The points where an isotonic fit is ≥ 0 are the tail with the largest weighted sum of `excess` (Robertson, Wright
    and Dykstra, Order Restricted Statistical Inference, 1988, 1.4), so that the fit is needed at two points only: on
    either side of the crossing, the largest mean of values up to it and the smallest from it on. Between
    them the curve is a line. −inf where all of the curve is ≥ 0, +inf where none is, NaN where `excess` is.
    """
    x, excess, weights = _merged(np.asarray(x, float), excess, weights)
    count = len(x)
    weighted = np.concatenate([np.zeros((len(excess), 1)), np.cumsum(excess * weights, axis=1)], axis=1)
    size = np.concatenate([[0.0], np.cumsum(weights)])
    start = np.argmin(weighted, axis=1)
    inside = (start > 0) & (start < count)
    at = np.where(inside, start, 1)
    sums = weighted - np.take_along_axis(weighted, at[:, None], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = sums / (size - size[at][:, None])
    place = np.arange(count + 1)
    before = np.max(np.where(place < at[:, None], means, -np.inf), axis=1)
    after = np.min(np.where(place > at[:, None], means, np.inf), axis=1)
    left, right = x[at - 1], x[np.minimum(at, count - 1)]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = left + (right - left) * before / (before - after)
    found = np.where(inside, between, np.where(start == 0, -np.inf, np.inf))
    return np.where(np.isnan(weighted[:, -1]), np.nan, found)


@dataclass(frozen=True)
class Restricted:
    """Thresholds of one kind, clipped to what could be compared: table (PAIR columns, `log10` clipped, `end`: −1 or 1
    where it lies at the range's lower or upper end, else 0), values [1 + draws, rows]: the same, and its draws; again
    [AGAIN, draws, rows]: draws about the draws."""

    table: pd.DataFrame
    values: np.ndarray
    again: np.ndarray


def restricted(found: Thresholds, kind: str, alike: list[str]) -> Restricted:
    """Thresholds within the budgets tested everywhere among rows that are alike in the columns `alike`.

    A censored threshold then has a value, and a mean or slope of such values is that of the restricted thresholds
    (Irwin 1949; Royston and Parmar 2013), with no model of what lies beyond. Rows without a threshold, or where no two
    budgets were tested everywhere, are left out.
    """
    rows = found.table.kind.eq(kind) & found.table.log10.notna()
    table = found.table[rows]
    groups = table.groupby(alike)
    low, high = np.log10(groups.smallest.transform("max")), np.log10(groups.largest.transform("min"))
    usable = (low < high).to_numpy()
    table, low, high = table[usable], low[usable].to_numpy(), high[usable].to_numpy()
    end = (table.log10 >= high).astype(int) - (table.log10 <= low)
    place = np.flatnonzero(rows)[usable]
    values = np.vstack([table.log10, found.values[:, place]]).clip(low, high)
    table = table[PAIR].assign(log10=values[0], end=end).reset_index(drop=True)
    return Restricted(table, values, found.again[:, :, place].clip(low, high))


def _merged(x: np.ndarray, excess: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of equal x as one, of their mean."""
    unique, starts = np.unique(x, return_index=True)
    total = np.add.reduceat(weights, starts)
    return unique, np.add.reduceat(excess * weights, starts, axis=1) / total, total


def _tested(tunable: pd.Series) -> dict[str, int]:
    return {"smallest": int(tunable.min()), "largest": int(tunable.max()), "budgets": int(tunable.nunique())}


def _interval(found: np.ndarray) -> dict[str, object]:
    value = float(found[0])
    low, high = (np.nan, np.nan) if np.isnan(value) else percentile_interval(found[1:], value).interval
    return {"log10": value, "low": low, "high": high, "censored": ENDS.get(value, "")}
