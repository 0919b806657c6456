"""The claims of findings.json in words no stronger than their intervals, and where to draw these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apet.report.markdown import LEVELS, interval, number, p_value, scopes_shown, words

VERDICTS = ("supported", "contradicted", "undecided")
WIDTH = 400.0
"""Units from one end to the other of an interval's drawing; 0 of the quantity lies in the middle."""


@dataclass(frozen=True)
class Answer:
    """One finding. estimate, interval and p: text; `bar`: where to draw them, None without an estimate."""

    level: str
    verdict: str
    words: str
    estimate: str
    interval: str
    p: str
    bar: dict[str, Any] | None


@dataclass(frozen=True)
class Scope:
    """The findings of one scope, `overall` or a family.

    n: what they rest on, in words, "" for nothing. values: the quantity on each PLM: (PLM, size, value, interval).
    """

    name: str
    n: str
    answers: list[Answer]
    values: list[tuple[str, str, str, str]]


@dataclass(frozen=True)
class ClaimSummary:
    """A claim, the quantity whose sign decides it, and what was found: over all PLMs, and in each family of several."""

    name: str
    statement: str
    quantity: str
    unit: str
    overall: Scope
    families: list[Scope]


def read_claims(findings: Mapping[str, Any]) -> list[ClaimSummary]:
    """The claims in the file's order."""
    return [_claim(name, record) for name, record in findings["claims"].items()]


def tally(claims: list[ClaimSummary]) -> str:
    """How many claims have which verdict on the study's tasks, as a sentence."""
    count = Counter(claim.overall.answers[0].verdict for claim in claims)
    found = [f"{count[verdict]} {verdict}" for verdict in VERDICTS if count[verdict]]
    return f"Of {len(claims)} claims, on these tasks: {', '.join(found)}."


def _claim(name: str, record: Mapping[str, Any]) -> ClaimSummary:
    reach = _reach(record["scopes"].values())
    overall, *families = [_scope(n, found, record["unit"], reach) for n, found in scopes_shown(record).items()]
    return ClaimSummary(name, record["statement"], record["quantity"], record["unit"], overall, families)


def _reach(scopes: Any) -> float:
    """The largest distance from 0 of a claim's numbers, so that all its drawings have one scale."""
    found = [scope[level] for scope in scopes for level in LEVELS]
    numbers = [abs(f[key]) for f in found for key in ("estimate", "low", "high") if f[key] is not None]
    return max(numbers, default=0.0) * 1.12 or 1.0


def _scope(name: str, record: Mapping[str, Any], unit: str, reach: float) -> Scope:
    n = (
        ""
        if not record["cells"]
        else (
            f"{_count(len(record['plms']), 'PLM')}, {_count(len(record['tasks']), 'task')}, "
            f"{_count(record['cells'], 'cell')}, {_count(record['replicates'], 'replicate')}"
        )
    )
    answers = [_answer(level, record[level], unit, reach) for level in LEVELS]
    values = [(v["model"], f"{v['non_embedding']:,}", number(v["value"]), interval(v)) for v in record["values"]]
    return Scope(name, n, answers, values)


def _answer(level: str, found: Mapping[str, Any], unit: str, reach: float) -> Answer:
    estimate, low, high = found["estimate"], found["low"], found["high"]
    return Answer(
        LEVELS[level].capitalize(),
        found["verdict"],
        words(found),
        "not estimable" if estimate is None else f"{number(estimate)} {unit}",
        "" if estimate is None else f"95 % interval {interval(found)}",
        "" if found["p_adjusted"] is None else f"adjusted p\u00a0{p_value(found['p_adjusted'])}",
        None if estimate is None else _bar(estimate, low, high, reach),
    )


def _bar(estimate: float, low: float | None, high: float | None, reach: float) -> dict[str, Any]:
    """Places in [0, WIDTH]. A bound that is not there has no end: its line runs off the edge."""

    def place(value: float) -> float:
        return round(WIDTH / 2 * (1 + value / reach), 1)

    return {
        "low": 0.0 if low is None else place(low),
        "high": WIDTH if high is None else place(high),
        "ends": [place(bound) for bound in (low, high) if bound is not None],
        "estimate": place(estimate),
        "width": WIDTH,
    }


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
