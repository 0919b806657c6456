"""Cells whose true mean scores are known: replicates that scatter, on test rows that all of them meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

SHARED = np.sqrt(0.5)
"""S.D. of what makes a row hard for all replicates; the rest of a unit variance is one replicate's on that row."""


@dataclass(frozen=True)
class Design:
    """score: true mean of every cell; replicate_sd: S.D. of a replicate's true score, times `uneven`^N(0, 1) from cell
    to cell; task_sd: S.D. of a task's true mean (all fractions)."""

    score: float = 0.7
    units: int = 2
    cells: int = 9
    tasks: int = 3
    n: int = 400
    replicate_sd: float = 0.02
    uneven: float = 1.0
    task_sd: float = 0.0


def simulate(design: Design, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A tidy table with `rows`, of one PLM, and the true mean score [tasks] of all cells of a task."""
    rng = np.random.default_rng(seed)
    truth = design.score + design.task_sd * rng.normal(size=design.tasks)
    shape = (design.tasks, design.cells, design.units)
    sds = design.replicate_sd * design.uneven ** rng.normal(size=shape[:2])
    scores = truth[:, None, None] + sds[..., None] * rng.normal(size=shape)
    ease = rng.normal(size=(design.tasks, 1, 1, design.n))
    latent = SHARED * ease + np.sqrt(1 - SHARED**2) * rng.normal(size=(*shape, design.n))
    right = latent < stats.norm.ppf(np.clip(scores, 1e-9, 1 - 1e-9))[..., None]
    rows = right.reshape(-1, design.n).astype(np.float32)
    task, cell, rerun = (index.ravel() for index in np.indices(shape))
    frame = pd.DataFrame({"task": task, "budget": cell, "rerun": rerun}).astype({"task": str, "budget": str})
    frame = frame.assign(model="m", family="f", non_embedding=1000, placement="lora", draw=0, tunable=cell + 1)
    frame = frame.assign(metric="accuracy", chance=0.2, majority=0.2, outcome="ok", n=design.n)
    return frame.assign(score=rows.mean(axis=1, dtype=float), rows=list(rows)), truth
