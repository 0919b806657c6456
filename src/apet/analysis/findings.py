"""Findings of a study: for each claim and scope an estimate, its interval, a verdict and the source cells."""

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
LEVELS = ("fixed_tasks", "task_population")
DIGITS = 4
SOURCE_COLUMNS = ["claim", "scope", "cell_path"]


def build_findings(inputs: AnalysisInputs) -> tuple[dict[str, Any], pd.DataFrame]:
    """Test all claims of the study.

    Every claim is that a quantity is negative. It is tested at two levels: `fixed_tasks` (the study's tasks) and
    `task_population` (tasks as a random sample). Holm's correction (1979) is over the claims that can be tested in a
    scope and level. supported: adjusted p < 0.05 and a negative estimate; contradicted: adjusted p < 0.05 and a
    positive one; not tested if the study lacks the cells; undecided otherwise. The last two have a `reason` if the
    quantity is not estimable.

    Args:
        inputs: data of the study; the attrs of its table come from `read_tidy`.

    Returns:
        The document of `findings.json`, numbers at 4 significant digits, null if there is no estimate or no bound, and
        `table` the SHA-256 of the tidy table's file; and one row per claim, scope and source cell.
    """
    frame = inputs.frame
    scopes = {OVERALL: models_by_scale(frame)}
    scopes |= {family: models_by_scale(group) for family, group in frame.groupby("family")}
    scored = frame[frame.test_score.notna()].groupby([*CELL, "cell_path"]).size().reset_index(name="replicates")
    data = {claim.name: claim.measure(inputs) for claim in CLAIMS}
    entries: dict[str, dict[str, Any]] = {claim.name: {} for claim in CLAIMS}
    sources = [pd.DataFrame(columns=SOURCE_COLUMNS)]
    for scope, models in scopes.items():
        results = {claim.name: _compare(claim, data[claim.name], models) for claim in CLAIMS}
        levels = {level: _findings_of(results, level) for level in LEVELS}
        for name, result in results.items():
            cells = _source_cells(scored, data[name], result)
            by_level = {level: levels[level][name] for level in LEVELS}
            entries[name][scope] = by_level | _basis(data[name], result, cells)
            sources.append(pd.DataFrame({"claim": name, "scope": scope, "cell_path": sorted(cells.cell_path)}))
    document = {
        "study": frame.attrs["study"],
        "table": frame.attrs["digest"],
        "confidence": CONFIDENCE,
        "margins": dict(inputs.margins),
        "missing": len(frame.attrs["missing"]),
        "claims": {
            claim.name: {
                "statement": claim.statement,
                "quantity": claim.quantity,
                "unit": claim.unit,
                "scopes": entries[claim.name],
            }
            for claim in CLAIMS
        },
    }
    return document, pd.concat(sources, ignore_index=True)


def compact(findings: Mapping[str, Any]) -> dict[str, Any]:
    """Select what `dvc metrics diff` compares from the document of `findings.json`.

    Args:
        findings: the document.

    Returns:
        By claim and scope, for the study's tasks: verdict, sign (1 supported, −1 contradicted, 0), estimate, low, high.
    """
    signs = {"supported": 1, "contradicted": -1, "undecided": 0, "not tested": 0}
    return {
        name: {
            scope: {
                "verdict": entry["fixed_tasks"]["verdict"],
                "sign": signs[entry["fixed_tasks"]["verdict"]],
                **{key: entry["fixed_tasks"][key] for key in ("estimate", "low", "high")},
            }
            for scope, entry in claim["scopes"].items()
        }
        for name, claim in findings["claims"].items()
    }


def _compare(claim: Claim, data: ClaimData, models: list[str]) -> ClaimResult | NotEstimable:
    """Return the claim's quantity in a scope, or the error with the reason why it is not estimable."""
    try:
        return claim.compare(data, models)
    except NotEstimable as error:
        return error


def _findings_of(results: Mapping[str, ClaimResult | NotEstimable], level: str) -> dict[str, dict[str, Any]]:
    """Return each claim's finding at one level, with p-values adjusted over the claims that can be tested."""
    estimates, findings = {}, {}
    for name, result in results.items():
        if isinstance(result, NotEstimable):
            findings[name] = _finding(None, str(result)) | {"verdict": result.verdict}
        elif isinstance(estimate := getattr(result, level), str):
            findings[name] = _finding(None, estimate)
        else:
            findings[name] = _finding(estimate, result.remark)
            estimates[name] = estimate
    p = [estimate.p for estimate in estimates.values()]
    adjusted = multipletests(p, method="holm")[1] if p else []
    for (name, estimate), value in zip(estimates.items(), adjusted, strict=True):
        significant = value < 1 - CONFIDENCE
        verdict = ("supported" if estimate.interval[1] < 0 else "contradicted") if significant else "undecided"
        findings[name] |= {"p_adjusted": _number(value), "verdict": verdict}
    return findings


def _finding(estimate: Estimate | None, reason: str) -> dict[str, Any]:
    low, high = estimate.interval if estimate else (np.nan, np.nan)
    value, p = (estimate.value, estimate.p) if estimate else (np.nan, np.nan)
    numbers = {"estimate": _number(value), "low": _number(low), "high": _number(high), "p": _number(p)}
    return {**numbers, "p_adjusted": None, "verdict": "undecided", "reason": reason or None}


def _basis(data: ClaimData, result: ClaimResult | NotEstimable, cells: pd.DataFrame) -> dict[str, Any]:
    """Return the basis of a finding: PLMs, tasks, numbers of cells and scored replicates, and each PLM's value."""
    if isinstance(result, NotEstimable):
        return {"plms": [], "tasks": [], "cells": 0, "replicates": 0, "values": []}
    table = data.table[result.rows]
    sizes = table.groupby("model", sort=False).non_embedding_params.first()
    values = []
    for model, size in sizes.items():
        own = result.values.get(model)
        low, high = own.interval if own else (np.nan, np.nan)
        numbers = {"value": _number(own.value if own else np.nan), "low": _number(low), "high": _number(high)}
        values.append({"model": model, "non_embedding_params": int(size), **numbers})
    counts = {"cells": len(cells), "replicates": int(cells.replicates.sum())}
    return {"plms": list(sizes.index), "tasks": sorted(table.task.unique()), **counts, "values": values}


def _source_cells(scored: pd.DataFrame, data: ClaimData, result: ClaimResult | NotEstimable) -> pd.DataFrame:
    """Return the rows of `scored` (CELL columns, `cell_path`, `replicates`) from which a finding is computed."""
    if isinstance(result, NotEstimable):
        return scored.iloc[:0]
    pairs = data.table[result.rows][["model", "task"]]
    return scored.merge(data.source_cells.merge(pairs, on=["model", "task"]), on=CELL)


def _number(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def summary(frame: pd.DataFrame, study: str, samples: MeanSamples | None = None) -> dict[str, Any]:
    """Compute the numbers of a study that `dvc metrics diff` compares, fractions at 4 decimals, null without data.

    Args:
        frame: the tidy table.
        study: id of the study.
        samples: its samples, if they have been computed.

    Returns:
        `study`; `score`: mean over tasks by PLM and placement@budget; `task`: the methods at their own count by PLM and
        task; `position_sd`: mean over tasks of the S.D. between plans by PLM and budget.
    """
    tasks = sorted(frame.task.unique())
    samples = sample_means(frame) if samples is None else samples
    means, own = over_tasks(samples, tasks), method_scores(samples)
    spread = position_spread(frame).groupby(["model", "budget"]).sd.agg(["mean", "count"])
    result: dict[str, Any] = {"study": study, "score": {}, "task": {}, "position_sd": {}}
    for row in means.sort_values(["model", "placement", "trainable_params", "budget"]).itertuples():
        result["score"].setdefault(row.model, {})[f"{row.placement}@{row.budget.lstrip('@')}"] = _rounded(row.mean)
    for row in own.itertuples():
        result["task"].setdefault(row.model, {}).setdefault(row.task, {})[row.placement] = _rounded(row.mean)
    for (model, budget), row in spread.iterrows():
        value = row["mean"] if row["count"] == len(tasks) else float("nan")
        result["position_sd"].setdefault(model, {})[budget.lstrip("@")] = _rounded(value)
    return result


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
