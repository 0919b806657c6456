"""The numbers of a study that a person compares between revisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from apet.analysis.components import position_spread
from apet.analysis.means import method_scores, over_tasks
from apet.analysis.resampling import Draws, draw_means


def summary(frame: pd.DataFrame, study: str, draws: Draws | None = None) -> dict[str, Any]:
    """The numbers of a study that a person compares between revisions, fractions at 4 decimals; null where data lack.

    `score`: mean over tasks by PLM and placement@budget; `task`: the methods at their own count by PLM and task;
    `position_sd`: mean over tasks of the S.D. between draws by PLM and budget.
    """
    tasks = sorted(frame.task.unique())
    draws = draw_means(frame) if draws is None else draws
    means, own = over_tasks(draws, tasks), method_scores(draws)
    spread = position_spread(frame).groupby(["model", "budget"]).sd.agg(["mean", "count"])
    result: dict[str, Any] = {"study": study, "score": {}, "task": {}, "position_sd": {}}
    for row in means.sort_values(["model", "placement", "tunable", "budget"]).itertuples():
        result["score"].setdefault(row.model, {})[f"{row.placement}@{row.budget.lstrip('@')}"] = _number(row.mean)
    for row in own.itertuples():
        result["task"].setdefault(row.model, {}).setdefault(row.task, {})[row.placement] = _number(row.mean)
    for (model, budget), row in spread.iterrows():
        value = row["mean"] if row["count"] == len(tasks) else float("nan")
        result["position_sd"].setdefault(model, {})[budget.lstrip("@")] = _number(value)
    return result


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
