"""Tables of text as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from apet.core.atomic import write_text

Rows = Sequence[Sequence[str]]
"""Rows of text. Tables have a block of rows per PLM or claim."""


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV with six significant digits."""
    write_text(path, table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))


def markdown_table(head: Sequence[str], align: str, blocks: Iterable[Rows], note: str) -> str:
    """Format a Markdown table with a note below it.

    Args:
        head: column heads.
        align: a letter l or r per column.
        blocks: rows.
        note: text below the table.

    Returns:
        Markdown.
    """
    rules = ["---:" if letter == "r" else "---" for letter in align]
    rows = [[text.replace("|", r"\|") for text in row] for block in blocks for row in block]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rules, *rows)) + f"\n{note}\n"


SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$", "²": "$^2$",
    "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", "∏": r"$\prod$", "·": r"$\cdot$", "θ": r"$\theta$",
}  # fmt: skip
"""LaTeX for characters that are commands in LaTeX or that it does not know."""


def escape(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(SPECIAL.get(character, character) for character in text)


def escaped(row: Sequence[str]) -> list[str]:
    """Escape the texts of a row for LaTeX."""
    return [escape(text) for text in row]


def escaped_rows(block: Rows) -> list[list[str]]:
    """Escape the texts of rows for LaTeX."""
    return [escaped(row) for row in block]


def latex_table(name: str, caption: str, align: str, head: Sequence[str], blocks: Iterable[Rows]) -> str:
    """Format a LaTeX table (booktabs) with a rule between blocks.

    Args:
        name: label without its prefix `tab:`.
        caption: LaTeX.
        align: column specification.
        head: LaTeX of the column heads.
        blocks: LaTeX of the rows.

    Returns:
        The table environment.
    """
    body = "\\midrule\n".join("".join(f"{' & '.join(row)} \\\\\n" for row in block) for block in blocks)
    return (
        "% Needs booktabs.\n\\begin{table}\n\\centering\n\\small\n"
        f"\\caption{{{caption}}}\n\\label{{tab:{name}}}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n"
        f"{' & '.join(head)} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
