"""A finding of findings.json in words, the same for the page, the tables and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEVELS = {"these_tasks": "on these tasks", "beyond": "beyond them"}
"""The two levels of a finding: the study's tasks as they are, and tasks like them, of which they are a sample."""
NONE = "—"


def number(value: float | None) -> str:
    """As findings.json rounds it, with a true minus sign."""
    return NONE if value is None else f"{value:,.4g}".replace("-", "−")


def p_value(value: float | None) -> str:
    """Three decimals; small ones are not told apart."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(found: Mapping[str, Any]) -> str:
    """low to high; one bound that is not there is infinite."""
    low, high = found["low"], found["high"]
    if low is None and high is None:
        return NONE
    return f"{'−∞' if low is None else number(low)} to {'∞' if high is None else number(high)}"


def words(found: Mapping[str, Any]) -> str:
    """What a finding says, and no more than its interval does. Every claim is that its quantity lies below 0."""
    low, high, reason = found["low"], found["high"], found["reason"]
    if found["verdict"] == "supported":
        said = "The whole interval lies on the claim's side of 0."
    elif found["verdict"] == "contradicted":
        said = "The whole interval lies on the other side of 0: the data speak against the claim."
    elif found["estimate"] is None:
        said = "The data cannot tell."
    elif (low is None or low <= 0) and (high is None or high >= 0):
        said = "The interval holds 0: the data allow both, that the claim is true and that it is false."
    else:
        said = "The interval alone leaves 0 out, but not once it is counted that several claims are tested."
    return f"{said} {reason[0].upper()}{reason[1:].rstrip('.')}." if reason else said


def scopes_shown(claim: Mapping[str, Any]) -> dict[str, Any]:
    """A claim's scopes, `overall` first, that say something of their own: one family alone is the whole."""
    scopes = dict(claim["scopes"])
    return scopes if len(scopes) > 2 else {"overall": scopes["overall"]}
