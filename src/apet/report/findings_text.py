"""Findings as text, worded no stronger than their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from apet.analysis.findings import NOT_TESTED
from apet.analysis.means import RANDOM, near_chance
from apet.core.text import plural
from apet.report import formats

LEVELS = {"fixed_tasks": "on these tasks", "task_population": "on similar tasks"}
"""Levels of a finding: the study's tasks, and the population of which they are taken as a random sample."""
MISSING_LISTED = 20
"""Largest number of missing cells that are listed by name."""


def findings_markdown(findings: Mapping[str, Any], frame: pd.DataFrame) -> str:
    """Render `findings.md`.

    Args:
        findings: document of `findings.json`.
        frame: the tidy table with its attrs.

    Returns:
        Markdown.
    """
    environment = Environment(
        loader=PackageLoader("apet", "report"), undefined=StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.tests["tested"] = is_tested
    return environment.get_template("findings.md.jinja").render(
        findings=findings,
        frame=frame,
        formats=formats,
        levels=LEVELS,
        has_apet=frame.placement.eq(RANDOM).any(),
        listed=MISSING_LISTED,
        plural=plural,
        warning=chance_warning(frame, findings["margins"]["chance_margin"]),
        is_tested=is_tested,
        reason_text=reason_text,
        scopes_shown=scopes_shown,
        verdict_text=verdict_text,
    )


def chance_warning(frame: pd.DataFrame, margin: float) -> str:
    """Return a sentence on PLMs and tasks where full fine-tuning does not exceed chance; empty if there are none."""
    names = near_chance(frame, margin)
    if not names:
        return ""
    more = f" and {len(names) - MISSING_LISTED} more" if len(names) > MISSING_LISTED else ""
    return (
        f"Full fine-tuning does not exceed chance by the margin: {', '.join(names[:MISSING_LISTED])}{more}. Scores and "
        "thresholds there say little about methods. More steps or other learning rates may help."
    )


def verdict_text(finding: Mapping[str, Any]) -> str:
    """Explain a finding's verdict in sentences. Every claim is that its quantity is below 0."""
    low, high, reason = finding["low"], finding["high"], finding["reason"]
    if finding["verdict"] == NOT_TESTED:
        return reason_text(finding)
    if finding["verdict"] == "supported":
        text = "The whole interval is on the claim's side of 0."
    elif finding["verdict"] == "contradicted":
        text = "The whole interval is on the other side of 0: the data contradict the claim."
    elif (low is None or low <= 0) and (high is None or high >= 0):
        text = "The interval includes 0: the data are compatible with the claim and with its opposite."
    else:
        text = (
            "The unadjusted interval excludes 0; after correction for multiple testing the result is not significant."
        )
    return f"{text} {reason_text(finding)}" if reason else text


def reason_text(finding: Mapping[str, Any]) -> str:
    """Return a finding's reason as a sentence."""
    reason = finding["reason"]
    return f"{reason[0].upper()}{reason[1:].rstrip('.')}."


def is_tested(scope: Mapping[str, Any]) -> bool:
    """Return whether a claim is tested in a scope, at any level."""
    return any(scope[level]["verdict"] != NOT_TESTED for level in LEVELS)


def scopes_shown(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Select a claim's scopes in which it is tested, and `overall`, which is first.

    A single family is the same as `overall` and left out.

    Args:
        claim: A claim of the findings.

    Returns:
        Name -> scope.
    """
    scopes = dict(claim["scopes"])
    families = {name: scope for name, scope in scopes.items() if name != "overall" and is_tested(scope)}
    return {"overall": scopes["overall"], **(families if len(scopes) > 2 else {})}
