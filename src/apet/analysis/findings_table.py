"""The main results of findings.json as one table, in Markdown and in LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apet.analysis.latex import escape, latex_table
from apet.analysis.wording import LEVELS, interval, number, p_value, scopes_shown
from apet.provenance import write_text

FINDINGS = ("claim", "scope", "PLMs", "tasks", "estimate", "95 % interval", "adjusted p", "verdict")
BLANK = ""
"""In place of what an estimate that could not be had lacks."""


def findings_rows(findings: Mapping[str, Any]) -> list[list[list[str]]]:
    """The main results of findings.json as text: a block a claim, a row a scope and level, columns of `FINDINGS`."""
    blocks = []
    for claim in findings["claims"].values():
        rows = [
            [scope, str(len(found["plms"])), tasks, *_finding(found[level])]
            for scope, found in scopes_shown(claim).items()
            for level, tasks in LEVELS.items()
        ]
        name = f"{claim['statement'].rstrip('.')} ({claim['unit']})"
        blocks.append([[name if not index else "", *row] for index, row in enumerate(rows)])
    return blocks


def findings_markdown(findings: Mapping[str, Any]) -> str:
    """The main results of findings.json as a Markdown table, with what its numbers are."""
    lines: list[Sequence[str]] = [FINDINGS, ("---", "---", "---:", "---", "---:", "---:", "---:", "---")]
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
    """Estimate, interval, adjusted p, verdict."""
    if found["estimate"] is None:
        return ["not estimable", BLANK, BLANK, found["verdict"]]
    return [number(found["estimate"]), interval(found), p_value(found["p_adjusted"]), found["verdict"]]


def _about(findings: Mapping[str, Any]) -> str:
    margins = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in findings["margins"].items())
    return (
        "Each claim says that its quantity lies below 0. Estimates with 95 % intervals; p-values are adjusted for the "
        f"claims that are tested together (Holm). Margins: {margins}."
    )
