"""Measured costs next to scores: ratios to a baseline with their spread, the Pareto front, and cost-aware scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from apet.analysis.claims import POINTS
from apet.analysis.means import METHOD, over_tasks
from apet.analysis.resampling import MeanSamples

FULL, UNTUNED = "full", "none"
"""Baselines of the costs of training and of inference."""


@dataclass(frozen=True)
class CostMetric:
    """A cost of a method. Less is better."""

    name: str
    """Key of a measurement, and column."""
    label: str
    unit: str
    """Unit, empty for a count."""
    baseline: str
    """Placement whose cost is 1."""
    meaning: str
    is_timed: bool = False
    """Whether it is measured in every round, and so has a spread."""

    @property
    def head(self) -> str:
        """Label with the unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


COST_METRICS = (
    CostMetric("trainable_params", "trainable parameters", "", FULL, "trainable parameters"),
    CostMetric("saved_bytes", "saved bytes", "", FULL, "bytes of θ and its plan, as a cell of one replicate saves"),
    CostMetric("train_ms", "training step", "ms", FULL, "time of a training step, ms", True),
    CostMetric("peak_memory_mb", "peak memory", "MB", FULL, "peak memory of tensors in training, with the PLM, MB"),
    CostMetric("inference_ms", "inference, in place", "ms", UNTUNED, "time of an example, parts in place, ms", True),
    CostMetric("merged_ms", "inference, merged", "ms", UNTUNED, "time of an example, merged if possible, ms", True),
)  # fmt: skip
TRAINING_COSTS = ("train_ms_ratio", "peak_memory_mb", "peak_memory_mb_ratio")
"""Costs that the untuned PLM does not have; cost-aware scores take them as 0."""
SPREAD = (0.25, 0.75)
"""Quantiles over rounds: the spread of times and of their ratios."""

PSCP_CONSTANTS = {"trainable_params": 5e8, "extra_flops": 1e13, "peak_memory_mb": 94_000.0}
"""C of PEFT-Bench's PSCP (arXiv 2511.21285): 5·10⁸ parameters, 10 TFLOPs of inference beyond those of the untuned PLM,
and 94 GB of training memory; β is 1. From the authors' script (kinit-sk/PEFT-Factory, scripts/peftfactory/cal_psqp.py).
"""
RELATIVE_CONSTANTS = {
    "trainable_params_ratio": 1.0,
    "train_ms_ratio": 1.0,
    "peak_memory_mb_ratio": 1.0,
    "extra_time": 1.0,
}
"""C of this project's relative score, whose costs are ratios: trainable parameters, training step and peak memory to
full fine-tuning's, and the time of an example (merged) beyond the untuned PLM's to the untuned PLM's. β is 1."""


def spread_columns(metric: CostMetric) -> list[str]:
    """Return the columns of a metric: its value and its ratio to the baseline, for times with low and high."""
    suffixes = ("", "_low", "_high") if metric.is_timed else ("",)
    return [f"{metric.name}{ratio}{suffix}" for ratio in ("", "_ratio") for suffix in suffixes]


def costs_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Tabulate measured costs.

    Args:
        records: records of measurements.

    Returns:
        One row per PLM and method: METHOD, cost_task (whose texts were read), rounds, inference_flops, and for each
        metric the columns of `spread_columns`: median over rounds, and the median of the ratios within rounds. A cost
        is NaN for a method that trains nothing, and a ratio without the baseline.
    """
    rows = []
    for record in records:
        baselines = {method["placement"]: method for method in reversed(record["methods"])}
        for method in record["methods"]:
            row = {"model": record["model"], "placement": method["placement"], "budget": method["budget"]}
            row |= {"cost_task": record["task"], "rounds": record["rounds"]}
            row["inference_flops"] = method["inference_flops"]
            for metric in COST_METRICS:
                baseline = baselines.get(metric.baseline, {}).get(metric.name)
                row |= dict(zip(spread_columns(metric), _spread(method[metric.name], baseline, metric), strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def _spread(values: Any, baseline: Any, metric: CostMetric) -> list[float]:
    """Return median, low and high of the values, then of their ratios to the baseline in the same round."""
    quantiles = [0.5, *SPREAD] if metric.is_timed else [0.5]
    found = _numbers(values)
    return [*np.quantile(found, quantiles), *np.quantile(found / _numbers(baseline), quantiles)]


def _numbers(values: Any) -> np.ndarray:
    """Return the values of the rounds, one value of a count, or NaN."""
    numbers = np.atleast_1d(np.array(np.nan if values is None else values, float))
    return numbers if len(numbers) else np.array([np.nan])


def with_scores(costs: pd.DataFrame, samples: MeanSamples) -> pd.DataFrame:
    """Add scores, cost-aware scores and fronts to a table of costs.

    Args:
        costs: `costs_table`.
        samples: cells and samples of the study.

    Returns:
        The table, with family, non_embedding_params, score (mean over tasks, in per cent) with its 95 % interval
        score_low and score_high, num_replicates, n_test, pscp, relative_score, and for each metric a column
        `<metric>_front`: whether no other method of the PLM has less of this cost and at least the score.
    """
    scores = over_tasks(samples).rename(columns={"mean": "score", "low": "score_low", "high": "score_high"})
    shown = ["score", "score_low", "score_high"]
    scores[shown] *= POINTS
    facts = scores[[*METHOD, "family", "non_embedding_params", *shown, "num_replicates", "n_test"]]
    table = costs.merge(facts, "left", on=METHOD)
    trained = table.assign(**{name: table[name].where(table.placement.ne(UNTUNED), 0) for name in TRAINING_COSTS})
    untuned = table[table.placement.eq(UNTUNED)].drop_duplicates("model").set_index("model")
    trained["extra_flops"] = table.inference_flops - table.model.map(untuned.inference_flops)
    trained["extra_time"] = table.merged_ms_ratio - 1
    table["pscp"] = penalized(table.score, trained, PSCP_CONSTANTS)
    table["relative_score"] = penalized(table.score, trained, RELATIVE_CONSTANTS)
    for metric in COST_METRICS:
        cost = table[f"{metric.name}_ratio"].fillna(table[metric.name])
        groups = table.assign(cost=cost).groupby("model", sort=False)
        table[f"{metric.name}_front"] = np.concatenate([pareto_front(group.cost, group.score) for _, group in groups])
    return table


def penalized(scores: pd.Series, costs: pd.DataFrame, constants: Mapping[str, float], beta: float = 1.0) -> pd.Series:
    """Compute P · ∏ (1 + M / C)^−β, PEFT-Bench's form of a cost-aware score.

    Args:
        scores: P.
        costs: a column M for each constant.
        constants: C by column.
        beta: exponent β of all costs.

    Returns:
        The scores. Without costs they are P; a cost of C halves them if β is 1.
    """
    factors = [(1 + costs[name] / constant) ** -beta for name, constant in constants.items()]
    return scores * np.prod(factors, axis=0)


def pareto_front(costs: Sequence[float] | np.ndarray, scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return a mask of the points that no other point dominates.

    A point dominates another if it costs no more, scores no less, and differs in one of them. Points with NaN are not
    on the front and dominate nothing.

    Args:
        costs: costs (n,); less is better.
        scores: scores (n,); more is better.

    Returns:
        Booleans (n,).
    """
    cost, score = np.asarray(costs, float), np.asarray(scores, float)
    no_worse = (cost[:, None] <= cost) & (score[:, None] >= score)
    better = (cost[:, None] < cost) | (score[:, None] > score)
    return ~(no_worse & better).any(axis=0) & ~np.isnan(cost) & ~np.isnan(score)
