"""The findings as a page for a person, worded no stronger than their intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

SHOWN = 20
"""Missing cells that are listed by name."""
QUESTION = (
    "Does it matter less where the tunable parameters of a PLM sit, do fewer of them suffice, and do the tuning "
    "methods differ less, the larger the PLM is?"
)
READING = """## How to read this

Each claim is one number that is negative where the claim holds. *Supported*: the number is below 0 with p < 0.05 after
Holm's correction over the claims that can be tested. *Contradicted*: above 0, likewise. *Undecided*: these data do not
tell, which is not evidence for either side. *On these tasks* takes the tasks as they are; *beyond them* takes them as a
sample of tasks like them. `{margins}`
"""


def page(found: Mapping[str, Any], frame: pd.DataFrame) -> str:
    """The text of `findings.md` from the document of `findings.json` and the tidy table (for what was missing)."""
    parts = [f"# Findings\n\n{QUESTION}\n", _answers(found["claims"]), _data(found, frame)]
    parts += [_claim(claim) for claim in found["claims"].values()]
    margins = ", ".join(f"{name} {value:g}" for name, value in found["margins"].items())
    return "\n".join([*parts, _missing(frame), READING.format(margins=margins)])


def _answers(claims: Mapping[str, Any]) -> str:
    lines = []
    for claim in claims.values():
        overall = claim["scopes"]["overall"]
        verdicts = [f"{overall[level]['verdict']} {tasks}" for level, tasks in LEVELS.items()]
        lines.append(f"- {claim['statement']} **{', '.join(verdicts).capitalize()}.**\n")
    return "".join(lines)


def _data(found: Mapping[str, Any], frame: pd.DataFrame) -> str:
    cells = frame.cell.nunique()
    return (
        f"From {cells:,} cells with {len(frame):,} replicates, {frame.score.notna().sum():,} of them with a score: "
        f"{frame.model.nunique()} PLM(s), {frame.task.nunique()} task(s); {found['missing']} cell(s) missing.\n"
    )


def _claim(claim: Mapping[str, Any]) -> str:
    scopes = scopes_shown(claim)
    overall = scopes["overall"]
    lines = [f"## {claim['statement'].rstrip('.')}", "", f"Estimated: {claim['quantity']} ({claim['unit']}).", ""]
    lines += [f"{tasks.capitalize()}: {_sentence(overall[level], claim['unit'])}" for level, tasks in LEVELS.items()]
    lines += [
        "",
        "| PLMs | tasks | estimate | 95 % interval | adjusted p | verdict | n |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    lines += [row for scope, entry in scopes.items() for row in _rows(scope, entry)]
    if overall["values"]:
        lines += ["", "| PLM | parameters outside the embeddings | its value | 95 % interval |", "|---|---:|---:|---:|"]
        lines += [
            f"| {v['model']} | {v['non_embedding']:,} | {number(v['value'])} | {interval(v)} |"
            for v in overall["values"]
        ]
    return "\n".join(lines) + "\n"


def _sentence(finding: Mapping[str, Any], unit: str) -> str:
    """What one finding says, and what it does not."""
    if finding["estimate"] is None:
        return f"{finding['verdict']}. {words(finding)}"
    estimate = f"{number(finding['estimate'])} {unit} (95 % interval {interval(finding)})"
    return f"{finding['verdict']}, {estimate}. {words(finding)}"


def _rows(scope: str, entry: Mapping[str, Any]) -> Iterator[str]:
    n = f"{len(entry['plms'])} PLMs, {len(entry['tasks'])} tasks, "
    n += f"{entry['cells']} cells, {entry['replicates']} replicates"
    for level, tasks in LEVELS.items():
        finding = entry[level]
        numbers = [number(finding["estimate"]), interval(finding), p_value(finding["p_adjusted"]), finding["verdict"]]
        yield f"| {scope} | {tasks} | {' | '.join(numbers)} | {n} |"


def _missing(frame: pd.DataFrame) -> str:
    absent = frame.attrs["missing"]
    diverged = int(frame.score.isna().sum())
    lines = ["## What was missing", "", f"{diverged} of {len(frame):,} replicates have no score: they diverged."]
    lines += [f"{len(absent)} cell(s) of the study are not there.", ""] if absent else ["No cell is missing."]
    for cell in absent[:SHOWN]:
        lines.append(f"- {cell['model']}, {cell['task']}, {cell['placement']} at {cell['budget']}: {cell['reason']}")
    if len(absent) > SHOWN:
        lines.append(f"- and {len(absent) - SHOWN} more")
    return "\n".join(lines) + "\n"


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
