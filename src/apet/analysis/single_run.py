"""The interval of the score of one replicate. Without scipy, whose import takes longer than `apet show` may take."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from statistics import NormalDist
from typing import Any

from apet.analysis.predictions import PSEUDO_VALUES

CONFIDENCE = 0.95
"""Level of all intervals of scores and findings."""


def wilson(score: float, n: int) -> tuple[float, float]:
    """Compute the 95 % interval of one replicate's score (Wilson 1927); conservative for graded row scores.

    With z, the quantile of the standard normal distribution, the interval has the centre (score + z²/2n) / (1 + z²/n)
    and the half width z √(score (1 − score)/n + z²/4n²) / (1 + z²/n).

    Args:
        score: mean over test rows, a fraction.
        n: number of test rows.

    Returns:
        Low and high, fractions.
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre, half = score + z**2 / (2 * n), z * sqrt(score * (1 - score) / n + z**2 / (4 * n**2))
    return max(0.0, (centre - half) / (1 + z**2 / n)), min(1.0, (centre + half) / (1 + z**2 / n))


def run_interval(task: Mapping[str, Any], score: float, n: int) -> tuple[float, float] | None:
    """Return `wilson` of one replicate's score, or None for a metric of labels that is not a mean over rows.

    Args:
        task: `type` and `metric` of a task.
        score: test score.
        n: number of test rows.

    Returns:
        Low and high, or None.
    """
    return None if task["type"] == "classification" and task["metric"] in PSEUDO_VALUES else wilson(score, n)
