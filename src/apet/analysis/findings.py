"""The study's answer: for each claim and scope an estimate, its interval, a verdict, and the cells behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.multitest import multipletests

from apet.analysis.claims import CLAIMS, AnalysisInputs, Claim
from apet.analysis.intervals import CONFIDENCE, Estimate, NotEstimable
from apet.analysis.means import method_scores, models_by_scale, over_tasks
from apet.analysis.resampling import CELL, MeanSamples, sample_means
from apet.analysis.trends import ClaimData, ClaimResult
from apet.analysis.variance import position_spread

OVERALL = "overall"
LEVELS = ("these_tasks", "beyond")
DIGITS = 4
COLUMNS = ["claim", "scope", "cell"]


def findings(frame: pd.DataFrame, draws: MeanSamples | None = None) -> dict[str, Any]:
    """The document of `findings.json` from a tidy table (with its attrs); `draws` where they are at hand already.
    `table`: the SHA-256 of the table's file, by which the report knows that these are its findings.

    Every claim is that a quantity is negative. Two levels: these tasks (tasks fixed) and beyond them (tasks a sample).
    Holm's correction (1979) over the claims that can be tested in a scope and level. supported: adjusted p < 0.05 and
    the estimate negative; contradicted: adjusted p < 0.05 and positive; undecided otherwise, or with a `reason` where
    the quantity is not estimable. Numbers at 4 significant digits, null where there is none or no bound.
    """
    return _document(frame, _evidence(frame, draws))[0]


def compact(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a person compares between revisions: verdict on these tasks, its sign (1 supported, −1 contradicted, 0),
    estimate and interval, by claim and scope."""
    signs = {"supported": 1, "contradicted": -1, "undecided": 0}
    return {
        name: {
            scope: {
                "verdict": entry["these_tasks"]["verdict"],
                "sign": signs[entry["these_tasks"]["verdict"]],
                **{key: entry["these_tasks"][key] for key in ("estimate", "low", "high")},
            }
            for scope, entry in claim["scopes"].items()
        }
        for name, claim in found["claims"].items()
    }


def _evidence(frame: pd.DataFrame, draws: MeanSamples | None) -> AnalysisInputs:
    return AnalysisInputs(frame, sample_means(frame) if draws is None else draws, frame.attrs["margins"])


def _document(frame: pd.DataFrame, evidence: AnalysisInputs) -> tuple[dict[str, Any], pd.DataFrame]:
    """The document, and a row for each claim, scope and cell behind it."""
    scopes = {OVERALL: models_by_scale(frame)}
    scopes |= {family: models_by_scale(group) for family, group in frame.groupby("family")}
    scored = frame[frame.score.notna()].groupby([*CELL, "cell"]).size().reset_index(name="replicates")
    measured = {claim.name: claim.measure(evidence) for claim in CLAIMS}
    entries: dict[str, dict[str, Any]] = {claim.name: {} for claim in CLAIMS}
    behind = [pd.DataFrame(columns=COLUMNS)]
    for scope, models in scopes.items():
        compared = {claim.name: _compare(claim, measured[claim.name], models) for claim in CLAIMS}
        levels = {level: _level(compared, level) for level in LEVELS}
        for name, result in compared.items():
            cells = _cells(scored, measured[name], result)
            findings = {level: levels[level][name] for level in LEVELS}
            entries[name][scope] = findings | _facts(measured[name], result, cells)
            behind.append(pd.DataFrame({"claim": name, "scope": scope, "cell": sorted(cells.cell)}))
    document = {
        "study": frame.attrs["study"],
        "table": frame.attrs["digest"],
        "confidence": CONFIDENCE,
        "margins": dict(evidence.margins),
        "missing": len(frame.attrs["missing"]),
        "claims": {claim.name: _head(claim) | {"scopes": entries[claim.name]} for claim in CLAIMS},
    }
    return document, pd.concat(behind, ignore_index=True)


def _head(claim: Claim) -> dict[str, str]:
    return {"statement": claim.statement, "quantity": claim.quantity, "unit": claim.unit}


def _compare(claim: Claim, measured: ClaimData, models: list[str]) -> ClaimResult | str:
    """The claim's quantity in a scope, or why there is none."""
    try:
        return claim.compare(measured, models)
    except NotEstimable as error:
        return str(error)


def _level(compared: Mapping[str, ClaimResult | str], level: str) -> dict[str, dict[str, Any]]:
    """Each claim's finding at one level, p-values adjusted over the claims that can be tested."""
    estimates, found = {}, {}
    for name, result in compared.items():
        estimate = result if isinstance(result, str) else (result.these if level == LEVELS[0] else result.beyond)
        remark = "" if isinstance(result, str) else result.remark
        found[name] = _undecided(estimate) if isinstance(estimate, str) else _finding(estimate, remark)
        if not isinstance(estimate, str):
            estimates[name] = estimate
    p = [estimate.p for estimate in estimates.values()]
    adjusted = multipletests(p, method="holm")[1] if p else []
    for (name, estimate), value in zip(estimates.items(), adjusted, strict=True):
        decided = value < 1 - CONFIDENCE
        verdict = ("supported" if estimate.interval[1] < 0 else "contradicted") if decided else "undecided"
        found[name] |= {"p_adjusted": _number(value), "verdict": verdict}
    return found


def _undecided(reason: str) -> dict[str, Any]:
    numbers = dict.fromkeys(("estimate", "low", "high", "p", "p_adjusted"))
    return {**numbers, "verdict": "undecided", "reason": reason}


def _finding(estimate: Estimate, remark: str) -> dict[str, Any]:
    low, high = map(_number, estimate.interval)
    numbers = {"estimate": _number(estimate.value), "low": low, "high": high, "p": _number(estimate.p)}
    return {**numbers, "p_adjusted": None, "verdict": "undecided", "reason": remark or None}


def _facts(measured: ClaimData, compared: ClaimResult | str, cells: pd.DataFrame) -> dict[str, Any]:
    """What a finding rests on: PLMs, tasks, numbers of cells and of replicates with a score, each PLM's own value."""
    if isinstance(compared, str):
        return {"plms": [], "tasks": [], "cells": 0, "replicates": 0, "values": []}
    table = measured.table[compared.rows]
    sizes = table.groupby("model", sort=False).non_embedding.first()
    values = []
    for model, size in sizes.items():
        own = compared.values.get(model)
        low, high = own.interval if own else (np.nan, np.nan)
        numbers = {"value": _number(own.value if own else np.nan), "low": _number(low), "high": _number(high)}
        values.append({"model": model, "non_embedding": int(size), **numbers})
    tasks = sorted(table.task.unique())
    count = {"cells": len(cells), "replicates": int(cells.replicates.sum())}
    return {"plms": list(sizes.index), "tasks": tasks, **count, "values": values}


def _cells(scored: pd.DataFrame, measured: ClaimData, compared: ClaimResult | str) -> pd.DataFrame:
    """Those of the cells `scored` (CELL columns, `cell`, `replicates`) that are behind a finding."""
    if isinstance(compared, str):
        return scored.iloc[:0]
    pairs = measured.table[compared.rows][["model", "task"]]
    return scored.merge(measured.cells.merge(pairs, on=["model", "task"]), on=CELL)


def _number(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def summary(frame: pd.DataFrame, study: str, draws: MeanSamples | None = None) -> dict[str, Any]:
    """The numbers of a study that a person compares between revisions, fractions at 4 decimals; null where data lack.

    `score`: mean over tasks by PLM and placement@budget; `task`: the methods at their own count by PLM and task;
    `position_sd`: mean over tasks of the S.D. between draws by PLM and budget.
    """
    tasks = sorted(frame.task.unique())
    draws = sample_means(frame) if draws is None else draws
    means, own = over_tasks(draws, tasks), method_scores(draws)
    spread = position_spread(frame).groupby(["model", "budget"]).sd.agg(["mean", "count"])
    result: dict[str, Any] = {"study": study, "score": {}, "task": {}, "position_sd": {}}
    for row in means.sort_values(["model", "placement", "tunable", "budget"]).itertuples():
        result["score"].setdefault(row.model, {})[f"{row.placement}@{row.budget.lstrip('@')}"] = _rounded(row.mean)
    for row in own.itertuples():
        result["task"].setdefault(row.model, {}).setdefault(row.task, {})[row.placement] = _rounded(row.mean)
    for (model, budget), row in spread.iterrows():
        value = row["mean"] if row["count"] == len(tasks) else float("nan")
        result["position_sd"].setdefault(model, {})[budget.lstrip("@")] = _rounded(value)
    return result


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
