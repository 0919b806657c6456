"""Coverage of 95 % intervals on simulated studies: python benchmarks/coverage.py [studies]

Prints a Markdown table: for each estimator and design the coverage, its Monte Carlo error (one standard error), and the
mean width of the intervals.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from apet.analysis.means import cell_scores, differences, over_tasks
from apet.analysis.resampling import sample_means

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from simulated_cells import Design, simulate

DESIGNS = {
    "1 replicate per cell": Design(replicates=1, replicate_sd=0.0),
    "2 replicates": Design(),
    "3 replicates": Design(replicates=3),
    "10 replicates": Design(replicates=10),
    "2 replicates, noise that differs between cells": Design(uneven=2.0),
    "2 replicates, score 0.98": Design(score=0.98, replicate_sd=0.005),
    "2 replicates, 100 rows": Design(n=100),
    "2 replicates, Matthews correlation": Design(metric="mcc"),
    "2 replicates, Matthews correlation, 10 % of class 1": Design(metric="mcc", positive=0.1, score=0.9),
    "2 replicates, macro-F1, 10 % of class 1": Design(metric="macro_f1", positive=0.1, score=0.9),
    "2 replicates, tasks that differ": Design(tasks=11, cells=4, task_sd=0.05),
}
Intervals = tuple[np.ndarray, np.ndarray]
"""Booleans of the intervals that cover the truth, and their widths."""


def of_cells(frame: pd.DataFrame, truth: np.ndarray, design: Design) -> Intervals:
    found = cell_scores(sample_means(frame, 1000))
    true = truth[found.task.astype(int)]
    return held(found.low, found.high, true), (found.high - found.low).to_numpy()


def of_paired_differences(frame: pd.DataFrame, truth: np.ndarray, design: Design) -> Intervals:
    """All cells of a task have the same true mean, so that every difference is 0."""
    found = differences(sample_means(frame, 1000), lambda cells: cells.assign(budget="0"))
    found = found[found.task.isin(frame.task.unique()) & found.budget.ne("0")]
    return held(found.low, found.high, 0.0), (found.high - found.low).to_numpy()


def of_means_over_tasks(frame: pd.DataFrame, truth: np.ndarray, design: Design) -> Intervals:
    found = over_tasks(sample_means(frame, 1000))
    return held(found.low, found.high, truth.mean()), (found.high - found.low).to_numpy()


def of_task_population(frame: pd.DataFrame, truth: np.ndarray, design: Design) -> Intervals:
    found = over_tasks(sample_means(frame, 1000))
    true = design.score if design.metric == "accuracy" else truth.mean()
    return held(found.low_population, found.high_population, true), (
        found.high_population - found.low_population
    ).to_numpy()


ESTIMATORS: dict[str, Callable[[pd.DataFrame, np.ndarray, Design], Intervals]] = {
    "mean score of a cell": of_cells,
    "paired difference of two cells": of_paired_differences,
    "mean over tasks": of_means_over_tasks,
    "the same, on similar tasks": of_task_population,
}


def held(low: pd.Series, high: pd.Series, truth: np.ndarray | float) -> np.ndarray:
    return ((low <= truth) & (truth <= high)).to_numpy()


def rows(studies: int) -> Iterator[tuple[str, str, float, float, float]]:
    """Yield estimator, design, coverage, its standard error over studies, and mean width."""
    for name, design in DESIGNS.items():
        found: dict[str, list[Intervals]] = {estimator: [] for estimator in ESTIMATORS}
        for seed in range(studies):
            frame, truth = simulate(design, seed)
            for estimator, run in ESTIMATORS.items():
                found[estimator].append(run(frame, truth, design))
        for estimator, pairs in found.items():
            shares = np.array([held.mean() for held, _ in pairs])
            width = np.mean([widths.mean() for _, widths in pairs])
            yield estimator, name, shares.mean(), shares.std(ddof=1) / np.sqrt(studies), width


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print("| estimator | design | coverage (%) | ± | width (points) |\n|---|---|---:|---:|---:|")
    for estimator, design, share, error, width in sorted(rows(studies), key=lambda row: list(ESTIMATORS).index(row[0])):
        print(f"| {estimator} | {design} | {100 * share:.1f} | {100 * error:.1f} | {100 * width:.1f} |", flush=True)


if __name__ == "__main__":
    main()
