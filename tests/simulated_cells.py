"""Simulated cells with known mean scores on shared test rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from apet.analysis.predictions import PSEUDO_VALUES

SHARED = np.sqrt(0.5)
"""S.D. of what makes a row hard for all replicates; the rest of a unit variance is one replicate's on that row."""


@dataclass(frozen=True)
class Design:
    """score: true mean of every cell; replicate_sd: S.D. of a replicate's true score, times `uneven`^N(0, 1) from cell
    to cell; task_sd: S.D. of a task's true mean (all fractions). With another metric than accuracy, `score` is the
    accuracy on rows of each of the two classes, and `positive` the share of class 1."""

    score: float = 0.7
    replicates: int = 2
    cells: int = 9
    tasks: int = 3
    n: int = 400
    replicate_sd: float = 0.02
    uneven: float = 1.0
    task_sd: float = 0.0
    metric: str = "accuracy"
    positive: float = 0.5


def simulate(design: Design, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A tidy table with row scores, of one PLM, and the true mean score [tasks] of all cells of a task."""
    rng = np.random.default_rng(seed)
    truth = design.score + design.task_sd * rng.normal(size=design.tasks)
    shape = (design.tasks, design.cells, design.replicates)
    sds = design.replicate_sd * design.uneven ** rng.normal(size=shape[:2])
    scores = truth[:, None, None] + sds[..., None] * rng.normal(size=shape)
    ease = rng.normal(size=(design.tasks, 1, 1, design.n))
    latent = SHARED * ease + np.sqrt(1 - SHARED**2) * rng.normal(size=(*shape, design.n))
    right = latent < stats.norm.ppf(np.clip(scores, 1e-9, 1 - 1e-9))[..., None]
    rows = right.reshape(-1, design.n).astype(np.float32)
    if design.metric != "accuracy":
        labels = np.repeat(rng.random((design.tasks, design.n)) < design.positive, shape[1] * shape[2], axis=0)
        rows = PSEUDO_VALUES[design.metric](labels.astype(int), np.where(rows, labels, ~labels).astype(int))
        grid = design.replicate_sd * stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
        truth = np.array([np.mean([_expected(design, one + change) for change in grid]) for one in truth])
    task, cell, seed_index = (index.ravel() for index in np.indices(shape))
    frame = pd.DataFrame({"task": task, "budget": cell, "seed_index": seed_index}).astype({"task": str, "budget": str})
    frame = frame.assign(model="m", family="f", non_embedding_params=1000, placement="lora", plan_index=0)
    frame = frame.assign(trainable_params=cell + 1, metric=design.metric, chance_uniform=0.2, chance_majority=0.2)
    frame = frame.assign(outcome="ok", n_test=design.n)
    return frame.assign(test_score=rows.mean(axis=1, dtype=float), row_scores=list(rows)), truth


def _expected(design: Design, score: float) -> float:
    """The metric on infinitely many rows."""
    hits, others = design.positive * score, (1 - design.positive) * (1 - score)
    p, q = design.positive, hits + others
    if design.metric == "mcc":
        return (hits - p * q) / np.sqrt(p * (1 - p) * q * (1 - q))
    f1s = [2 * hits / (p + q), 2 * (1 - design.positive) * score / (2 - p - q)]
    return f1s[0] if design.metric == "f1" else sum(f1s) / 2
