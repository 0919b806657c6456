"""Claims of findings.json as text and bars for the HTML report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apet.report.findings_text import LEVELS, scopes_shown, verdict_text
from apet.report.formats import interval, p_value, plural, significant

VERDICTS = ("supported", "contradicted", "undecided", "not tested")
BAR_WIDTH = 400.0
"""Width of an interval's drawing; 0 of the quantity is in the middle."""


@dataclass(frozen=True)
class FindingText:
    """A finding as text."""

    level: str
    verdict: str
    explanation: str
    estimate: str
    interval: str
    p: str
    bar: dict[str, Any] | None
    """Positions of estimate and interval; None without an estimate."""


@dataclass(frozen=True)
class Scope:
    """Findings of one scope: `overall` or a family."""

    name: str
    basis: str
    """Numbers of PLMs, tasks, cells and replicates; empty if there are none."""
    findings: list[FindingText]
    values: list[tuple[str, str, str, str]]
    """Quantity on each PLM: PLM, size, value, interval."""


@dataclass(frozen=True)
class ClaimSummary:
    """A claim with its findings over all PLMs and, if there are several families, in each of them."""

    name: str
    statement: str
    quantity: str
    unit: str
    overall: Scope
    families: list[Scope]


def read_claims(findings: Mapping[str, Any]) -> list[ClaimSummary]:
    """Summarise the claims of findings.json, in the file's order."""
    return [_claim(name, record) for name, record in findings["claims"].items()]


def tally(claims: list[ClaimSummary]) -> str:
    """Count the verdicts on the study's tasks, as a sentence."""
    count = Counter(claim.overall.findings[0].verdict for claim in claims)
    verdicts = [f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict]]
    return f"Of {len(claims)} claims, on these tasks: {', '.join(verdicts)}."


def _claim(name: str, record: Mapping[str, Any]) -> ClaimSummary:
    scale = _scale(record["scopes"].values())
    overall, *families = [_scope(n, entry, record["unit"], scale) for n, entry in scopes_shown(record).items()]
    return ClaimSummary(name, record["statement"], record["quantity"], record["unit"], overall, families)


def _scale(scopes: Iterable[Mapping[str, Any]]) -> float:
    """Return the largest distance of a claim's numbers from 0, so that all its bars have one scale."""
    findings = [scope[level] for scope in scopes for level in LEVELS]
    numbers = [abs(f[key]) for f in findings for key in ("estimate", "low", "high") if f[key] is not None]
    return max(numbers, default=0.0) * 1.12 or 1.0


def _scope(name: str, record: Mapping[str, Any], unit: str, scale: float) -> Scope:
    counts = {
        "PLM": len(record["plms"]),
        "task": len(record["tasks"]),
        "cell": record["cells"],
        "replicate": record["replicates"],
    }
    basis = ", ".join(plural(count, noun) for noun, count in counts.items()) if record["cells"] else ""
    findings = [_finding(level, record[level], unit, scale) for level in LEVELS]
    values = [
        (v["model"], f"{v['non_embedding_params']:,}", significant(v["value"]), interval(v)) for v in record["values"]
    ]
    return Scope(name, basis, findings, values)


def _finding(level: str, finding: Mapping[str, Any], unit: str, scale: float) -> FindingText:
    estimate, p = finding["estimate"], finding["p_adjusted"]
    return FindingText(
        LEVELS[level].capitalize(),
        finding["verdict"],
        verdict_text(finding),
        "not estimable" if estimate is None else f"{significant(estimate)} {unit}",
        "" if estimate is None else f"95 % interval {interval(finding)}",
        "" if p is None else f"adjusted p\u00a0{p_value(p)}",
        None if estimate is None else _bar(estimate, finding["low"], finding["high"], scale),
    )


def _bar(estimate: float, low: float | None, high: float | None, scale: float) -> dict[str, Any]:
    """Return positions in [0, BAR_WIDTH]. The line of a missing bound runs to the edge and has no end mark."""

    def position(value: float) -> float:
        return round(BAR_WIDTH / 2 * (1 + value / scale), 1)

    return {
        "low": 0.0 if low is None else position(low),
        "high": BAR_WIDTH if high is None else position(high),
        "ends": [position(bound) for bound in (low, high) if bound is not None],
        "estimate": position(estimate),
        "width": BAR_WIDTH,
    }
