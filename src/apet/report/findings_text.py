"""Findings as text, worded no stronger than their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

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
    return environment.get_template("findings.md.jinja").render(
        findings=findings,
        frame=frame,
        formats=formats,
        levels=LEVELS,
        listed=MISSING_LISTED,
        scopes_shown=scopes_shown,
        verdict_text=verdict_text,
    )


def verdict_text(finding: Mapping[str, Any]) -> str:
    """Explain a finding's verdict in sentences. Every claim is that its quantity is below 0."""
    low, high, reason = finding["low"], finding["high"], finding["reason"]
    if finding["verdict"] == "supported":
        text = "The whole interval is on the claim's side of 0."
    elif finding["verdict"] == "contradicted":
        text = "The whole interval is on the other side of 0: the data contradict the claim."
    elif finding["verdict"] == "not tested":
        text = "The study lacks the cells that this claim needs."
    elif finding["estimate"] is None:
        text = "The quantity cannot be estimated from these data."
    elif (low is None or low <= 0) and (high is None or high >= 0):
        text = "The interval includes 0: the data are compatible with the claim and with its opposite."
    else:
        text = (
            "The unadjusted interval excludes 0; after correction for multiple testing the result is not significant."
        )
    return f"{text} {reason[0].upper()}{reason[1:].rstrip('.')}." if reason else text


def scopes_shown(claim: Mapping[str, Any]) -> dict[str, Any]:
    """Select a claim's scopes, `overall` first; a single family is the same as `overall` and left out."""
    scopes = dict(claim["scopes"])
    return scopes if len(scopes) > 2 else {"overall": scopes["overall"]}
