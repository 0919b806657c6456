"""Coverage of the claims' intervals on simulated studies with known truth, and the rate of false verdicts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from apet.analysis.claims import CLAIMS, AnalysisInputs
from apet.analysis.intervals import NotEstimable
from apet.analysis.resampling import sample_means
from apet.analysis.simulation import true_thresholds, true_values
from apet.analysis.thresholds import PAIR

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from simulated_claims import MARGINS, Truth, simulate

DESIGNS = {
    "3 PLMs × 3 tasks, 2 plans × 2 seeds": Truth(gain=2.0, num_plans=2, num_seeds=2),
    "3 PLMs × 3 tasks, 3 plans × 1 seed": Truth(gain=2.0, num_plans=3, num_seeds=1),
    "3 PLMs × 3 tasks, 3 plans × 3 seeds": Truth(gain=2.0, num_plans=3, num_seeds=3),
    "9 PLMs × 11 tasks, 2 plans × 2 seeds": Truth(gain=2.0, plms=3, families=3, tasks=11, num_plans=2, num_seeds=2),
}
SETTINGS = {
    "nothing changes": {},
    "all claims true": {"plan_change": -6.0, "high_change": -0.4, "method_change": -6.0, "gain_change": -3.0},
    "thresholds scatter": {
        "low_spread": 0.5,
        "high_change": 0.4,
        "method_change": 6.0,
        "plan_change": 6.0,
        "gain_change": 3.0,
    },
    "no spread at all": {"plan_variance": 0.0, "method_variance": 0.0},
}


def one(truth: Truth, seed: int, count: int = 1000) -> Iterator[dict[str, object]]:
    """Yield a row per interval of a simulated study: quantity, truth, estimate, low, high, and the p-value if any."""
    frame = simulate(truth, seed)
    inputs = AnalysisInputs(frame, sample_means(frame, count), MARGINS)
    study = truth.design(), truth.by_task(), MARGINS
    truths = true_values(*study)
    for claim in CLAIMS:
        try:
            data = claim.measure(inputs)
            result = claim.compare(data, list(frame.model.unique()))
        except NotEstimable as error:
            yield {"quantity": claim.name, "reason": str(error)}
            continue
        for level, estimate in (("on these tasks", result.fixed_tasks), ("on similar tasks", result.task_population)):
            if not isinstance(estimate, str):
                low, high = estimate.interval
                facts = {"quantity": f"{claim.name}, {level}", "truth": truths[claim.name], "estimate": estimate.value}
                yield {**facts, "low": low, "high": high, "p": estimate.p}
    table = inputs.thresholds.table.merge(true_thresholds(*study).table, on=[*PAIR, "kind"], suffixes=("", "_true"))
    for row in table.itertuples():
        facts = {"quantity": f"one {row.kind} threshold", "truth": row.log10_true, "estimate": row.log10}
        yield {**facts, "low": row.low, "high": row.high}


def coverage(truth: Truth, count: int, first: int = 0) -> pd.DataFrame:
    """Return, by quantity, coverage with its Monte Carlo error, misses on either side, median width, and the rates of
    p < 0.05 with the estimate below and above 0."""
    found = pd.DataFrame([row for seed in range(first, first + count) for row in one(truth, seed)])
    found = found[found.truth.notna()] if "truth" in found else found
    rows = []
    for quantity, group in found.groupby("quantity", sort=False):
        under, over = group.truth < group.low, group.truth > group.high
        covered = 1 - (under | over).mean()
        rows.append(
            {
                "quantity": quantity,
                "n": len(group),
                "truth": group.truth.mean(),
                "mean": group.estimate.replace([np.inf, -np.inf], np.nan).mean(),
                "coverage": covered,
                "error": np.sqrt(covered * (1 - covered) / len(group)),
                "truth under": under.mean(),
                "truth over": over.mean(),
                "width": (group.high - group.low).median(),
                "p below": ((group.p < 0.05) & (group.high < 0)).mean(),
                "p above": ((group.p < 0.05) & (group.low > 0)).mean(),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    for design, truth in DESIGNS.items():
        for setting, values in SETTINGS.items():
            if wanted in f"{design}; {setting}":
                print(f"\n{design}; {setting}", flush=True)
                print(coverage(truth.changed(**values), count).round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
