"""The text of `apet power`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from apet.analysis.single_run import wilson
from apet.cli.render import table
from apet.core.text import plural
from apet.report.findings_text import LEVELS

if TYPE_CHECKING:  # importing it takes a second
    from apet.analysis.pilot import Assumptions

TRUTH_MEANINGS = {
    "plan_variance": "variance between plans (squared points)",
    "plan_change": "its change per tenfold increase in PLM size",
    "seed_sd": "S.D. between seeds of one plan (points)",
    "method_variance": "variance between the methods (squared points)",
    "method_change": "its change",
    "gain": "gain of informed placement (points)",
    "gain_change": "its change",
    "low": "log10 of parameters up to which APET is at chance",
    "high": "log10 of parameters from which APET matches full fine-tuning",
    "high_change": "its change",
    "chance": "chance (fraction)",
    "top": "score of full fine-tuning (fraction)",
    "row_shares": "share of a row, a plan on the row, a replicate on the row",
}
"""Field of `Truth` -> meaning."""


def assumption_lines(design: pd.DataFrame, assumptions: Assumptions, pilot: Path | None) -> list[str]:
    """Format a design and the truth that is assumed.

    Args:
        design: The cells.
        assumptions: The truth.
        pilot: The tidy table of the pilot, if there is one.

    Returns:
        Lines: a total, and a table of the assumptions.
    """
    replicates = int((design.num_plans * design.num_seeds).sum())
    counts = (plural(design[name].nunique(), noun) for name, noun in (("model", "PLM"), ("task", "task")))
    rows = [["assumed", "mean", "S.D. over tasks", "source"]]
    for name, meaning in TRUTH_MEANINGS.items():
        sd = _number(assumptions.task_sds[name]) if name in assumptions.task_sds else ""
        source = "pilot" if name in assumptions.estimated else "default"
        rows.append([meaning, _number(getattr(assumptions.truth, name)), sd, source])
    return [
        f"design: {', '.join(counts)}, {plural(len(design), 'cell')}, {plural(replicates, 'replicate')}; "
        f"pilot: {pilot or 'none'}",
        "",
        *table(rows),
    ]


def power_lines(counts: pd.DataFrame) -> list[str]:
    """Format the verdicts of simulated studies.

    Args:
        counts: The table that `summarize` returns.

    Returns:
        Lines: a table in per cent of the studies with 95 % intervals of the simulation (Wilson), and a note.
    """
    rows = [["claim", "scope", "effect", "true value", "supported", "contradicted", "undecided", "false verdicts"]]
    for row in counts.itertuples():
        shares = (row.supported, row.contradicted, row.undecided, row.false)
        texts = [_share(count, row.studies) for count in shares] if row.tested else ["not tested", "", "", ""]
        rows.append([row.claim, LEVELS[row.level], f"{row.effect:g}", _number(row.truth), *texts])
    studies = (
        f"{int(counts.studies.max()):,} simulated studies for each effect; in per cent of them, with 95 % intervals"
    )
    return [*table(rows), "", f"{studies}. A verdict needs p < 0.05 after Holm's correction over the claims."]


def _share(count: int, studies: int) -> str:
    low, high = wilson(count / studies, studies)
    return f"{100 * count / studies:.0f} ({100 * low:.0f}–{100 * high:.0f})"


def _number(value: float | tuple[float, ...]) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{number:.3g}".replace("-", "−") for number in values)
