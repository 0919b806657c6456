"""Tables for a paper, in LaTeX with booktabs and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$", "²": "$^2$",
    "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", "θ": r"$\theta$",
}  # fmt: skip
"""Characters that LaTeX reads as commands, or does not know, and what prints them."""


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(SPECIAL.get(character, character) for character in text)


def latex_table(
    name: str, caption: str, align: str, head: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]]
) -> str:
    """A table in blocks of rows with a rule between them; entries, caption and head are LaTeX already."""
    body = "\\midrule\n".join("".join(f"{' & '.join(row)} \\\\\n" for row in block) for block in blocks)
    return (
        "% Needs booktabs.\n\\begin{table}\n\\centering\n\\small\n"
        f"\\caption{{{caption}}}\n\\label{{tab:{name}}}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n"
        f"{' & '.join(head)} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )
