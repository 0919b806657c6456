"""The main results of findings.json as one table, in Markdown and in LaTeX."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apet.analysis.latex import escape, latex_table
from apet.provenance import write_text

FINDINGS = ("claim", "scope", "PLMs", "tasks", "estimate", "95 % interval", "adjusted p", "verdict")
LEVELS = {"these_tasks": "these", "beyond": "beyond them"}
BOUNDS = {"low": "−∞", "high": "∞"}


def findings_rows(findings: Mapping[str, Any]) -> list[list[list[str]]]:
    """The main results of findings.json as text: a block a claim, a row a scope and level, columns of `FINDINGS`."""
    blocks = []
    for claim in findings["claims"].values():
        rows = [
            [scope, str(len(found["plms"])), LEVELS[level], *_finding(found[level])]
            for scope, found in claim["scopes"].items()
            if scope == "overall" or len(claim["scopes"]) > 2  # one family alone is the whole
            for level in LEVELS
        ]
        name = f"{claim['statement'].rstrip('.')} ({claim['unit']})"
        blocks.append([[name if not index else "", *row] for index, row in enumerate(rows)])
    return blocks


def findings_markdown(findings: Mapping[str, Any]) -> str:
    """The main results of findings.json as a Markdown table, with what its numbers are."""
    lines = [FINDINGS, ("---", "---", "---:", "---", "---:", "---:", "---:", "---")]
    lines += [[text.replace("|", r"\|") for text in row] for block in findings_rows(findings) for row in block]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{_about(findings)}\n"


def findings_latex(findings: Mapping[str, Any]) -> str:
    """`findings_markdown` in LaTeX."""
    blocks = [[[escape(text) for text in row] for row in block] for block in findings_rows(findings)]
    align = r"p{0.28\textwidth}lrlrrrl"
    return latex_table("findings", escape(_about(findings)), align, [*map(escape, FINDINGS)], blocks)


def write_findings_table(findings: Mapping[str, Any], folder: Path) -> None:
    """Write `findings.md` and `findings.tex`."""
    write_text(folder / "findings.md", findings_markdown(findings))
    write_text(folder / "findings.tex", findings_latex(findings))


def _finding(found: Mapping[str, Any]) -> list[str]:
    """Estimate, interval, adjusted p, verdict; a bound that is not there is infinite."""
    if found["estimate"] is None:
        return ["not estimable", "", "", found["verdict"]]
    low, high = (infinite if found[key] is None else number(found[key]) for key, infinite in BOUNDS.items())
    p = found["p_adjusted"]
    return [number(found["estimate"]), f"{low} to {high}", "" if p is None else p_value(p), found["verdict"]]


def _about(findings: Mapping[str, Any]) -> str:
    margins = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in findings["margins"].items())
    return (
        "Each claim says that its quantity lies below 0. Estimates with 95 % intervals; p-values are adjusted for the "
        f"claims that are tested together (Holm). Margins: {margins}."
    )


def number(value: float) -> str:
    """As findings.json rounds it, with a true minus sign."""
    return f"{value:,.4g}".replace("-", "−")


def p_value(value: float) -> str:
    """Three decimals; small ones are not told apart."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
