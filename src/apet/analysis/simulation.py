"""Simulated studies with known truth of every claim, for power, tests and the coverage of intervals.

A replicate of true mean score q is right on a test row if a normal variate is below the q quantile. The variate is
partly the row's own (shared by all cells of the task), partly the plan's on the row, and partly the replicate's. The
expected score is q exactly, and replicates agree on rows as real ones do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from apet.analysis.intervals import NotEstimable
from apet.analysis.means import INFORMED, RANDOM, own_count
from apet.analysis.thresholds import PAIR, Thresholds, crossing, restricted
from apet.analysis.trends import slope_weights, with_two_sizes

METHOD_OFFSETS = {
    "full": 0.0, "lora": 0.6, "adapter": 0.3, "prompt": -0.2,
    "bitfit": -0.7, "layernorm": -0.4, "ia3": 0.2, "prefix": -0.6,
}  # fmt: skip
"""Mean scores of the methods relative to each other, 0 for others. Their S.D. is scaled to the true one."""
INFORMED_SHARE = 0.1
"""Variance between plans of informed placements over that of APET's."""
UNIFORM_CHANCE = 0.05
"""Score of a uniform guess below that of the best constant label."""
SMALLEST_CURVE = 0.1
"""Shortest rise of a curve from chance to full fine-tuning, in powers of ten."""
LIMIT = 1e-4
"""Distance of true scores from 0 and 1."""


@dataclass(frozen=True)
class Truth:
    """True quantities of one task: levels at PLMs of 10**`size` parameters, and changes per tenfold increase."""

    plan_variance: float = 9.0
    """Between plans, points²."""
    plan_change: float = 0.0
    seed_sd: float = 1.0
    """Between seeds of one plan, points."""
    low: float = 1.0
    """log10 of the number of parameters up to which APET scores at chance."""
    high: float = 4.0
    """log10 of the number of parameters from which APET scores like full fine-tuning."""
    high_change: float = 0.0
    method_variance: float = 9.0
    """Between the methods' mean scores, points²."""
    method_change: float = 0.0
    gain: float = 2.0
    """Mean score of informed placements above that of APET, points."""
    gain_change: float = 0.0
    chance: float = 0.3
    """Fraction."""
    top: float = 0.8
    """Mean score of full fine-tuning, fraction."""
    row_shares: tuple[float, float, float] = (0.5, 0.2, 0.3)
    """Variances, of sum 1, of what is a row's, a plan's on the row, and a replicate's on the row."""
    size: float = 5.5


DESIGN_COLUMNS = [*PAIR, "num_params", "placement", "budget", "trainable_params", "num_plans", "num_seeds", "n_test"]
"""Columns of a design, which has a row per cell."""


def simulate(
    design: pd.DataFrame,
    truths: Mapping[str, Truth],
    task_sds: Mapping[str, float],
    margins: Mapping[str, float],
    seed: int,
) -> tuple[pd.DataFrame, dict[str, Truth]]:
    """Simulate a study.

    Informed placements have a random stream of their own, so that they do not change the other cells.

    Args:
        design: the cells, with DESIGN_COLUMNS.
        truths: mean truth by task.
        task_sds: S.D. over tasks, by field of `Truth`.
        margins: the study's `analysis` settings.
        seed: seed of the study.

    Returns:
        A tidy table with the columns that findings need, row scores and attrs; and the truth of each task.
    """
    rng, informed_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    drawn, frames = {}, []
    for task, cells in design.groupby("task", sort=False):
        ease = rng.normal(size=cells.n_test.iloc[0])
        changes = {name: getattr(truths[task], name) + sd * rng.normal() for name, sd in task_sds.items()}
        truth = drawn[task] = replace(truths[task], **changes)
        scores = [
            _row_scores(cell, truth, ease, informed_rng if cell.placement in INFORMED else rng)
            for cell in with_true_scores(cells, truth).itertuples()
        ]
        frames.append(_replicates(cells, scores, truth.chance))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs = {"study": "simulated", "name": "simulated", "margins": dict(margins), "missing": []}
    frame.attrs["digest"] = "0" * 64
    return frame, drawn


def with_true_scores(cells: pd.DataFrame, truth: Truth) -> pd.DataFrame:
    """Add the true mean score of each cell of a task and its S.D. between plans, fractions: `mean` and `plan_sd`."""
    cells, steps = cells.copy(), _steps(cells, truth)
    with np.errstate(divide="ignore"):  # the untuned PLM has no trainable parameters
        x = np.log10(cells.trainable_params.to_numpy(float))
    cells["mean"] = _curve(truth, steps, x)
    plan_sd = np.sqrt(_level(truth.plan_variance, truth.plan_change, steps)) / 100
    methods, informed = own_count(cells) & cells.placement.ne("none"), cells.placement.isin(INFORMED)
    cells.loc[informed, "mean"] += ((truth.gain + truth.gain_change * steps) / 100)[informed]
    own = cells[methods]
    offsets = own.placement.map(METHOD_OFFSETS).astype(float).fillna(0.0)
    units = offsets.groupby(own.model).transform("std").fillna(1.0)
    spread = np.sqrt(_level(truth.method_variance, truth.method_change, steps))[methods] / 100
    cells.loc[methods, "mean"] = truth.top + spread * offsets / units
    share = np.where(informed, np.sqrt(INFORMED_SHARE) * (cells.num_plans > 1), np.where(methods, 0.0, 1.0))
    return cells.assign(plan_sd=plan_sd * share)


def _curve(truth: Truth, steps: pd.Series, x: np.ndarray) -> pd.Series:
    """Return APET's true mean scores at log10 numbers of parameters `x`: a line from chance to full fine-tuning."""
    high = (truth.high + truth.high_change * steps).clip(lower=truth.low + SMALLEST_CURVE)
    return truth.chance + (truth.top - truth.chance) * ((x - truth.low) / (high - truth.low)).clip(0, 1)


def true_values(design: pd.DataFrame, truths: Mapping[str, Truth], margins: Mapping[str, float]) -> dict[str, float]:
    """Compute the true quantity of each claim on the tasks of a design, over all PLMs.

    Args:
        design: the cells, with DESIGN_COLUMNS.
        truths: truth of each task.
        margins: the study's `analysis` settings.

    Returns:
        By claim its signed quantity; NaN if the PLMs do not determine it.
    """
    pairs = design[PAIR].drop_duplicates(ignore_index=True)
    tasks = [(pairs[pairs.task.eq(task)], truth) for task, truth in truths.items()]
    values = {
        name: pd.concat([value(_steps(table, truth), truth) for table, truth in tasks])
        for name, value in {
            "positions": lambda steps, truth: _level(truth.plan_variance, truth.plan_change, steps),
            "methods": lambda steps, truth: _level(truth.method_variance, truth.method_change, steps),
            "informed": lambda steps, truth: truth.gain + truth.gain_change * steps,
        }.items()
    }
    thresholds = true_thresholds(design, truths, margins)
    high = restricted(thresholds, "full_ft", ["family", "task"]).table
    low = restricted(thresholds, "chance", ["model"]).table
    variances = low.groupby("model").log10.var(ddof=1)
    return {
        **{name: _slope(pairs, value) for name, value in values.items()},
        "full_ft_threshold": _slope(high, high.log10),
        "chance_threshold": float(np.sqrt(variances.mean())) - margins["equivalence_margin"],
    }


def true_thresholds(design: pd.DataFrame, truths: Mapping[str, Truth], margins: Mapping[str, float]) -> Thresholds:
    """Return the thresholds of the true means at the tested budgets, in the form of estimated ones."""
    apet, rows = design[design.placement.eq(RANDOM)].sort_values("trainable_params"), []
    scored = pd.concat([with_true_scores(apet[apet.task.eq(task)], truth) for task, truth in truths.items()])
    for pair, cells in scored.groupby(PAIR, sort=False):
        truth = truths[pair[-1]]
        x, means = np.log10(cells.trainable_params.to_numpy(float)), cells["mean"].to_numpy()
        facts = dict(zip(PAIR, pair, strict=True)) | {"smallest": 10 ** x[0], "largest": 10 ** x[-1]}
        levels = {
            "chance": truth.chance + margins["chance_margin"] / 100,
            "full_ft": truth.top - margins["full_ft_margin"] / 100,
        }
        for kind, level in levels.items():
            value = crossing(x, (means - level)[None], np.ones(len(x)))[0]
            rows.append({**facts, "kind": kind, "log10": value})
    table = pd.DataFrame(rows, columns=[*PAIR, "smallest", "largest", "kind", "log10"])
    values = table.log10.to_numpy()[None]
    return Thresholds(table, values, values[None])


def _slope(table: pd.DataFrame, values: pd.Series) -> float:
    """Return the mean over tasks of the slope of `values` over log10 of PLM size; NaN without two sizes."""
    try:
        rows = with_two_sizes(table, np.full(len(table), True))
    except NotEstimable:
        return float("nan")
    return float((slope_weights(table, rows) @ values.reindex(table.index).to_numpy()).mean())


def _steps(cells: pd.DataFrame, truth: Truth) -> pd.Series:
    """Return by cell the powers of ten by which its PLM is larger than the size of the truth's levels."""
    return np.log10(cells.non_embedding_params.astype(float)) - truth.size


def _level(middle: float, change: float, steps: pd.Series) -> pd.Series:
    """Return a variance that changes with size, at least 0."""
    return (middle + change * steps).clip(lower=0)


def _row_scores(cell: Any, truth: Truth, ease: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return whether each replicate of a cell is right on each row: float32 [replicates, n]."""
    shape, n = (cell.num_plans, cell.num_seeds), len(ease)
    q = cell.mean + cell.plan_sd * rng.normal(size=(shape[0], 1)) + truth.seed_sd / 100 * rng.normal(size=shape)
    of_row, of_plan, of_replicate = np.sqrt(truth.row_shares)
    plans, replicates = rng.normal(size=(shape[0], 1, n)), rng.normal(size=(*shape, n))
    latent = of_row * ease + of_plan * plans + of_replicate * replicates
    right = latent < stats.norm.ppf(np.clip(q, LIMIT, 1 - LIMIT))[..., None]
    return right.reshape(-1, n).astype(np.float32)


def _replicates(cells: pd.DataFrame, scores: list[np.ndarray], chance: float) -> pd.DataFrame:
    """Return the rows of the tidy table of a task's cells, with the row scores [replicates, n] of each."""
    shapes = zip(cells.num_plans, cells.num_seeds, strict=True)
    plans, seeds = np.concatenate([list(np.ndindex(shape)) for shape in shapes]).T
    frame = cells.loc[cells.index.repeat(list(map(len, scores)))].drop(columns=["num_plans", "num_seeds"])
    return frame.assign(
        plan_index=plans,
        seed_index=seeds,
        test_score=np.concatenate([rows.mean(axis=1, dtype=float) for rows in scores]),
        row_scores=[row for rows in scores for row in rows],
        metric="accuracy",
        chance_uniform=chance - UNIFORM_CHANCE,
        chance_majority=chance,
        head_params=0,
        outcome="ok",
        cell_path=frame.model + "/" + frame.task + "/" + frame.placement + frame.budget,
    )
