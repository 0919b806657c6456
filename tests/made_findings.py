"""A hand-written findings.json with every kind of finding, for tests of tables and the report."""

from __future__ import annotations

from typing import Any

from simulated_study import MODELS

SECTIONS = ["The question", "Results", "Figures", "Tables", "Environment", "Cost", "Missing data"]
"""Headings of the report."""
VERDICTS = {
    "positions": "supported",
    "full_ft_threshold": "not tested",
    "chance_threshold": "contradicted",
    "methods": "undecided",
}
"""Verdict of each claim over all PLMs, on these tasks."""


def finding(verdict: str, *numbers: float | None, reason: str | None = None) -> dict[str, Any]:
    """numbers: estimate, low, high, p, adjusted p; none where nothing can be estimated."""
    names = ("estimate", "low", "high", "p", "p_adjusted")
    return dict(zip(names, numbers or (None,) * 5, strict=True)) | {"verdict": verdict, "reason": reason}


def scope(fixed: dict[str, Any], population: dict[str, Any], *values: tuple[float | None, ...]) -> dict[str, Any]:
    plms = [
        {"model": model, "non_embedding_params": size, "value": value, "low": low, "high": high}
        for (model, (size, _)), (value, low, high) in zip(MODELS.items(), values, strict=False)
    ]
    rest = {"plms": list(MODELS), "tasks": ["sentiment", "topics"], "cells": 24, "replicates": 1072}
    return {"fixed_tasks": fixed, "task_population": population, **rest, "values": plms}


def nothing(reason: str) -> dict[str, Any]:
    """A scope in which nothing can be estimated."""
    empty = finding("not tested", reason=reason)
    return {
        "fixed_tasks": empty,
        "task_population": empty,
        "plms": [],
        "tasks": [],
        "cells": 0,
        "replicates": 0,
        "values": [],
    }


def claim(statement: str, quantity: str, unit: str, **scopes: dict[str, Any]) -> dict[str, Any]:
    return {"statement": statement, "quantity": quantity, "unit": unit, "scopes": scopes}


def findings(table: str = "") -> dict[str, Any]:
    """Two families, one of which can say nothing. Decided, undecided though the interval leaves 0 out, not estimable,
    bounds that are not there. table: the digest of the tidy table beside it."""
    claims = {
        "positions": claim(
            "Positions matter less, the larger the PLM.",
            "Change of the variance between positions with the size of the PLM",
            "points² per tenfold increase in parameters",
            overall=scope(
                finding("supported", -31.24, -52.4, -11.9, 0.002, 0.006),
                finding("undecided", -31.24, -80.1, 17.7, 0.11, 0.33),
                (64.1, 22.1, 140.2), (30.2, 11.2, 77.0), (8.1, -3.2, 31.4),
            ),
            bloom=scope(finding("supported", -30.0, -50.0, -10.0, 0.0002, 0.0008),
                finding("not tested", reason="one task does not tell how tasks vary"),
            ),
            t5=nothing("one PLM has no trend"),
        ),
        "full_ft_threshold": claim(
            "Fewer parameters match full fine-tuning, the larger the PLM.",
            "Change of the decimal logarithm of the full fine-tuning threshold with the size of the PLM",
            "powers of ten per tenfold increase in parameters",
            overall=nothing("nearly all thresholds lie beyond the largest budget tested"),
            bloom=nothing("the same"),
        ),
        "chance_threshold": claim(
            "Tasks need about the same number of parameters to exceed chance.",
            "S.D. over tasks of the decimal logarithm of the chance threshold, minus 0.5",
            "powers of ten",
            overall=scope(
                finding("contradicted", 0.42, 0.11, 0.77, 0.01, 0.03),
                finding("undecided", 0.42, None, 2.5, 0.2, 0.4),
                (0.9, 0.2, None),
            ),
        ),
        "methods": claim(
            "Methods differ less, the larger the PLM.",
            "Change of the variance between the methods' mean scores with the size of the PLM",
            "points² per tenfold increase in parameters",
            overall=scope(
                finding("undecided", -9.1, -18.5, -0.3, 0.04, 0.08, reason="two tasks were left out"),
                finding("undecided", -9.1, -40.0, None, 0.5, 0.5),
            ),
        ),
    }  # fmt: skip
    margins = {"chance_margin": 2.0, "full_ft_margin": 2.0, "equivalence_margin": 0.5}
    about = {"study": "simulated", "name": "tiny", "table": table, "confidence": 0.95, "margins": margins, "missing": 1}
    return about | {"claims": claims}
